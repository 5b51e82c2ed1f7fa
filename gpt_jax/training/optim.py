"""Schedules and optimizers.

An optimizer here leaves out the learning rate: `update` returns directions, and
the train step computes params - schedule(step) * direction. The schedule thus
follows the run's step counter, not a count inside the optimizer, and skipping a
non-finite step does not shift it. The train step clips too, because it computes
the global norm anyway, as a metric.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from gpt_jax import config, tree
from gpt_jax.config import InputError, OptimConfig
from gpt_jax.parametrization import DECAYED, ORTHOGONALISED, ParamSpec

# Adafactor factors a layer's moment where two dims are at least this long.
# optax's 128 would exclude attention, whose heads are 64 or 128 wide.
MIN_FACTORED_SIZE = 32
# RMS of a Muon update: what AdamW's has in practice (Liu et al. 2025, 2.2).
MUON_RMS = 0.2


def build_schedule(optim: OptimConfig, num_steps: int) -> Callable:
  """Returns rate(step): int32 step, 0-based -> float32 learning rate.

  The warm-up is linear, from peak / (warmup_steps + 1) at step 0, so that the
  first update is not lost at a rate of zero, to the peak at step warmup_steps.
  cosine, linear and wsd reach final_rate_frac of the peak at step num_steps - 1
  and stay there.

  Raises:
    InputError: optim.schedule is unknown.
  """
  warmup, last = optim.warmup_steps, num_steps - 1
  final = optim.final_rate_frac
  stable_end = max(warmup, last - round(optim.decay_frac * num_steps))

  def progress(step, start):
    return jnp.clip((step - start) / max(last - start, 1), 0.0, 1.0)

  def cosine(step):
    wave = 0.5 + 0.5 * jnp.cos(jnp.pi * progress(step, warmup))
    return final + (1 - final) * wave

  shapes = {
    "cosine": cosine,
    "linear": lambda step: 1 - (1 - final) * progress(step, warmup),
    "inverse_sqrt": lambda step: jnp.sqrt(
      max(warmup, 1) / jnp.maximum(step, max(warmup, 1))
    ),
    "constant": lambda step: jnp.ones(()),
    "wsd": lambda step: 1 - (1 - final) * progress(step, stable_end),
  }
  config.require_choice("optim.schedule", optim.schedule, shapes)
  shape = shapes[optim.schedule]

  def rate(step):
    rising = (step + 1) / (warmup + 1)
    frac = jnp.where(step < warmup, rising, shape(step))
    return (optim.learning_rate * frac).astype(jnp.float32)

  return rate


def build_optimizer(
  optim: OptimConfig, specs: Any
) -> optax.GradientTransformation:
  """Returns the optimizer, whose updates are directions.

  update(grads, state, params) returns a tree like params; the caller computes
  params - rate * direction, so that a positive direction lowers a parameter.
  Directions include decoupled weight decay (weight_decay * param for the roles
  in DECAYED; none with adam), but no clipping. The layers of a stacked
  parameter are updated independently. adamw and adam apply the rate and eps of
  each ParamSpec. A parameter that optim.rates freezes has no moments, and None
  for a direction.

  Args:
    optim: section of the config.
    specs: tree of ParamSpec with the structure of the parameters.

  Raises:
    InputError: optim.optimizer is unknown, or optim.rates does not fit.
  """
  o, rated = optim, rate_specs(optim, specs)
  is_frozen = find_frozen(rated)
  specs = tree.leave_out(rated, is_frozen)
  is_decayed = jax.tree.map(lambda spec: spec.role in DECAYED, specs)
  decay = optax.add_decayed_weights(o.weight_decay, is_decayed)
  adam = _by_role(optax.scale_by_adam(o.beta1, o.beta2, o.eps), specs)
  optimizers = {
    "adamw": lambda: optax.chain(adam, decay),
    "adam": lambda: adam,
    "lion": lambda: optax.chain(optax.scale_by_lion(o.beta1, o.beta2), decay),
    "adafactor": lambda: optax.chain(_adafactor(specs), decay),
    "sgd": lambda: optax.chain(optax.trace(o.beta1), decay),
    "muon": lambda: optax.chain(_muon(o.beta1, adam, specs), decay),
  }
  config.require_choice("optim.optimizer", o.optimizer, optimizers)
  tx = _store_moments(o.moment_dtype, optimizers[o.optimizer]())
  return _by_factor(tx, specs, is_frozen) if o.rates.parts else tx


def rate_specs(optim: OptimConfig, specs: Any):
  """Returns specs with the factors of optim.rates.

  Raises:
    InputError: a pattern matches no parameter, or all are frozen.
  """
  names = tree.flatten_with_names(specs)
  factors = tree.match_parts(
    "optim.rates", optim.rates.parts, names, "parameter"
  )
  is_whole = factors and factors.keys() == names.keys()
  if is_whole and not any(factors.values()):
    raise InputError(
      f"optim.rates is {optim.rates!r}, which freezes every parameter; leave "
      "one to be learned"
    )
  return tree.map_with_names(
    lambda name, s: dataclasses.replace(s, factor=factors.get(name, s.factor)),
    specs,
  )


def find_frozen(specs: Any):
  """Returns a tree of bool: whether each parameter is frozen."""
  return jax.tree.map(lambda spec: spec.factor == 0, specs)


def _by_factor(tx: optax.GradientTransformation, specs, is_frozen):
  """Returns tx for parameters that are not frozen, scaled by their factors."""

  def update(updates, state, params=None):
    updates, params = (tree.leave_out(t, is_frozen) for t in (updates, params))
    directions, state = tx.update(updates, state, params)
    scaled = jax.tree.map(lambda d, s: d * s.factor, directions, specs)
    return scaled, state

  init = lambda params: tx.init(tree.leave_out(params, is_frozen))
  return optax.GradientTransformation(init, update)


def _store_moments(dtype: str, tx: optax.GradientTransformation):
  """Returns tx with moments stored in `dtype` and computed in float32."""

  def cast(values, dtype):
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, values)

  def update(updates, state, params=None):
    updates, state = tx.update(updates, cast(state, jnp.float32), params)
    return cast(updates, jnp.float32), cast(state, dtype)

  return optax.GradientTransformation(
    lambda params: cast(tx.init(params), dtype), update
  )


def _by_role(adam: optax.GradientTransformation, specs):
  """Returns Adam with the rate and eps of each parameter's ParamSpec.

  Adam divides by the size of its gradient, so that dividing the gradient by k
  multiplies eps by k. Weight decay is added later and is not scaled: a
  parameter of rate 1 / m decays as it would with m times the weight_decay under
  a learning rate divided by m.
  """
  if all(s.rate == 1 and s.eps == 1 for s in jax.tree.leaves(specs)):
    return adam

  def update(updates, state, params=None):
    grads = jax.tree.map(lambda g, s: g / s.eps, updates, specs)
    directions, state = adam.update(grads, state, params)
    return jax.tree.map(lambda d, s: d * s.rate, directions, specs), state

  return optax.GradientTransformation(adam.init, update)


def clip_by_global_norm(grads: Any, norm: jax.Array, max_norm: float | None):
  """Returns grads scaled down to max_norm where their norm is above it.

  Args:
    grads: tree.
    norm: their global norm, a float32 scalar.
    max_norm: None leaves grads unchanged.
  """
  if max_norm is None:
    return grads
  scale = jnp.minimum(1.0, max_norm / norm)
  return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)


def state_specs(opt_state: Any, params: Any, specs: Any):
  """Returns a tree like opt_state of the ParamSpec of each leaf.

  A leaf with the shape of its parameter has that parameter's ParamSpec, a
  factored moment has it without the axis that it is averaged over, and any
  other leaf (such as a count) has None.

  Args:
    opt_state: abstract state, from build_optimizer(...).init.
    params: abstract parameters.
    specs: tree of ParamSpec with the structure of params.
  """
  shapes = {k: v.shape for k, v in tree.flatten_with_names(params).items()}
  named_specs = tree.flatten_with_names(specs)

  # optax.tree_map_params cannot see into a vmapped init and does not recognise
  # factored moments. The path of a leaf of any optimizer's state ends in
  # field/parameter.
  def one(name, leaf):
    words = name.split("/")
    for i in range(1, len(words)):
      owner = "/".join(words[i:])
      if owner in shapes:
        shape, spec = shapes[owner], named_specs[owner]
        if leaf.shape == shape:
          return spec
        return _factor_spec(words[i - 1], leaf.shape, shape, spec)
    return None

  return tree.map_with_names(one, opt_state)


def _factor_spec(field: str, factor_shape, shape, spec: ParamSpec):
  """Returns the spec of Adafactor's v_row or v_col, None for a placeholder."""
  if len(factor_shape) != len(shape) - 1 or field not in ("v_row", "v_col"):
    return None
  first = _num_stacked(spec)
  # As in optax, v_row is averaged over the longest dim, v_col over the second
  # longest.
  second, longest = first + np.argsort(shape[first:])[-2:]
  gone = longest if field == "v_row" else second
  if factor_shape != shape[:gone] + shape[gone + 1 :]:
    return None
  return spec.with_axes(spec.axes[:gone] + spec.axes[gone + 1 :])


