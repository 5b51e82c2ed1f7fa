"""Gradients that are written by hand are those of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import layers


def numbers(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(2 * rng.normal(size=shape) + 0.5, jnp.float32)


def plain_norm(x, scale, is_centred):
  if is_centred:
    x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


@pytest.mark.parametrize("is_centred", [True, False])
def test_gradients_of_a_norm_are_those_of_its_formula(is_centred):
  x, scale, dy = numbers(3, 5, 32), numbers(32, seed=1), numbers(3, 5, 32)
  ours = lambda x, scale: layers.normalize(x, scale, 1e-5, is_centred)
  plain = lambda x, scale: plain_norm(x, scale, is_centred)
  grads = lambda f: jax.vjp(f, x, scale)[1](dy)
  np.testing.assert_allclose(ours(x, scale), plain(x, scale), atol=1e-5)
  for a, b in zip(grads(ours), grads(plain), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  other = lambda x, scale: plain_norm(x, scale, not is_centred)
  assert np.abs(grads(ours)[0] - grads(other)[0]).max() > 1e-2


def test_the_gradient_of_gelu_is_that_of_its_formula():
  x = jnp.linspace(-6, 6, 1001)
  slope = lambda f: jax.vmap(jax.grad(f))(x)
  ours = slope(layers.gelu_tanh)
  np.testing.assert_allclose(ours, slope(jax.nn.gelu), atol=1e-5)
  exact = slope(lambda x: jax.nn.gelu(x, approximate=False))
  assert np.abs(ours - exact).max() > 1e-4


def test_both_keep_the_type_of_what_they_are_given():
  x = numbers(4, 32).astype(jnp.bfloat16)
  loss = lambda x, scale: layers.normalize(
    layers.gelu_tanh(x), scale, 1e-5, True
  ).sum(dtype=jnp.float32)
  dx, dscale = jax.grad(loss, (0, 1))(x, numbers(32))
  assert dx.dtype == jnp.bfloat16 and dscale.dtype == jnp.float32
