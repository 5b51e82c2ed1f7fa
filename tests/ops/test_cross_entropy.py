"""The loss that goes through the vocabulary in parts is the whole one's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.models.layers import cap_logits
from gpt_jax.ops import cross_entropy

B, T, D, V = 8, 16, 32, 96
REAL = 90  # the rest of V is padding


def make_case(dtype="float32", softcap=None):
  config = base.get_config()
  config.model.update(vocab_size=REAL, vocab_multiple=V)
  config.model.update(logit_softcap=softcap, compute_dtype=dtype)
  model = config_lib.freeze(config).model
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(0, 1, (B, T, D)), dtype)
  w = jnp.asarray(rng.normal(0, 0.5, (V, D)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, REAL, (B, T)), jnp.int32)
  mask = jnp.asarray(rng.random((B, T)) < 0.8, jnp.float32)
  cap = functools.partial(cap_logits, config=model)
  return x, w, targets, mask, cap


def whole(x, w, targets, mask, cap):
  logits = jnp.einsum(
    "BTD,VD->BTV",
    x.astype(jnp.float32),
    w.astype(x.dtype).astype(jnp.float32),
  )
  return cross_entropy.cross_entropy(cap(logits, jnp.arange(V)), targets, mask)[
    0
  ]


def chunked(x, w, targets, mask, cap, num_chunks=4):
  return cross_entropy.chunked_cross_entropy(
    x, w, targets, mask, cap, num_chunks, "standard", "float32"
  )[0]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("num_chunks", [1, 4, 32])
def test_parts_make_the_same_loss_and_gradients(num_chunks, softcap):
  *arrays, cap = make_case(softcap=softcap)
  value = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*arrays)
  loss, grads = value(functools.partial(whole, cap=cap))
  parts, part_grads = value(
    lambda *a: chunked(*a, cap, num_chunks) * 1.0,
  )
  np.testing.assert_allclose(parts, loss, rtol=1e-6)
  for a, b in zip(grads, part_grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  uncapped = make_case(softcap=None if softcap else 3.0)[-1]
  other = chunked(*arrays, uncapped)
  assert abs(float(other / loss) - 1) > 1e-3  # the control


def test_one_device_makes_no_product_twice():
  *arrays, cap = make_case()

  def count_products(has_z):
    loss = lambda x, w: cross_entropy.chunked_cross_entropy(
      x, w, *arrays[2:], cap, 4, "standard", "float32", has_z
    )[0]
    step = jax.jit(jax.grad(loss, (0, 1)))
    text = step.lower(*arrays[:2]).compile().as_text()
    return text.count(" dot(")

  assert count_products(False) == 3
  assert count_products(True) == 4  # the control: by vocabulary


@pytest.mark.parametrize("num_tokens", [1, 7, 13])
def test_tokens_that_do_not_divide_are_all_counted(num_tokens):
  x, w, targets, mask, cap = make_case()
  cut = lambda a: a[:3, :num_tokens]
  arrays = cut(x), w, cut(targets), jnp.ones((3, num_tokens))
  value = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*arrays)
  loss, grads = value(functools.partial(whole, cap=cap))
  parts, part_grads = value(lambda *a: chunked(*a, cap, 4))
  np.testing.assert_allclose(parts, loss, rtol=1e-6)
  np.testing.assert_allclose(chunked(*arrays, cap, 4), loss, rtol=1e-6)
  for a, b in zip(grads, part_grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_z", [False, True])
def test_gradients_of_the_table_come_in_the_type_asked_for(has_z):
  (x, w, targets, mask), cap = make_case("bfloat16")[:4], make_case()[-1]

  def is_rounded(grad_dtype):
    loss = lambda w: cross_entropy.chunked_cross_entropy(
      x, w, targets, mask, cap, 4, "standard", grad_dtype, has_z
    )[0]
    found = jax.grad(loss)(w)
    return bool((found == found.astype(jnp.bfloat16)).all())

  assert is_rounded("bfloat16") and not is_rounded("float32")


@pytest.mark.parametrize("mesh", [dict(fsdp=8), dict(fsdp=2, seq=2, tensor=2)])
def test_on_a_mesh_it_holds_neither_the_logits_nor_the_table(mesh):
  config = base.get_config()
  config.mesh.update(dict.fromkeys(sharding.AXES, 1) | mesh)
  placed = sharding.make_mesh(config_lib.freeze(config).mesh)
  x, w, targets, mask, cap = make_case()
  loss = float(whole(x, w, targets, mask, cap))
  spec = lambda axes, a: jax.NamedSharding(
    placed, sharding.spec_of("it", axes, a.shape, "standard", placed)
  )
  put = lambda a, axes: jax.device_put(a, spec(axes, a))
  arrays = [
    put(x, ("batch", "length", "residual")),
    put(w, ("vocab", "embed")),
    put(targets, ("batch", "length")),
    put(mask, ("batch", "length")),
  ]
  with jax.set_mesh(placed):
    step = jax.jit(jax.value_and_grad(lambda *a: chunked(*a, cap, 4), (0, 1)))
    compiled = step.lower(*arrays).compile()
    found, grads = compiled(*arrays)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    control = jax.jit(
      jax.value_and_grad(lambda *a: whole(*a, cap), argnums=(0, 1))
    )
    _, expected = control.lower(*arrays).compile()(*arrays)
    text = control.lower(*arrays).compile().as_text()
  np.testing.assert_allclose(grads[1], expected[1], rtol=1e-4, atol=1e-5)
  rows = B // mesh["fsdp"]
  cols = T // mesh.get("seq", 1)
  logits = f"f32[{rows},{cols},{V // mesh.get('tensor', 1)}]"
  table = f"f32[{V // mesh.get('tensor', 1)},{D}]"
  assert logits in text  # the control: the whole form holds them
  assert logits not in compiled.as_text()
  assert table not in compiled.as_text()


SMOOTHING = cross_entropy.Smoothing(0.1, REAL)


def smoothed_by_formula(x, w, targets, mask, cap):
  """-sum_v q_v log p_v with q = 0.9 of the target and 0.1 / REAL of each."""
  raw = jnp.einsum("BTD,VD->BTV", x, w)
  log_p = jax.nn.log_softmax(cap(raw, jnp.arange(V)))[..., :REAL]
  q = 0.9 * jax.nn.one_hot(targets, REAL) + 0.1 / REAL
  return -((q * log_p).sum(-1) * mask).sum()


def in_one_piece(x, w, targets, mask, cap, smoothing):
  logits = cap(jnp.einsum("BTD,VD->BTV", x, w), jnp.arange(V))
  return cross_entropy.cross_entropy(logits, targets, mask, smoothing)


def in_parts(*a, has_z, parts=4):
  *a, cap, smoothing = a
  return cross_entropy.chunked_cross_entropy(
    *a, cap, parts, "standard", "float32", has_z, smoothing
  )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(
  "form",
  [
    in_one_piece,
    functools.partial(in_parts, has_z=False),  # by tokens
    functools.partial(in_parts, has_z=False, parts=3),
    functools.partial(in_parts, has_z=True),  # by vocabulary
  ],
)
def test_smoothed_targets_have_the_loss_and_gradient_of_the_formula(
  form, softcap
):
  *arrays, cap = make_case(softcap=softcap)
  expected, gradient = jax.value_and_grad(smoothed_by_formula, (0, 1))(
    *arrays, cap
  )
  loss = lambda x, w: form(x, w, *arrays[2:], cap, SMOOTHING)[0]
  found, found_gradient = jax.value_and_grad(loss, (0, 1))(*arrays[:2])
  # Outside of a gradient, parts of tokens take another path.
  both = found, loss(*arrays[:2])
  np.testing.assert_allclose(both, (expected, expected), rtol=1e-6)
  for a, b in zip(gradient, found_gradient, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
  plain, count = form(*arrays, cap, None)[:2]
  again = form(*arrays, cap, SMOOTHING)
  assert float(again[-1]) == float(plain) != float(again[0])
  assert float(again[1]) == float(count)


def test_the_gradient_by_logits_is_softmax_less_the_smoothed_target():
  rng = np.random.default_rng(1)
  logits = jnp.asarray(rng.normal(0, 2, (3, 5, REAL)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, REAL, (3, 5)), jnp.int32)
  loss = lambda a: cross_entropy.cross_entropy(a, targets, None, SMOOTHING)[0]
  q = 0.1 / REAL + 0.9 * (np.arange(REAL) == np.asarray(targets)[..., None])
  np.testing.assert_allclose(
    jax.grad(loss)(logits), jax.nn.softmax(logits) - q, atol=1e-6
  )
  one_sum = cross_entropy.cross_entropy(logits, targets, None)
  assert len(one_sum) == 2
  # What is reported beside the smoothed loss has no gradient.
  plain = lambda a: cross_entropy.cross_entropy(a, targets, None, SMOOTHING)[2]
  assert not np.any(jax.grad(plain)(logits))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_z_loss_in_parts_is_that_of_the_whole(softcap):
  x, w, targets, mask, cap = make_case(softcap=softcap)

  def in_parts(x, w, weight, num_chunks=4):
    nats, _, z = cross_entropy.chunked_cross_entropy(
      x, w, targets, mask, cap, num_chunks, "standard", "float32", True
    )
    return nats + weight * z

  def at_once(x, w, weight):
    logits = cap(jnp.einsum("BTD,VD->BTV", x, w), jnp.arange(V))
    nats, _ = cross_entropy.cross_entropy(logits, targets, mask)
    # By the definition, and not by what the library has.
    log_z = jnp.log(jnp.exp(logits).sum(-1))
    return nats + weight * (mask * log_z**2).sum()

  for weight in (0.0, 0.1):
    a = jax.value_and_grad(in_parts, (0, 1))(x, w, weight)
    b = jax.value_and_grad(at_once, (0, 1))(x, w, weight)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  plain = jax.grad(in_parts)(x, w, 0.0)
  assert float(jnp.abs(plain - a[1][0]).max()) > 1e-3  # the control
  logits = cap(jnp.einsum("BTD,VD->BTV", x, w), jnp.arange(V))
  z = float(in_parts(x, w, 1.0) - in_parts(x, w, 0.0))
  assert float(cross_entropy.squared_log_z(logits, mask)) == pytest.approx(
    z, rel=1e-4
  )


def test_parts_that_do_not_divide_are_refused():
  *arrays, cap = make_case()
  with pytest.raises(InputError, match="num_loss_chunks is 5.* 96 rows"):
    chunked(*arrays, cap, 5)
