"""DP-SGD: each sequence's gradient is clipped alone, and noise is added.

Abadi et al. 2016, arXiv:1607.00133, algorithm 1. What is protected is a
sequence of the batch: with optim.noise_multiplier z and optim.clip_norm C, the
gradient of a batch of B sequences is

  (sum_i g_i min(1, C / |g_i|) + z C N(0, 1)) / B

Design choice: the noise is drawn here, by step and name, and not by
optax.contrib.differentially_private_aggregate, whose key is state of its own
and which holds the gradients of all of a batch. The clipping is optax's.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from gpt_jax import objective, tree
from gpt_jax.config import Config
from gpt_jax.data import order

# Orders of the Renyi divergence that are tried.
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512)


def make_gradient(grad: Callable, config: Config) -> Callable:
  """Returns gradient(params, batch, key, told) -> (clipped mean, metrics).

  The gradients of the sequences of a microbatch are held at once.

  Args:
    grad: of the objective: (params, batch, key, totals, told) -> the gradient
      of the mean over a batch, and its metrics.
  """
  parts, clip = config.train.num_microbatches, config.optim.clip_norm
  assert clip is not None  # by check_privacy
  ahead = config.model.num_future_tokens

  def of_rows(params, rows, key, told):
    """Returns the sums over rows of clipped gradients and of metrics."""

    def of_one(row, index):
      one = jax.tree.map(lambda x: x[None], row)
      own = None if key is None else jax.random.fold_in(key, index)
      totals = objective.count_totals(one, ahead)
      return grad(params, one, own, totals, told)

    count = jax.tree.leaves(rows)[0].shape[0]
    grads, metrics = jax.vmap(of_one)(rows, jnp.arange(count))
    leaves, structure = jax.tree.flatten(grads)
    wide = [leaf.astype(jnp.float32) for leaf in leaves]
    sums: Any = optax.per_example_global_norm_clip(wide, clip)[0]
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    return jax.tree.unflatten(structure, sums), metrics

  def gradient(params, batch, key, told=None):
    split = jax.tree.map(
      lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(carry, index_and_rows):
      index, rows = index_and_rows
      part_key = None if key is None else jax.random.fold_in(key, index)
      new = of_rows(params, rows, part_key, told)
      return jax.tree.map(jnp.add, carry, new), None

    first = jax.tree.map(lambda x: x[0], split)
    like = jax.eval_shape(of_rows, params, first, key, told)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    found = jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]
    size = jax.tree.leaves(batch)[0].shape[0]
    return jax.tree.map(lambda x: x / size, found)

  return gradient


def add_noise(grads: Any, config: Config, step: jax.Array) -> Any:
  """Returns a mean of clipped gradients with Gaussian noise of std z C / B.

  B is the batch size; a config with a ramp, which has several, is refused.
  """
  o, train = config.optim, config.train
  assert o.noise_multiplier is not None and o.clip_norm is not None
  scale = o.noise_multiplier * o.clip_norm / train.global_batch_size
  key = tree.key_for(jax.random.key(config.seed), "privacy")
  key = jax.random.fold_in(key, step)

  def noisy(name: str, g):
    normal = jax.random.normal(tree.key_for(key, name), g.shape, g.dtype)
    return g + scale * normal

  return tree.map_with_names(noisy, grads)


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
  """Returns the epsilon of steps of the Gaussian mechanism on Poisson samples.

  Renyi divergence of order a of N(0, z^2) and its mixture with N(1, z^2)
  (Mironov et al. 2019, arXiv:1908.10530, eq. 4), by the trapezoidal rule, and
  the conversion of Canonne et al. 2020, arXiv:2004.00010, proposition 12.

  Args:
    noise: z, the noise's standard deviation over the clipping norm.
    rate: the probability with which a sequence is in a batch.
  """
  best = math.inf
  for a in ORDERS:
    x = np.arange(-15 * noise, a + 15 * noise, noise / 20)
    log_density = -0.5 * (x / noise) ** 2 - 0.5 * math.log(2 * math.pi)
    with np.errstate(divide="ignore"):
      log_ratio = np.logaddexp(
        np.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2)
      )
    log_moment = special.logsumexp(log_density + a * log_ratio) - math.log(20)
    divergence = max(0.0, steps * float(log_moment) / (a - 1))
    if delta**2 + math.expm1(-divergence) > 0:
      return 0.0
    spent = divergence + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
    best = min(best, spent)
  return max(0.0, best)


def account(config: Config, train_sets: Any) -> dict[str, Any] | None:
  """Returns the privacy guarantee of a run; None without noise_multiplier.

  Args:
    train_sets: (weight, set) of each source; the source whose sequences come
      up most often sets the rate.
  """
  o, train = config.optim, config.train
  if o.noise_multiplier is None:
    return None
  rate, count = 0.0, 0
  for weight, one in train_sets:
    size = order.count_windows(one.num_ids, config.data.seq_len)
    if one.has_labels:
      size = one.num_documents
    rate = max(rate, weight * train.global_batch_size / max(1, size))
    count += size
  rate = min(1.0, rate)
  found = epsilon(o.noise_multiplier, rate, train.num_steps, o.privacy_delta)
  return {
    "epsilon": found,
    "delta": o.privacy_delta,
    "unit": "a sequence of the batch",
    "noise_multiplier": o.noise_multiplier,
    "clip_norm": o.clip_norm,
    "num_steps": train.num_steps,
    "num_sequences": count,
    "sampling": f"batches of {rate:.6f} of them, as if drawn by Poisson",
  }


def describe(found: dict[str, Any]) -> str:
  """Returns the line to print about the result of `account`."""
  return (
    f"privacy: ({found['epsilon']:.3f}, {found['delta']:g}) after "
    f"{found['num_steps']:,} steps, for each of {found['num_sequences']:,} "
    f"sequences: noise {found['noise_multiplier']:g}, gradients clipped to "
    f"{found['clip_norm']:g}; by Renyi divergences, as if batches were drawn "
    "by Poisson (they are shuffled)"
  )
