"""A frozen matrix and the low-rank change that is learned beside it.

LoRA (Hu et al. 2021, 4.1): W + scale * A B, with A of R columns. The product is
taken from the right, x W + scale * (x A) B, so that neither the sum nor its
gradient is ever an array of W's size.
"""

import jax
import jax.numpy as jnp
from flax import struct


class Adapted(struct.PyTreeNode):
  """A matrix of any number of input and output dims, and its adapter.

  Attributes:
    base: the frozen matrix, of dims (*inputs, *outputs).
    a: float32, (*inputs, R).
    b: float32, (R, *outputs).
    scale: of the product of the two.
  """

  base: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)


def base_of(w):
  """Returns the frozen matrix of an Adapted; any other w as it is."""
  return w.base if isinstance(w, Adapted) else w


def merge(w):
  """Returns the matrix that an Adapted stands for; any other w as it is.

  The sum is made in float32 and has the type of the frozen matrix. Leading
  dims beside those of a matrix (layers, experts) are those of all three arrays.
  """
  if not isinstance(w, Adapted):
    return w
  num_out = w.base.ndim - w.a.ndim + 1
  lead = w.b.ndim - num_out - 1
  stacked, ins = w.a.shape[:lead], w.a.shape[lead:-1]
  rank, outs = w.a.shape[-1], w.b.shape[lead + 1 :]
  a = w.a.reshape(*stacked, -1, rank)
  b = w.b.reshape(*stacked, rank, -1)
  delta = jnp.matmul(w.scale * a, b, preferred_element_type=jnp.float32)
  delta = delta.reshape(*stacked, *ins, *outs)
  return (w.base.astype(jnp.float32) + delta).astype(w.base.dtype)
