"""Compiles the real train step for devices that are not here.

The mesh, the abstract state and the jitted step are those of a run, so the
compiler emits the same program as on the real slice.
"""

import contextlib
import dataclasses
import re
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.lab.plan import gpus
from gpt_jax.machine import runtime
from gpt_jax.machine.chips import Topology
from gpt_jax.training.build import Assembly

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step.

  Attributes:
    text: the HLO after all passes.
    memory: the compiler's memory analysis, in bytes on a device.
    seconds: compile time.
  """

  text: str
  memory: Any
  seconds: float

  @property
  def peak_bytes(self) -> int:
    m = self.memory
    return (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      - m.alias_size_in_bytes
      + m.temp_size_in_bytes
    )


class OutOfMemory(Exception):
  """The compiler refused a step that needs more memory than a device has.

  Attributes:
    needed: bytes by the compiler's count; None if it did not say.
    available: bytes that it would allow, or None.
    sentence: the first line of its message.
  """

  def __init__(self, needed, available, sentence: str):
    super().__init__(sentence)
    self.needed, self.available = needed, available
    self.sentence = sentence


def can_compile(topology: Topology) -> bool:
  """Returns whether a step for the topology is compiled, not estimated.

  GPUs without their compiler are estimated. A TPU without it is an error.
  """
  if topology.platform == "gpu":
    return gpus.has_compiler()
  return topology.platform == "tpu"


def find_devices(topology: Topology) -> list:
  """Returns the compiler's devices for a topology.

  Raises:
    InputError: the compiler is not installed, or does not accept the topology.
  """
  if topology.platform == "gpu":
    return gpus.find_devices(topology)
  from jax.experimental import topologies

  slices = {}
  if topology.num_slices > 1:
    slices["num_slices"] = topology.num_slices
  try:
    with runtime.hush_stderr():
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **slices
      )
  except Exception as error:  # the plugin raises classes of its own
    said = str(error).splitlines()[0]
    if "libtpu" in said or "No such" in said or "not found" in said.lower():
      raise InputError(
        "plans for TPUs need their compiler, which is not installed here: "
        f"in the folder of this project, {files.pip('tpu')} ({said})"
      ) from None
    raise InputError(
      f"the compiler does not accept topology {topology.name}: {said}"
    ) from None
  return found.devices


def compile_step(assembly: Assembly) -> Compiled:
  """Compiles the train step.

  Raises:
    OutOfMemory: the step needs more memory than a device has.
  """
  try:
    with _without_cache(), runtime.hush_stderr():
      compiled, seconds, _ = assembly.compile_step()
  except jax.errors.JaxRuntimeError as error:
    refusal = read_refusal(str(error))
    if refusal is None:
      raise
    raise refusal from None
  return Compiled(compiled.as_text(), compiled.memory_analysis(), seconds)


@contextlib.contextmanager
def _without_cache():
  """Disables the compilation cache, whose entries load only on real chips."""
  key = "jax_enable_compilation_cache"
  old = getattr(jax.config, key)
  jax.config.update(key, False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(key, old)
    compilation_cache.reset_cache()


def read_refusal(text: str) -> OutOfMemory | None:
  """Returns the OutOfMemory that an error's text describes, None for others."""
  if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
    return None
  size = r"([\d.]+)([KMGT]?)i?B?"
  number = lambda n, unit: int(float(n) * _UNITS[unit])
  found = re.search(rf"Used {size} of {size} hbm", text)
  if not found:
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)", text)
  needed, available = None, None
  if found:
    needed, available = number(*found.group(1, 2)), number(*found.group(3, 4))
  lines = [line for line in text.splitlines() if "Ran out" in line]
  return OutOfMemory(needed, available, (lines or text.splitlines())[0])
