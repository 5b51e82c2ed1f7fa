"""Logit lens and tuned lens: predictions from the stream after each layer."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.api import Run
from gpt_jax.lab.interp import passes


class Translators(NamedTuple):
  """A tuned lens: replaces each layer's x by x + x W + b before the read-out.

  Attributes:
    w_LDD, b_LD: W and b for the stream before each layer; the stream after the
      last layer needs none.
    losses: [(step, mean KL in nats)] of their training.
  """

  w_LDD: np.ndarray
  b_LD: np.ndarray
  losses: list[tuple[int, float]]


def logit_lens(run: Run, found: passes.Record) -> np.ndarray:
  """Returns logits_XTV of the stream after the embedding and after each layer.

  The last of the X are the model's own logits (nostalgebraist 2020).
  """
  return passes.read_out(run, found.residual_XTD)


def tuned_lens(
  run: Run, found: passes.Record, translators: Translators
) -> np.ndarray:
  """Returns logits_XTV of the translated streams (Belrose et al. 2023).

  X is as in logit_lens.
  """
  x_LTD = found.residual_XTD[:-1]
  moved = x_LTD + np.einsum("LTD,LDE->LTE", x_LTD, translators.w_LDD)
  moved += translators.b_LD[:, None]
  whole = np.concatenate([moved, found.residual_XTD[-1:]])
  return passes.read_out(run, whole)


def train_lens(
  run: Run,
  rows_BT: np.ndarray,
  num_steps: int = 200,
  rate: float = 3e-3,
  batch_size: int = 8,
) -> Translators:
  """Trains translators that bring each layer's prediction close to the model's.

  They minimise KL(model | lens), starting from the identity.

  Args:
    rows_BT: ids of the training text.
    rate: learning rate.
  """
  model = passes.open_model(run)
  L, D = model.config.num_layers, model.config.model_dim
  learned = jnp.zeros((L, D, D)), jnp.zeros((L, D))
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
  state, step = optimizer.init(learned), _lens_step(model, num_steps, rate)
  rng, losses = np.random.default_rng(0), []
  for i in range(num_steps):
    rows = jnp.asarray(rows_BT[rng.integers(0, len(rows_BT), batch_size)])
    learned, state, loss = step(learned, state, run._rounded, rows)
    if i % 20 == 0 or i == num_steps - 1:
      losses.append((i, float(loss)))
  return Translators(*map(np.asarray, learned), losses)


@functools.cache
def _lens_step(model, num_steps: int, rate: float):
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
  L = model.config.num_layers

  def loss(learned, params, rows_BT):
    w_LDD, b_LD = learned
    seen = {}

    def look(point, x):
      seen[point] = x
      return x

    final_BTV = passes.apply_with(model, params, rows_BT, look)
    streams = [seen["embed"], *(seen[f"blocks_{i}"] for i in range(L - 1))]
    x_LBTD = jax.lax.stop_gradient(jnp.stack(streams))
    x_LBTD += jnp.einsum("LBTD,LDE->LBTE", x_LBTD, w_LDD)
    x_LBTD += b_LD[:, None, None]
    B = rows_BT.shape[0]
    flat = x_LBTD.reshape(L * B, *x_LBTD.shape[2:])
    lens = jax.nn.log_softmax(passes.skip_layers(model, params, flat))
    want = jax.nn.log_softmax(jax.lax.stop_gradient(final_BTV))
    away_LBTV = want[None] - lens.reshape(L, *want.shape)
    return (jnp.exp(want)[None] * away_LBTV).sum(-1).mean()

  def step(learned, state, params, rows_BT):
    value, grads = jax.value_and_grad(loss)(learned, params, rows_BT)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(learned, updates), state, value

  return jax.jit(step)
