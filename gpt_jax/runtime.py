"""The machine: platform, simulated devices, compilation cache, quiet logs.

The one reader of os.environ. `start` must run before jax is imported anywhere.
"""

import contextlib
import ctypes
import glob
import logging
import os
import sys
import tempfile
import warnings


def start(devices: int | None = None) -> None:
  """Prepares the process for jax: call once, before anything imports it.

  Args:
    devices: pretend that the CPU is this many devices; None leaves it alone.
  """
  # XLA's C++ side logs about CPU features and caches to the terminal.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  if devices:
    flags = os.environ.setdefault("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if not find_accelerator():
    # An installed libtpu would look for its chips for seconds, and complain.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  cache = os.path.join(cache_dir(), "xla")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
  keep_freed_memory()
  quiet_logs()


def start_tpu_compiler() -> None:
  """Prepares libtpu to compile for slices that are not here; after `start`.

  It would otherwise ask the network which slice it is on, and hold a lock that
  is there for chips, of which none are touched.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Another program's cache: what is read from it has no memory analysis.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


@contextlib.contextmanager
def hush_stderr():
  """Keeps what C++ writes to standard error; yields a function that reads it.

  Python's own errors are raised as ever.
  """
  with tempfile.TemporaryFile() as kept:
    sys.stderr.flush()
    old = os.dup(2)
    os.dup2(kept.fileno(), 2)

    def read() -> str:
      kept.seek(0)
      return kept.read().decode(errors="replace")

    try:
      yield read
    finally:
      os.dup2(old, 2)
      os.close(old)


def find_accelerator() -> bool:
  """Returns whether this machine has a device other than its CPU.

  Known by the device files of TPUs, NVIDIA's and AMD's GPUs; on a system other
  than Linux jax is left to look for itself.
  """
  patterns = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")
  return sys.platform != "linux" or any(
    glob.glob(os.path.join("/dev", pattern)) for pattern in patterns
  )


def keep_freed_memory() -> None:
  """Lets the C library keep what it frees, where it is glibc.

  A CPU step allocates its temporaries anew each time; given back to the system
  in between, they cost a page fault for every 4 KiB: a quarter of a step. One
  arena, for those of threads other than the main one cannot grow that far.
  """
  libc = ctypes.CDLL(None)
  if sys.platform == "linux" and hasattr(libc, "mallopt"):
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def give_back_memory() -> None:
  """Returns to the system what is free now: after what needed much, once."""
  libc = ctypes.CDLL(None)
  if sys.platform == "linux" and hasattr(libc, "malloc_trim"):
    libc.malloc_trim(0)


def cache_dir() -> str:
  """Returns the folder for what can be made again: compiled programs."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(base, "gpt_jax")


def quiet_tokenizers() -> None:
  """Keeps the tokenizers library from warning once processes are forked."""
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_logs() -> None:
  """Keeps library chatter off the terminal; errors still come through."""
  for name in ("absl", "jax", "orbax", "grain", "tensorstore"):
    logging.getLogger(name).setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", module=r"(jax|flax|orbax|grain|absl)\b")


def is_terminal(stream) -> bool:
  """Returns whether a person is watching this stream."""
  return stream.isatty() and os.environ.get("TERM") != "dumb"
