"""Matmuls of activations and parameters, with their gradients.

Each is one einsum. On a CPU its form decides the speed: XLA's library has
bfloat16 kernels only for matmuls that contract the last dim of the left
operand and return float32; other forms are multiplied in float32, at half the
speed (configs/LOG.md).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from gpt_jax.machine import processor
from gpt_jax.ops import quantized

# The checkpoint name of a matmul: a remat policy does not see into a function
# with a custom gradient.
MATMUL = "matmul"
# Up to this number of rows, a matmul is treated as one of decoding.
FEW_ROWS = 64
# For this range of rows, a CPU multiplies in float32 with the matrix on the
# left. With more rows, as in chunks of prompts, the bits of a row's result
# would depend on the number of rows.
MIN_TURNED, MAX_TURNED = 2, 8


class Transposed(struct.PyTreeNode):
  """A matrix stored output by output, as Intel's CPUs read it fastest.

  Attributes:
    w_FD: F outputs, D inputs.
    outs: the output dims of the matrix.
  """

  w_FD: jax.Array
  outs: tuple[int, ...] = struct.field(pytree_node=False)


def transpose(w, num_in: int) -> Transposed:
  """Returns w, whose first `num_in` dims are inputs, as a Transposed."""
  outs = w.shape[num_in:]
  return Transposed(w.reshape(-1, math.prod(outs)).T, outs)


def matmul(equation: str, x, w, grad_dtype: str, out_dtype=None):
  """Returns einsum(equation, x, w cast to x's dtype), w being a parameter.

  The gradient of w is computed, and so summed over devices, in grad_dtype
  rather than in the dtype of x.

  Args:
    equation: "LD,DF->LF" or "LD,FD->LF", where L, D and F are one letter or
      more.
    w: an array, or, without a gradient and with the equation "LD,DF->LF", a
      quantized.Quantized or a Transposed.
    out_dtype: dtype of the result; None for x's.
  """
  out_dtype = jnp.dtype(out_dtype or x.dtype)
  if isinstance(w, quantized.Quantized) and w.is_frozen:
    y = _matmul_frozen(x, w, out_dtype)
    return checkpoint_name(y, MATMUL)
  if isinstance(w, quantized.Quantized):
    return quantized.multiply(x, w, out_dtype)
  if isinstance(w, Transposed):
    is_turned = MIN_TURNED <= len(x) <= MAX_TURNED
    if is_turned and x.dtype == jnp.float32:
      return _multiply_turned(x, w.w_FD, out_dtype)
    return multiply("LD,FD->LF", x, w.w_FD, out_dtype)
  y = _matmul(equation, x, w, grad_dtype, out_dtype)
  return checkpoint_name(y, MATMUL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _matmul(equation, x, w, grad_dtype, out_dtype):
  return multiply(equation, x, w.astype(x.dtype), out_dtype)


def _matmul_forward(equation, x, w, grad_dtype, out_dtype):
  return _matmul(equation, x, w, grad_dtype, out_dtype), (x, w)


def _matmul_backward(equation, grad_dtype, out_dtype, saved, dy):
  x, w = saved
  dy = dy.astype(x.dtype)
  operands, result = equation.split("->")
  of_x, of_w = operands.split(",")
  dx = multiply(f"{result},{of_w}->{of_x}", dy, w.astype(x.dtype), x.dtype)
  num_in = sum(letter not in result for letter in of_x)
  num_out = len(of_w) - num_in
  if of_w.endswith(of_x[-num_in:]):
    dw = multiply_over_rows(dy, x, num_out, num_in, grad_dtype)
  else:
    dw = multiply_over_rows(x, dy, num_in, num_out, grad_dtype)
  return dx, dw.astype(w.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul_frozen(x, w, out_dtype):
  """Returns x_LD times a quantized matrix; both passes dequantize it."""
  w_FD = quantized.by_outputs(w).astype(x.dtype)
  return multiply("LD,FD->LF", x, w_FD, out_dtype)


def _matmul_frozen_forward(x, w, out_dtype):
  return _matmul_frozen(x, w, out_dtype), (w, jnp.zeros((), x.dtype))


def _matmul_frozen_backward(out_dtype, saved, dy):
  w, like = saved
  w_FD = quantized.by_outputs(w).astype(like.dtype)
  dy = dy.astype(like.dtype)
  return multiply("LF,FD->LD", dy, w_FD, like.dtype), None


_matmul_frozen.defvjp(_matmul_frozen_forward, _matmul_frozen_backward)


def multiply(equation: str, x, w, out_dtype):
  """Returns einsum(equation, x, w) in out_dtype, summed in float32."""
  plain = functools.partial(
    jnp.einsum, equation, preferred_element_type=out_dtype
  )
  if x.dtype == jnp.float32:
    return plain(x, w)
  operands, result = equation.split("->")
  of_x, of_w = operands.split(",")
  num_rows = math.prod(
    size for letter, size in zip(of_x, x.shape, strict=True) if letter in result
  )
  lead, outs = (
    "".join(a for a in letters if a in result) for letters in (of_x, of_w)
  )

  # One row is doubled: a CPU multiplies two rows in a tenth of the time of one.
  # With one row, a GPU sums over columns and rounds each bfloat16 product.
  twice = lambda x: jnp.concatenate([x, x]) if num_rows == 1 else x

  def on_gpu(x, w):
    return plain(twice(x), w)[: len(x)]

  def on_cpu(x, w):
    rows = twice(x)
    is_turned = of_w.startswith(outs) and not processor.is_intel()
    if is_turned and num_rows <= FEW_ROWS:
      # XLA would first transpose w, which is large; on Intel it does not.
      swapped = f"{of_w},{of_x}->{outs}{lead}"
      y = jnp.einsum(swapped, w, rows, preferred_element_type=jnp.float32)
      y = jnp.einsum(f"{outs}{lead}->{result}", y)
    else:
      y = jnp.einsum(equation, rows, w, preferred_element_type=jnp.float32)
    return y[: len(x)].astype(out_dtype)

  return jax.lax.platform_dependent(
    x, w, cpu=on_cpu, cuda=on_gpu, default=plain
  )


def _multiply_turned(x_LD, w_FD, out_dtype):
  """Returns x_LD times w_FD transposed; faster for few rows on a CPU.

  XLA repacks the right operand at each call, so the large w_FD goes left. The
  barrier keeps XLA from swapping the operands back.
  """
  y_FL = jnp.einsum("FD,LD->FL", w_FD, x_LD, preferred_element_type=out_dtype)
  return jax.lax.optimization_barrier(y_FL).T


def multiply_over_rows(x, y, num_x: int, num_y: int, out_dtype):
  """Returns the sum over all leading dims of x times y, in out_dtype.

  Args:
    x, y: arrays of one dtype with the same leading dims.
    num_x, num_y: number of trailing dims of each that the result keeps.
  """
  lead, x_dims = x.shape[: x.ndim - num_x], x.shape[x.ndim - num_x :]
  y_dims = y.shape[y.ndim - num_y :]
  letters = "ABCDEFGHIJ"[: len(lead)]
  of_x, of_y = "XYZ"[:num_x], "UVW"[:num_y]

  def plain(x, y):
    return jnp.einsum(
      f"{letters}{of_x},{letters}{of_y}->{of_x}{of_y}",
      x,
      y,
      preferred_element_type=out_dtype,
    )

  def on_cpu(x, y):
    x_LX, y_LY = (a.reshape(math.prod(lead), -1) for a in (x, y))
    # The narrower operand is the cheaper one to transpose in memory.
    if x_LX.shape[1] <= y_LY.shape[1]:
      out_XY = _by_columns(x_LX, y_LY)
    else:
      out_XY = _by_columns(y_LY, x_LX).T
    return out_XY.reshape(*x_dims, *y_dims).astype(out_dtype)

  mesh = jax.sharding.get_abstract_mesh()
  # A layout constraint holds for whole arrays only.
  is_sharded = not mesh.empty and mesh.size > 1
  if is_sharded or x.dtype == jnp.float32:
    return plain(x, y)
  return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=plain)


def _by_columns(x_LX, y_LY):
  """Returns x.T @ y in float32, with x.T and the result in row-major layout."""
  by_rows = lambda a: with_layout_constraint(a, Layout((0, 1)))
  out_XY = jnp.einsum(
    "XL,LY->XY", by_rows(x_LX.T), y_LY, preferred_element_type=jnp.float32
  )
  return by_rows(out_XY)
