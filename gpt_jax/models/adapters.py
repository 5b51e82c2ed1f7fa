"""Adapters: which matrices have one, their declarations, and their place.

Only adapters are learned, so they are a tree of their own: under the path of a
matrix, lora_a and lora_b, and DoRA's lora_magnitude. `attach` puts them beside
the frozen parameters where a forward pass finds both (ops/adapted.py).

Design choice: experts get their sum W + scale * A B before the pass, since a
grouped product takes one array; all other matrices never meet their sum.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import tree
from gpt_jax.config import AdapterConfig, InputError
from gpt_jax.ops import adapted
from gpt_jax.ops.adapted import Adapted
from gpt_jax.parametrization import ParamSpec

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
# Roles of the matrices that can have an adapter: those of layers, and of heads.
ADAPTED = ("hidden", "residual")


def abstract_adapters(adapter: AdapterConfig, shapes: Any, specs: Any):
  """Returns (tree of ShapeDtypeStruct, the same tree of ParamSpec).

  Args:
    shapes, specs: of the frozen parameters.

  Raises:
    InputError: a pattern matches no matrix, or a rank is larger than one.
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
    # The variance of a uniform draw from +-1 / sqrt(inputs), as PEFT makes.
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
  """Returns the parameters, with an Adapted in place of adapted matrices.

  Args:
    params: the frozen ones.
    adapters: arrays like abstract_adapters.
    specs: of params.
  """
  found = tree.flatten_with_names(adapters)

  def one(name, leaf, spec):
    if f"{name}/{A}" not in found:
      return leaf
    a, b = found[f"{name}/{A}"], found[f"{name}/{B}"]
    magnitude = found.get(f"{name}/{MAGNITUDE}")
    w = Adapted(leaf, a, b, adapter.alpha / a.shape[-1], magnitude)
    return adapted.merge(w) if "experts" in spec.axes else w

  return tree.map_with_names(one, params, specs)


def merge(params: Any):
  """Returns params in which each Adapted is one matrix."""
  is_adapted = lambda x: isinstance(x, Adapted)
  return jax.tree.map(adapted.merge, params, is_leaf=is_adapted)


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
