"""Cross-entropy and z-loss: float32 sums, with the number of targets.

Sums rather than means, so that microbatches, devices and evaluation batches add
up to the same figure however the batch is split.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.ops.matmul import multiply, multiply_over_rows
from gpt_jax.ops.visibility import MASK_VALUE


class Smoothing(NamedTuple):
  """Label smoothing (Szegedy et al. 2016, section 7).

  Attributes:
    rate: the part of each target's probability spread evenly over all tokens.
    vocab_size: number of tokens, without rows of padding.
  """

  rate: float
  vocab_size: int

  def soften(self, is_target_V, ids_V):
    """Returns smoothed targets, (..., V), from one-hot targets."""
    soft_V = (1 - self.rate) * is_target_V + self.rate / self.vocab_size
    return jnp.where(ids_V < self.vocab_size, soft_V, 0)

  def sum_real(self, logits_V, ids_V):
    """Returns the sum over V of the logits, rows of padding left out."""
    return jnp.where(ids_V < self.vocab_size, logits_V, 0).sum(-1)

  def smooth(self, nll, picked, total):
    """Returns smoothed nats: the cross-entropy with the smoothed targets.

    These are -(1 - rate) log p(target) - rate mean(log p), which is the plain
    nats plus rate (log p(target) - mean(log p)); log Z cancels in the brackets.

    Args:
      nll: plain nats.
      picked: the logit of the target.
      total: sum_real of the logits.
    """
    return nll + self.rate * (picked - total / self.vocab_size)


def cross_entropy(
  logits_BTV, targets_BT, mask_BT=None, smoothing: Smoothing | None = None
):
  """Returns (sum of negative log-likelihoods in nats, number of targets).

  With smoothing, the sum is the smoothed loss, and a third value is the plain
  sum, which has no gradient.

  Args:
    logits_BTV: float32.
    targets_BT: int32 ids below V.
    mask_BT: float32 weight of each target; None counts all.
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  nll_BT = log_z_BT - picked[..., 0]
  weigh = lambda a_BT: (a_BT if mask_BT is None else a_BT * mask_BT).sum()
  count = jnp.float32(nll_BT.size) if mask_BT is None else mask_BT.sum()
  plain = weigh(nll_BT)
  if smoothing is None:
    return plain, count
  ids_V = jnp.arange(logits_BTV.shape[-1])
  total_BT = smoothing.sum_real(logits_BTV, ids_V)
  smooth_BT = smoothing.smooth(nll_BT, picked[..., 0], total_BT)
  return weigh(smooth_BT), count, jax.lax.stop_gradient(plain)


def log_probs(logits_BTV, targets_BT):
  """Returns the log-probability of each target, float32 (B, T)."""
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  return picked[..., 0] - log_z_BT


def squared_log_z(logits_BTV, mask_BT=None):
  """Returns the z-loss, the sum of (log Z)^2 (Chowdhery et al. 2022, 5).

  Z is the denominator of the softmax. The loss keeps the logits from drifting.

  Args:
    logits_BTV, mask_BT: as in cross_entropy.
  """
  square_BT = jnp.square(jax.nn.logsumexp(logits_BTV, axis=-1))
  return (square_BT if mask_BT is None else square_BT * mask_BT).sum()


def count_hits(logits_BTV, targets_BT, mask_BT=None):
  """Returns the number of targets that no token outranks, weighted by mask."""
  picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  hits_BT = (picked[..., 0] >= logits_BTV.max(-1)).astype(jnp.float32)
  return (hits_BT if mask_BT is None else hits_BT * mask_BT).sum()


