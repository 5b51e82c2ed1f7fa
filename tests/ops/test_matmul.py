"""Products have einsum's values and gradients, in the form that is fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.ops.matmul import matmul, multiply_over_rows, transpose

# Equation, and shapes of its operands.
FORMS = {
  "BD,DF->BF": ((24, 8), (8, 12)),
  "BTD,VD->BTV": ((3, 8, 8), (20, 8)),
  "BTNH,NHD->BTD": ((3, 8, 2, 4), (2, 4, 12)),
  "BTD,DNH->BTNH": ((3, 8, 12), (12, 2, 4)),
}


def make(shapes, dtype):
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
  return x.astype(dtype), w


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equation", FORMS)
def test_a_product_and_its_gradients_are_those_of_einsum(equation, dtype):
  x, w = make(FORMS[equation], dtype)
  weight = np.random.default_rng(1).normal(
    size=jax.eval_shape(lambda: jnp.einsum(equation, x, w)).shape
  )

  def wanted(x, w):
    y = jnp.einsum(equation, x, w.astype(dtype).astype(jnp.float32))
    return (y * weight).sum(), y

  def found(x, w):
    y = matmul(equation, x, w, "float32", jnp.float32)
    return (y * weight).sum(), y

  get = lambda f: jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))
  (dx, dw), y = get(wanted)(x.astype(jnp.float32), w)
  (our_dx, our_dw), our_y = get(found)(x, w)
  assert our_dx.dtype == dtype and our_dw.dtype == jnp.float32
  np.testing.assert_allclose(our_y, y, rtol=1e-5, atol=1e-5)
  limit = 1e-5 if dtype == "float32" else 0.1
  np.testing.assert_allclose(our_dx.astype(jnp.float32), dx, atol=limit)
  np.testing.assert_allclose(our_dw, dw, atol=limit)
  assert np.abs(dw - jnp.roll(our_dw, 1, 0)).max() > limit  # the control


@pytest.mark.parametrize("grad_dtype", ["float32", "bfloat16"])
def test_gradients_of_a_matrix_come_in_the_type_asked_for(grad_dtype):
  x, w = make(FORMS["BD,DF->BF"], "bfloat16")
  loss = lambda w: matmul("BD,DF->BF", x, w, grad_dtype).sum()
  dw = jax.grad(loss)(w * jnp.pi)
  is_rounded = bool((dw == dw.astype(jnp.bfloat16)).all())
  assert dw.dtype == jnp.float32
  assert is_rounded == (grad_dtype == "bfloat16")


def operands(f, *arrays) -> set[str]:
  """Returns the types of what the compiled function multiplies."""
  text = jax.jit(f).lower(*arrays).compile().as_text()
  types = dict(re.findall(r"%([\w.]+) = (\w+)\[", text))
  types |= dict(re.findall(r"([\w.]+): (\w+)\[", text))
  names = re.findall(r" dot\(%([\w.]+), %([\w.]+)\)", text)
  return {types[name] for pair in names for name in pair}


def test_a_cpu_multiplies_bfloat16_as_it_is():
  x, w = (jnp.ones(s, jnp.bfloat16) for s in ((512, 128), (128, 256)))
  best = lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32)
  if operands(best, x, w) != {"bf16"}:
    pytest.skip("this processor has no bfloat16 products")

  def step(x, w):
    y, back = jax.vjp(lambda *a: matmul("BD,DF->BF", *a, "float32"), x, w)
    return y, back(y)

  assert operands(step, x, w.astype(jnp.float32)) == {"bf16"}
  plain = lambda x, y: jnp.einsum(
    "LX,LY->XY", x, y, preferred_element_type=jnp.float32
  )
  rows = jnp.ones((512, 256), jnp.bfloat16)
  assert operands(plain, x, rows) == {"f32"}  # the control
  own = lambda x, y: multiply_over_rows(x, y, 1, 1, jnp.float32)
  assert operands(own, x, rows) == {"bf16"}


@pytest.mark.parametrize("num_rows", [1, 2, 8, 9])
def test_a_matrix_stored_by_outputs_gives_the_same_product(num_rows):
  rng = np.random.default_rng(0)
  x_LD = rng.normal(size=(num_rows, 48)).astype(np.float32)
  w_DF = rng.normal(size=(48, 80)).astype(np.float32)
  w = transpose(jnp.asarray(w_DF), 1)
  run = jax.jit(lambda x: matmul("LD,DF->LF", x, w, "float32"))
  np.testing.assert_allclose(run(x_LD), x_LD @ w_DF, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_rows", [2, 8, 9])
def test_few_rows_are_multiplied_with_the_matrix_on_the_left(num_rows):
  x_LD, w = jnp.ones((num_rows, 48)), transpose(jnp.ones((48, 80)), 1)
  run = jax.jit(lambda x: matmul("LD,DF->LF", x, w, "float32"))
  is_turned = "optimization_barrier" in run.lower(x_LD).as_text()
  assert is_turned == (num_rows <= 8)
