"""What is minimised: the batch, its loss, and the hash that names it."""

import jax
import jax.numpy as jnp

from gpt_jax import sharding
from gpt_jax.config import Config, TrainConfig
from gpt_jax.data.objectives import fields
from gpt_jax.metric_names import BALANCE_LOSS, LOSS, Z_LOSS
from gpt_jax.models import Model
from gpt_jax.ops import cross_entropy


def abstract_batch(config: Config, batch_place):
  """Returns a global batch as ShapeDtypeStructs laid out as `batch_place`."""
  shape = (config.train.global_batch_size, config.data.seq_len)
  leaf = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_place)
  return {k: leaf(dtype) for k, dtype in fields(config.data).items()}


def make_objective(model: Model, train: TrainConfig):
  """Returns objective(params, batch, key, totals) -> (minimised, sums).

  minimised is the mean loss over targets, with train.z_loss_weight times the
  z-loss and model.router_balance_weight times the experts' balance. sums is a
  dict by public metric name of what is added over microbatches: LOSS (mean
  nats per target), with a z-loss Z_LOSS, with experts BALANCE_LOSS (mean over
  layers; 1 is even). Both are unweighted and no part of LOSS.

  totals is what `count_totals` returns for the global batch, of which `batch`
  may be one microbatch.
  """
  z_weight = train.z_loss_weight
  sum_loss = make_loss(model, train.num_loss_chunks, z_weight > 0)

  def objective(params, batch, key, totals):
    num_targets, num_rows = totals
    nats, _, balance, z = sum_loss(params, batch, key)
    sums = {LOSS: nats / num_targets}
    minimised = sums[LOSS]
    if z is not None:
      sums[Z_LOSS] = z / num_targets
      minimised += z_weight * sums[Z_LOSS]
    if balance is not None:
      balance /= num_rows
      sums[BALANCE_LOSS] = balance / model.config.num_layers
      minimised += model.config.router_balance_weight * balance
    return minimised, sums

  return objective


def count_totals(batch):
  """Returns (number of targets, at least 1, as float32; number of rows)."""
  num_targets = jnp.float32(batch["targets"].size)
  if "mask" in batch:
    num_targets = jnp.maximum(batch["mask"].sum(), 1.0)
  return num_targets, batch["targets"].shape[0]


def make_loss(model: Model, num_chunks: int, has_z: bool = False):
  """Returns loss(params, batch, key) -> (nats, number of targets, balance, z).

  Sums over the batch; balance, of how experts are loaded (models/moe.py), is a
  sum over layers too, and None without experts; z is losses.squared_log_z,
  None without has_z.

  A batch holds tokens, targets (B, T) int32; where documents are packed also
  positions, segments int32 and mask float32.

  Args:
    num_chunks: parts of the vocabulary, of which one at a time is scored.
  """

  def loss(params, batch, key=None):
    length, parts = batch["tokens"].shape[1], sharding.axis_size("seq")
    order_1T = None
    if parts > 1 and model.can_reorder(length, key is not None):
      batch, order_1T = sharding.balance(batch, length, parts, model.rules)
    targets_BT, mask_BT = batch["targets"], batch.get("mask")
    out, balance_B = model.apply(
      params,
      batch["tokens"],
      batch.get("positions"),
      batch.get("segments"),
      key=key,
      order_1T=order_1T,
      slots_BT=batch.get("slots"),
      is_headless=num_chunks > 1,
      needs_balance=True,
    )
    balance = None if balance_B is None else balance_B.sum()
    if num_chunks == 1:
      z = cross_entropy.squared_log_z(out, mask_BT) if has_z else None
      return *cross_entropy.cross_entropy(out, targets_BT, mask_BT), balance, z
    if mask_BT is None:
      mask_BT = jnp.ones(targets_BT.shape, jnp.float32)
    nats, count, *z = cross_entropy.chunked_cross_entropy(
      *out,
      targets_BT,
      mask_BT,
      model.cap_logits,
      num_chunks,
      model.rules,
      model.config.grad_dtype,
      has_z,
    )
    return nats, count, balance, z[0] if has_z else None

  return loss


def hash_batch(batch: dict):
  """Returns a uint32 of the tokens and targets of a global batch, in order.

  A sum over all places, of whole numbers that wrap: the same however the batch
  lies on devices.
  """
  total = jnp.uint32(0)
  for name in ("tokens", "targets"):
    ids_BT = batch[name].astype(jnp.uint32)
    place_BT = jnp.arange(ids_BT.size, dtype=jnp.uint32).reshape(ids_BT.shape)
    # The finisher of MurmurHash3, twice: of the place, then of both.
    total = 31 * total + _mix(ids_BT ^ _mix(place_BT + 1)).sum(dtype=jnp.uint32)
  return total


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def make_eval_step(model: Model, num_chunks: int):
  """Returns step(params, batch) -> (sum of nats, number of targets)."""
  loss = make_loss(model, num_chunks)
  return lambda params, batch: loss(params, batch)[:2]
