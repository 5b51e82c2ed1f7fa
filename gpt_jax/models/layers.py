"""The pieces of a block: declared parameters, projections, norms, MLP.

A parameter is one line: name, shape, logical axes, role. How it is placed and
how it starts follow from those (sharding.py, parametrization.py). Projections
run as 2-D matrix products over (B*T) rows: on a CPU that is twice as fast as
a product over three dims, elsewhere it is the same.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt_jax import sharding, tree
from gpt_jax.config import ModelConfig
from gpt_jax.parametrization import ROLES, ParamSpec, init_param


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata):
  """A parameter in its box: the value and what was declared of it."""

  value: jax.Array
  spec: ParamSpec = struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, val):
    return self.replace(value=val)

  def add_axis(self, index, params):
    return self.replace(spec=self.spec.stacked())

  def remove_axis(self, index, params):
    spec = ParamSpec(self.spec.axes[1:], self.spec.role)
    return self.replace(spec=spec)


def declare(module: nn.Module, name: str, shape, axes, role: str):
  """Returns the parameter `name` as it is kept, declared once here."""
  config = module.config
  if role not in ROLES:
    raise ValueError(f"{name} has role {role!r}; roles are {', '.join(ROLES)}")
  spec = ParamSpec(axes, role)

  def init(key):
    dtype = jnp.dtype(config.param_dtype)
    value = init_param(
      key, spec, shape, dtype, config.init_std, config.num_layers
    )
    return Declared(value, spec)

  return module.param(name, init)


def weight(module: nn.Module, name: str, shape, axes, role: str):
  """Returns the parameter `name` in the compute dtype."""
  kept = declare(module, name, shape, axes, role)
  return kept.astype(module.config.compute_dtype)


def project(x, w, num_in: int = 1):
  """Contracts the last `num_in` dims of x with the first of w."""
  lead, out = x.shape[: x.ndim - num_in], w.shape[num_in:]
  if sharding.axis_size("seq") > 1:
    # Merging B with a T that is split over devices would gather it.
    return jnp.tensordot(x, w, num_in)
  rows = math.prod(x.shape[x.ndim - num_in :])
  y = x.reshape(-1, rows) @ w.reshape(rows, -1)
  return y.reshape(*lead, *out)


def project_together(x, ws: list):
  """Returns [project(x, w) for w in ws], as one product where that is local.

  One wide product is a third faster than three narrow ones on a CPU; heads
  that are split over devices would have to be moved to lie side by side.
  """
  if sharding.axis_size("tensor") > 1:
    return [project(x, w) for w in ws]
  D = ws[0].shape[0]
  wide = jnp.concatenate([w.reshape(D, -1) for w in ws], axis=1)
  ends = np.cumsum([math.prod(w.shape[1:]) for w in ws])
  parts = jnp.split(project(x, wide), ends[:-1], axis=-1)
  shapes = [(*x.shape[:-1], *w.shape[1:]) for w in ws]
  return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]


def dropout(x, rate: float, key, name: str):
  """Zeroes entries with probability `rate`; identity without a key."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(tree.key_for(key, name), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c, width = self.config, (x_BTD.shape[-1],)
    x = x_BTD.astype(jnp.float32)
    scale = weight(self, "scale", width, ("norm",), "norm")
    if c.norm == "layernorm":
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c.norm_eps)
    x = x.astype(x_BTD.dtype) * scale
    if c.norm == "layernorm" and c.bias:
      x = x + weight(self, "bias", width, ("norm",), "bias")
    return x


def rms_normalize(x, scale, eps: float):
  """RMSNorm over the last dim with a given scale, for queries and keys."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
  return y.astype(x.dtype) * scale


class MLP(nn.Module):
  """Two projections with a nonlinearity between, or three with a gate."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD):
    c, D, F = self.config, x_BTD.shape[-1], self.config.mlp_dim
    w_in_DF = weight(self, "in", (D, F), ("embed", "mlp"), "hidden")
    w_out_FD = weight(self, "out", (F, D), ("mlp", "embed"), "residual")
    h_BTF = project(x_BTD, w_in_DF)
    if c.bias:
      h_BTF += weight(self, "in_bias", (F,), ("mlp",), "bias")
    if c.mlp == "swiglu":  # Shazeer 2020
      w_gate_DF = weight(self, "gate", (D, F), ("embed", "mlp"), "hidden")
      h_BTF = jax.nn.silu(project(x_BTD, w_gate_DF)) * h_BTF
    elif c.mlp == "relu_squared":  # So et al. 2021
      h_BTF = jnp.square(jax.nn.relu(h_BTF))
    else:
      h_BTF = jax.nn.gelu(h_BTF, approximate=c.mlp == "gelu_tanh")
    h_BTF = sharding.constrain(h_BTF, ("batch", "length", "mlp"), self.rules)
    y_BTD = project(h_BTF, w_out_FD)
    if c.bias:
      y_BTD += weight(self, "out_bias", (D,), ("norm",), "bias")
    return y_BTD
