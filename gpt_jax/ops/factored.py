"""A matrix stored as the product of two low-rank factors."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class Factored(struct.PyTreeNode):
  """A matrix A B of any number of input and output dims.

  Attributes:
    a: (*inputs, R).
    b: (R, *outputs).
  """

  a: Any
  b: Any


def merge(w: Factored) -> jax.Array:
  """Returns A B, summed in float32, in the dtype of the factors."""
  whole = jnp.tensordot(w.a, w.b, 1, preferred_element_type=jnp.float32)
  return whole.astype(w.a.dtype)