def chunked_count_hits(
  x_BTD, w_VD, targets_BT, mask_BT, cap, num_chunks: int, rules
):
  """Returns count_hits by chunks of the vocabulary (chunked_cross_entropy)."""

  def one(carry, index):
    top_BT, picked_BT = carry
    w_RD, ids_R = _rows(w_VD, index, num_chunks, rules, x_BTD.dtype)
    raw_BTR = jnp.einsum(
      "BTD,RD->BTR", x_BTD, w_RD, preferred_element_type=jnp.float32
    )
    logits_BTR = cap(raw_BTR, ids_R)
    is_target_BTR = targets_BT[..., None] == ids_R[None, None]
    picked_BT += jnp.where(is_target_BTR, logits_BTR, 0).sum(-1)
    return (jnp.maximum(top_BT, logits_BTR.max(-1)), picked_BT), None

  zero_BT = jnp.zeros(targets_BT.shape, jnp.float32)
  start = zero_BT - jnp.inf, zero_BT
  (top_BT, picked_BT), _ = jax.lax.scan(one, start, jnp.arange(num_chunks))
  hits_BT = (picked_BT >= top_BT).astype(jnp.float32)
  return (hits_BT if mask_BT is None else hits_BT * mask_BT).sum()


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
  smoothing: Smoothing | None = None,
):
  """Returns cross_entropy without ever holding all logits.

  On one device it goes by chunks of tokens: forward computes each chunk's
  gradient as well, as in Liger (Hsu et al. 2024), so that no matmul runs twice.
  On a mesh, or with a z-loss, it goes by chunks of the vocabulary: devices that
  hold shards of w_VD gather one chunk at a time, and a chunk's gradient is
  summed over devices once. Backward then recomputes the logits: one more
  matmul, a quarter of the cost of the head with its gradients.

  Args:
    x_BTD: input of the output matrix w_VD; logits are x_BTD times w_VD.
    w_VD: the parameter; V is a multiple of num_chunks times the tensor axis.
    mask_BT: float32 weight of each target.
    cap: elementwise function of (logits_BTR, ids_R), such as a soft-cap.
    rules: key of sharding.RULES.
    grad_dtype: dtype in which w's gradient is computed and summed over devices.
    has_z: also return squared_log_z, third.
    smoothing: as in cross_entropy; the plain loss comes last.

  Raises:
    InputError: V is not such a multiple.
  """
  shards = sharding.axes_size(rules, "vocab")
  if w_VD.shape[0] % (num_chunks * shards):
    raise InputError(
      f"train.num_loss_chunks is {num_chunks}; times {shards} devices that "
      "split the vocabulary it must divide its "
      f"{w_VD.shape[0]} rows (model.vocab_size, padded to "
      "model.vocab_multiple)"
    )
  arrays = x_BTD, w_VD, targets_BT, mask_BT
  mesh = jax.sharding.get_abstract_mesh()
  if not has_z and (mesh.empty or mesh.size == 1):
    found = _by_tokens(*arrays, cap, num_chunks, grad_dtype, smoothing)
    return found[0], mask_BT.sum(), *found[1:]
  return _by_vocab(
    *arrays, cap, num_chunks, rules, grad_dtype, has_z, smoothing
  )


def logsumexp(logits_RV):
  """Returns log(sum(exp(logits))) of each row; used without a gradient."""
  return jax.lax.platform_dependent(
    logits_RV,
    cuda=one_pass_logsumexp,
    default=functools.partial(jax.nn.logsumexp, axis=-1),
  )


def one_pass_logsumexp(logits_RV):
  """Returns logsumexp; finds maximum and sum in one pass over memory.

  The running sum is rescaled whenever the maximum grows (Milakov and Gimelshein
  2018). A CPU is faster in two passes, which take one exp per element.
  """

  def join(a, b):
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)

  start = jnp.float32(MASK_VALUE), jnp.float32(0)
  pairs = logits_RV, jnp.ones_like(logits_RV)
  top_R, total_R = jax.lax.reduce(pairs, start, join, (1,))
  return top_R + jnp.log(total_R)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _by_tokens(
  x_BTD, w_VD, targets_BT, mask_BT, cap, num_chunks, grad_dtype, smoothing
):
  """Returns (sum of nats,), and with smoothing the plain sum after it."""
  w = w_VD.astype(x_BTD.dtype)

  def one(sums, part):
    raw_RV = jnp.einsum(
      "RD,VD->RV", part[0], w, preferred_element_type=jnp.float32
    )
    logits_RV = cap(raw_RV, jnp.arange(w.shape[0]))
    nats, _, *plain = cross_entropy(logits_RV, *part[1:], smoothing)
    return _add(sums, (nats, *plain)), None

  parts = _token_parts(num_chunks, x_BTD, targets_BT, mask_BT)
  return jax.lax.scan(one, _zeros(smoothing), parts)[0]


