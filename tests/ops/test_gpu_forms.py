"""The forms that ops take on a GPU, computed on a CPU against their twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.ops import (
  cross_entropy,
  gemv,
  matmul,
  norm,
  projection,
  quantized,
)


def normal(seed: int, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logsumexp_in_one_pass_is_logsumexp(scale):
  logits_RV = jnp.asarray(scale * normal(0, 7, 1001))
  # Padding of the vocabulary, and a row whose maximum comes last.
  logits_RV = logits_RV.at[:, -3:].set(-1e30).at[2, -4].set(3e4)
  exact = np.asarray(logits_RV, np.float64)
  top = exact.max(1)
  want = top + np.log(np.exp(exact - top[:, None]).sum(1))
  got = jax.jit(cross_entropy.one_pass_logsumexp)(logits_RV)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # The control: a sum that is not rescaled when the maximum grows.
  assert not np.allclose(got, logits_RV[:, 0] + np.log(1001), rtol=1e-6)


def test_a_bias_added_flat_is_the_bias():
  x, bias = jnp.asarray(normal(0, 2, 3, 4, 5)), jnp.asarray(normal(1, 4, 5))
  got = projection.add_flat(x, bias)
  np.testing.assert_array_equal(got, x + bias[None, None])
  assert not np.array_equal(got, x + bias.T.reshape(1, 1, 4, 5))


def test_a_scale_recomputed_has_the_same_gradient():
  x, dy, scale = normal(0, 3, 5, 16), normal(1, 3, 5, 16), normal(2, 16)
  apply = lambda scale: norm.normalize(jnp.asarray(x), scale, 1e-5, True)
  _, pull = jax.vjp(apply, jnp.asarray(scale))
  mean = x.mean(-1, keepdims=True)
  rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  got = norm.recompute_dscale(*map(jnp.asarray, (dy, x, mean, rstd)))
  np.testing.assert_allclose(got, pull(jnp.asarray(dy))[0], rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 16])
@pytest.mark.parametrize("shape", [(64, 512), (192, 1056), (64, 14 * 512)])
def test_rows_times_int4_are_the_product_with_the_restored_matrix(
  shape, num_rows
):
  F, D = shape
  w_DF = jnp.asarray(normal(0, D, F))
  w = quantized.quantize(w_DF, "hidden", 4, "gpu")
  G, _, C = w.values_GFC.shape
  assert gemv.can_multiply(num_rows, w.values_GFC)
  # The last group is zero, and the first much smaller than the second.
  x_LGC = normal(1, num_rows, G, C)
  x_LGC[:, -1], x_LGC[:, 0] = 0, x_LGC[:, 0] / 1000
  got = gemv.multiply(
    jnp.asarray(x_LGC), w.values_GFC, w.scale_GF, interpret=True
  )
  restored = np.asarray(quantized.restore(w, "hidden", (D, F)), np.float64)
  want = x_LGC.reshape(num_rows, D) @ restored
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  # The control: the halves of a byte swapped.
  swapped = np.concatenate([want[:, F // 2 :], want[:, : F // 2]], axis=1)
  assert not np.allclose(got, swapped, atol=1e-2 * np.abs(want).max())


@pytest.mark.parametrize("shape", [(24, 512), (64, 80), (96, 512)])
def test_a_matrix_that_the_tiles_do_not_divide_is_left_to_the_compiler(shape):
  F, D = shape
  w = quantized.quantize(jnp.asarray(normal(0, D, F)), "hidden", 4, "gpu")
  assert not gemv.can_multiply(1, w.values_GFC)


def lowered_for_cuda(function, *arrays) -> str:
  traced = jax.jit(function).trace(*arrays)
  return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_gpu_multiplies_one_row_as_two():
  """Of one row XLA makes sums over columns, of products in bfloat16."""
  w = jnp.ones((8, 16), "bfloat16")
  product = lambda x, w: matmul.multiply("LD,DF->LF", x, w, jnp.float32)
  one = lowered_for_cuda(product, jnp.ones((1, 8), "bfloat16"), w)
  assert "tensor<2x8xbf16>" in one
  three = lowered_for_cuda(product, jnp.ones((3, 8), "bfloat16"), w)
  assert "tensor<2x8xbf16>" not in three


def test_a_gpu_multiplies_one_row_with_int8_as_two():
  w = quantized.quantize(jnp.ones((8, 16)), "hidden", 8, "gpu")
  product = lambda x, w: quantized.multiply(x, w, jnp.float32)
  one = lowered_for_cuda(product, jnp.ones((1, 8), "bfloat16"), w)
  assert "tensor<2x1x8xbf16>" in one
  three = lowered_for_cuda(product, jnp.ones((3, 8), "bfloat16"), w)
  assert "tensor<2x1x8xbf16>" not in three


def test_a_gpu_keeps_queries_keys_and_values_apart():
  x = jnp.ones((2, 3, 8))
  ws = [jnp.ones((8, 2, 4)), jnp.ones((8, 1, 4)), jnp.ones((8, 1, 4))]
  count = {}
  for platform in ("gpu", "cpu"):
    run = lambda x, ws, platform=platform: projection.project_each(
      x, ws, "float32", platform
    )
    count[platform] = lowered_for_cuda(run, x, ws).count("dot_general")
  assert count == {"gpu": 3, "cpu": 1}
