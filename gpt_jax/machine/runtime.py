"""The machine: platform, devices, place among processes, caches, quiet logs.

The one reader of os.environ. `start` must run before jax is imported anywhere.
"""

import contextlib
import ctypes
import dataclasses
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

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process this is, of how many, and where they meet.

  Attributes:
    address: "HOST:PORT" of process 0, as all processes know it.
    count: how many there are, 2 or more.
    index: which one this is, from 0.
    local_devices: the GPUs of this machine that are this process's; None: all.
    bind: "HOST:PORT" that process 0 listens at; None: PORT of any interface.
    join_seconds: how long they wait for each other.
    stuck_seconds: how long one may make no progress, at least.
    secret: what the processes know of each other and nobody else; may be "".
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
  # jax takes 3/4 of a GPU's memory unless told; the rest would lie idle.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
  cache = os.path.join(cache_dir(), "xla")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
  keep_freed_memory()
  quiet_logs()


def make_team(count: int) -> list[dict[str, str]]:
  """Returns the environments in which `count` processes here find each other.

  One process gets none of the variables.
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
  """Returns this process's place among several; None where it is alone.

  Looked for in this order: the three variables of EXPLICIT; a step of SLURM
  with more than one task; the hosts of a TPU.

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
  """Returns how long a run may make no progress, at least."""
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
      "processes need all three, one process none of them"
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
  # Only srun sets it: a batch script alone is one process.
  if not os.environ.get("SLURM_STEP_NUM_TASKS"):
    return None
  count = _whole("SLURM_STEP_NUM_TASKS", 1)
  if count < 2:
    return None
  from jax._src.clusters.slurm_cluster import SlurmCluster

  port = os.environ.get("JAX_COORDINATOR_PORT")
  try:
    address = SlurmCluster.get_coordinator_address(None, port)
    # Each task of a machine has a GPU of its own, unless SLURM shows it but
    # one; a machine's only task has all of them.
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
    # Of the metadata server, of a name that does not come, of a list of hosts.
    raise InputError(
      f"the hosts of this TPU cannot be found: {error}; set "
      f"{', '.join(EXPLICIT)} instead, or JAX_PLATFORMS=cpu"
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


def memory_bytes(mesh: Any) -> tuple[int | None, int]:
  """Returns (bytes of memory, devices of the mesh here that share them).

  An accelerator has its own; the devices of a CPU share the machine's. None
  where nobody says.
  """
  local = [d for d in mesh.devices.flat if d.process_index == _process_index()]
  if local[0].platform != "cpu":
    stats = local[0].memory_stats() or {}
    return stats.get("bytes_limit"), 1
  try:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError):
    return None, len(local)
  return (pages if pages > 0 else None), len(local)


def _process_index() -> int:
  import jax

  return jax.process_index()


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
  """Returns to the system what is free now: after compiling, or other bulk.

  Compiling leaves thousands of holes between what stays, which glibc searches
  whenever a step allocates: 5 % of a small one. So they are held, empty.
  """
  libc = ctypes.CDLL(None)
  if sys.platform != "linux" or not hasattr(libc, "mallinfo2"):
    return
  libc.mallinfo2.restype = _MallocInfo
  libc.malloc.restype = ctypes.c_void_p
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  libc.malloc_trim(0)
  # No more than is free: another allocator, preloaded, has no order of places.
  left = libc.mallinfo2().fordblks
  # Larger than nearly any hole, so it lies behind the last one.
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
  """What mallinfo2 of glibc 2.33 returns, in bytes or pieces."""

  _fields_ = [
    (name, ctypes.c_size_t)
    for name in (
      "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
      "keepcost"
    ).split()
  ]


def cache_dir() -> str:
  """Returns the folder for what can be made again: compiled programs."""
  base = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(base):
    base = os.path.expanduser("~/.cache")
  if os.path.isabs(base):
    return os.path.join(base, "gpt_jax")
  # A user without a home or a name, as in a container. Programs are run from
  # there: it must be nobody else's.
  folder = os.path.join(tempfile.gettempdir(), f"gpt_jax-{os.getuid()}")
  with contextlib.suppress(OSError):
    os.mkdir(folder, 0o700)
  found = os.lstat(folder)
  is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
  if is_ours and not found.st_mode & 0o022:
    return folder
  return tempfile.mkdtemp(prefix="gpt_jax-")


def quiet_tokenizers() -> None:
  """Keeps the tokenizers library from warning once processes are forked."""
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_logs() -> None:
  """Keeps library chatter off the terminal; errors still come through."""
  for name in ("absl", "jax", "orbax", "grain", "tensorstore"):
    logging.getLogger(name).setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", module=r"(jax|flax|orbax|grain|absl)\b")


def is_terminal(stream: Any) -> bool:
  """Returns whether a person is watching this stream."""
  return stream.isatty() and os.environ.get("TERM") != "dumb"


def environment_without(prefix: str) -> dict[str, str]:
  """Returns the environment, names that begin with `prefix` left out."""
  return {k: v for k, v in os.environ.items() if not k.startswith(prefix)}
