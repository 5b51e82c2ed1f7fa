"""The pieces of a block: declared parameters, projections, norms, MLP.

A parameter is one line: name, shape, logical axes, role. How it is placed and
how it starts follow from those (sharding.py, parametrization.py). Projections
run as 2-D matrix products over (B*T) rows: on a CPU that is twice as fast as
a product over three dims, elsewhere it is the same.
"""

import functools
import math
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import sharding, tree
from gpt_jax.config import ModelConfig
from gpt_jax.ops.matmul import product
from gpt_jax.ops.quantized import Quantized
from gpt_jax.parametrization import ROLES, ParamSpec, init_param, specify


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
    return self.replace(spec=self.spec.with_axes(self.spec.axes[1:]))


def declare(module: nn.Module, name: str, shape, axes, role: str):
  """Returns the parameter `name` as it is kept, declared once here."""
  config = module.config
  if module.has_variable("params", name):
    kept = module.get_variable("params", name)
    if isinstance(kept, Quantized):  # of a shape of its own
      return kept
  if role not in ROLES:
    raise ValueError(f"{name} has role {role!r}; roles are {', '.join(ROLES)}")
  is_in_block = "/".join(module.path).startswith("blocks")
  spec = specify(axes, role, config, is_in_block)

  def init(key):
    dtype = jnp.dtype(config.param_dtype)
    return Declared(init_param(key, spec, shape, dtype, config), spec)

  return module.param(name, init)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shift(x, bias, grad_dtype: str):
  """Returns x plus a kept bias over its last dims; gradients as in product."""
  return x + bias.astype(x.dtype)


def _shift_backward(grad_dtype, bias, dy):
  lead = tuple(range(dy.ndim - bias.ndim))
  return dy, dy.sum(lead, dtype=grad_dtype).astype(bias.dtype)


shift.defvjp(
  lambda x, bias, grad_dtype: (shift(x, bias, grad_dtype), bias),
  _shift_backward,
)


def project(x, w, grad_dtype: str, num_in: int = 1):
  """Contracts the last `num_in` dims of x with the first of the kept w."""
  lead, rows = x.shape[: x.ndim - num_in], math.prod(x.shape[x.ndim - num_in :])
  if isinstance(w, Quantized):
    y = product("BD,DF->BF", x.reshape(-1, rows), w, grad_dtype)
    return y.reshape(*lead, *w.outs)
  out = w.shape[num_in:]
  if sharding.axis_size("seq") > 1:
    # Merging B with a T that is split over devices would gather it.
    leads = "BTS"[: len(lead)]
    ins, outs = "DE"[:num_in], "NHG"[: len(out)]
    return product(f"{leads}{ins},{ins}{outs}->{leads}{outs}", x, w, grad_dtype)
  x, w = x.reshape(-1, rows), w.reshape(rows, -1)
  y = product("BD,DF->BF", x, w, grad_dtype)
  return y.reshape(*lead, *out)


def project_together(x, ws: list, grad_dtype: str):
  """Returns [project(x, w) for w in ws], as one product where that is local.

  One wide product is a third faster than three narrow ones on a CPU; heads
  that are split over devices would have to be moved to lie side by side.
  """
  if sharding.axis_size("tensor") > 1:
    return [project(x, w, grad_dtype) for w in ws]
  return project_wide(
    x, lay_together(ws), [w.shape[1:] for w in ws], grad_dtype
  )


def lay_together(ws: list, axis: int = 0):
  """Returns matrices whose inputs are dim `axis` as one, outputs in a row."""
  lead = ws[0].shape[: axis + 1]
  return jnp.concatenate([w.reshape(*lead, -1) for w in ws], axis=-1)


def project_wide(x, wide, outs: list, grad_dtype: str):
  """Returns the parts of x times what lay_together returned.

  Args:
    outs: what dims each part's last has.
  """
  ends = np.cumsum([math.prod(out) for out in outs])
  parts = jnp.split(project(x, wide, grad_dtype), ends[:-1], axis=-1)
  shapes = [(*x.shape[:-1], *out) for out in outs]
  return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]


