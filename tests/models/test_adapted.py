"""Adapters in a forward pass: W + scale * A B, without the sum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import apply, make, tokens_of

from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import AdapterConfig, InputError
from gpt_jax.models import adapters, build_model
from gpt_jax.ops.adapted import Adapted, gain_of, merge
from gpt_jax.training import state

pytestmark = pytest.mark.battery

FORMS = {
  "gpt2": "dora",
  "local_global": "lora",
  "latent": "dora",
  "moe_second": "dora",
  "t5": "lora",
  "bert": "lora",
}


def adapted(
  form: str, rank: str = "*=3", kind: str = "lora", word="full", **changes
):
  """Returns (model, base, adapters), whose b is not zero."""
  plain, base = make(form)
  section = AdapterConfig(rank=rank, alpha=6.0, kind=kind, base=word)
  config = dataclasses.replace(plain.config, **changes)
  model = build_model(config, adapter=section)
  shapes, _ = model.abstract_learned()
  rng = np.random.default_rng(1)

  def draw(name, leaf):
    mean = float(name.endswith("magnitude"))
    return jnp.asarray(rng.normal(mean, 0.1, leaf.shape), leaf.dtype)

  return model, base, tree.map_with_names(draw, shapes)


def test_the_norm_of_doras_sum_is_a_constant_to_every_gradient():
  # Of experts too, whose sum is made (Liu et al. 2024, 4.3).
  rng = np.random.default_rng(0)
  sizes = (3, 5), (5, 4), (5, 2), (2, 4), (4,)
  x, w, a, b, m = (rng.normal(size=s).astype(np.float32) for s in sizes)
  whole = w + 0.5 * a @ b
  gain = m * np.sqrt(np.square(w).sum(0) / np.square(whole).sum(0))
  outer = np.cos((x @ whole) * gain) * gain
  by_hand = 0.5 * (x @ a).T @ outer
  one = lambda b: Adapted(w, a, b, 0.5, m)
  alone = lambda b: jnp.sin(
    (x @ (w + 0.5 * a @ b)) * gain_of(one(b))[None]
  ).sum()
  stacked = lambda b: jax.tree.map(lambda x: x[None], one(b))
  expert = lambda b: jnp.sin(x @ merge(stacked(b))[0]).sum()
  for loss in (alone, expert):
    np.testing.assert_allclose(jax.grad(loss)(b), by_hand, 1e-4, 1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_adapted_model_is_the_merged_one(form, scan):
  model, base, learned = adapted(form, kind=FORMS[form], scan_layers=scan)
  attached = model.attach(learned, base)
  merged = adapters.merge(attached)
  assert tree.describe_shapes(merged) == tree.describe_shapes(base)
  tokens = tokens_of()
  found, whole, plain = (
    np.asarray(apply(model, p, tokens))[..., :61]
    for p in (attached, merged, base)
  )
  scale = np.abs(whole).max()
  np.testing.assert_allclose(found, whole, atol=1e-5 * scale)
  assert np.abs(found - plain).max() > 1e-2 * scale  # adapters do something


@pytest.mark.parametrize(
  "form,kind,word,scan",
  [
    ("gpt2", "dora", "int8", True),
    ("bert", "lora", "int4", False),
  ],
)
def test_adapters_beside_a_rounded_base_learn_as_beside_its_matrices(
  form, kind, word, scan
):
  rank = "o=2,mlp=3"  # and others are rounded without adapters
  model, base, learned = adapted(form, rank, kind, word, scan_layers=scan)
  rounded = model.round_base(base)
  section = dataclasses.replace(model.adapter, base="full")
  plain = dataclasses.replace(model, adapter=section)
  parts = model.abstract_params()
  whole = adapters.restore_base(rounded, *parts)
  assert tree.describe_shapes(whole) == tree.describe_shapes(base)
  tokens = tokens_of()
  weights = np.random.default_rng(2).normal(size=61).astype(np.float32)

  def loss(learned, model, base):
    logits = apply(model, model.attach(learned, base), tokens)
    logits = logits[..., :61]
    return jnp.einsum("BTV,V->", jnp.sin(logits), weights), logits

  make = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  gradient, logits = make(learned, model, rounded)
  expected, same = make(learned, plain, whole)
  _, exact = make(learned, plain, base)
  scale = float(np.abs(same).max())
  np.testing.assert_allclose(logits, same, rtol=0, atol=1e-5 * scale)
  assert np.abs(same - exact).max() > 1e-4 * scale  # rounding does something
  found = tree.flatten_with_names(gradient)
  for name, x in tree.flatten_with_names(expected).items():
    largest = float(np.abs(x).max())
    assert largest > 0
    np.testing.assert_allclose(
      found[name], x, rtol=0, atol=1e-5 * largest, err_msg=name
    )
  merged = model.merge(model.attach(learned, rounded))
  summed = adapters.merge(plain.attach(learned, whole))
  for a, b in zip(
    jax.tree.leaves(merged), jax.tree.leaves(summed), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_a_rounded_base_takes_its_bits():
  plain, _ = make("gpt2")
  sizes = dict(model_dim=128, num_heads=4, num_kv_heads=None, mlp_dim=256)
  config = dataclasses.replace(plain.config, **sizes)
  for word, bits in (("int8", 8), ("int4", 4)):
    section = AdapterConfig(rank="*=1", alpha=1.0, kind="lora", base=word)
    model = build_model(config, adapter=section)
    count = lambda parts: tree.count_bytes(parts[0])
    saved = count(model.abstract_params()) - count(model.abstract_base())
    # q, k, v, o and the two of the MLP: of 128 inputs, but the last of 256.
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 256)
    # A scale for each output, or for each output and 64 inputs.
    scales = 2 * (5 * 128 + 256) if bits == 8 else weights // 64
    assert saved == 4 * weights - bits * weights // 8 - 4 * scales


def test_each_matrix_has_its_own_sum():
  model, base, learned = adapted("llama", "q=2,blocks/attn/o=4,mlp=1")
  merged = adapters.merge(model.attach(learned, base))
  old, new = (tree.flatten_with_names(t) for t in (base, merged))
  parts = tree.flatten_with_names(learned)
  adapted_names = {name.rpartition("/")[0] for name in parts}
  assert adapted_names == {
    f"blocks/{n}" for n in ("attn/q", "attn/o", "mlp/in", "mlp/gate", "mlp/out")
  }
  for name, x in new.items():
    delta = np.zeros(x.shape, np.float32)
    if name in adapted_names:
      a, b = (np.asarray(parts[f"{name}/lora_{c}"]) for c in "ab")
      rank = a.shape[-1]
      assert rank == {"q": 2, "o": 4}.get(name[-1], 1)
      L = len(a)
      pairs = a.reshape(L, -1, rank) @ b.reshape(L, rank, -1)
      delta = 6 / rank * pairs.reshape(x.shape)
    np.testing.assert_allclose(x, old[name] + delta, atol=1e-6)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_at_its_start_an_adapted_model_is_its_base_bit_for_bit(form, scan):
  model, base, learned = adapted(form, kind=FORMS[form], scan_layers=scan)
  fresh = state.init_params(model, 0)
  assert tree.describe_shapes(fresh) == tree.describe_shapes(learned)
  names = tree.flatten_with_names(fresh)
  for name, leaf in names.items():
    assert np.any(leaf) != name.endswith("lora_b"), name
  plain = build_model(model.config)
  tokens = tokens_of()
  found = apply(model, model.attach(fresh, base), tokens)
  np.testing.assert_array_equal(found, apply(plain, base, tokens))
  moved = apply(model, model.attach(learned, base), tokens)
  assert not np.array_equal(found, moved)  # the control


def test_an_adapter_starts_with_the_spread_of_a_uniform_draw():
  model, _, _ = adapted("gpt2", "mlp=16")
  fresh = state.init_params(model, 3)["blocks"]["mlp"]
  for name, num_in in (("in", 32), ("out", 48)):
    std = float(np.std(np.asarray(fresh[name]["lora_a"])))
    assert std == pytest.approx((3 * num_in) ** -0.5, rel=0.08)


@pytest.mark.parametrize(
  "rank, clause",
  [
    ("blocks/attn/w=2", "did you mean blocks/attn"),
    ("norm_attn=2", "matches no matrix of a layer"),
    ("embed=2", "matches no matrix of a layer"),
    ("q=2,mlp=33", "a matrix of 32 by 48; its rank must be at most 32"),
  ],
)
def test_a_pattern_of_nothing_and_a_rank_too_large_are_refused(rank, clause):
  with pytest.raises(InputError, match=clause):
    adapted("gpt2", rank)


@pytest.mark.parametrize(
  "text", ["", "q", "q=0", "q=-1", "q=1.5", "=1", "q=1,", "q=9999999999"]
)
def test_a_text_that_is_no_list_of_ranks_is_refused(text):
  with pytest.raises(InputError, match="PATTERN=RANK"):
    AdapterConfig(rank=text, alpha=1.0, kind="lora", base="full")


def test_adapters_need_a_base():
  from configs import base

  config = base.get_config()
  config.adapter.rank = "attn=2"
  with pytest.raises(InputError, match="train.init_from is None"):
    config_lib.freeze(config)


def test_the_norm_of_each_output_is_its_magnitude():
  model, base, learned = adapted("gpt2", "q=2,blocks/attn/o=4", "dora")
  merged = adapters.merge(model.attach(learned, base))
  for name, ins in (("q", 1), ("o", (1, 2))):
    w, whole = base["blocks"]["attn"][name], merged["blocks"]["attn"][name]
    norms = [np.sqrt(np.square(np.asarray(x)).sum(ins)) for x in (w, whole)]
    magnitude = learned["blocks"]["attn"][name]["lora_magnitude"]
    np.testing.assert_allclose(norms[1], magnitude * norms[0], rtol=1e-5)
    assert np.abs(norms[1] - norms[0]).max() > 0.01  # the control


def test_the_norm_is_a_constant_to_the_gradient():
  model, base, learned = adapted("gpt2", "q=2", "dora")
  w = model.attach(learned, base)["blocks"]["attn"]["q"]
  w = jax.tree.map(lambda x: x[0], w)
  grads = jax.grad(lambda w: gain_of(w).sum())(w)
  assert not np.any(grads.a) and not np.any(grads.b)
  np.testing.assert_allclose(grads.magnitude * w.magnitude, gain_of(w), 1e-6)


def test_an_output_of_zeros_stays_one():
  zeros = jnp.zeros((4, 3))
  w = Adapted(zeros, jnp.ones((4, 2)), jnp.zeros((2, 3)), 1.0, jnp.ones(3))
  assert not np.any(merge(w)) and np.all(gain_of(w) == 1)
