"""Parameters, each declared in one line: name, shape, logical axes, role.

How a parameter is sharded and initialised follows from that line (sharding.py,
parametrization.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from gpt_jax.ops.adapted import Adapted
from gpt_jax.ops.factored import Factored
from gpt_jax.ops.matmul import Transposed
from gpt_jax.ops.observed import Observed
from gpt_jax.ops.quantized import Quantized
from gpt_jax.parametrization import ROLES, ParamSpec, init_param, specify

# What may stand in place of a parameter's array, with another shape.
FORMS = Quantized | Transposed | Adapted | Factored | Observed


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata):
  """A boxed parameter: its value and its declaration."""

  value: jax.Array
  spec: ParamSpec = struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, val):
    return self.replace(value=val)

  def add_axis(self, index, params):
    return self.replace(spec=self.spec.stacked())

  def remove_axis(self, index, params):
    return self.replace(spec=self.spec.with_axes(self.spec.axes[1:]))


def declare(module: nn.Module, name: str, shape, axes, role: str):
  """Declares the parameter `name` of a module, and returns its value."""
  config = module.config
  if module.has_variable("params", name):
    stored = module.get_variable("params", name)
    if isinstance(stored, FORMS):
      return stored
    # Else Flax would trace `init` for the shape of every parameter, every pass.
    if not module.is_initializing() and stored.shape == tuple(shape):
      return stored
  if role not in ROLES:
    raise ValueError(f"{name} has role {role!r}; roles are {', '.join(ROLES)}")
  is_in_block = "/".join(module.path).startswith(("blocks", "future"))
  spec = specify(axes, role, config, is_in_block)

  def init(key):
    # bfloat16 would lose the small updates of the experts' balance bias.
    is_balance = role == "balance"
    dtype = jnp.dtype("float32" if is_balance else config.param_dtype)
    return Declared(init_param(key, spec, shape, dtype, config), spec)

  return module.param(name, init)
