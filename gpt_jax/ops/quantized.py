"""Matrices in int8 or int4, for decoding and for the frozen base of adapters.

Decoding spends its time reading matrices, and a base takes most of the memory.
A weight is an integer times a scale: in int8 one scale for each output, in int4
one for each output and group of inputs. Accelerators multiply the integers in
the dtype of the activations; for a few int4 rows a GPU has kernels (gemv.py).
A CPU is fast only at int8 times int8, so there an activation is split into two
base-254 digits, 16 bits relative to the largest of its row. At batch 1 that
costs no time: a matmul with two rows takes less than a matmul with one
(configs/LOG.md).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct

# Inputs that share a scale in int4: the first size that divides their number.
GROUPS = (64, 32)
# With more rows than this, a CPU dequantizes the matrix first: the limit with
# one scale for each output, and the limit with groups.
MANY_ROWS, MANY_ROWS_GROUPED = 256, 16
# Least and largest integer, by number of bits; int8 is symmetric about 0.
LIMITS = {4: (-8, 7), 8: (-127, 127)}
# Factors tried on the scale of a group's largest weight; the one of least
# squared error is taken.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)


class Quantized(struct.PyTreeNode):
  """A matrix of F outputs and G * C inputs.

  Attributes:
    values_GFC: int8. In int4 two outputs share a byte: f, plus 8, in the low
      half, and f + F / 2 in the high half.
    scale_GF: float32.
    outs: the output dims of the matrix.
    num_bits: 8 or 4.
    platform: cpu, gpu or tpu, on which the matrix is multiplied.
    is_frozen: whether a matmul dequantizes the matrix and has a gradient for
      its input (ops/matmul.py); else it is the fast one, without a gradient.
  """

  values_GFC: jax.Array
  scale_GF: jax.Array
  outs: tuple[int, ...] = struct.field(pytree_node=False)
  num_bits: int = struct.field(pytree_node=False)
  platform: str = struct.field(pytree_node=False)
  is_frozen: bool = struct.field(pytree_node=False, default=False)


def quantize(
  w, role: str, num_bits: int, platform: str, is_frozen: bool = False
) -> Quantized:
  """Returns w quantized; its role says which dims are outputs.

  Symmetric about 0: int8 takes the scale of the largest weight, int4 the scale
  of least squared error.
  """
  w_FD, outs = split_dims(w, role)
  num_bits, C = grid_of(w_FD.shape, num_bits)
  w_GFC = w_FD.astype(jnp.float32).reshape(len(w_FD), -1, C).swapaxes(0, 1)
  values_GFC, scale_GF = round_groups(w_GFC, num_bits)
  return pack(values_GFC, scale_GF, outs, num_bits, platform, is_frozen)


def split_dims(w, role: str):
  """Returns (w_FD, a row for each output; the output dims of w)."""
  if role in ("embed", "unembed"):
    return w, w.shape[:1]
  num_ins = 1 if role == "hidden" else w.ndim - 1
  outs = w.shape[num_ins:]
  return w.reshape(-1, math.prod(outs)).T, outs


def grid_of(shape, num_bits: int) -> tuple[int, int]:
  """Returns (bits, number of inputs per scale) of an F by D matrix.

  In int4 two outputs share a byte, so an odd F takes int8.
  """
  F, D = shape
  if num_bits == 4 and F % 2 == 0:
    return 4, next((size for size in GROUPS if D % size == 0), D)
  return 8, D


def round_groups(w_GFC, num_bits: int):
  """Returns (integers, scale_GF), weights rounded to the nearest integer."""
  return (_round8 if num_bits == 8 else _round4)(w_GFC)


def pack(
  values_GFC, scale_GF, outs, num_bits: int, platform: str, is_frozen=False
) -> Quantized:
  """Returns a Quantized of integers; in int4 it packs two into a byte."""
  if num_bits == 4:
    low, high = jnp.split(values_GFC, 2, axis=-2)
    values_GFC = (high << 4) | (low + 8)
  values_GFC = values_GFC.astype(jnp.int8)
  return Quantized(values_GFC, scale_GF, outs, num_bits, platform, is_frozen)


def fuse(ws: list[Quantized]) -> Quantized:
  """Returns one Quantized with the outputs of all ws, of the same inputs.

  The leading dims of their arrays (layers) are the same.
  """
  first = ws[0]
  values = jnp.concatenate([integers(w) for w in ws], axis=-2)
  scale = jnp.concatenate([w.scale_GF for w in ws], axis=-1)
  outs = (scale.shape[-1],)
  rest = first.num_bits, first.platform, first.is_frozen
  return pack(values, scale, outs, *rest)


def restore(w: Quantized, role: str, shape) -> jax.Array:
  """Returns w dequantized: a float32 matrix of `shape`."""
  w_FD = by_outputs(w)
  return (w_FD if role in ("embed", "unembed") else w_FD.T).reshape(shape)


def by_outputs(w: Quantized) -> jax.Array:
  """Returns w_FD, w dequantized, float32."""
  F = w.scale_GF.shape[1]
  w_GFC = integers(w) * w.scale_GF[..., None]
  return w_GFC.swapaxes(0, 1).reshape(F, -1)


def integers(w: Quantized) -> jax.Array:
  """Returns the integers unpacked, (..., G, F, C) int8, one to a byte."""
  return jnp.concatenate(_numbers(w), axis=-2)


def pick(w: Quantized, ids):
  """Returns rows of an int8 table, float32, with a last dim of D."""
  return w.values_GFC[0, ids] * w.scale_GF[0, ids][..., None]


def multiply(x, w: Quantized, out_dtype):
  """Returns x times w over the last dim of x; the result's last dim is F."""
  lead = x.shape[:-1]
  G, _, C = w.values_GFC.shape
  x_LGC = x.reshape(-1, G, C)
  if w.platform == "gpu":
    y_LF = _multiply_on_gpu(x_LGC, w)
    return y_LF.astype(out_dtype).reshape(*lead, -1)
  whole = lambda x_LGC, w: _multiply(x_LGC, w)
  is_long = len(x_LGC) > (MANY_ROWS if G == 1 else MANY_ROWS_GROUPED)
  on_cpu = whole if is_long else _multiply_digits
  y_LF = jax.lax.platform_dependent(x_LGC, w, cpu=on_cpu, default=whole)
  return y_LF.astype(out_dtype).reshape(*lead, -1)