def _zeros(smoothing: Smoothing | None) -> tuple:
  return (jnp.float32(0),) * (1 if smoothing is None else 2)


def _add(sums: tuple, new: tuple) -> tuple:
  return tuple(a + b for a, b in zip(sums, new, strict=True))


def _token_parts(num_chunks: int, x_BTD, *arrays_BT):
  """Returns (x_CRD, arrays_CR): tokens in C equal chunks, padding masked."""
  count = x_BTD.shape[0] * x_BTD.shape[1]
  size = -(-count // num_chunks)

  def cut(a, rows):
    flat = a.reshape(count, *rows)
    short = size * num_chunks - count
    flat = jnp.pad(flat, [(0, short)] + [(0, 0)] * len(rows))
    return flat.reshape(num_chunks, size, *rows)

  return cut(x_BTD, x_BTD.shape[2:]), *(cut(a, ()) for a in arrays_BT)


def _by_tokens_forward(
  x_BTD, w_VD, targets_BT, mask_BT, cap, num_chunks, grad_dtype, smoothing
):
  w = w_VD.astype(x_BTD.dtype)
  ids_V = jnp.arange(w.shape[0])

  def one(carry, part):
    sums, dw_VD = carry
    x_RD, targets_R, mask_R = part
    raw_RV = jnp.einsum(
      "RD,VD->RV", x_RD, w, preferred_element_type=jnp.float32
    )
    logits_RV, uncap = jax.vjp(lambda raw: cap(raw, ids_V), raw_RV)
    log_z_R = logsumexp(logits_RV)
    is_target_RV = targets_R[:, None] == ids_V[None]
    picked_R = jnp.take_along_axis(logits_RV, targets_R[:, None], -1)[:, 0]
    p_RV = jnp.exp(logits_RV - log_z_R[:, None])
    target_RV = is_target_RV
    if smoothing is not None:
      target_RV = smoothing.soften(is_target_RV, ids_V)
    (draw_RV,) = uncap((p_RV - target_RV) * mask_R[:, None])
    draw_RV = draw_RV.astype(x_RD.dtype)
    dx_RD = multiply("RV,VD->RD", draw_RV, w, x_RD.dtype)
    dw_VD += multiply_over_rows(draw_RV, x_RD, 1, 1, jnp.float32)
    nll_R = log_z_R - picked_R
    new = ((nll_R * mask_R).sum(),)
    if smoothing is not None:
      total_R = smoothing.sum_real(logits_RV, ids_V)
      smooth_R = smoothing.smooth(nll_R, picked_R, total_R)
      new = (smooth_R * mask_R).sum(), *new
    return (_add(sums, new), dw_VD), dx_RD

  start = _zeros(smoothing), jnp.zeros(w.shape, jnp.float32)
  parts = _token_parts(num_chunks, x_BTD, targets_BT, mask_BT)
  (sums, dw_VD), dx_CRD = jax.lax.scan(one, start, parts)
  flat = dx_CRD.reshape(-1, x_BTD.shape[-1])
  dx_BTD = flat[: targets_BT.size].reshape(x_BTD.shape)
  return sums, (dx_BTD, dw_VD.astype(grad_dtype), w_VD)


def _by_tokens_backward(cap, num_chunks, grad_dtype, smoothing, saved, grads):
  (dx_BTD, dw_VD, w_VD), grad = saved, grads[0]
  dx_BTD = (dx_BTD * grad).astype(dx_BTD.dtype)
  return dx_BTD, (dw_VD * grad).astype(w_VD.dtype), None, None


_by_tokens.defvjp(_by_tokens_forward, _by_tokens_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8, 9))
def _by_vocab(*arguments):
  """Returns what chunked_cross_entropy does, by chunks of the vocabulary.

  An online softmax (Milakov and Gimelshein 2018); backward recomputes chunks.
  """
  return _by_vocab_forward(*arguments)[0]


