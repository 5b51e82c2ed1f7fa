"""The machine: platform, devices, place among processes, caches, quiet logs.

The only reader of os.environ. `start` must run before anything imports jax.
"""

import contextlib
import ctypes
import dataclasses
import gc
import glob
import logging
import os
import secrets
import socket
import stat
import sys
import tempfile
import warnings
from typing import Any

from gpt_jax.config import InputError
from gpt_jax.machine import processor

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Place:
  """This process's place among the processes of a run, and where they meet.

  Attributes:
    address: "HOST:PORT" of process 0, as all processes know it.
    count: number of processes, 2 or more.
    index: of this process, from 0.
    local_devices: this machine's GPUs that this process uses; None: all.
    bind: "HOST:PORT" that process 0 listens at; None: see meeting.bind_host.
    join_seconds: how long the processes wait for each other.
    stuck_seconds: the least time without progress to count as stuck.
    secret: shared by the processes of this run alone; may be "".
  """

  address: str
  count: int
  index: int
  local_devices: list[int] | None
  bind: str | None
  join_seconds: float
  stuck_seconds: float
  secret: str

  @property
  def host(self) -> str:
    return self.address.rpartition(":")[0].strip("[]")

  @property
  def port(self) -> int:
    return int(self.address.rpartition(":")[2])


