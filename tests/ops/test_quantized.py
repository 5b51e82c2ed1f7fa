"""Matrices in few bits: what rounding loses, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.ops import quantized

SHAPES = {
  "hidden": (256, 4, 24),
  "residual": (4, 64, 96),
  "embed": (96, 256),
  "unembed": (96, 256),
}


def draw(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def plain(x_LD, w, role):
  if role in ("embed", "unembed"):
    return x_LD @ w.T
  return x_LD @ w.reshape(x_LD.shape[1], -1)


def distance(a, b):
  return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize("num_bits, most", [(8, 0.01), (4, 0.11)])
@pytest.mark.parametrize("role", SHAPES)
def test_a_product_is_that_of_the_rounded_matrix(role, num_bits, most):
  w = draw(*SHAPES[role])
  small = quantized.quantize(w, role, num_bits, "cpu")
  whole = quantized.restore(small, role, w.shape)
  assert most / 4 < distance(whole, w) < most
  for rows in (1, 5, 40, 300):  # digits, and made whole
    x_LD = draw(rows, 256, seed=1)
    want = plain(x_LD, whole, role)
    got = jax.jit(quantized.multiply, static_argnums=2)(x_LD, small, "float32")
    elsewhere = quantized._multiply(
      x_LD.reshape(rows, *small.values_GFC.shape[::2]), small
    )
    assert distance(got, want) < 1e-4
    assert distance(elsewhere, want) < 1e-5
    assert distance(got, plain(x_LD, w, role)) > most / 4  # the control


def test_four_bits_use_every_value_of_both_signs():
  w = draw(64, 64)
  small = quantized.quantize(w, "hidden", 4, "cpu")
  low, high = quantized._numbers(small)
  assert set(np.unique(low)) == set(np.unique(high)) == set(range(-8, 8))


def test_the_scale_of_four_bits_is_the_better_of_several():
  w = draw(64, 64)
  w_GFC = w.T[None]
  values, scale_GF = quantized._round4(w_GFC)
  found = distance(values * scale_GF[..., None], w_GFC)
  largest = jnp.abs(w_GFC).max(-1, keepdims=True) / 7
  naive = jnp.clip(jnp.round(w_GFC / largest), -8, 7) * largest
  assert found < 0.96 * distance(naive, w_GFC)


@pytest.mark.parametrize("num_bits", [8, 4])
def test_zeros_and_odd_sizes_are_exact(num_bits):
  nothing = quantized.quantize(jnp.zeros((64, 6)), "hidden", num_bits, "cpu")
  out = quantized.multiply(draw(2, 64), nothing, "float32")
  np.testing.assert_array_equal(out, 0)
  still = quantized.multiply(
    jnp.zeros((2, 40)),
    quantized.quantize(draw(40, 7), "hidden", num_bits, "cpu"),
    "float32",
  )
  np.testing.assert_array_equal(still, 0)


def test_rows_of_a_table_are_those_of_the_matrix():
  w = draw(96, 256)
  small = quantized.quantize(w, "embed", 8, "cpu")
  ids = jnp.array([[3, 95], [0, 7]])
  np.testing.assert_allclose(
    quantized.pick(small, ids),
    quantized.restore(small, "embed", w.shape)[ids],
    rtol=1e-6,
  )
