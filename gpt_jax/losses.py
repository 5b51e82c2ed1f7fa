"""Losses over logits: sums in float32 with the count that they are over.

Sums, not means, so that microbatches, devices and evaluation batches add up
to the same figure whatever the split.
"""

import functools

import jax
import jax.numpy as jnp

from gpt_jax import sharding
from gpt_jax.config import InputError


def cross_entropy(logits_BTV, targets_BT, mask_BT=None):
  """Returns (sum of negative log-likelihoods in nats, number of targets).

  Args:
    logits_BTV: float32.
    targets_BT: int32 ids below V.
    mask_BT: float32 weight of each target; None counts all.
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  nll_BT = log_z_BT - picked[..., 0]
  if mask_BT is None:
    return nll_BT.sum(), jnp.float32(nll_BT.size)
  return (nll_BT * mask_BT).sum(), mask_BT.sum()


def squared_log_z(logits_BTV, mask_BT=None):
  """Returns the sum of (log of softmax's denominator)^2, the z-loss.

  It keeps logits from drifting together (Chowdhery et al. 2022, 5).

  Args: as cross_entropy's.
  """
  square_BT = jnp.square(jax.nn.logsumexp(logits_BTV, axis=-1))
  return (square_BT if mask_BT is None else square_BT * mask_BT).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def chunked_cross_entropy(
  x_BTD,
  w_VD,
  targets_BT,
  mask_BT,
  cap,
  num_chunks: int,
  rules,
  grad_dtype,
  has_z: bool = False,
):
  """Returns cross_entropy of logits that never exist as a whole.

  The vocabulary is gone through in parts, with running maximum and sum as in
  Milakov and Gimelshein 2018; backward makes each part again. Parts of the
  vocabulary, not of the tokens: a device that keeps a part of w_VD then never
  needs more than one part of the whole, and the gradient of a part is complete
  and summed over devices once. It costs one product more, a quarter of what
  the head takes with its gradients.

  Args:
    x_BTD: what the logits are the product of, with w_VD as it is kept.
    w_VD: with V a multiple of num_chunks times the mesh's tensor axis.
    mask_BT: float32 weight of each target.
    cap: function of (logits_BTR, ids_R), elementwise, to what counts.
    rules: word of sharding.RULES.
    grad_dtype: that w's gradient is produced and summed over devices in.
    has_z: return squared_log_z too, last.

  Raises:
    InputError: V does not divide.
  """
  loss, _ = _chunked_forward(
    x_BTD, w_VD, targets_BT, mask_BT, cap, num_chunks, rules, grad_dtype, has_z
  )
  return loss


def _rows(w_VD, index, num_chunks: int, rules: str, dtype):
  """Returns (w_RD as `dtype`, ids_R): part `index` of the vocabulary.

  Of every device's own rows a part, so that all have the same to do.
  """
  V, D = w_VD.shape
  shards = sharding.axes_size(rules, "vocab")
  if V % (num_chunks * shards):
    raise InputError(
      f"train.num_loss_chunks is {num_chunks}; times {shards} devices that "
      f"split the vocabulary it must divide its {V} rows (model.vocab_size, "
      "padded to model.vocab_multiple)"
    )
  split = w_VD.reshape(shards, num_chunks, -1, D)
  w_RD = jax.lax.dynamic_index_in_dim(split, index, 1, False).reshape(-1, D)
  w_RD = sharding.constrain(w_RD.astype(dtype), ("vocab", "residual"), rules)
  ids = jnp.arange(V).reshape(shards, num_chunks, -1)
  ids_R = jax.lax.dynamic_index_in_dim(ids, index, 1, False).reshape(-1)
  return w_RD, ids_R


def _chunked_forward(
  x_BTD, w_VD, targets_BT, mask_BT, cap, num_chunks, rules, grad_dtype, has_z
):
  def one(carry, index):
    top_BT, total_BT, picked_BT = carry
    w_RD, ids_R = _rows(w_VD, index, num_chunks, rules, x_BTD.dtype)
    raw_BTR = jnp.einsum(
      "BTD,RD->BTR", x_BTD, w_RD, preferred_element_type=jnp.float32
    )
    raw_BTR = sharding.constrain(raw_BTR, ("batch", "length", "vocab"), rules)
    logits_BTR = cap(raw_BTR, ids_R)
    higher_BT = jnp.maximum(top_BT, logits_BTR.max(-1))
    new_BT = jnp.exp(logits_BTR - higher_BT[..., None]).sum(-1)
    total_BT = total_BT * jnp.exp(top_BT - higher_BT) + new_BT
    is_target_BTR = targets_BT[..., None] == ids_R
    picked_BT += jnp.where(is_target_BTR, logits_BTR, 0).sum(-1)
    return (higher_BT, total_BT, picked_BT), None

  zero_BT = jnp.zeros(targets_BT.shape, jnp.float32)
  start = (zero_BT - jnp.inf, zero_BT, zero_BT)
  carry, _ = jax.lax.scan(one, start, jnp.arange(num_chunks))
  log_z_BT = carry[0] + jnp.log(carry[1])
  nll_BT = log_z_BT - carry[2]
  loss = (nll_BT * mask_BT).sum(), mask_BT.sum()
  if has_z:
    loss = *loss, (jnp.square(log_z_BT) * mask_BT).sum()
  return loss, (x_BTD, w_VD, targets_BT, mask_BT, log_z_BT)


def _chunked_backward(cap, num_chunks, rules, grad_dtype, has_z, kept, grads):
  x_BTD, w_VD, targets_BT, mask_BT, log_z_BT = kept
  weight_BT1 = (grads[0] * mask_BT)[..., None]
  if has_z:
    z_BT1 = (grads[2] * mask_BT * 2 * log_z_BT)[..., None]

  def one(dx_BTD, index):
    w_RD, ids_R = _rows(w_VD, index, num_chunks, rules, x_BTD.dtype)
    raw_BTR = jnp.einsum(
      "BTD,RD->BTR", x_BTD, w_RD, preferred_element_type=jnp.float32
    )
    raw_BTR = sharding.constrain(raw_BTR, ("batch", "length", "vocab"), rules)
    logits_BTR, uncap = jax.vjp(lambda raw: cap(raw, ids_R), raw_BTR)
    p_BTR = jnp.exp(logits_BTR - log_z_BT[..., None])
    is_target_BTR = targets_BT[..., None] == ids_R
    by_logits_BTR = (p_BTR - is_target_BTR) * weight_BT1
    if has_z:
      by_logits_BTR += p_BTR * z_BT1
    (draw_BTR,) = uncap(by_logits_BTR)
    draw_BTR = draw_BTR.astype(x_BTD.dtype)
    dx_BTD += jnp.einsum(
      "BTR,RD->BTD", draw_BTR, w_RD, preferred_element_type=jnp.float32
    )
    dx_BTD = sharding.constrain(dx_BTD, ("batch", "length", "residual"), rules)
    dw_RD = jnp.einsum(
      "BTR,BTD->RD", draw_BTR, x_BTD, preferred_element_type=grad_dtype
    )
    dw_RD = sharding.constrain(dw_RD, ("vocab", "embed"), rules)
    return dx_BTD, dw_RD.astype(w_VD.dtype)

  zero_BTD = jnp.zeros(x_BTD.shape, jnp.float32)
  dx_BTD, dw = jax.lax.scan(one, zero_BTD, jnp.arange(num_chunks))
  shards = sharding.axes_size(rules, "vocab")
  dw = dw.reshape(num_chunks, shards, -1, w_VD.shape[1]).swapaxes(0, 1)
  return dx_BTD.astype(x_BTD.dtype), dw.reshape(w_VD.shape), None, None


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)
