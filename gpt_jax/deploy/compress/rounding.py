"""Matrices in int8 or int4: to nearest, by GPTQ, or scaled first as in AWQ.

Tables are in int8, to nearest, whatever the method: a row is read alone, so
that no other weight can make up for its error.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import ModelConfig
from gpt_jax.deploy.compress import calibrate, gptq, layerwise
from gpt_jax.deploy.compress.layerwise import (
  blocks_of,
  has_leaf,
  leaf_of,
  put_leaf,
)
from gpt_jax.models import Model, stack
from gpt_jax.models.adapters import TABLES
from gpt_jax.ops import quantized

# Powers of an input's size that AWQ tries (Lin et al. 2024, equation 5).
POWERS = np.linspace(0, 1, 21)


def round_gptq(model: Model, params: Any, rows_BT: np.ndarray):
  """Returns the parameters with a Quantized for each matrix.

  Args:
    model: its weights name the format.
    params: stacked.
    rows_BT: ids of calibration text.
  """
  num_bits = int(model.weights.removeprefix("int"))

  def fit(w, role, gram_DD):
    w_FD = calibrate.by_rows(w, role)
    bits, C = quantized.grid_of(w_FD.shape, num_bits)
    found = gptq.quantize(w_FD, gram_DD, bits, C)
    small = pack(found, w, role, bits, model.platform)
    return small, calibrate.from_rows(gptq.restore(*found), w, role)

  tables = model.restore_matrices(_round_tables(model, params))
  return _round_tables(model, layerwise.refit(model, tables, rows_BT, fit))


def round_scaled(model: Model, params: Any, rows_BT: np.ndarray):
  """Returns parameters rounded to nearest, after scaling inputs as in AWQ.

  AWQ (Lin et al. 2024): (x / s) (s W) equals x W, but its rounding error is
  smaller if s is large for large inputs. s is the root mean square of an input
  to a power, the one of POWERS with the least error on the calibration text.
  The array that produced the input is divided by s: a norm's scale, the values'
  matrix, the linear half of a gated MLP. Design choice: matrices are scaled
  only where dividing by s commutes with all functions in between.
  """
  own = calibrate.apart(model)
  num_bits = int(model.weights.removeprefix("int"))
  work = stack.unstack_layers(params, model.stacks)
  roles = calibrate.list_matrices(own, work)
  grams = calibrate.find_grams(own, work, rows_BT)
  for block in blocks_of(roles):
    for writers, readers in list_scalable(model.config, block):
      readers = [name for name in readers if name in roles]
      ws = [calibrate.by_rows(leaf_of(work, n), roles[n]) for n in readers]
      gram_DD = grams[readers[0]]
      s_D = find_scale(ws, gram_DD, num_bits)
      for name, w_FD in zip(readers, ws, strict=True):
        like = leaf_of(work, name)
        w = calibrate.from_rows(w_FD * s_D, like, roles[name])
        work = put_leaf(work, name, w)
      for name in writers:
        if has_leaf(work, name):  # outputs are the last dims of all of them
          work = put_leaf(work, name, _divide(leaf_of(work, name), s_D))
  return model.round_matrices(stack.stack_layers(work, model.stacks))


def list_scalable(c: ModelConfig, block: str) -> list[tuple[list, list]]:
  """Returns [(arrays that produce inputs, their readers)] of a layer."""
  name = lambda *words: [f"{block}/{word}" for word in words]
  found = []
  is_normed = c.norm_placement in ("pre", "sandwich") and not c.embed_norm
  if is_normed:
    norm = name("norm_attn/scale", "norm_attn/bias")
    found.append((norm, name("attn/q", "attn/k", "attn/v")))
    norm = name("norm_mlp/scale", "norm_mlp/bias")
    found.append((norm, name("mlp/in", "mlp/gate")))
  if config_lib.num_kv_heads(c) == c.num_heads:
    found.append((name("attn/v", "attn/v_bias"), name("attn/o")))
  if config_lib.is_gated(c):
    found.append((name("mlp/in", "mlp/in_bias"), name("mlp/out")))
  return found


def find_scale(ws: list[np.ndarray], gram_DD: np.ndarray, num_bits: int):
  """Returns the scale s_D with the least error of the matrices' outputs."""
  size_D = np.sqrt(np.diag(gram_DD))
  size_D = np.maximum(size_D, 1e-4 * max(size_D.max(), 1e-30))
  best, least = np.ones_like(size_D), np.inf
  for power in POWERS:
    s_D = size_D**power
    s_D = (s_D / np.sqrt(s_D.max() * s_D.min())).astype(np.float32)
    error = 0.0
    for w_FD in ws:
      bits, C = quantized.grid_of(w_FD.shape, num_bits)
      rounded_FD = gptq.restore(*gptq.round_rows(w_FD * s_D, bits, C))
      delta_FD = (rounded_FD / s_D - w_FD).astype(np.float64)
      error += np.einsum("FD,FD->", delta_FD @ gram_DD, delta_FD)
    if error < least:
      best, least = s_D, error
  return best


def pack(found, like, role: str, num_bits: int, platform: str):
  """Returns the Quantized of GPTQ's integers and scales.

  Args:
    like: the matrix.
  """
  outs = quantized.split_dims(like, role)[1]
  values_GFC, scale_GF = map(jnp.asarray, found)
  return quantized.pack(values_GFC, scale_GF, outs, num_bits, platform)


def _round_tables(model: Model, params: Any):
  """Returns the parameters with int8 for each table."""
  specs = tree.flatten_with_names(model.abstract_params()[1])

  def one(name, w):
    role = specs[name].role if name in specs else ""
    if role not in TABLES:
      return w
    return quantized.quantize(w, role, 8, model.platform)

  return tree.map_with_names(one, params)


def _divide(w, s_D: np.ndarray):
  """Returns w with its outputs, which are its last dims, divided by s_D."""
  count = next(
    k for k in range(1, w.ndim + 1) if np.prod(w.shape[-k:]) == s_D.size
  )
  lead = (1,) * (w.ndim - count)
  return (w / s_D.reshape(*lead, *w.shape[-count:])).astype(w.dtype)
