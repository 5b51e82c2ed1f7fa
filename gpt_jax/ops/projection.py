"""Projections of activations by stored matrices, and their biases.

They run as 2-D matmuls over B * T rows: on a CPU that is twice as fast as a
matmul over three dims, elsewhere it is the same.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import sharding
from gpt_jax.ops.adapted import Adapted, base_of, gain_of
from gpt_jax.ops.factored import Factored
from gpt_jax.ops.matmul import Transposed, matmul
from gpt_jax.ops.observed import Observed
from gpt_jax.ops.quantized import Quantized


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shift(x, bias, grad_dtype: str):
  """Returns x plus a bias over its last dims, with d(bias) in grad_dtype."""
  return jax.lax.platform_dependent(x, bias, cuda=add_flat, default=_add)


def _add(x, bias):
  return x + jax.lax.broadcast_to_rank(bias.astype(x.dtype), x.ndim)


def add_flat(x, bias):
  """Returns x plus a bias, added with its dims merged into one.

  In this form cuBLAS adds a bias of each head within the matmul before it.
  """
  lead = x.shape[: x.ndim - bias.ndim]
  return _add(x.reshape(*lead, -1), bias.reshape(-1)).reshape(x.shape)


def _shift_backward(grad_dtype, bias, dy):
  lead = tuple(range(dy.ndim - bias.ndim))
  return dy, dy.sum(lead, dtype=grad_dtype).astype(bias.dtype)


shift.defvjp(
  lambda x, bias, grad_dtype: (shift(x, bias, grad_dtype), bias),
  _shift_backward,
)


def project(x, w, grad_dtype: str, num_in: int = 1):
  """Contracts the last `num_in` dims of x with the first ones of w.

  Args:
    w: an array, a Quantized, a Transposed, a Factored, an Observed, or an
      Adapted of an array or of a frozen Quantized.
  """
  if isinstance(w, Adapted):
    y = project(x, w.base, grad_dtype, num_in)
    return adapt(y, x, w, grad_dtype, num_in)
  lead, rows = x.shape[: x.ndim - num_in], math.prod(x.shape[x.ndim - num_in :])
  if isinstance(w, Observed):
    w.take(x.reshape(-1, rows))
    return project(x, w.w, grad_dtype, num_in)
  if isinstance(w, Factored):
    low = project(x, w.a, grad_dtype, num_in)
    return project(low, w.b, grad_dtype)
  if isinstance(w, Quantized | Transposed):
    y = matmul("BD,DF->BF", x.reshape(-1, rows), w, grad_dtype)
    return y.reshape(*lead, *w.outs)
  out = w.shape[num_in:]
  if sharding.axis_size("seq") > 1:
    # Merging B with a T that is split over devices would gather it.
    leads = "BTS"[: len(lead)]
    ins, outs = "DE"[:num_in], "NHG"[: len(out)]
    return matmul(f"{leads}{ins},{ins}{outs}->{leads}{outs}", x, w, grad_dtype)
  x, w = x.reshape(-1, rows), w.reshape(rows, -1)
  y = matmul("BD,DF->BF", x, w, grad_dtype)
  return y.reshape(*lead, *out)


def adapt(y, x, w, grad_dtype: str, num_in: int = 1):
  """Returns y, x times w's frozen matrix, with w's adapter applied.

  If w has no adapter, y is returned unchanged.
  """
  if not isinstance(w, Adapted):
    return y
  low = project(x, w.a, grad_dtype, num_in)
  y = y + project(w.scale * low, w.b, grad_dtype)
  if w.magnitude is None:
    return y
  gain = jax.lax.broadcast_to_rank(gain_of(w), y.ndim)
  return (y.astype(gain.dtype) * gain).astype(y.dtype)


def project_each(x, ws: list, grad_dtype: str, platform: str):
  """Returns [project(x, w) for w in ws], as one matmul where that is faster.

  On a CPU one wide matmul is a third faster than three narrow ones. A GPU's
  attention kernel needs each result contiguous, so that splitting a wide one is
  a copy. Heads that are sharded over devices would have to move to become
  columns of one matrix. Adapters are applied after the matmul.
  """
  bases = [base_of(w) for w in ws]
  other = Quantized | Transposed | Factored | Observed
  is_apart = platform == "gpu" or isinstance(bases[0], other)
  if is_apart or sharding.axis_size("tensor") > 1:
    return [project(x, w, grad_dtype) for w in ws]
  outs = [w.shape[1:] for w in bases]
  ys = project_fused(x, fuse_qkv(bases), outs, grad_dtype)
  return [adapt(y, x, w, grad_dtype) for y, w in zip(ys, ws, strict=True)]


def fuse_qkv(ws: list, axis: int = 0):
  """Returns one matrix with the outputs of all ws. Inputs are dim `axis`."""
  lead = ws[0].shape[: axis + 1]
  return jnp.concatenate([w.reshape(*lead, -1) for w in ws], axis=-1)


def project_fused(x, w, outs: list, grad_dtype: str):
  """Returns x times each of the matrices that fuse_qkv joined.

  Args:
    w: from fuse_qkv.
    outs: the output dims of each matrix.
  """
  ends = np.cumsum([math.prod(out) for out in outs])
  parts = jnp.split(project(x, w, grad_dtype), ends[:-1], axis=-1)
  shapes = [(*x.shape[:-1], *out) for out in outs]
  return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]
