"""What is minimised: the batch, its loss, and the batch's hash."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config, TrainConfig
from gpt_jax.data.objectives import fields
from gpt_jax.metric_names import (
  ACCURACY,
  BALANCE_LOSS,
  DROPPED,
  FUTURE_LOSS,
  LOSS,
  NUM_TARGETS,
  ROUTER_Z_LOSS,
  SMOOTHED_LOSS,
  Z_LOSS,
)
from gpt_jax.models import Model
from gpt_jax.ops import cross_entropy

# The sum of make_loss that stays one: int32 tokens of each expert, by layer.
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
  return {name: leaf(field) for name, field in fields(config).items()}


def make_objective(model: Model, train: TrainConfig):
  """Returns objective(params, batch, key, totals) -> (minimised, metrics).

  minimised is the mean loss over targets, smoothed by train.label_smoothing,
  plus that of each block which predicts further tokens, plus
  train.z_loss_weight times the z-loss, and in each layer with experts
  model.router_balance_weight times their balance loss and model.router_z_weight
  times their router's z-loss. metrics is {public name: mean}, to be added over
  microbatches: LOSS (nats per target), SMOOTHED_LOSS with smoothing, Z_LOSS if
  it has a weight, with experts BALANCE_LOSS (mean over layers; 1 is even),
  ROUTER_Z_LOSS if it has a weight, DROPPED with a capacity and COUNTS, with
  model.num_future_tokens FUTURE_LOSS, the mean over those blocks, and any other
  sum of make_loss. All are unweighted; none is part of LOSS.

  totals is what `count_totals` returns for the global batch, of which `batch`
  may be one microbatch.
  """
  c, weights = model.config, {}
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
  sum_loss = make_loss(model, train.num_loss_chunks, tuple(weights), smoothing)

  def objective(params, batch, key, totals):
    num_targets, num_rows, num_future = totals
    sums = sum_loss(params, batch, key)
    del sums[NUM_TARGETS]  # of the microbatch; totals has the batch's
    counts = {k: sums.pop(k) for k in (COUNTS,) if k in sums}
    metrics = {
      name: total / (num_rows if name in PER_SEQUENCE else num_targets)
      for name, total in sums.items()
    }
    if num_ahead:
      metrics[FUTURE_LOSS] = sums[FUTURE_LOSS] / num_future
    minimised = metrics[LOSS if smoothing is None else SMOOTHED_LOSS]
    for name, weight in weights.items():
      minimised += weight * metrics[name]
    for name in PER_LAYER:
      if name in metrics:
        metrics[name] /= config_lib.mlp_kinds(c).count("moe")
    return minimised, metrics | counts

  return objective


def count_totals(batch: dict, num_future_tokens: int = 1):
  """Returns (number of targets, number of rows, number of future targets).

  Future targets are those of model.num_future_tokens that are not the next
  token. Both numbers of targets are float32 and at least 1.
  """
  num_targets = jnp.float32(batch["targets"].size)
  if "mask" in batch:
    num_targets = jnp.maximum(batch["mask"].sum(), 1.0)
  num_future = jnp.float32(0)
  for _, mask_BT in shift_targets(batch, num_future_tokens):
    num_future += mask_BT.sum()
  return num_targets, batch["targets"].shape[0], jnp.maximum(num_future, 1.0)


def shift_targets(batch: dict, num_future_tokens: int) -> list[tuple]:
  """Returns [(targets_BT, mask_BT)] of the tokens after the next, one by one.

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
  outputs = ["targets", "mask"]
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
):
  """Returns loss(params, batch, key) -> {public name: sum over the batch}.

  LOSS in nats and NUM_TARGETS, by which the other sums are divided (those of
  PER_SEQUENCE by the number of rows). If `others` names them, also Z_LOSS
  (cross_entropy.squared_log_z), ACCURACY, FUTURE_LOSS (over count_totals'
  future targets), BALANCE_LOSS and ROUTER_Z_LOSS (models/moe.py), which are
  summed over layers too, and with BALANCE_LOSS the COUNTS of experts and what
  they DROPPED.

  A new metric is one entry of these sums, and its name in metric_names.py.

  A batch has the arrays of data.objectives.fields; mask, segments, positions
  and slots may be missing. With a head of classes the kind of targets decides
  what LOSS is, and the logits, which are few, are never in parts.

  Args:
    num_chunks: parts of the logits, computed one at a time; 1 for all at once.
    others: any of Z_LOSS, FUTURE_LOSS, BALANCE_LOSS, ROUTER_Z_LOSS, ACCURACY.
    smoothing: also return SMOOTHED_LOSS, and LOSS without a gradient.
    measure: function of (logits, batch) that returns more sums, of classes.
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

  def loss(params, batch, key=None):
    length, parts = batch["tokens"].shape[1], sharding.axis_size("seq")
    order_1T, sums, shifted = None, {}, []
    if has_future:
      shifted = shift_targets(batch, model.config.num_future_tokens)
    if parts > 1 and model.can_reorder(length, key is not None):
      # Sources, which all queries see alike, stay in order.
      rows = {k: x for k, x in batch.items() if not k.startswith("source")}
      (rows, shifted), order_1T = sharding.balance(
        (rows, shifted), length, parts, model.rules
      )
      batch = batch | rows
    targets_BT, mask_BT = batch["targets"], batch.get("mask")
    out = model.apply(
      params,
      **inputs_of(batch, model),
      key=key,
      order_1T=order_1T,
      is_headless=num_chunks > 1,
      needs_balance=has_balance,
      needs_future=has_future or None,
    )
    if has_future:
      out, futures = out
      each = zip(futures, shifted, strict=True)
      sums[FUTURE_LOSS] = sum(compare(own, *goal)[0] for own, goal in each)
    if has_balance:
      out, routing = out
      sums[BALANCE_LOSS] = routing["balance_B"].sum(0).sum()
      sums[COUNTS] = routing["count_BE"].sum(1)
      if ROUTER_Z_LOSS in others:
        sums[ROUTER_Z_LOSS] = routing["z_B"].sum()
      if "dropped_B" in routing:
        sums[DROPPED] = routing["dropped_B"].sum()
    if ACCURACY in others:
      sums[ACCURACY] = _count_hits(model, out, targets_BT, mask_BT, num_chunks)
    if measure is not None:
      sums |= measure(out, batch)
    found = compare(out, targets_BT, mask_BT)
    return sums | dict(zip(names, found, strict=True))

  return loss


def _compare(model: Model, num_chunks, smoothing, has_z, out, *goal) -> tuple:
  """Returns what cross_entropy does of logits, or of what makes them.

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

  The targets of one output are numbers, and the loss is the squared error.
  Those of several say whether each class is a label of the text, 1 or 0, and
  the loss is the mean over classes of the cross-entropy, after a sigmoid.
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


def hash_batch(batch: dict):
  """Returns a uint32 hash of the ids of a global batch.

  It depends on their order. A sum of integers modulo 2^32 over all positions,
  so it is the same for any sharding of the batch.
  """
  total = jnp.uint32(0)
  for name in ("tokens", "targets", "sources"):
    if name not in batch:
      continue
    ids_BT = batch[name]
    if jnp.issubdtype(ids_BT.dtype, jnp.floating):
      ids_BT = jax.lax.bitcast_convert_type(ids_BT, jnp.uint32)
    ids_BT = ids_BT.astype(jnp.uint32)
    index_BT = jnp.arange(ids_BT.size, dtype=jnp.uint32).reshape(ids_BT.shape)
    # MurmurHash3's finalizer, applied to the index and then to both.
    total = 31 * total + _mix(ids_BT ^ _mix(index_BT + 1)).sum(dtype=jnp.uint32)
  return total


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
