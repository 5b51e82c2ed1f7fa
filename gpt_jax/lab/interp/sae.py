"""A sparse autoencoder of the residual stream after a layer.

Bricken et al. 2023: f = relu((x - b) E + c), x' = f W + b, with unit rows of W,
minimises |x - x'|^2 + weight * sqrt(D) * |f|_1. x is scaled to a mean square of
one per dim.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.api import Run
from gpt_jax.lab.interp import passes


class Autoencoder(NamedTuple):
  """A trained autoencoder, in the symbols of the equations above.

  Attributes:
    encode_DF, bias_F, decode_FD, center_D: E, c, W and b.
    scale: root mean square of the streams, by which they are divided to get x.
    layer: the layer after which the streams are read.
  """

  encode_DF: np.ndarray
  bias_F: np.ndarray
  decode_FD: np.ndarray
  center_D: np.ndarray
  scale: float
  layer: int

  def features(self, x_XD: np.ndarray) -> np.ndarray:
    """Returns f_XF, the features of unscaled streams."""
    scaled = x_XD / self.scale - self.center_D
    return np.maximum(scaled @ self.encode_DF + self.bias_F, 0)

  def restore(self, f_XF: np.ndarray) -> np.ndarray:
    """Returns the unscaled streams that features decode to."""
    return (f_XF @ self.decode_FD + self.center_D) * self.scale


class Example(NamedTuple):
  """A row in which a feature is large: its tokens, and the value at each."""

  tokens: list[str]
  values: list[float]


class Feature(NamedTuple):
  """A feature, described by examples.

  Attributes:
    index: its index in the autoencoder.
    density: fraction of tokens at which it is on (above zero).
    examples: the rows in which it is largest.
    raised: texts of the tokens whose logits its direction raises most.
  """

  index: int
  density: float
  examples: list[Example]
  raised: list[str]


def streams(run: Run, rows_BT: np.ndarray, layer: int) -> np.ndarray:
  """Returns (B, T, D), the residual stream after a layer."""
  found = [passes.record(run, row.tolist()) for row in rows_BT]
  return np.stack([one.residual_XTD[layer + 1] for one in found])


def train(
  x_XD: np.ndarray,
  layer: int,
  num_features: int,
  weight: float = 0.2,
  num_steps: int = 1500,
  rate: float = 2e-3,
  seed: int = 0,
) -> Autoencoder:
  """Trains an autoencoder of streams.

  Args:
    layer: the layer after which the streams were read.
    weight: weight of |f|_1; the larger, the fewer features are on.
    rate: initial learning rate of a cosine decay.
  """
  scale = float(np.sqrt(np.square(x_XD).mean())) or 1.0
  x = jnp.asarray(x_XD / scale)
  key = jax.random.key(seed)
  decode = jax.random.normal(key, (num_features, x.shape[-1]))
  decode /= jnp.linalg.norm(decode, axis=1, keepdims=True)
  learned = {
    "encode": decode.T,
    "bias": jnp.zeros(num_features),
    "decode": decode,
    "center": x.mean(0),
  }
  learned = _fit(learned, x, key, weight, rate, num_steps)
  parts = ("encode", "bias", "decode", "center")
  return Autoencoder(*(np.asarray(learned[p]) for p in parts), scale, layer)


@functools.partial(jax.jit, static_argnames=("weight", "rate", "num_steps"))
def _fit(learned, x_XD, key, weight: float, rate: float, num_steps: int):
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))

  def loss(learned, x):
    f = jax.nn.relu(
      (x - learned["center"][None]) @ learned["encode"] + learned["bias"][None]
    )
    away = f @ learned["decode"] + learned["center"][None] - x
    return jnp.square(away).sum(-1).mean() + weight * f.sum(-1).mean() * (
      x.shape[-1] ** 0.5
    )

  def step(carry, i):
    learned, state = carry
    at = jax.random.randint(jax.random.fold_in(key, i), (256,), 0, len(x_XD))
    grads = jax.grad(loss)(learned, x_XD[at])
    updates, state = optimizer.update(grads, state)
    learned: Any = optax.apply_updates(learned, updates)
    norm = jnp.linalg.norm(learned["decode"], axis=1, keepdims=True)
    learned["decode"] /= jnp.maximum(norm, 1e-6)
    return (learned, state), None

  start = learned, optimizer.init(learned)
  (learned, _), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
  return learned


def quality(own: Autoencoder, x_XD: np.ndarray) -> dict[str, float]:
  """Returns {"explained", "on_per_token", "in_use"}.

  explained is the fraction of the streams' variance, on_per_token the mean
  number of features that are on at a token, and in_use the fraction of features
  that are on at any token.
  """
  f_XF = own.features(x_XD)
  away = np.square(own.restore(f_XF) - x_XD).sum()
  spread = np.square(x_XD - x_XD.mean(0)).sum()
  return {
    "explained": float(1 - away / spread),
    "on_per_token": float((f_XF > 0).sum(-1).mean()),
    "in_use": float((f_XF > 0).any(0).mean()),
  }


def describe(
  run: Run, own: Autoencoder, rows_BT: np.ndarray, x_BTD, count: int = 40
) -> list[Feature]:
  """Returns the `count` features with the largest values, with example texts.

  Features that are on at no token, or at half of them or more, are left out.

  Args:
    rows_BT: ids.
    x_BTD: the streams of these ids.
  """
  f_BTF = own.features(x_BTD)
  density_F = (f_BTF > 0).mean((0, 1))
  order = np.argsort(-f_BTF.max((0, 1)))
  order = [i for i in order if 0 < density_F[i] < 0.5][:count]
  directions = own.decode_FD[order][None] * own.scale
  logits = passes.read_out(run, np.asarray(directions, np.float32))[0]
  found = []
  for place, i in enumerate(order):
    best = np.argsort(-f_BTF[..., i].max(1))[:4]
    examples = [
      Example(
        passes.token_texts(run, rows_BT[b].tolist()), f_BTF[b, :, i].tolist()
      )
      for b in best
    ]
    raised = np.argsort(-logits[place])[:6]
    found.append(
      Feature(
        int(i),
        float(density_F[i]),
        examples,
        passes.token_texts(run, raised.tolist()),
      )
    )
  return found
