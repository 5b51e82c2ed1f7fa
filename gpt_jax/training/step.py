"""One optimizer step, as a pure function.

A step whose loss or gradient is not finite changes nothing but the counters.
What other steps write is finite too, at any learning rate and eps: the bound on
the gradient's norm keeps the moments finite, and a parameter whose new value is
not finite keeps its old one.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax import config as config_lib
from gpt_jax import objective, tree
from gpt_jax.config import Config, ModelConfig
from gpt_jax.metric_names import (
  BATCH_HASH,
  EXPERT_LOAD_MAX,
  EXPERT_LOAD_MIN,
  GRAD_NORM,
  LEARNING_RATE,
  LOSS,
  NUM_SKIPPED,
)
from gpt_jax.models import Model
from gpt_jax.teacher import Teacher
from gpt_jax.training import optim, privacy, traced
from gpt_jax.training.state import TrainState

# Below this norm moments are finite in float32 and bfloat16, and need no check:
# squares of gradients, and momentum's sum over 10^7 steps, even where muP has
# divided the gradient by a ParamSpec's eps of 1e-4.
MAX_GRAD_NORM = 1e15
# Metrics of a step that are not written to metrics.jsonl.
SKIPPED_IN_ROW, IS_SPIKE = "skipped_in_row", "is_spike"
# XLA options of the train step, by platform; docs/performance.md says what each
# gains.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
  "gpu": {
    # Only cuBLAS adds a bias or an addend within the matmul.
    "xla_gpu_enable_triton_gemm": False,
    # Rounds to bfloat16 where the program says so, and so writes half as much.
    "xla_allow_excess_precision": False,
    # Merged matmuls of one input would be split again, by copies.
    "xla_gpu_dot_merger_threshold_mb": "0",
  }
}
# Updates before a norm can count as a spike: norms are large at the start.
SPIKE_HISTORY = 20

# Roles of the matrices whose zeros train.keep_zeros keeps: those of layers.
SPARSE = ("hidden", "residual")


def make_gradient(model: Model, config: Config, teacher: Teacher | None = None):
  """Returns gradient(params, batch, key, base, told) -> (gradient, metrics).

  The gradient of the mean over the whole batch, accumulated over
  train.num_microbatches microbatches; it has None for frozen parameters. The
  metrics are the objective's. params, base and told (the teacher's parameters)
  are those of a TrainState.
  """
  minimise = objective.make_objective(model, config, teacher)
  parts = config.train.num_microbatches
  is_frozen = optim.find_frozen(
    optim.rate_specs(config.optim, model.abstract_learned()[1])
  )
  has_frozen = model.adapter is not None or any(jax.tree.leaves(is_frozen))

  def gradient(params, batch, key, base=None, told=None):
    def of_some(params, *rest):
      # Only of unfrozen ones: a scan computes unused gradients as well.
      whole = lambda some: model.attach(tree.fill(some, params), base)
      moved = lambda some: minimise(whole(some), *rest)
      return jax.grad(moved, has_aux=True)(tree.leave_out(params, is_frozen))

    grad = of_some if has_frozen else jax.grad(minimise, has_aux=True)
    if config.optim.noise_multiplier is not None:
      return privacy.make_gradient(grad, config)(params, batch, key, told)
    totals = objective.count_totals(batch, model.config.num_future_tokens)
    if parts == 1:
      return grad(params, batch, key, totals, told)
    if not has_frozen:
      params = model.unstack_layers(params)
    if teacher is not None and teacher.model is not None:
      told = teacher.model.unstack_layers(told)
    # Strided, so that each microbatch is spread over all devices.
    split = jax.tree.map(
      lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    whole = model.attach(params, base) if has_frozen else params
    word = config.data.objective
    split = objective.add_baseline(model, whole, split, word)

    def add(carry, index_and_part):
      index, part = index_and_part
      part_key = None if key is None else jax.random.fold_in(key, index)
      new = grad(params, part, part_key, totals, told)
      return jax.tree.map(jnp.add, carry, new), None

    one = jax.tree.map(lambda x: x[0], split)
    like = jax.eval_shape(grad, params, one, key, totals, told)
    is_whole = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
    wide = lambda x: x.dtype if is_whole(x) else jnp.float32
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), like)
    sums, metrics = jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]
    return sums if has_frozen else model.stack_layers(sums), metrics

  return gradient


def make_train_step(
  model: Model,
  tx: optax.GradientTransformation,
  schedule: Callable,
  config: Config,
  teacher: Teacher | None = None,
):
  """Returns step(state, batch) -> (state, metrics), to be jitted and donated.

  metrics are scalars by name: the objective's, GRAD_NORM (before clipping),
  LEARNING_RATE, NUM_SKIPPED, SKIPPED_IN_ROW and those of describe_load; with
  train.spike_factor also IS_SPIKE and the batch's BATCH_HASH.
  """
  gradient = make_gradient(model, config, teacher)
  ema_decay, spike_factor = config.train.ema_decay, config.train.spike_factor
  settle = build_settle(model, config.train.keep_zeros)

  def train_step(state: TrainState, batch):
    key = None
    if model.config.dropout_rate > 0:
      key = tree.key_for(jax.random.key(config.seed), "dropout")
      key = jax.random.fold_in(key, state.step)
    grads, sums = gradient(state.params, batch, key, state.base, state.teacher)
    count_LE = sums.pop(objective.COUNTS, None)
    # float32 sums, whatever the dtype of the parameters.
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    grads, norm = _limit(grads, config, state.step)
    rate = schedule(state.step)
    # Both comparisons are False for NaN.
    is_good = jnp.isfinite(sums[LOSS]) & (norm < MAX_GRAD_NORM)

    def change(grads, *old):
      decay = _decay_at(state.step, ema_decay)
      own = functools.partial(settle, count_LE=count_LE)
      return update(tx, grads, old, rate, decay, own)

    norm_mean, is_spike = state.norm_mean, None
    if spike_factor is not None:
      is_spike = norm > spike_factor * norm_mean["mean"]
      is_spike &= is_good & (norm_mean["count"] >= SPIKE_HISTORY)
      is_good &= ~is_spike
      norm_mean = _add_norm(norm_mean, norm, is_good)

    old = state.params, state.opt_state, state.ema
    if model.platform == "cpu":
      # lax.cond updates in place on a CPU, where jnp.where would copy the
      # moments. On accelerators cond forces a sync.
      params, opt_state, ema = jax.lax.cond(
        is_good, change, lambda grads, *old: old, grads, *old
      )
    else:
      keep = lambda new, old: jnp.where(is_good, new, old)
      params, opt_state, ema = jax.tree.map(keep, change(grads, *old), old)
    skipped = 1 - is_good.astype(jnp.int32)
    state = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      num_skipped=state.num_skipped + skipped,
      skipped_in_row=(state.skipped_in_row + skipped) * skipped,
      ema=ema,
      norm_mean=norm_mean,
    )
    metrics = {
      **sums,
      GRAD_NORM: norm,
      LEARNING_RATE: rate,
      NUM_SKIPPED: state.num_skipped,
      SKIPPED_IN_ROW: state.skipped_in_row,
      **describe_load(model.config, count_LE),
    }
    if is_spike is not None:
      metrics[IS_SPIKE] = is_spike.astype(jnp.float32)
      metrics[BATCH_HASH] = tree.hash_batch(batch)
    return state, metrics

  return train_step


def _limit(grads: Any, config: Config, step: jax.Array):
  """Returns (gradients as they are applied, their norm before clipping)."""
  if config.optim.noise_multiplier is not None:
    # Each sequence's gradient is clipped already; the noisy mean is not.
    grads = privacy.add_noise(grads, config, step)
    return grads, optax.tree.norm(grads)
  norm = optax.tree.norm(grads)
  return optim.clip_by_global_norm(grads, norm, config.optim.clip_norm), norm


def repeat_step(train_step: Callable, times: int) -> Callable:
  """Returns a step that updates `times` by one batch, at one learning rate.

  Its metrics are those of the last update.
  """
  if times == 1:
    return train_step

  def repeated(state: TrainState, batch):
    first = state.step
    for _ in range(times):
      state, metrics = train_step(state.replace(step=first), batch)
    return state, metrics

  return repeated


def _decay_at(step, ema_decay: float | None):
  """Returns the decay of the moving average, None without one."""
  if ema_decay is None:
    return None
  # A smaller decay early on soon forgets the initial values.
  return jnp.minimum(ema_decay, (1 + step) / (10 + step))


def _add_norm(norm_mean, norm, is_good):
  """Returns norm_mean with one more norm, if the update is_good.

  The mean of all norms at first, then of about the last 5 * SPIKE_HISTORY. The
  norms of skipped updates are left out; a few spikes would otherwise raise the
  mean and let the next ones through.
  """
  count = norm_mean["count"] + is_good.astype(jnp.int32)
  part = 1 / jnp.clip(count, 1, 5 * SPIKE_HISTORY)
  moved = norm_mean["mean"] + part * (norm - norm_mean["mean"])
  return {"mean": jnp.where(is_good, moved, norm_mean["mean"]), "count": count}


def update(
  tx: optax.GradientTransformation,
  grads: Any,
  old: Any,
  rate: jax.Array,
  ema_decay: jax.Array | None,
  settle: Callable[[Any, Any], Any] = lambda new, old: new,
):
  """Returns (params, opt_state, ema) after one update of `old`.

  Args:
    old: (params, opt_state, ema); ema may be None.
    rate, ema_decay: float32 scalars; ema_decay is None without ema.
    settle: (new params, old params) -> params, for changes without gradients.
  """
  params, opt_state, ema = old
  directions, opt_state = tx.update(grads, opt_state, params)
  move = lambda p, d: p if d is None else (p - rate * d).astype(p.dtype)
  params = settle(jax.tree.map(move, params, directions), params)
  if ema is not None and ema_decay is not None:
    average = lambda e, p: e + (1 - ema_decay) * (p - e)
    ema = jax.tree.map(average, ema, params)
  params, ema = keep_finite((params, ema), (old[0], old[2]))
  return params, opt_state, ema


def build_settle(model: Model, has_zeros: bool) -> Callable:
  """Returns settle(new, old, count_LE) -> params, the last part of an update.

  It moves the balance biases of experts by their token counts.

  Args:
    has_zeros: train.keep_zeros: weights of layer matrices that were zero in the
      old parameters also stay zero.
  """
  balance = functools.partial(balance_experts, model)
  if not has_zeros:
    return balance
  specs = model.abstract_learned()[1]

  def keep(spec, new, old):
    return jnp.where(old == 0, 0, new) if spec.role in SPARSE else new

  return lambda new, old, count_LE: jax.tree.map(
    keep, specs, balance(new, old, count_LE), old
  )


def balance_experts(model: Model, new: Any, old: Any, count_LE):
  """Returns params `new` with the experts' balance biases a step from `old`.

  b + rate * sign(even share - count) (DeepSeek-V3, 2024, 2.1.2), by the counts
  of the whole batch: integers, so that the sign is the same on any mesh. No
  optimizer moves these biases.

  Args:
    count_LE: int32, token counts of experts in each layer that has experts.
  """
  rate = model.config.router_bias_rate
  if not rate or model.adapter is not None:
    return new
  total_L1, E = count_LE.sum(-1, keepdims=True), count_LE.shape[-1]
  is_below_LE = count_LE < -(-total_L1 // E)
  is_above_LE = count_LE > total_L1 // E
  sign_LE = is_below_LE.astype(jnp.float32) - is_above_LE
  one = lambda n, o, s: o + rate * sign_LE if s.role == "balance" else n
  return jax.tree.map(one, new, old, model.abstract_params()[1])


def describe_load(config: ModelConfig, count_LE) -> dict:
  """Returns {name: largest or smallest load of a layer, 1 where it is even}.

  EXPERT_LOAD_MAX and EXPERT_LOAD_MIN of each layer that has experts.
  """
  if count_LE is None:
    return {}
  kinds = config_lib.mlp_kinds(config)
  layers = [layer for layer, kind in enumerate(kinds) if kind == "moe"]
  found = {}
  for layer, count_E in zip(layers, count_LE, strict=True):
    even = count_E.sum() / count_E.size
    found[f"{EXPERT_LOAD_MAX}/{layer:02}"] = count_E.max() / even
    found[f"{EXPERT_LOAD_MIN}/{layer:02}"] = count_E.min() / even
  return found


def keep_finite(new: Any, old: Any):
  """Returns `new`, but `old` in each element where `new` is not finite.

  Design choice: element by element. A verdict on the whole state would need two
  copies of it in memory, or a second pass over it; this comparison is part of
  the pass that writes, and changes no finite value.
  """
  keep = lambda n, o: jnp.where(jnp.isfinite(n), n, o)
  return jax.tree.map(keep, new, old)


def lower_step(
  step_function: Callable,
  abstract: Any,
  config: Config,
  mesh: jax.sharding.Mesh,
  batch_place: jax.sharding.NamedSharding,
) -> jax.stages.Lowered:
  """Returns the step, which donates its state, lowered but not compiled."""
  batch = objective.abstract_batch(config, batch_place)
  with jax.set_mesh(mesh):
    return _jit_for(abstract)(step_function).lower(abstract, batch)


def _jit_for(abstract: Any) -> Callable:
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return functools.partial(
    jax.jit, donate_argnums=0, out_shardings=(shardings, None)
  )


def compile_step(
  step_function: Callable,
  abstract: Any,
  config: Config,
  mesh: jax.sharding.Mesh,
  batch_place,
  options: dict | None = None,
  teacher: Teacher | None = None,
):
  """Returns (compiled step, seconds, peak bytes on a device or 0).

  Traces the step unless traced.py has stored the trace of an earlier process.

  Args:
    teacher: the Teacher of the step, or None.
    options: XLA options, added to COMPILER_OPTIONS.
  """
  start, lowered = time.perf_counter(), None
  if traced.is_served(mesh):
    batch = objective.abstract_batch(config, batch_place)
    path, jit = traced.path_of(config, mesh, teacher), _jit_for(abstract)
    with jax.set_mesh(mesh):
      lowered = traced.lower(path, jit, step_function, abstract, batch)
  if lowered is None:
    lowered = lower_step(step_function, abstract, config, mesh, batch_place)
  own = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform, {})
  with jax.set_mesh(mesh):
    compiled = lowered.compile(compiler_options=own | (options or {}) or None)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  peak = 0
  if memory is not None:
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  return compiled, seconds, peak
