"""Adapters (LoRA, DoRA): which matrices have one, and how they are attached.

Only adapters are trained, so they form a tree of their own: under the path of
each adapted matrix, lora_a and lora_b and, with DoRA, lora_magnitude. `attach`
joins them with the frozen parameters for the forward pass (ops/adapted.py).

Design choice: an expert is merged into W + scale * A B before the forward pass,
since a grouped matmul takes one array. For all other matrices the sum is never
computed.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import tree
from gpt_jax.config import AdapterConfig, InputError
from gpt_jax.ops import adapted, factored, quantized
from gpt_jax.ops.adapted import Adapted
from gpt_jax.ops.factored import Factored
from gpt_jax.ops.quantized import Quantized
from gpt_jax.parametrization import ParamSpec

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
# Roles of the matrices that can have an adapter, in layers and output heads.
ADAPTED = ("hidden", "residual")
TABLES = ("embed", "unembed")


def abstract_adapters(adapter: AdapterConfig, shapes: Any, specs: Any):
  """Returns (tree of ShapeDtypeStruct, the same tree of ParamSpec).

  Args:
    shapes, specs: of the frozen parameters.

  Raises:
    InputError: a pattern of adapter.rank matches no matrix, or a rank is larger
      than the smaller dim of its matrix.
  """
  named = tree.flatten_with_names(specs)
  leaves = tree.flatten_with_names(shapes)
  ranks = _find_ranks(adapter, named)
  arrays: dict = {}
  declared: dict = {}
  for name, rank in ranks.items():
    spec, shape = named[name], leaves[name].shape
    lead, split = _dims(spec)
    stacked, ins, outs = shape[:lead], shape[lead:split], shape[split:]
    _check_rank(adapter, name, rank, ins, outs)
    axes = spec.axes[:lead], spec.axes[lead:split], spec.axes[split:]
    num_in = math.prod(ins)
    # As in PEFT: the variance of a uniform draw from +-1 / sqrt(inputs).
    a = ParamSpec((*axes[0], *axes[1], None), A, std=(3 * num_in) ** -0.5)
    b = ParamSpec((*axes[0], None, *axes[2]), B)
    make = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    pair = {A: make(*stacked, *ins, rank), B: make(*stacked, rank, *outs)}
    own = {A: a, B: b}
    if adapter.kind == "dora":
      pair[MAGNITUDE] = make(*stacked, *outs)
      own[MAGNITUDE] = ParamSpec((*axes[0], *axes[2]), "norm")
    _put(arrays, name, pair)
    _put(declared, name, own)
  return arrays, declared


def attach(adapter: AdapterConfig, params: Any, adapters: Any, specs: Any):
  """Returns params with an Adapted in place of each adapted matrix.

  Args:
    params: frozen parameters, as arrays or as round_base returned them.
    adapters: tree of arrays with the structure of abstract_adapters.
    specs: tree of ParamSpec of params.
  """
  found = tree.flatten_with_names(adapters)

  def one(name, spec, leaf):
    if f"{name}/{A}" not in found:
      return leaf
    a, b = found[f"{name}/{A}"], found[f"{name}/{B}"]
    magnitude = found.get(f"{name}/{MAGNITUDE}")
    w = Adapted(leaf, a, b, adapter.alpha / a.shape[-1], magnitude)
    return adapted.merge(w) if "experts" in spec.axes else w

  return tree.map_with_names(one, specs, params)


def merge(params: Any):
  """Returns params with each Adapted, of an array, merged into one matrix."""
  is_adapted = lambda x: isinstance(x, Adapted)
  return jax.tree.map(adapted.merge, params, is_leaf=is_adapted)


def round_base(adapter: AdapterConfig, params: Any, specs: Any):
  """Returns the frozen parameters in the format that adapter.base names.

  The matrices of layers are quantized (QLoRA, Dettmers et al. 2023). Tables,
  heads, norms and latent attention, which multiplies per head, are not.
  """
  if adapter.base == "full":
    return params
  num_bits = int(adapter.base.removeprefix("int"))

  def one(leaf, spec):
    if not _is_rounded(spec):
      return leaf
    # Layer by layer: quantizing takes several float32 copies of a matrix.
    return jax.lax.map(
      lambda w: quantized.quantize(w, spec.role, num_bits, "any", True), leaf
    )

  return jax.tree.map(one, params, specs)


def abstract_rounded(adapter: AdapterConfig, shapes: Any, specs: Any):
  """Returns (tree of ShapeDtypeStruct, of ParamSpec) of round_base's result."""
  rounded = jax.eval_shape(lambda p: round_base(adapter, p, specs), shapes)
  return rounded, jax.tree.map(specify_rounded, specs, rounded)