def _rows(w_VD, index, num_chunks: int, rules: str, dtype):
  """Returns (w_RD as `dtype`, ids_R): chunk `index` of the vocabulary.

  A chunk takes the same number of rows from each device's shard.
  """
  V, D = w_VD.shape
  shards = sharding.axes_size(rules, "vocab")
  split = w_VD.reshape(shards, num_chunks, -1, D)
  w_RD = jax.lax.dynamic_index_in_dim(split, index, 1, False).reshape(-1, D)
  w_RD = sharding.constrain(w_RD.astype(dtype), ("vocab", "residual"), rules)
  ids = jnp.arange(V).reshape(shards, num_chunks, -1)
  ids_R = jax.lax.dynamic_index_in_dim(ids, index, 1, False).reshape(-1)
  return w_RD, ids_R


def _by_vocab_forward(
  x_BTD,
  w_VD,
  targets_BT,
  mask_BT,
  cap,
  num_chunks,
  rules,
  grad_dtype,
  has_z,
  smoothing,
):
  def one(carry, index):
    top_BT, total_BT, picked_BT, *real_BT = carry
    w_RD, ids_R = _rows(w_VD, index, num_chunks, rules, x_BTD.dtype)
    raw_BTR = jnp.einsum(
      "BTD,RD->BTR", x_BTD, w_RD, preferred_element_type=jnp.float32
    )
    raw_BTR = sharding.constrain(raw_BTR, ("batch", "length", "vocab"), rules)
    logits_BTR = cap(raw_BTR, ids_R)
    higher_BT = jnp.maximum(top_BT, logits_BTR.max(-1))
    new_BT = jnp.exp(logits_BTR - higher_BT[..., None]).sum(-1)
    total_BT = total_BT * jnp.exp(top_BT - higher_BT) + new_BT
    is_target_BTR = targets_BT[..., None] == ids_R[None, None]
    picked_BT += jnp.where(is_target_BTR, logits_BTR, 0).sum(-1)
    if smoothing is not None:
      real_BT = [real_BT[0] + smoothing.sum_real(logits_BTR, ids_R)]
    return (higher_BT, total_BT, picked_BT, *real_BT), None

  zero_BT = jnp.zeros(targets_BT.shape, jnp.float32)
  start = (zero_BT - jnp.inf, *[zero_BT] * (2 if smoothing is None else 3))
  carry, _ = jax.lax.scan(one, start, jnp.arange(num_chunks))
  log_z_BT = carry[0] + jnp.log(carry[1])
  nll_BT = log_z_BT - carry[2]
  loss = (nll_BT * mask_BT).sum(), mask_BT.sum()
  if has_z:
    loss = *loss, (jnp.square(log_z_BT) * mask_BT).sum()
  if smoothing is not None:
    smooth_BT = smoothing.smooth(nll_BT, *carry[2:])
    loss = (smooth_BT * mask_BT).sum(), *loss[1:], loss[0]
  return loss, (x_BTD, w_VD, targets_BT, mask_BT, log_z_BT)


def _by_vocab_backward(
  cap, num_chunks, rules, grad_dtype, has_z, smoothing, saved, grads
):
  x_BTD, w_VD, targets_BT, mask_BT, log_z_BT = saved
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
    is_target_BTR = targets_BT[..., None] == ids_R[None, None]
    target_BTR = is_target_BTR
    if smoothing is not None:
      target_BTR = smoothing.soften(is_target_BTR, ids_R)
    by_logits_BTR = (p_BTR - target_BTR) * weight_BT1
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


_by_vocab.defvjp(_by_vocab_forward, _by_vocab_backward)
