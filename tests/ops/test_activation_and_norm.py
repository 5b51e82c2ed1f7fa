"""Gradients that are written by hand are those of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.ops.activation import ACTIVATIONS, activate
from gpt_jax.ops.norm import normalize


def numbers(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(2 * rng.normal(size=shape) + 0.5, jnp.float32)


def plain_norm(x, scale, is_centred):
  if is_centred:
    x = x - x.mean(-1, keepdims=True)
  return (
    x
    * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    * scale[None, None]
  )


@pytest.mark.parametrize("is_centred", [True, False])
def test_gradients_of_a_norm_are_those_of_its_formula(is_centred):
  x, scale, dy = numbers(3, 5, 32), numbers(32, seed=1), numbers(3, 5, 32)
  ours = lambda x, scale: normalize(x, scale, 1e-5, is_centred)
  plain = lambda x, scale: plain_norm(x, scale, is_centred)
  grads = lambda f: jax.vjp(f, x, scale)[1](dy)
  np.testing.assert_allclose(ours(x, scale), plain(x, scale), atol=1e-5)
  for a, b in zip(grads(ours), grads(plain), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  other = lambda x, scale: plain_norm(x, scale, not is_centred)
  assert np.abs(grads(ours)[0] - grads(other)[0]).max() > 1e-2


# What each nonlinearity is, of x or of a gate and x.
FORMULAS = {
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
  "silu": lambda x: x / (1 + jnp.exp(-x)),
  "swiglu": lambda gate, x: jax.nn.silu(gate) * x,
  "geglu": lambda gate, x: jax.nn.gelu(gate, approximate=False) * x,
  "geglu_tanh": lambda gate, x: jax.nn.gelu(gate, approximate=True) * x,
}
GATED = ("swiglu", "geglu", "geglu_tanh")


def sides_of(word, dtype=jnp.float32):
  # Beyond 3, one less a tanh near one leaves few digits of the formula itself.
  bound = 3 if word == "geglu_tanh" else 6
  x = jnp.linspace(-bound, bound, 1001).astype(dtype)
  return (x, x[::-1] + 1) if word in GATED else (x,)


@pytest.mark.parametrize("word", FORMULAS)
def test_gradients_of_a_nonlinearity_are_those_of_its_formula(word):
  sides = sides_of(word)
  grads = lambda f: jax.vjp(f, *sides)[1](jnp.ones(1001))
  ours = lambda w: lambda *xs: activate(ACTIVATIONS[w], *xs)
  for a, b in zip(grads(ours(word)), grads(FORMULAS[word]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  for other in FORMULAS:
    if other != word and (other in GATED) == (word in GATED):
      assert np.abs(grads(ours(other))[0] - grads(ours(word))[0]).max() > 1e-4


@pytest.mark.parametrize("word", FORMULAS)
def test_a_nonlinearity_in_bfloat16_is_rounded_once(word):
  assert ACTIVATIONS.keys() == FORMULAS.keys()
  sides = sides_of(word, jnp.bfloat16)
  exact = FORMULAS[word](*[x.astype(jnp.float32) for x in sides])
  half_step = np.abs(exact) / 256 + 1e-6

  def share_of_wrong(f):
    y = jax.jit(f)(*sides)
    assert y.dtype == jnp.bfloat16
    return (np.abs(y.astype(jnp.float32) - exact) > half_step).mean()

  activation = ACTIVATIONS[word]
  assert share_of_wrong(lambda *xs: activate(activation, *xs)) == 0
  # Those of at most one operation are rounded once anyway.
  if word not in ("relu", "relu_squared"):
    assert share_of_wrong(FORMULAS[word]) > 0.01


def test_both_keep_the_type_of_what_they_are_given():
  x = numbers(4, 32).astype(jnp.bfloat16)
  loss = lambda x, scale: normalize(
    activate(ACTIVATIONS["gelu_tanh"], x),
    scale,
    1e-5,
    True,
  ).sum(dtype=jnp.float32)
  dx, dscale = jax.grad(loss, (0, 1))(x, numbers(32))
  assert dx.dtype == jnp.bfloat16 and dscale.dtype == jnp.float32
