"""Calibration: the Gram matrix X X^T of each matrix's inputs on a text.

Here a model's layers are unstacked ("blocks_3/attn/q"), and each matrix is F
outputs by D inputs.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.config.options import Remat
from gpt_jax.models import Model
from gpt_jax.ops.observed import Observed
from gpt_jax.ops.quantized import split_dims

# Roles of the matrices of layers.
ROLES = ("hidden", "residual")
# Number of rows in a forward pass.
BATCH = 16


def apart(model: Model) -> Model:
  """Returns the model with unstacked layers and without rematerialization."""
  own = dataclasses.replace(
    model.config, scan_layers=False, remat=Remat("none")
  )
  return dataclasses.replace(model, config=own)


def list_matrices(model: Model, params: Any) -> dict[str, str]:
  """Returns {name: role} of the matrices of layers, in order.

  Args:
    params: with unstacked layers.
  """
  specs = tree.flatten_with_names(model.abstract_params()[1])
  roles = {}
  for name in tree.flatten_with_names(params):
    spec = specs[re.sub(r"^(\w+)_\d+/", r"\1/", name)]
    is_plain = not {"latent", "experts"} & set(spec.axes)
    if name not in specs and spec.role in ROLES and is_plain:
      roles[name] = spec.role
  return roles


def draw_rows(tokens: Any, count: int, seq_len: int, seed: int) -> np.ndarray:
  """Returns `count` rows of T ids, from random places of a set.

  Raises:
    InputError: the text is shorter than a row.
  """
  last = tokens.num_ids - seq_len
  if last < 0:
    raise InputError(
      f"the text of --calibrate has {tokens.num_ids} tokens and a row is "
      f"{seq_len}; give a longer one"
    )
  starts = np.random.default_rng(seed).integers(0, last + 1, count)
  return np.stack([tokens.read(s, s + seq_len) for s in starts])


def find_grams(model: Model, params: Any, rows_BT) -> dict[str, np.ndarray]:
  """Returns {name: gram_DD float64}, summed over all tokens of the rows.

  Args:
    model, params: with unstacked layers.
  """
  total: dict[str, np.ndarray] = {}
  for start in range(0, len(rows_BT), BATCH):
    rows = jnp.asarray(rows_BT[start : start + BATCH], jnp.int32)
    for name, gram in _compile(model)(params, rows).items():
      total[name] = total.get(name, 0) + np.asarray(gram, np.float64)
  return total


@functools.cache
def _compile(model: Model):
  def grams(params, rows_BT):
    found = {}

    def watch(name, w):
      if name not in roles:
        return w

      def take(x_LD):
        x_LD = x_LD.astype(jnp.float32)
        found[name] = x_LD.T @ x_LD

      return Observed(w, take)

    roles = list_matrices(model, params)
    model.apply(tree.map_with_names(watch, params), rows_BT)
    return found

  return jax.jit(grams)


def by_rows(w, role: str) -> np.ndarray:
  """Returns w_FD float32, a row for each output."""
  return np.asarray(split_dims(w, role)[0], np.float32)


def from_rows(w_FD: np.ndarray, like, role: str):
  """Returns the inverse of by_rows, with the shape and dtype of `like`."""
  assert role in ROLES
  return jnp.asarray(w_FD.T.reshape(like.shape), like.dtype)
