"""The cores of this machine, and the processes that share them."""

import os


def count_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def worker_environment() -> dict[str, str]:
  """Returns the environment of one of several processes, a core for each."""
  return os.environ | {"RAYON_NUM_THREADS": "1"}
