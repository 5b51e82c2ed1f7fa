"""The nonlinearities of an MLP, computed in float32 and rounded once.

Design choice: each derivative is written out, in a form that shares no
subexpression with the value. Otherwise the compiler would save the intermediate
values of forward, and reading them back takes longer than recomputing them.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp


class Activation(typing.NamedTuple):
  """A nonlinearity of x, or of a gate and x.

  Attributes:
    value: the function.
    slopes: its partial derivatives, one for each argument, as a tuple.
  """

  value: typing.Callable
  slopes: typing.Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(activation: Activation, *xs):
  """Returns activation.value(*xs), computed in float32, in the dtype of xs."""
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


def _silu_slopes(x):
  share = jax.nn.sigmoid(x)
  return (share * (1 + x * (1 - share)),)


def _swiglu_slopes(gate, x):
  share = 0.5 * (1 + jnp.tanh(0.5 * gate))
  return x * share * (1 + gate * (1 - share)), gate * share


def _geglu_slopes(gate, x):
  density = jnp.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
  share = 0.5 * (1 + jax.lax.erf(gate / math.sqrt(2)))
  return x * (share + gate * density), gate * share


def _geglu_tanh_slopes(gate, x):
  (slope,) = _gelu_tanh_slopes(gate)
  a, b = math.sqrt(2 / math.pi), 0.044715
  share = 0.5 * (1 + jnp.tanh(a * gate * (1 + b * gate * gate)))
  return x * slope, gate * share


# By value of model.mlp: Hendrycks and Gimpel 2016 (equations 2 and 1), Nair and
# Hinton 2010, So et al. 2021, Elfwing et al. 2018, Shazeer 2020.
ACTIVATIONS = {
  "gelu_tanh": Activation(
    functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh_slopes
  ),
  "gelu": Activation(
    functools.partial(jax.nn.gelu, approximate=False), _gelu_slopes
  ),
  "relu": Activation(jax.nn.relu, lambda x: ((x > 0).astype(jnp.float32),)),
  "relu_squared": Activation(
    lambda x: jnp.square(jax.nn.relu(x)), lambda x: (2 * jax.nn.relu(x),)
  ),
  "silu": Activation(jax.nn.silu, _silu_slopes),
  "swiglu": Activation(lambda gate, x: jax.nn.silu(gate) * x, _swiglu_slopes),
  "geglu": Activation(
    lambda gate, x: jax.nn.gelu(gate, approximate=False) * x, _geglu_slopes
  ),
  "geglu_tanh": Activation(
    lambda gate, x: jax.nn.gelu(gate, approximate=True) * x, _geglu_tanh_slopes
  ),
}
