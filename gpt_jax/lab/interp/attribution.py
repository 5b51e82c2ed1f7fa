"""Attributes a logit to tokens and to parts of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.api import Run
from gpt_jax.config import InputError
from gpt_jax.lab.interp import passes
from gpt_jax.parametrization import readout_multiplier, residual_multiplier

# Largest error of the sum of parts, relative to the residual stream's size.
TOLERANCE = 1e-3


def gradient_times_input(
  run: Run, found: passes.Record, token: int, at: int = -1
) -> np.ndarray:
  """Returns score_T: each embedding's dot product with one logit's gradient.

  Args:
    token: the id whose logit it is.
    at: the position that predicts it.
  """
  x_TD = jnp.asarray(found.residual_XTD[0])
  at = passes.check_asked(found, at, token)
  model = passes.open_model(run)
  slope_STD = _slopes(model)(run._rounded, x_TD[None], token, at)
  return np.asarray((slope_STD[0] * x_TD).sum(-1))


def integrated_gradients(
  run: Run,
  found: passes.Record,
  token: int,
  at: int = -1,
  num_steps: int = 128,
) -> tuple[np.ndarray, float]:
  """Returns (score_T, the logit's rise that the scores add up to).

  Sundararajan et al. 2017: the gradient's mean on the line from a baseline to
  the embeddings, times the difference of embeddings and baseline. The baseline
  has the mean embedding of the text at every position. The mean of the gradient
  is computed by Gauss-Legendre quadrature.

  Args:
    token, at: as in gradient_times_input.
    num_steps: number of quadrature points.
  """
  x_TD = found.residual_XTD[0]
  base_TD = np.broadcast_to(x_TD.mean(0, keepdims=True), x_TD.shape)
  at = passes.check_asked(found, at, token)
  points, weights = np.polynomial.legendre.leggauss(num_steps)
  points, weights = (points + 1) / 2, weights / 2
  line = base_TD + points[:, None, None] * (x_TD - base_TD)
  model = passes.open_model(run)
  slopes, mean_TD = _slopes(model), 0.0
  for start in range(0, num_steps, 16):
    part = jnp.asarray(line[start : start + 16], jnp.float32)
    slope_STD = np.asarray(slopes(run._rounded, part, token, at), np.float64)
    own = weights[start : start + 16, None, None]
    mean_TD = mean_TD + (own * slope_STD).sum(0)
  ends = jnp.asarray(np.stack([x_TD, base_TD]), jnp.float32)
  high, low = np.asarray(_logits(model)(run._rounded, ends, token, at))
  return (mean_TD * (x_TD - base_TD)).sum(-1), float(high - low)


def direct_logits(
  run: Run, found: passes.Record, token: int, at: int = -1
) -> dict[str, np.ndarray]:
  """Returns what each part adds to one logit, with the final norm held fixed.

  Shapes: {"embed": (), "attn": (L,), "mlp": (L,), "heads": (L, N), "rest": ()}.
  embed, attn, mlp and rest add up to the logit; rest comes from the final
  norm's bias. heads add up to attn without its output bias.

  Raises:
    InputError: the residual stream is not a sum of these parts
      (norm_placement=post), or the logits have a soft-cap.
  """
  at = passes.check_asked(found, at, token)
  model = passes.open_model(run)
  if model.config.logit_softcap is not None:
    raise InputError(
      "direct logits are of models without model.logit_softcap, whose logits "
      "are no sum of parts"
    )
  x_D = found.residual_XTD[-1][at]
  parts = {
    "embed": found.residual_XTD[0][at],
    "attn": found.attn_LTD[:, at],
    "mlp": found.mlp_LTD[:, at],
  }
  total_D = parts["embed"] + parts["attn"].sum(0) + parts["mlp"].sum(0)
  if np.abs(total_D - x_D).max() > TOLERANCE * np.abs(x_D).max():
    raise InputError(
      "the stream is not the sum of the embedding and what layers add; direct "
      "logits are for model.norm_placement pre or sandwich"
    )
  if model.config.norm_placement == "pre":
    parts["heads"] = _head_outputs(run, found, at)
  given = {name: _shares(run, x_D, part, token) for name, part in parts.items()}
  summed = sum(given[name].sum() for name in ("embed", "attn", "mlp"))
  return given | {"rest": found.logits_TV[at, token] - summed}


def _head_outputs(run: Run, found: passes.Record, at: int) -> np.ndarray:
  """Returns (L, N, D): what each head adds to the stream at one position."""
  whole = run.model.restore_matrices(run._rounded)
  o_LNHD = np.asarray(whole["blocks"]["attn"]["o"], np.float32)
  out = np.einsum("LNH,LNHD->LND", found.heads_LTNH[:, at], o_LNHD)
  return residual_multiplier(run.model.config) * out


def _shares(run: Run, x_D, part_D: np.ndarray, token: int) -> np.ndarray:
  """Returns what parts (..., D) of a residual stream add to a logit.

  The final norm divides by the size of the whole stream x_D. With this divisor
  held fixed, the norm is linear.
  """
  c, params = run.model.config, run._rounded
  is_centred = c.norm == "layernorm"
  center = lambda x: x - x.mean(-1, keepdims=True) if is_centred else x
  size = np.sqrt(np.square(center(x_D)).mean() + c.norm_eps)
  table_VD = params["embed"]["tokens"] if c.tied_embeddings else None
  table_VD = params["unembed"] if table_VD is None else table_VD
  row_D = np.asarray(table_VD[token], np.float32)
  scale_D = np.asarray(params["final_norm"]["scale"], np.float32)
  return readout_multiplier(c) * center(part_D) / size @ (scale_D * row_D)


def _logit_of(model, params, x_STD, token, at):
  """Returns (S,): one logit in each of S passes from these embeddings."""
  tokens = jnp.zeros(x_STD.shape[:2], jnp.int32)
  change = lambda point, x: x_STD if point == "embed" else x
  out = passes.apply_with(model, params, tokens, change)
  return out[:, at, token]


@functools.cache
def _logits(model):
  return jax.jit(functools.partial(_logit_of, model))


@functools.cache
def _slopes(model):
  def slopes(params, x_STD, token, at):
    total = lambda x: _logit_of(model, params, x, token, at).sum()
    return jax.grad(total)(x_STD)

  return jax.jit(slopes)