def _num_stacked(spec: ParamSpec) -> int:
  """Returns the number of leading dims that index separate matrices."""
  is_matrix = [axis not in ("layers", "experts") for axis in spec.axes]
  return [*is_matrix, True].index(True)


def _adafactor(specs):
  """Adafactor (Shazeer and Stern 2018) with an absolute rate, no momentum.

  Section 6: updates are clipped to an RMS of 1; 7.2: the moment's decay rises
  as 1 - t^-0.8. Each layer and each expert is treated separately.
  """
  one = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_FACTORED_SIZE),
    optax.clip_by_block_rms(1.0),
  )
  each = lambda t: optax.GradientTransformation(
    jax.vmap(t.init), jax.vmap(t.update)
  )
  names = ("single", "stacked", "experts")
  labels = jax.tree.map(lambda spec: names[_num_stacked(spec)], specs)
  present = set(jax.tree.leaves(labels))  # vmap refuses an empty tree
  groups = {"single": one, "stacked": each(one), "experts": each(each(one))}
  return optax.partition({k: groups[k] for k in sorted(present)}, labels)


def _muon(beta: float, rest: optax.GradientTransformation, specs):
  """Muon (Jordan et al. 2024) on ORTHOGONALISED roles, `rest` on others.

  Its updates are scaled to AdamW's RMS by 0.2 sqrt(max(fan_in, fan_out)) (Liu
  et al. 2025, 2.2), so that one learning rate and one decay fit both groups.
  """
  is_muon = lambda spec: spec.role in ORTHOGONALISED
  labels = jax.tree.map(lambda s: "muon" if is_muon(s) else "rest", specs)
  numbers = jax.tree.map(
    lambda s: _matrix_dims(s) if is_muon(s) else optax.MaskedNode(), specs
  )

  def match_rms(updates, _):
    def scale(x, dims):
      fans = (np.prod([x.shape[d] for d in group]) for group in dims)
      return x * (MUON_RMS * float(max(fans)) ** 0.5)

    return jax.tree.map(scale, updates, numbers)

  orthogonalise = contrib.scale_by_muon(
    beta=beta, weight_dimension_numbers=numbers
  )
  muon = optax.chain(orthogonalise, optax.stateless(match_rms))
  return optax.partition({"muon": muon, "rest": rest}, labels)


def _matrix_dims(spec: ParamSpec) -> contrib.MuonDimensionNumbers:
  """Returns which dims are a matrix's input and output.

  The leading dims of layers and experts are neither. A matrix of role hidden
  reads the residual stream and has one input dim; one of role residual writes
  to it and has one output dim.
  """
  dims = tuple(range(_num_stacked(spec), len(spec.axes)))
  split = {"hidden": 1, "residual": len(dims) - 1}[spec.role]
  return contrib.MuonDimensionNumbers(dims[:split], dims[split:])
