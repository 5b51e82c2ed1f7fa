"""Splits the peak memory of a device during a step by kind.

The compiler gives the sum and the size of the state. Gradients follow from the
state's shardings, activations are read from the compiled loop over layers, and
temporaries are the rest.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from gpt_jax.lab.plan import hlo


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device, and how each figure was found.

  Attributes:
    kinds: {kind: bytes}; they add up to `peak`.
    origin: {kind: "exact" | "compiled" | "derived" | "estimated"}.
    peak: total bytes at the moment of the highest use.
    available: bytes that a program may use, None if unknown.
    host: bytes that are offloaded to the host's memory.
  """

  kinds: dict[str, int]
  origin: dict[str, str]
  peak: int
  available: int | None
  host: int = 0

  @property
  def fits(self) -> bool:
    return self.available is None or self.peak <= self.available


# Parts of a state that are parameters, the frozen ones last.
PARAMETERS = ("params", "base", "teacher")


def shard_bytes(tree, dtype=None) -> int:
  """Returns the bytes of one device's shards of a tree of abstract arrays."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.sharding.shard_shape(leaf.shape)
    total += math.prod(shape) * jnp.dtype(dtype or leaf.dtype).itemsize
  return total


def gradient_bytes(built) -> int:
  """Returns the bytes of one device's gradients."""
  is_summed = built.config.train.num_microbatches > 1
  kept = "float32" if is_summed else None
  return shard_bytes(built.learned, kept)


def split(built, compiled, module: hlo.Module, available) -> Memory:
  """Returns the Memory of a compiled step."""
  peak = compiled.peak_bytes
  parameters = shard_bytes([getattr(built.abstract, p) for p in PARAMETERS])
  moments = shard_bytes(built.abstract.opt_state)
  rest = compiled.memory.argument_size_in_bytes - parameters - moments
  temporary = peak - compiled.memory.argument_size_in_bytes
  layers = built.config.model.num_layers
  found = min(activation_bytes(module, layers), temporary)
  gradients = min(gradient_bytes(built), temporary - found)
  kinds = {
    "parameters": parameters,
    "moments": moments,
    "batch and padding": rest,
    "gradients": gradients,
    "activations": found,
    "temporaries": temporary - found - gradients,
  }
  origin = dict.fromkeys(kinds, "derived")
  origin |= {"parameters": "exact", "moments": "exact"}
  origin["batch and padding"] = "compiled"
  if not found:
    # Without a scan over layers there are no stacked arrays to recognise.
    del kinds["activations"], origin["activations"]
    kinds["activations and temporaries"] = kinds.pop("temporaries")
    origin["activations and temporaries"] = origin.pop("temporaries")
  host = compiled.memory.host_temp_size_in_bytes
  return Memory(kinds, origin, peak, available, host)


def activation_bytes(module: hlo.Module, num_layers: int) -> int:
  """Returns bytes that the forward loop over layers stores for backward.

  These are the arrays in the loop's state that the body changes and whose first
  dim is num_layers.
  """
  best = 0
  for computation in module.computations.values():
    for loop in computation.instructions.values():
      name = loop.op_name
      if loop.opcode != "while" or "transpose(" in name or "jvp(" not in name:
        continue
      best = max(best, _stacked_bytes(module, computation, loop, num_layers))
  return int(best)


def _stacked_bytes(module, computation, loop, num_layers: int) -> float:
  root = module.computations[loop.called("body")].root
  inner = module.computations[loop.called("body")].instructions
  if root.opcode != "tuple":
    return 0.0
  total = 0.0
  for index, (name, array) in enumerate(
    zip(root.operands, loop.arrays, strict=False)
  ):
    source = inner.get(name)
    if source is None or array.space != 0 or len(array.dims) < 2:
      continue
    is_handed_on = source.opcode == "get-tuple-element" and source.attribute(
      "index"
    ) == str(index)
    if array.dims[0] == num_layers and not is_handed_on:
      total += array.bytes
  return total
