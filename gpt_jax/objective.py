"""The training objective: the loss of a batch, and its metrics."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config
from gpt_jax.data import logits
from gpt_jax.data.objectives import fields
from gpt_jax.judging import (
  PER_SIDE,
  SIDES,
  answers_of,
  average_sides,
  build_judge,
  count_sides,
)
from gpt_jax.metric_names import (
  ACCURACY,
  BALANCE_LOSS,
  DROPPED,
  FUTURE_LOSS,
  LOSS,
  NUM_TARGETS,
  ROUTER_Z_LOSS,
  SMOOTHED_LOSS,
  TEACHER_KL,
  Z_LOSS,
)
from gpt_jax.models import Model
from gpt_jax.ops import cross_entropy, preferences
from gpt_jax.teacher import Teacher

# The sum of make_loss that is not averaged: int32 token counts (layer, expert).
COUNTS = "counts"
# Sums that are averaged over sequences; the others over targets.
PER_SEQUENCE = (BALANCE_LOSS, ROUTER_Z_LOSS, DROPPED)
# Sums of make_loss over layers, whose mean over them is the metric.
PER_LAYER = (BALANCE_LOSS, ROUTER_Z_LOSS, DROPPED)


def abstract_batch(config: Config, batch_place: jax.sharding.Sharding | None):
  """Returns a global batch as ShapeDtypeStructs with sharding `batch_place`."""
  B = config.train.global_batch_size
  leaf = lambda field: jax.ShapeDtypeStruct(
    (B, field.length), field.dtype, sharding=batch_place
  )
  found = {name: leaf(field) for name, field in fields(config).items()}
  if config.distill.top_k is not None:
    T = config_lib.row_lengths(config).target
    for name, shape in logits.widths(config.distill.top_k, T).items():
      dtype = jnp.int32 if name == logits.IDS else jnp.float32
      found[name] = jax.ShapeDtypeStruct(
        (B, *shape), dtype, sharding=batch_place
      )
  return found


def make_objective(
  model: Model, config: Config, teacher: Teacher | None = None
):
  """Returns objective(params, batch, key, totals, told) -> (sum, metrics).

  The sum is what is minimised:
    the mean loss over targets (over pairs, with preferences), smoothed by
      train.label_smoothing; with a teacher times 1 - distill.weight
    the loss of each block that predicts tokens beyond the next
    train.z_loss_weight times the z-loss
    in each layer with experts, model.router_balance_weight times their balance
      loss and model.router_z_weight times their router's z-loss
    with a teacher, whose parameters are `told`, Teacher.scale times the
      divergence from it

  metrics is {public name: mean}, to be added over microbatches: LOSS (nats per
  target), SMOOTHED_LOSS with smoothing, Z_LOSS if it has a weight, with experts
  BALANCE_LOSS (mean over layers; 1 is even), ROUTER_Z_LOSS if it has a weight,
  DROPPED with a capacity and COUNTS, with model.num_future_tokens FUTURE_LOSS
  (mean over those blocks), with a teacher TEACHER_KL, and any other sum of
  make_loss. All are unweighted, and LOSS includes none of the others.

  totals is what `count_totals` returns for the global batch, of which `batch`
  may be one microbatch.
  """
  c, train, weights = model.config, config.train, {}
  if train.z_loss_weight > 0:
    weights[Z_LOSS] = train.z_loss_weight
  if c.num_experts is not None:
    weights[BALANCE_LOSS] = c.router_balance_weight
    if c.router_z_weight:
      weights[ROUTER_Z_LOSS] = c.router_z_weight
  num_ahead = c.num_future_tokens - 1
  if num_ahead:
    weights[FUTURE_LOSS] = num_ahead
  smoothing = None
  if train.label_smoothing > 0:
    smoothing = cross_entropy.Smoothing(
      train.label_smoothing, config_lib.num_scored(c)
    )
  sum_loss = make_loss(
    model,
    train.num_loss_chunks,
    tuple(weights),
    smoothing,
    None,
    build_judge(config),
    teacher,
  )
  if teacher is not None:
    weights[TEACHER_KL] = teacher.scale

  def objective(params, batch, key, totals, told=None):
    num_targets, num_rows, num_future, num_sides = totals
    sums = sum_loss(params, batch, key, told)
    del sums[NUM_TARGETS]  # of the microbatch; totals has the batch's
    sums.pop(SIDES, None)
    counts = {k: sums.pop(k) for k in (COUNTS,) if k in sums}
    metrics = {
      name: total / (num_rows if name in PER_SEQUENCE else num_targets)
      for name, total in sums.items()
      if name not in PER_SIDE
    }
    metrics |= average_sides(sums, num_sides)
    if num_ahead:
      metrics[FUTURE_LOSS] = sums[FUTURE_LOSS] / num_future
    minimised = metrics[LOSS if smoothing is None else SMOOTHED_LOSS]
    if teacher is not None:
      minimised *= 1 - teacher.distill.weight
    for name, weight in weights.items():
      minimised += weight * metrics[name]
    for name in PER_LAYER:
      if name in metrics:
        metrics[name] /= config_lib.mlp_kinds(c).count("moe")
    return minimised, metrics | counts

  return objective


def count_totals(batch: dict, num_future_tokens: int = 1):
  """Returns the numbers of targets, rows, future targets and SIDES of a batch.

  With preferences a target is a pair, with sampled answers an answer. Future
  targets are those of model.num_future_tokens beyond the next token. Both
  numbers of targets are float32 and at least 1. SIDES is None without
  preferences.
  """
  num_targets = jnp.float32(batch["targets"].size)
  num_sides = None
  if "labels" in batch:
    num_targets = jnp.maximum(jnp.abs(batch["labels"][:, 0]).sum(), 1.0)
    num_sides = count_sides(batch)
  elif "advantages" in batch:
    num_targets = jnp.float32(batch["targets"].shape[0])
  elif "mask" in batch:
    num_targets = jnp.maximum(batch["mask"].sum(), 1.0)
  num_future = jnp.float32(0)
  for _, mask_BT in shift_targets(batch, num_future_tokens):
    num_future += mask_BT.sum()
  num_future = jnp.maximum(num_future, 1.0)
  return num_targets, batch["targets"].shape[0], num_future, num_sides


def shift_targets(batch: dict, num_future_tokens: int) -> list[tuple]:
  """Returns [(targets_BT, mask_BT)] of the second next token, the third, ...

  The mask is 0 where such a token is in another document, or beyond the row.
  """
  shifted = []
  for ahead in range(1, num_future_tokens):
    move = lambda x, n=ahead: jnp.pad(x[:, n:], ((0, 0), (0, n)))
    mask_BT = batch.get("mask")
    if mask_BT is None:
      mask_BT = jnp.ones(batch["targets"].shape, jnp.float32)
    mask_BT = move(mask_BT)
    if "segments" in batch:
      mask_BT *= batch["segments"] == move(batch["segments"])
    shifted.append((move(batch["targets"]), mask_BT))
  return shifted


def inputs_of(batch: dict, model: Model) -> dict:
  """Returns the arguments of Model.apply that a batch holds."""
  outputs = ["targets", "mask", "labels", "reference", "baseline"]
  outputs += ["rewards", "advantages", "old_log_probs", "reference_log_probs"]
  outputs += logits.FIELDS
  if not model.has_types:
    outputs.append("types")
  dims = lambda name: "BS" if name.startswith("source") else "BT"
  return {
    f"{k}_{dims(k)}": array for k, array in batch.items() if k not in outputs
  }


def make_loss(
  model: Model,
  num_chunks: int,
  others: Sequence[str] = (),
  smoothing: cross_entropy.Smoothing | None = None,
  measure: Callable | None = None,
  prefer: Callable | None = None,
  teacher: Teacher | None = None,
):
  """Returns loss(params, batch, key, told) -> {public name: sum of the batch}.

  The sums are LOSS in nats and NUM_TARGETS, by which others are divided (those
  of PER_SEQUENCE by the number of rows). If `others` names them, also Z_LOSS
  (cross_entropy.squared_log_z), ACCURACY, FUTURE_LOSS (over count_totals'
  future targets), BALANCE_LOSS and ROUTER_Z_LOSS (models/moe.py), which are
  summed over layers too. BALANCE_LOSS comes with COUNTS and, with a capacity,
  DROPPED.

  A new metric is one entry of these sums, and its name in metric_names.py.

  A batch has the arrays of data.objectives.fields; mask, segments, positions
  and slots may be missing. With a classification head the dtype of targets
  decides what LOSS is, and the logits, which are few, are computed at once.

  Args:
    num_chunks: parts of the logits, computed one at a time; 1 for all at once.
    others: any of Z_LOSS, FUTURE_LOSS, BALANCE_LOSS, ROUTER_Z_LOSS, ACCURACY.
    smoothing: also return SMOOTHED_LOSS, and LOSS without a gradient.
    measure: function of (logits, batch) that returns more sums, for classes.
    prefer: the function of build_judge, whose sums replace LOSS and
      NUM_TARGETS.
    teacher: also return TEACHER_KL; told is the teacher's parameters.
  """
  num_chunks = 1 if config_lib.has_classes(model.config) else num_chunks
  # In the order in which cross_entropy returns them.
  z_names = (Z_LOSS,) if Z_LOSS in others else ()
  names = LOSS, NUM_TARGETS, *z_names
  if smoothing is not None:
    names = SMOOTHED_LOSS, NUM_TARGETS, *z_names, LOSS
  has_z, has_balance = Z_LOSS in others, BALANCE_LOSS in others
  has_future = FUTURE_LOSS in others
  compare = functools.partial(_compare, model, num_chunks, smoothing, has_z)

  def loss(params, batch, key=None, told=None):
    sums, shifted = {}, []
    if has_future:
      shifted = shift_targets(batch, model.config.num_future_tokens)
    models = [model, *([teacher.model] if teacher and teacher.model else [])]
    batch, shifted, order_1T = _balance(models, batch, shifted, key is not None)
    targets_BT, mask_BT = batch["targets"], batch.get("mask")
    inputs, is_headless = inputs_of(batch, model), num_chunks > 1
    out = model.apply(
      params,
      **inputs,
      key=key,
      order_1T=order_1T,
      is_headless=is_headless,
      needs_balance=has_balance,
      needs_future=has_future or None,
    )
    if has_future:
      out, futures = out
      each = zip(futures, shifted, strict=True)
      sums[FUTURE_LOSS] = sum(compare(own, *goal)[0] for own, goal in each)
    if has_balance:
      out, routing = out
      sums |= _sum_routing(routing, ROUTER_Z_LOSS in others)
    if ACCURACY in others:
      sums[ACCURACY] = _count_hits(model, out, targets_BT, mask_BT, num_chunks)
    if measure is not None:
      sums |= measure(out, batch)
    if prefer is not None:
      return sums | prefer(out, batch)
    if teacher is not None:
      told = teacher.tell(told, batch, inputs, order_1T, is_headless)
      sums[TEACHER_KL] = teacher.diverge(model, out, told, mask_BT, num_chunks)
    found = compare(out, targets_BT, mask_BT)
    return sums | dict(zip(names, found, strict=True))

  return loss


def _balance(models: list, batch: dict, shifted: list, is_dropping: bool):
  """Returns (batch, shifted, order_1T), reordered to balance axis seq."""
  length, parts = batch["tokens"].shape[1], sharding.axis_size("seq")
  can_reorder = [model.can_reorder(length, is_dropping) for model in models]
  if parts == 1 or not all(can_reorder):
    return batch, shifted, None
  # Sources, which all queries see alike, stay in order.
  rows = {k: x for k, x in batch.items() if not k.startswith("source")}
  (rows, shifted), order_1T = sharding.balance(
    (rows, shifted), length, parts, models[0].rules
  )
  return batch | rows, shifted, order_1T


def _sum_routing(routing: dict, has_z: bool) -> dict:
  """Returns the sums of the routing that stack.run_blocks returns."""
  sums = {
    BALANCE_LOSS: routing["balance_B"].sum(0).sum(),
    COUNTS: routing["count_BE"].sum(1),
  }
  if has_z:
    sums[ROUTER_Z_LOSS] = routing["z_B"].sum()
  if "dropped_B" in routing:
    sums[DROPPED] = routing["dropped_B"].sum()
  return sums


def add_baseline(model: Model, params, split: dict, word: str) -> dict:
  """Returns microbatches; for kto, with the baseline of the whole batch.

  Args:
    params: parameters as Model.apply reads them.
    split: a batch whose arrays have a leading dim of microbatches.
    word: option of data.objective.
  """
  if word != "kto":
    return split

  def ratios(part):
    logits_BTV = model.apply(params, **inputs_of(part, model))
    answers = answers_of(logits_BTV, part)
    return answers.ratio_B2, answers.label_B

  ratio_MB2, label_MB = jax.lax.stop_gradient(jax.lax.map(ratios, split))
  whole = preferences.kto_baseline(ratio_MB2.reshape(-1, 2), label_MB.ravel())
  shape = (*split["labels"].shape[:2], 1)
  return split | {"baseline": jnp.broadcast_to(whole, shape)}


def _compare(model: Model, num_chunks, smoothing, has_z, out, *goal) -> tuple:
  """Returns the cross_entropy of logits, or of a headless (x_BTD, w_VD).

  Args:
    goal: targets_BT and mask_BT, which may be None.
  """
  targets_BT, mask_BT = goal
  if jnp.issubdtype(targets_BT.dtype, jnp.floating):
    return _sum_float_loss(out, targets_BT, mask_BT)
  if num_chunks == 1:
    found = cross_entropy.cross_entropy(out, targets_BT, mask_BT, smoothing)
    if has_z:
      square = cross_entropy.squared_log_z(out, mask_BT)
      found = *found[:2], square, *found[2:]
    return found
  if mask_BT is None:
    mask_BT = jnp.ones(targets_BT.shape, jnp.float32)
  return cross_entropy.chunked_cross_entropy(
    *out,
    targets_BT,
    mask_BT,
    model.cap_logits,
    num_chunks,
    model.rules,
    model.config.grad_dtype,
    has_z,
    smoothing,
  )


def _sum_float_loss(logits_B1C, targets_BC, mask_B1):
  """Returns (sum of losses, number of rows) where targets are not ids.

  With one output, targets are numbers and the loss is the squared error. With
  several, they say whether each class is a label of the text (1 or 0), and the
  loss is the mean over classes of the cross-entropy after a sigmoid.
  """
  out_BC = logits_B1C[:, 0]
  if out_BC.shape[1] == 1:
    loss_BC = jnp.square(out_BC - targets_BC)
  else:
    loss_BC = -targets_BC * jax.nn.log_sigmoid(out_BC)
    loss_BC -= (1 - targets_BC) * jax.nn.log_sigmoid(-out_BC)
  loss_B1 = loss_BC.mean(1, keepdims=True)
  return (loss_B1 * mask_B1).sum(), mask_B1.sum()


def _count_hits(model: Model, out, targets_BT, mask_BT, num_chunks: int):
  if num_chunks == 1:
    return cross_entropy.count_hits(out, targets_BT, mask_BT)
  return cross_entropy.chunked_count_hits(
    *out, targets_BT, mask_BT, model.cap_logits, num_chunks, model.rules
  )
