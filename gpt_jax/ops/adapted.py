"""A frozen matrix and its trainable low-rank update.

LoRA (Hu et al. 2021, 4.1): W + scale * A B, where A has R columns, is applied
as x W + scale * (x A) B, so that neither the sum nor its gradient is ever an
array of W's size.

DoRA (Liu et al. 2024, eq. 5): each output of the sum is divided by its norm
over the inputs and multiplied by a learned magnitude. Design choice: the
magnitude is stored as a multiple of the norm of W's output, so that it starts
at one, and the first step's model is the base, bit for bit.
"""

import jax
import jax.numpy as jnp
from flax import struct

from gpt_jax.ops import quantized
from gpt_jax.ops.quantized import Quantized


class Adapted(struct.PyTreeNode):
  """A matrix of any number of input and output dims, and its adapter.

  Attributes:
    base: the frozen matrix, of dims (*inputs, *outputs), or a Quantized.
    a: float32, (*inputs, R).
    b: float32, (R, *outputs).
    scale: factor of A B.
    magnitude: float32 (*outputs), for DoRA; None for LoRA.
  """

  base: jax.Array | Quantized
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)
  magnitude: jax.Array | None = None


def base_of(w):
  """Returns the frozen matrix of an Adapted; any other w as it is."""
  return w.base if isinstance(w, Adapted) else w


def merge(w):
  """Returns the matrix that an Adapted stands for; any other w as it is.

  Summed in float32, then cast to the frozen matrix's dtype. All three arrays
  have the same leading dims (layers, experts) beside those of a matrix.
  """
  if not isinstance(w, Adapted):
    return w
  assert not isinstance(w.base, Quantized)  # adapters.merge has restored it
  num_out = w.base.ndim - w.a.ndim + 1
  lead = w.b.ndim - num_out - 1
  stacked, rank = w.a.shape[:lead], w.a.shape[-1]
  a = w.a.reshape(*stacked, -1, rank)
  b = w.b.reshape(*stacked, rank, -1)
  delta = jnp.matmul(w.scale * a, b, preferred_element_type=jnp.float32)
  base = w.base.astype(jnp.float32)
  whole = base + delta.reshape(base.shape)
  if w.magnitude is not None:
    ins = tuple(range(lead, w.a.ndim - 1))
    squares = [jnp.square(x).sum(ins, keepdims=True) for x in (base, whole)]
    whole *= _ratio(*squares) * jnp.expand_dims(w.magnitude, ins)
  return whole.astype(w.base.dtype)


def gain_of(w: Adapted):
  """Returns DoRA's factor of each output, float32 (*outputs).

  Computes the norm of W + scale * A B from W and A^T W, without the sum:
  |W|^2 + b.(2 scale A^T W + scale^2 A^T A b), for each output's column b of B.
  """
  assert w.magnitude is not None  # else there is no norm
  rank = w.a.shape[-1]
  a_IR, b_RO = w.a.reshape(-1, rank), w.b.reshape(rank, -1)
  if isinstance(w.base, Quantized):
    w_IO = quantized.by_outputs(w.base).T
  else:
    w_IO = w.base.reshape(len(a_IR), -1).astype(jnp.float32)
  base_O = jnp.square(w_IO).sum(0)
  cross_RO = 2 * w.scale * (a_IR.T @ w_IO)
  own_RO = w.scale**2 * ((a_IR.T @ a_IR) @ b_RO)
  whole_O = base_O + (b_RO * (cross_RO + own_RO)).sum(0)
  return w.magnitude * _ratio(base_O, whole_O).reshape(w.magnitude.shape)


def _ratio(base, whole):
  """Returns sqrt(base / whole), or 1 where whole is zero.

  No gradient flows through it (DoRA, 4.3).
  """
  is_zero = whole <= 0
  found = jnp.sqrt(base / jnp.where(is_zero, 1, whole))
  return jax.lax.stop_gradient(jnp.where(is_zero, 1.0, found))