def specify_rounded(spec: ParamSpec, leaf):
  """Returns a Quantized of ParamSpecs for a Quantized leaf; else its spec."""
  if not isinstance(leaf, Quantized):
    return spec
  lead, split = _dims(spec)
  if spec.role in TABLES:
    lead, split = 1, 0
  # Shard within groups: there may be fewer groups than devices.
  stacked = spec.axes[: leaf.scale_GF.ndim - 2]
  axes = *stacked, None, spec.axes[split], spec.axes[lead]
  return leaf.replace(
    values_GFC=spec.with_axes(axes), scale_GF=spec.with_axes(axes[:-1])
  )


def abstract_factored(percent: int, shapes: Any, specs: Any):
  """Returns (shapes, ParamSpecs) with a Factored for each matrix of a layer.

  Args:
    percent: size of the two factors, in percent of the matrix's weights.
  """

  def one(leaf, spec):
    if not _is_rounded(spec) or "experts" in spec.axes:
      return leaf, spec
    lead, split = _dims(spec)
    stacked, ins, outs = (
      leaf.shape[:lead],
      leaf.shape[lead:split],
      leaf.shape[split:],
    )
    D, F = math.prod(ins), math.prod(outs)
    rank = rank_of(D * F, D + F, percent)
    make = lambda *shape: jax.ShapeDtypeStruct(shape, leaf.dtype)
    axes = spec.axes
    return (
      Factored(make(*stacked, *ins, rank), make(*stacked, rank, *outs)),
      Factored(
        spec.with_axes((*axes[:split], None)),
        spec.with_axes((*axes[:lead], None, *axes[split:])),
      ),
    )

  leaves, structure = jax.tree.flatten(shapes)
  pairs = map(one, leaves, structure.flatten_up_to(specs))
  return tuple(map(structure.unflatten, zip(*pairs, strict=True)))


def rank_of(size: int, width: int, percent: int) -> int:
  """Returns the rank whose factors hold `percent` of a matrix's weights.

  Args:
    size, width: D * F and D + F of a matrix of D inputs and F outputs.
  """
  return max(1, percent * size // (100 * width))


def restore_base(params: Any, shapes: Any, specs: Any):
  """Returns params with each Quantized and each Factored restored to an array.

  The base of an Adapted is restored too.

  Args:
    shapes, specs: of the frozen parameters.
  """

  def one(leaf, spec, w):
    if isinstance(w, Adapted):
      return w.replace(base=one(leaf, spec, w.base))
    if isinstance(w, Factored):
      merge = factored.merge
      return jax.lax.map(merge, w) if spec.axes[0] == "layers" else merge(w)
    if not isinstance(w, Quantized):
      return w
    is_stacked = spec.axes[0] == "layers"
    shape = leaf.shape[is_stacked:]
    restore = lambda w: quantized.restore(w, spec.role, shape)
    cast = lambda w: restore(w).astype(leaf.dtype)
    return jax.lax.map(cast, w) if is_stacked else cast(w)

  return jax.tree.map(one, shapes, specs, params)


def _is_rounded(spec: ParamSpec) -> bool:
  is_stacked = spec.axes[:1] == ("layers",)
  return is_stacked and spec.role in ADAPTED and "latent" not in spec.axes


def _find_ranks(adapter: AdapterConfig, named: dict) -> dict[str, int]:
  """Returns {path of a matrix: rank} in the order of the parameters."""
  matrices = [name for name, spec in named.items() if spec.role in ADAPTED]
  ranks = tree.match_parts(
    "adapter.rank", adapter.rank.parts, matrices, "matrix of a layer"
  )
  return {name: ranks[name] for name in matrices if name in ranks}


def _dims(spec: ParamSpec) -> tuple[int, int]:
  """Returns where a matrix's input and output dims begin."""
  lead = sum(axis in ("layers", "experts") for axis in spec.axes)
  is_reading = spec.role == "hidden"
  return lead, lead + 1 if is_reading else len(spec.axes) - 1


def _check_rank(adapter: AdapterConfig, name: str, rank: int, ins, outs):
  most = min(math.prod(ins), math.prod(outs))
  if rank > most:
    raise InputError(
      f"adapter.rank is {adapter.rank!r}, and {name} is a matrix of "
      f"{math.prod(ins)} by {math.prod(outs)}; its rank must be at most {most}"
    )


def _put(nested: dict, name: str, value: dict) -> None:
  *path, last = name.split("/")
  for word in path:
    nested = nested.setdefault(word, {})
  nested[last] = value
