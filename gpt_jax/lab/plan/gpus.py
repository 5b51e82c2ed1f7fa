"""Describes GPUs that are not here to XLA's GPU compiler.

With the wheels of jax's CUDA plugin (extra `plan-gpu`) the compiler runs on any
machine. It cannot time kernels without the GPU, so matmuls become Triton
fusions where a real GPU may use cuBLAS instead.
"""

import dataclasses
import importlib.util

import jax

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime
from gpt_jax.machine.chips import Topology


@dataclasses.dataclass(frozen=True)
class Target:
  """What the compiler needs to know of a GPU.

  Attributes:
    name: as the driver reports it.
    capability: (major, minor), "compute capability".
    cores: number of streaming multiprocessors.
    fpus: number of float32 units in a core.
    shared_memory: bytes of shared memory of a core.
    optin_memory: bytes of shared memory that one block may ask for.
    l2: bytes of L2 cache.
    clock: GHz.
    bandwidth: bytes/s of HBM.
    memory: bytes of HBM that the driver reports.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  fpus: int
  shared_memory: int
  optin_memory: int
  l2: int
  clock: float
  bandwidth: int
  memory: int

  def to_text(self) -> str:
    """Returns a GpuTargetConfigProto in text form."""
    major, minor = self.capability
    info = {
      "threads_per_block_limit": 1024,
      "threads_per_warp": 32,
      "shared_memory_per_block": 49152,
      "shared_memory_per_core": self.shared_memory,
      "threads_per_core_limit": 2048,
      "core_count": self.cores,
      "fpus_per_core": self.fpus,
      "block_dim_limit_x": 2**31 - 1,
      "block_dim_limit_y": 65535,
      "block_dim_limit_z": 65535,
      "memory_bandwidth": self.bandwidth,
      "l2_cache_size": self.l2,
      "clock_rate_ghz": self.clock,
      "device_memory_size": self.memory,
      "shared_memory_per_block_optin": self.optin_memory,
      "registers_per_core_limit": 65536,
      "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{name}: {value}" for name, value in info.items())
    return (
      f"gpu_device_info {{ {fields} "
      f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
      'platform_name: "CUDA" '
      "dnn_version_info { major: 9 minor: 10 patch: 0 } "
      f'device_description_str: "{self.name}"'
    )


_HOPPER = {
  "capability": (9, 0),
  "cores": 132,
  "fpus": 128,
  "shared_memory": 233472,
  "optin_memory": 232448,
  "l2": 52428800,
  "clock": 1.98,
}
# By key of chips.CHIPS. Source: the specs of openxla/xla in
# xla/backends/gpu/target_config/specs.
TARGETS = {
  "a100": Target(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    fpus=64,
    shared_memory=167936,
    optin_memory=166912,
    l2=41943040,
    clock=1.41,
    bandwidth=2_039_040_000_000,
    memory=85_100_068_864,
  ),
  "h100": Target(
    name="NVIDIA H100 80GB HBM3",
    bandwidth=3_352_320_000_000,
    memory=84_942_979_072,
    **_HOPPER,
  ),
  "h200": Target(
    name="NVIDIA H200",
    bandwidth=4_800_000_000_000,
    memory=151_397_597_184,
    **_HOPPER,
  ),
  "b200": Target(
    name="NVIDIA B200",
    capability=(10, 0),
    cores=148,
    fpus=128,
    shared_memory=233472,
    optin_memory=232448,
    l2=132644864,
    clock=1.965,
    bandwidth=7_672_320_000_000,
    memory=191_514_411_008,
  ),
}


def has_compiler() -> bool:
  """Returns whether jax's CUDA plugin is installed."""
  return importlib.util.find_spec("jax_cuda13_plugin") is not None


def require_compiler(said: str = "") -> None:
  """Raises InputError unless the compiler is there and works.

  Args:
    said: the plugin's own error message, "" for none.
  """
  if said or not has_compiler():
    raise InputError(
      "compiling for GPUs needs jax's CUDA plugin, which is not installed "
      f"here: in the folder of this project, {files.pip('plan-gpu')}"
      + (f" ({said})" if said else "")
    )


def has_cudnn() -> bool:
  """Returns whether cuDNN, with which attention is compiled, is installed."""
  try:
    return importlib.util.find_spec("nvidia.cudnn") is not None
  except ModuleNotFoundError:  # there is no package `nvidia`
    return False


def require_cudnn() -> None:
  """Raises InputError unless cuDNN is installed."""
  if not has_cudnn():
    raise InputError(
      "a card computes attention with cuDNN, which is not installed here: in "
      f"the folder of this project, {files.pip('cuda')}"
    )


def choose_attention(config: Config) -> tuple[Config, str]:
  """Returns (the config to compile, a remark or "").

  Without cuDNN a step that would use it is compiled with `flash`.

  Raises:
    InputError: model.attention is cudnn, which is not installed.
  """
  model = config.model
  if has_cudnn() or model.attention not in ("auto", "cudnn"):
    return config, ""
  wanted = files.pip("cuda")
  if model.attention == "cudnn":
    raise InputError(
      "model.attention is cudnn, and cuDNN is not installed here: in the "
      f"folder of this project, {wanted}; or leave it auto"
    )
  if config_lib.cudnn_fault(model, config_lib.is_packed(config)):
    return config, ""
  model = dataclasses.replace(model, attention="flash")
  return dataclasses.replace(config, model=model), (
    "attention is compiled with model.attention=flash in place of cuDNN's "
    f"kernel, which is not installed: {wanted}"
  )


def find_devices(topology: Topology) -> list[jax.Device]:
  """Returns the compiler's devices for hosts of GPUs.

  Raises:
    InputError: the CUDA plugin is not installed.
  """
  from jax.experimental import topologies

  text = TARGETS[topology.the_chip().word].to_text()
  per_host = topology.num_chips // topology.num_slices
  try:
    with runtime.hush_stderr():
      found = topologies.get_topology_desc(
        platform="cuda",
        target_config=text,
        topology=f"1x{topology.num_slices}x{per_host}",
      )
  except Exception as error:  # the plugin raises classes of its own
    require_compiler(str(error).splitlines()[0] or "it failed")
    raise
  return found.devices
