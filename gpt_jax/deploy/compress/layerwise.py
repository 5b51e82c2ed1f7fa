"""Changes a model's matrices layer by layer, each by its own inputs.

A layer's inputs are computed with the layers before it already changed (Frantar
et al. 2023, section 4), so that it makes up for some of their errors.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import tree
from gpt_jax.deploy.compress import calibrate
from gpt_jax.models import Model, stack


def refit(
  model: Model, params: Any, rows_BT: np.ndarray | None, fit: Callable
) -> Any:
  """Returns the parameters, stacked, with each matrix replaced by `fit`'s.

  Args:
    params: stacked.
    rows_BT: ids of calibration text, or None.
    fit: (matrix, role, gram_DD of its inputs, or None without rows_BT) -> (what
      is stored in its place, the array that this stands for, with which the
      inputs of later layers are computed).
  """
  own = calibrate.apart(model)
  work = stack.unstack_layers(params, model.stacks)
  roles, stored = calibrate.list_matrices(own, work), {}
  for block in blocks_of(roles):
    grams = {}
    if rows_BT is not None:
      grams = calibrate.find_grams(own, work, rows_BT)
    for name in (n for n in roles if n.startswith(f"{block}/")):
      old = leaf_of(work, name)
      stored[name], new = fit(old, roles[name], grams.get(name))
      # Placed as before, the layers share one compiled program.
      work = put_leaf(work, name, jax.device_put(new, old.sharding))
  work = tree.map_with_names(lambda name, w: stored.get(name, w), work)
  return stack.stack_layers(work, model.stacks)


def blocks_of(names) -> list[str]:
  """Returns the names of the layers, in order."""
  blocks = {name.partition("/")[0] for name in names}
  return sorted(blocks, key=lambda b: (b.rpartition("_")[0], _number(b)))


def has_leaf(params: Any, name: str) -> bool:
  for word in name.split("/"):
    if word not in params:
      return False
    params = params[word]
  return True


def leaf_of(params: Any, name: str):
  """Returns the array at "a/b" of nested dicts."""
  for word in name.split("/"):
    params = params[word]
  return params


def put_leaf(params: Any, name: str, leaf: Any):
  """Returns nested dicts with another leaf at "a/b"."""
  word, _, rest = name.partition("/")
  return params | {word: put_leaf(params[word], rest, leaf) if rest else leaf}


def _number(block: str) -> int:
  return int(block.rpartition("_")[2])
