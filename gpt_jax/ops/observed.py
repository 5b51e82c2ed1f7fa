"""A matrix whose inputs are recorded, for calibration.

GPTQ, AWQ and Wanda need the inputs of each matrix on some text. `project`
records them where it multiplies, so that no model has to name them.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct


class Observed(struct.PyTreeNode):
  """A matrix and a callback that receives its inputs.

  Attributes:
    w: the matrix, an array.
    take: called with the (rows, inputs) array of each matmul as it is traced.
  """

  w: jax.Array
  take: Callable[[Any], None] = struct.field(pytree_node=False)
