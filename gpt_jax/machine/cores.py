"""The cores of this machine, and the processes that share them."""

import ctypes
import os
from collections.abc import Collection
from typing import Any


def count_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def are_simulated(devices: Collection[Any]) -> bool:
  """Returns whether several of this process's devices are one CPU.

  They share few threads: of two programs in flight, each can hold threads that
  the other needs in a collective. So each program is waited for.
  """
  return len(devices) > 1 and next(iter(devices)).platform == "cpu"


def worker_environment() -> dict[str, str]:
  """Returns the environment of one of several processes, a core for each.

  What a process frees goes back to the system: arrow's own pool, and malloc for
  what is smaller than some megabytes, would hold it for the next batch, in each
  of them. Where malloc is not glibc's, its variable means nothing.
  """
  frugal = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
  }
  return frugal | os.environ | {"RAYON_NUM_THREADS": "1"}


def give_back() -> None:
  """Returns to the system what this process has freed, where glibc can.

  Texts of many lengths leave holes in the heap, of which each batch fills some:
  half a megabyte more for each row group of a large file.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