def dropout(x, rate: float, key, name: str):
  """Zeroes entries with probability `rate`; identity without a key."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(tree.key_for(key, name), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalize(x, scale, eps: float, is_centred: bool):
  """Returns LayerNorm (centred) or RMSNorm of x times a scale, as x's type.

  Its gradient reads x once more instead of what forward made on the way: two
  passes over the stream fewer than by differentiation.
  """
  return _normalize(x, scale, eps, is_centred)[0]


def _normalize(x, scale, eps, is_centred):
  wide = x.astype(jnp.float32)
  middle = wide.mean(-1, keepdims=True) if is_centred else jnp.float32(0)
  away = wide - middle
  rate = jax.lax.rsqrt((away * away).mean(-1, keepdims=True) + eps)
  y = away * rate * scale.astype(jnp.float32)
  return y.astype(x.dtype), (x, scale, middle, rate)


def _normalize_backward(eps, is_centred, kept, dy):
  x, scale, middle, rate = kept
  y = (x.astype(jnp.float32) - middle) * rate
  dy = dy.astype(jnp.float32)
  # In float32 to the end, for a gradient of the scale is a sum over all rows.
  dscale = (dy * y).sum(tuple(range(x.ndim - 1)))
  dy = dy * scale.astype(jnp.float32)
  dx = dy - y * (dy * y).mean(-1, keepdims=True)
  if is_centred:
    dx -= dy.mean(-1, keepdims=True)
  return (dx * rate).astype(x.dtype), dscale.astype(scale.dtype)


normalize.defvjp(_normalize, _normalize_backward)


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c, width = self.config, (x_BTD.shape[-1],)
    scale = declare(self, "scale", width, ("norm",), "norm")
    is_centred = c.norm == "layernorm"
    x_BTD = normalize(x_BTD, scale, c.norm_eps, is_centred)
    if is_centred and c.bias:
      bias = declare(self, "bias", width, ("norm",), "bias")
      x_BTD = shift(x_BTD, bias, c.grad_dtype)
    return x_BTD


def rms_normalize(x, scale, eps: float):
  """RMSNorm over the last dim with a given scale, for queries and keys."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Activation(typing.NamedTuple):
  """A nonlinearity of x, or of a gate and x.

  Attributes:
    value: what it is.
    slopes: its derivatives by each, in another form than value's: the compiler
      would find the same one and keep what forward made, and reading that back
      takes longer than making it again.
  """

  value: typing.Callable
  slopes: typing.Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(activation: Activation, *xs):
  """Returns it of arrays of one type, computed in float32, as that type."""
  y = activation.value(*[x.astype(jnp.float32) for x in xs])
  return y.astype(xs[0].dtype)


def _activate_backward(activation, xs, dy):
  slopes = activation.slopes(*[x.astype(jnp.float32) for x in xs])
  dy = dy.astype(jnp.float32)
  return tuple(
    (dy * s).astype(x.dtype) for x, s in zip(xs, slopes, strict=True)
  )


activate.defvjp(lambda a, *xs: (activate(a, *xs), xs), _activate_backward)


def _gelu_tanh_slopes(x):
  a, b = math.sqrt(2 / math.pi), 0.044715
  square = x * x
  tanh = jnp.tanh(a * x * (1 + b * square))
  slope = a * (1 + 3 * b * square) * (1 - tanh * tanh)
  return (0.5 * (1 + tanh + x * slope),)


def _gelu_slopes(x):
  density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
  return (0.5 * (1 + jax.lax.erf(x / math.sqrt(2))) + x * density,)


def _swiglu_slopes(gate, x):
  share = 0.5 * (1 + jnp.tanh(0.5 * gate))
  return x * share * (1 + gate * (1 - share)), gate * share


# By word of model.mlp: Hendrycks and Gimpel 2016 (2 and 1), So et al. 2021,
# Shazeer 2020.
ACTIVATIONS = {
  "gelu_tanh": Activation(
    functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh_slopes
  ),
  "gelu": Activation(
    functools.partial(jax.nn.gelu, approximate=False), _gelu_slopes
  ),
  "relu_squared": Activation(
    lambda x: jnp.square(jax.nn.relu(x)), lambda x: (2 * jax.nn.relu(x),)
  ),
  "swiglu": Activation(lambda gate, x: jax.nn.silu(gate) * x, _swiglu_slopes),
}


class MLP(nn.Module):
  """Two projections with a nonlinearity between, or three with a gate."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD):
    c, D, F = self.config, x_BTD.shape[-1], self.config.mlp_dim
    w_in_DF = declare(self, "in", (D, F), ("embed", "mlp"), "hidden")
    w_out_FD = declare(self, "out", (F, D), ("mlp", "embed"), "residual")
    h_BTF = project(x_BTD, w_in_DF, c.grad_dtype)
    if c.bias:
      bias_F = declare(self, "in_bias", (F,), ("mlp",), "bias")
      h_BTF = shift(h_BTF, bias_F, c.grad_dtype)
    h_BTF = checkpoint_name(h_BTF, "mlp")
    sides = [h_BTF]
    if c.mlp == "swiglu":
      w_gate_DF = declare(self, "gate", (D, F), ("embed", "mlp"), "hidden")
      g_BTF = checkpoint_name(project(x_BTD, w_gate_DF, c.grad_dtype), "mlp")
      sides.insert(0, g_BTF)
    h_BTF = activate(ACTIVATIONS[c.mlp], *sides)
    h_BTF = sharding.constrain(h_BTF, ("batch", "length", "mlp"), self.rules)
    y_BTD = project(h_BTF, w_out_FD, c.grad_dtype)
    if c.bias:
      bias_D = declare(self, "out_bias", (D,), ("norm",), "bias")
      y_BTD = shift(y_BTD, bias_D, c.grad_dtype)
    return y_BTD
