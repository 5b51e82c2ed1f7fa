"""Telemetry: statistics that show why a run goes wrong.

Largest attention scores and logits, RMS of activations and updates by layer,
gradient norms by role. They come from a separate pass over the next step's
batch, so that the train step is the same program with and without telemetry. A
pass costs as much as 1.3 steps (configs/LOG.md): every 100 steps, 1.3 percent.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gpt_jax import config as config_lib
from gpt_jax import objective, tree
from gpt_jax.config import Config
from gpt_jax.models import Model
from gpt_jax.parametrization import ROLES
from gpt_jax.teacher import Teacher
from gpt_jax.training import optim

PREFIX = "telemetry/"


def make_watch(
  model: Model,
  tx: optax.GradientTransformation,
  schedule: Callable,
  config: Config,
  teacher: Teacher | None = None,
):
  """Returns watch(state, batch) -> {name: float32 scalar}, to be jitted.

  It reads one microbatch, without dropout. Names, after PREFIX; LL is a layer,
  from 00:
    attn_logit_max/LL  largest unmasked attention score, before a soft-cap
    logit_max          largest absolute logit
    attn_rms/LL, mlp_rms/LL  outputs of the sublayers
    embed_rms, residual_rms  the residual stream before the first block and
      after the last
    update_rms/LL, update_rms/ROLE  the step's change of parameters: those of a
      layer, and those of a role outside the blocks
    encoder_...        the same for the layers of an encoder-decoder's encoder
    grad_norm/ROLE     before clipping
    grad_square, grad_variance  the terms of metrics.noise_scale, in sequences,
      from the two halves of the microbatch (McCandlish et al. 2018, appendix
      A.1); only where its number of rows is even
  """
  minimise = objective.make_objective(model, config, teacher)
  parts = config.train.num_microbatches

  def watch(state, batch):
    batch = jax.tree.map(lambda x: x[::parts], batch)
    specs = optim.rate_specs(config.optim, model.abstract_learned()[1])
    is_frozen = optim.find_frozen(specs)

    def mean(params, batch):
      totals = objective.count_totals(batch, model.config.num_future_tokens)
      whole = model.attach(params, state.base)
      return minimise(whole, batch, None, totals, state.teacher)[0]

    grads, found = _grads(mean, state.params, batch)
    grads = tree.leave_out(grads, is_frozen)
    norm = optax.tree.norm(grads)
    clipped = optim.clip_by_global_norm(grads, norm, config.optim.clip_norm)
    directions, _ = tx.update(clipped, state.opt_state, state.params)
    rate = schedule(state.step)
    updates = jax.tree.map(lambda d: rate * d, directions)
    named = tree.flatten_with_names(specs)
    for role in ROLES:
      of_role = [
        g
        for name, g in tree.flatten_with_names(grads).items()
        if named[name].role == role
      ]
      if of_role:
        found[f"grad_norm/{role}"] = optax.tree.norm(of_role)
    found |= _updates(updates, specs)
    found |= _activations(model.attach(state.params, state.base), batch)
    return {PREFIX + name: x.astype(jnp.float32) for name, x in found.items()}

  def _activations(params, batch):
    out, taps = model.apply_tapped(
      params, **objective.inputs_of(batch, model), is_headless=True
    )
    if config_lib.has_classes(model.config):
      found = {"logit_max": jnp.abs(out).max()}
    else:
      found = {"logit_max": _largest_logit(model, *out)}
    for name in ("embed", "residual"):
      found[f"{name}_rms"] = _rms(taps[name])
    for of in ("", "encoder_"):
      for layer, score in enumerate(taps.get(f"{of}score_max", ())):
        found[f"{of}attn_logit_max/{layer:02}"] = score
        for name in ("attn", "mlp"):
          tap = taps[f"{of}{name}"]
          found[f"{of}{name}_rms/{layer:02}"] = _rms(tap[layer])
    return found

  return watch


def _grads(mean, params, batch):
  """Returns (float32 gradient of mean(params, batch), terms of its noise)."""

  def one(part):
    grads = jax.grad(mean)(params, part)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads)

  rows = batch["targets"].shape[0]
  if rows % 2:
    return one(batch), {}
  halves = jax.tree.map(
    lambda x: x.reshape(-1, 2, *x.shape[1:]).swapaxes(0, 1), batch
  )
  zeros = lambda p: jnp.zeros(p.shape, jnp.float32)

  def add(carry, half):
    total, square = carry
    new = one(half)
    total = jax.tree.map(lambda t, n: t + n / 2, total, new)
    return (total, square + optax.tree.norm(new, squared=True) / 2), None

  start = jax.tree.map(zeros, params), jnp.float32(0)
  (grads, of_halves), _ = jax.lax.scan(add, start, halves)
  of_whole = optax.tree.norm(grads, squared=True)
  return grads, {
    "grad_square": 2 * of_whole - of_halves,
    "grad_variance": rows * (of_halves - of_whole),
  }


def _updates(updates, specs) -> dict:
  """Returns the RMS of updates by layer, and by role outside the blocks."""
  squares, counts = {}, {}

  def add(name, square, count):
    squares[name] = squares.get(name, 0) + square
    counts[name] = counts.get(name, 0) + count

  leaves = tree.flatten_with_names(updates)
  for name, spec in tree.flatten_with_names(specs).items():
    if name not in leaves:  # it is frozen
      continue
    x = jnp.square(leaves[name])
    if spec.axes[0] != "layers":
      add(f"update_rms/{spec.role}", x.sum(), x.size)
      continue
    by_layer = x.reshape(x.shape[0], -1).sum(1)
    of = "encoder_" if name.startswith("encoder/") else ""
    for layer in range(x.shape[0]):
      add(f"{of}update_rms/{layer:02}", by_layer[layer], x.size // x.shape[0])
  return {name: jnp.sqrt(squares[name] / counts[name]) for name in squares}


def _rms(x):
  return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())


def _largest_logit(model: Model, x_BTD, w_VD):
  """Returns the largest |logit|, computed 64 positions at a time."""
  V = model.config.vocab_size

  def one(x_BD):
    logits_BV = jnp.einsum(
      "BD,VD->BV", x_BD, w_VD[:V], preferred_element_type=jnp.float32
    )
    logits_BV = model.cap_logits(logits_BV, jnp.arange(V))
    return jnp.abs(logits_BV).max()

  return jax.lax.map(one, x_BTD.swapaxes(0, 1), batch_size=64).max()
