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
  """Returns whether this process has several devices that simulate one CPU.

  Such devices share few threads: of two programs in flight, each can hold
  threads that the other needs in a collective. So callers wait for each program
  before they start the next.
  """
  return len(devices) > 1 and next(iter(devices)).platform == "cpu"


def worker_environment() -> dict[str, str]:
  """Returns the environment of a worker process that uses one core.

  It makes a worker return freed memory to the system. Otherwise arrow's own
  pool, and malloc for blocks below some megabytes, would keep it for the next
  batch in every worker. Without glibc, the variable of malloc has no effect.
  """
  frugal = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
  }
  return frugal | os.environ | {"RAYON_NUM_THREADS": "1"}


def give_back() -> None:
  """Returns this process's freed memory to the system, if glibc is used.

  Texts of different lengths leave holes in the heap, and a batch fills only
  some of them: the heap grows by .5 MB for each row group of a large file.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