def _multiply_on_gpu(x_LGC, w: Quantized):
  if w.num_bits == 4:
    from gpt_jax.ops import gemv  # Pallas takes half a second to import

    # The compiler cannot partition a kernel.
    mesh = jax.sharding.get_abstract_mesh()
    is_whole = mesh.empty or mesh.size == 1
    if is_whole and gemv.can_multiply(len(x_LGC), w.values_GFC):
      return gemv.multiply(x_LGC, w.values_GFC, w.scale_GF)
  # A matmul with two rows takes little more than half the time of one.
  twice = jnp.concatenate([x_LGC, x_LGC]) if len(x_LGC) == 1 else x_LGC
  return _multiply(twice, w)[: len(x_LGC)]


def _multiply(x_LGC, w: Quantized):
  scales = jnp.split(w.scale_GF, len(_numbers(w)), axis=1)
  ys = []
  for numbers_GFC, scale_GF in zip(_numbers(w), scales, strict=True):
    w_GFC = numbers_GFC.astype(x_LGC.dtype)
    if len(scale_GF) > 1:
      w_GFC *= scale_GF[..., None].astype(x_LGC.dtype)
    y_LF = jnp.einsum(
      "LGC,GFC->LF", x_LGC, w_GFC, preferred_element_type=jnp.float32
    )
    ys.append(y_LF if len(scale_GF) > 1 else y_LF * scale_GF)
  return jnp.concatenate(ys, axis=-1)


def _multiply_digits(x_LGC, w: Quantized):
  L = x_LGC.shape[0]
  x_LGC = x_LGC.astype(jnp.float32)
  unit_L11 = jnp.abs(x_LGC).max((1, 2), keepdims=True) / 127
  x_LGC /= jnp.where(unit_L11 == 0, 1, unit_L11)
  digit_LGC = jnp.round(x_LGC)
  digits = digit_LGC, jnp.round(254 * (x_LGC - digit_LGC))
  # Z = 2 L: the first digits of all rows, then the second digits.
  x_ZGC = jnp.concatenate(digits).astype(jnp.int8)

  def times(values_GFC):
    multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.int32)
    if len(values_GFC) == 1:  # 2-D matmuls have a faster kernel
      return multiply("ZC,FC->ZF", x_ZGC[:, 0], values_GFC[0])[None]
    return multiply("ZGC,GFC->GZF", x_ZGC, values_GFC)

  y_GZF = times(w.values_GFC)
  if w.num_bits == 4:
    # A byte is 16 * high + low, so the same holds for its products.
    low_GZF = times(w.values_GFC & 15)
    high_GZF = (y_GZF - low_GZF) >> 4
    low_GZF -= 8 * x_ZGC.sum(2, dtype=jnp.int32).T[..., None]
    y_GZF = jnp.concatenate([low_GZF, high_GZF], axis=-1)
  y_GZF = y_GZF.astype(jnp.float32)
  y_GLF = y_GZF[:, :L] + y_GZF[:, L:] / 254
  return (y_GLF * w.scale_GF[:, None]).sum(0) * unit_L11[:, 0]


def _numbers(w: Quantized) -> list:
  """Returns the integers, int8: one array, or one for each half of F."""
  if w.num_bits == 8:
    return [w.values_GFC]
  return [(w.values_GFC & 15) - 8, w.values_GFC >> 4]


def _round8(w_GFC):
  scale_GF1 = _or_one(jnp.abs(w_GFC).max(-1, keepdims=True) / 127)
  return jnp.round(w_GFC / scale_GF1), scale_GF1[..., 0]


def _round4(w_GFC):
  largest_GF1 = jnp.take_along_axis(
    w_GFC, jnp.abs(w_GFC).argmax(-1, keepdims=True), axis=-1
  )
  best = None
  for shrink in SHRINKS:
    # int4 has no +8, so the weight of the largest magnitude maps to -8.
    scale_GF1 = _or_one(shrink * largest_GF1 / -8)
    values_GFC = jnp.clip(jnp.round(w_GFC / scale_GF1), *LIMITS[4])
    error_GF1 = ((values_GFC * scale_GF1 - w_GFC) ** 2).sum(-1, keepdims=True)
    found = values_GFC, scale_GF1, error_GF1
    if best is None:
      best = found
    is_less = error_GF1 < best[2]
    best = tuple(
      jnp.where(is_less, a, b) for a, b in zip(found, best, strict=True)
    )
  assert best is not None
  return best[0].astype(jnp.int8), best[1][..., 0]


def _or_one(scale):
  return jnp.where(scale == 0, 1, scale)