# Otherwise XLA schedules independent collectives on a CPU for concurrency.
# Simulated devices then enter them in different orders, wait for each other,
# and abort: in 6 of 11 runs of an encoder-decoder sharded over tensor.
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def start(devices: int | None = None) -> None:
  """Prepares the process for jax: call once, before anything imports it.

  Args:
    devices: number of devices to simulate on the CPU; None: unchanged.
  """
  # XLA's C++ code logs about CPU features and caches to the terminal.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  if devices:
    flags = os.environ.setdefault("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = " ".join([IN_ORDER, *flags.split(), count])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if not find_accelerator():
    # An installed libtpu would spend seconds looking for chips, and complain.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  # jax takes 3/4 of a GPU's memory unless told; the rest would lie idle.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
  cache = os.path.join(cache_dir(), "xla")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
  keep_freed_memory()
  collect_seldom()
  quiet_logs()


def make_team(count: int) -> list[dict[str, str]]:
  """Returns the environments of `count` processes of one run on this machine.

  A single process gets none of the variables in EXPLICIT.
  """
  base = dict(os.environ)
  for name in EXPLICIT:
    base.pop(name, None)
  if count == 1:
    return [base]
  with socket.create_server(("127.0.0.1", 0)) as server:
    base["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{server.getsockname()[1]}"
  base["JAX_NUM_PROCESSES"] = str(count)
  base["GPT_JAX_SECRET"] = secrets.token_hex()
  return [base | {"JAX_PROCESS_ID": str(index)} for index in range(count)]


def find_place() -> Place | None:
  """Returns this process's place among several; None if it is alone.

  Sources, in this order: the three variables of EXPLICIT; a SLURM step of more
  than one task; the hosts of a TPU.

  Raises:
    InputError: a variable is missing, malformed or contradicts another.
  """
  seconds = {
    "join_seconds": _positive("GPT_JAX_JOIN_SECONDS", 300.0),
    "stuck_seconds": stuck_seconds(),
    "secret": os.environ.get("GPT_JAX_SECRET", ""),
  }
  found = _find_explicit() or _find_slurm() or _find_tpu()
  if found is None:
    return None
  address, count, index, local = found
  if count < 2:
    return None
  bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or None
  return Place(address, count, index, local, bind, **seconds)


def stuck_seconds() -> float:
  """Returns the least time without progress to count as stuck, in seconds."""
  return _positive("GPT_JAX_STUCK_SECONDS", 600.0)


def _find_explicit():
  values = {name: os.environ.get(name, "") for name in EXPLICIT}
  missing = [name for name, value in values.items() if not value]
  if len(missing) == len(EXPLICIT):
    return None
  if missing:
    there = [name for name in EXPLICIT if name not in missing]
    raise InputError(
      f"{' and '.join(there)} set without {' and '.join(missing)}; several "
      "processes need all three, a single process none of them"
    )
  address, count, index = values.values()
  host, colon, port = address.rpartition(":")
  if not (host and colon and port.isascii() and port.isdigit()) or not (
    0 < int(port) < 1 << 16
  ):
    raise InputError(
      f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be HOST:PORT of "
      "process 0, for instance 10.0.0.1:1234"
    )
  count = _whole("JAX_NUM_PROCESSES", 1)
  index = _whole("JAX_PROCESS_ID", 0)
  if index >= count:
    raise InputError(
      f"JAX_PROCESS_ID is {index} and JAX_NUM_PROCESSES is {count}; ids count "
      f"from 0 to {count - 1}"
    )
  return address, count, index, None


def _find_slurm():
  # Set by srun only: a batch script without it is one process.
  if not os.environ.get("SLURM_STEP_NUM_TASKS"):
    return None
  count = _whole("SLURM_STEP_NUM_TASKS", 1)
  if count < 2:
    return None
  from jax._src.clusters.slurm_cluster import SlurmCluster

  port = os.environ.get("JAX_COORDINATOR_PORT")
  try:
    address = SlurmCluster.get_coordinator_address(None, port)
    # With several tasks on a machine each uses the GPU of its local id, unless
    # SLURM shows it one GPU only; a single task uses all GPUs.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "2").split("(")[0]
    is_shared = tasks != "1" and len(seen) > 1
    local = [_whole("SLURM_LOCALID", 0)] if is_shared else None
  except KeyError as error:
    raise InputError(
      f"SLURM_STEP_NUM_TASKS is {count} and {error.args[0]} is not set; start "
      "the processes with srun"
    ) from None
  return address, count, _whole("SLURM_PROCID", 0), local


def _find_tpu():
  devices = ("/dev/accel*", "/dev/vfio/[0-9]*")
  is_asked = os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] == "tpu"
  if not is_asked or not any(map(glob.glob, devices)):
    return None
  from jax._src.clusters import cloud_tpu_cluster

  kinds = cloud_tpu_cluster.GkeTpuCluster, cloud_tpu_cluster.GceTpuCluster
  port = os.environ.get("JAX_COORDINATOR_PORT")
  wait = int(_positive("GPT_JAX_JOIN_SECONDS", 300.0))
  try:
    for kind in kinds:
      if kind.is_env_present():
        count = kind.get_process_count()
        if count < 2:
          return None
        address = kind.get_coordinator_address(wait, port)
        return address, count, kind.get_process_id(), None
  except (OSError, RuntimeError, ValueError) as error:
    # The metadata server fails, a host name does not resolve, or the list of
    # hosts is malformed.
    raise InputError(
      f"the hosts of this TPU cannot be found: {error}; set "
      f"{', '.join(EXPLICIT)}, or JAX_PLATFORMS=cpu"
    ) from None
  return None


def _whole(name: str, least: int) -> int:
  text = os.environ.get(name, "")
  if not (text.isascii() and text.isdigit() and int(text) >= least):
    found = repr(text) if text else "not set"
    raise InputError(
      f"{name} is {found}; it must be a whole number, {least} or more"
    )
  return int(text)


def _positive(name: str, default: float) -> float:
  text = os.environ.get(name) or str(default)
  try:
    value = float(text)
    if not 0 < value < 1e7:
      raise ValueError
  except ValueError:
    raise InputError(
      f"{name} is {text!r}; it must be a number of seconds above 0"
    ) from None
  return value


def start_compiler(platform: str) -> None:
  """Prepares jax to compile for chips that are not here; after `start`.

  Args:
    platform: tpu, gpu or cpu.
  """
  if platform == "tpu":
    start_tpu_compiler()
  elif platform == "gpu":
    # The host's own device; the compiler's devices come from the plugin.
    os.environ["JAX_PLATFORMS"] = "cpu"


def start_harness(is_quiet: bool) -> None:
  """Stops lm_eval from forking beside jax's threads; is_quiet: hides bars."""
  os.environ["DISABLE_MULTIPROC"] = "1"
  if is_quiet:
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def start_tpu_compiler() -> None:
  """Prepares libtpu to compile for slices without a TPU; call after `start`.

  libtpu would otherwise query the network for its slice and hold a lock for
  chips that are never used.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


@contextlib.contextmanager
def hush_stderr():
  """Captures standard error, also of C++; yields a function that returns it."""
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
  """Returns whether this machine may have a device other than its CPU.

  Looks for the device files of TPUs and of NVIDIA and AMD GPUs. On systems
  other than Linux it is true, so that jax looks for itself.
  """
  patterns = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")
  return sys.platform != "linux" or any(
    glob.glob(os.path.join("/dev", pattern)) for pattern in patterns
  )


def memory_bytes(mesh: Any) -> tuple[int | None, int]:
  """Returns (bytes of memory, number of local mesh devices that share them).

  An accelerator has its own memory; the devices of a CPU share the machine's.
  None if the size is unknown.
  """
  import jax

  here = jax.process_index()
  local = [d for d in mesh.devices.flat if d.process_index == here]
  if local[0].platform != "cpu":
    stats = local[0].memory_stats() or {}
    return stats.get("bytes_limit"), 1
  try:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError):
    return None, len(local)
  return (pages if pages > 0 else None), len(local)


def keep_freed_memory() -> None:
  """Tells glibc to keep freed memory instead of returning it to the system.

  A CPU step allocates its temporaries anew; if returned in between, they cost
  a page fault per 4 KiB: a quarter of the step's time. One arena, because those
  of other threads than the main one cannot grow large enough.
  """
  libc = ctypes.CDLL(None)
  if sys.platform == "linux" and hasattr(libc, "mallopt"):
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def collect_seldom() -> None:
  """Makes Python's cyclic garbage collector run less often.

  Tracing a model makes millions of objects, nearly all of which stay alive. By
  default Python scans the youngest after every 700 new objects, older ones
  after every 7,000, and so on: 7 % of the tests' time.
  """
  gc.set_threshold(20_000, 20, 50)


def give_back_memory() -> None:
  """Returns free memory to the system: after compiling or other bulk work.

  Compiling leaves thousands of small holes in the heap. glibc would search
  them at each allocation, which takes 5 % of a small step, so they are
  allocated here for good; their pages are not backed by memory.
  """
  libc = ctypes.CDLL(None)
  if sys.platform != "linux" or not hasattr(libc, "mallinfo2"):
    return
  libc.mallinfo2.restype = _MallocInfo
  libc.malloc.restype = ctypes.c_void_p
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  libc.malloc_trim(0)
  # Allocate at most what is free: with another (preloaded) allocator, the order
  # of addresses would not end the loop.
  left = libc.mallinfo2().fordblks
  # Larger than nearly any hole, so its address is behind all of them.
  end = libc.malloc(1 << 28)
  libc.free(end)
  size = 1 << 24
  while end is not None and size >= 1 << 10:
    hole = libc.malloc(size) if size <= left else None
    if hole is None or hole >= end:
      libc.free(hole)
      size = size * 3 // 4
    else:
      left -= size


class _MallocInfo(ctypes.Structure):
  """The struct mallinfo2 of glibc 2.33; bytes or numbers of chunks."""

  _fields_ = [
    (name, ctypes.c_size_t)
    for name in (
      "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
      "keepcost"
    ).split()
  ]


def cache_dir() -> str:
  """Returns the folder of compiled programs, which may be deleted any time."""
  base = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(base):
    base = os.path.expanduser("~/.cache")
  if os.path.isabs(base):
    return os.path.join(base, "gpt_jax")
  # A user without a home, as in a container. Programs from this folder are
  # executed, so nobody else may be able to write to it.
  folder = os.path.join(tempfile.gettempdir(), f"gpt_jax-{os.getuid()}")
  with contextlib.suppress(OSError):
    os.mkdir(folder, 0o700)
  found = os.lstat(folder)
  is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
  if is_ours and not found.st_mode & 0o022:
    return folder
  return tempfile.mkdtemp(prefix="gpt_jax-")


def compile_facts() -> dict[str, str]:
  """Returns what compiled programs depend on: variables, Python, the CPU."""
  prefixes = "XLA_", "JAX_", "LIBTPU_"
  facts = {k: v for k, v in os.environ.items() if k.startswith(prefixes)}
  facts |= {"python": sys.version, "processors": str(os.cpu_count())}
  own = processor.read()
  return facts | {key: own.get(key, "") for key in ("model name", "flags")}


def quiet_tokenizers() -> None:
  """Stops the tokenizers library from warning when a process forks."""
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_logs() -> None:
  """Silences the logs and warnings of libraries, except for errors."""
  for name in ("absl", "jax", "orbax", "grain", "tensorstore"):
    logging.getLogger(name).setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", module=r"(jax|flax|orbax|grain|absl)\b")


def is_terminal(stream: Any) -> bool:
  """Returns whether this stream is a terminal that can show a bar."""
  return stream.isatty() and os.environ.get("TERM") != "dumb"


def environment_without(prefix: str) -> dict[str, str]:
  """Returns the environment without the names that begin with `prefix`."""
  return {k: v for k, v in os.environ.items() if not k.startswith(prefix)}
