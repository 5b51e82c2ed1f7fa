"""The encoder-decoder: what its target sees of its source, and T5 by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import (
  FORMS,
  S_FIRST,
  S,
  T,
  apply,
  embedded_gradient,
  make,
  model_config,
  source_of,
  tokens_of,
)

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError, MeshConfig
from gpt_jax.models import attend, build_model, positions
from gpt_jax.models.context import build_cross
from gpt_jax.ops.visibility import TokenPositions

PAIRED = [f for f in FORMS if FORMS[f].get("family") == "encoder_decoder"]
# Where the two documents of a row begin.
FIRST = 6
PACKED = dict(
  segments_BT=jnp.array([[0] * FIRST + [1] * (T - FIRST)], jnp.int32),
  positions_BT=jnp.array([[*range(FIRST), *range(T - FIRST)]], jnp.int32),
)


@pytest.mark.battery
@pytest.mark.parametrize("form", PAIRED)
def test_a_target_sees_all_of_its_source_and_of_no_other(form):
  model, params = make(form)

  def moved_by(at: int, packing: dict) -> np.ndarray:
    grad = embedded_gradient(model, params, at, packing)
    return np.abs(np.asarray(grad)).sum(1)[20 : 20 + S] > 0

  for at in (0, T - 1):
    assert moved_by(at, source_of(model, 1)).all()
  packed = PACKED | source_of(model, 1, "packed")
  for at in (0, FIRST - 1, FIRST, T - 1):
    is_own = (np.arange(S) >= S_FIRST) == (at >= FIRST)
    np.testing.assert_array_equal(moved_by(at, packed), is_own)


@functools.partial(jax.jit, static_argnums=0)
def encoder_gradient(model, params, place, source):
  """d (squared outputs of the encoder's last MLP at a place) / d embeddings."""
  c = model.config
  last = f"encoder_{(c.num_encoder_layers or c.num_layers) - 1}"

  def output(table):
    p = {**params, "embed": {**params["embed"], "tokens": table}}
    tokens = jnp.zeros((1, T), jnp.int32)
    _, saved = model.apply(p, tokens, mutable=["taps"], **source)
    return jnp.square(saved["taps"][last]["mlp_out"][0][0, place]).sum()

  return jax.grad(output)(params["embed"]["tokens"])


@pytest.mark.battery
@pytest.mark.parametrize("form", PAIRED)
def test_an_encoder_sees_both_ways_within_a_document(form):
  model, params = make(form)
  for documents in ("whole", "packed"):
    source = source_of(model, 1, documents)
    for place in (1, S - 2):
      grad = encoder_gradient(model, params, place, source)
      moved = np.abs(np.asarray(grad)).sum(1)[20 : 20 + S] > 0
      if documents == "whole":
        assert moved.all()
      else:
        is_own = (np.arange(S) < S_FIRST) == (place < S_FIRST)
        np.testing.assert_array_equal(moved, is_own)


@pytest.mark.parametrize("form", ["attention", "t5"])
def test_a_padded_source_is_the_source(form):
  model, params = make(form)
  tokens, source = tokens_of(), source_of(model)
  plain = apply(model, params, tokens)
  pad = lambda x, value: np.pad(x, ((0, 0), (0, 7)), constant_values=value)
  padded = {"sources_BS": pad(source["sources_BS"], 3)}
  ids = {"source_segments_BS": pad(np.zeros_like(source["sources_BS"]), 1)}
  same = apply(model, params, tokens, **padded, **ids)
  np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-5)
  other = apply(model, params, tokens, **padded)
  assert not np.allclose(other, plain, atol=1e-3)  # the control


def test_a_model_without_a_source_says_so():
  model, params = make("t5")
  with pytest.raises(ValueError, match="needs sources_BS, or their cache"):
    model.apply(params, tokens_of())


def test_dropout_drops_in_both_stacks_and_scan_drops_the_same():
  model, params = make("t5")
  config = dataclasses.replace(model.config, dropout_rate=0.3)
  model = build_model(config)
  quiet = apply(model, params, tokens_of())
  key = jax.random.key(3)
  a = apply(model, params, tokens_of(), key=key)
  assert not np.allclose(a, quiet, atol=1e-3)
  scanned = build_model(dataclasses.replace(config, scan_layers=True))
  b = apply(scanned, params, tokens_of(), key=key)
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# What the family cannot have.
REFUSED = {
  "layer_pattern.*decoder has 2 layers": dict(
    num_encoder_layers=2, layer_pattern="3*dense"
  ),
  "num_experts is 4 .*encoder_decoder.*leave it None": dict(num_experts=4),
  "kv_lora_rank is 8 .*encoder_decoder.*leave it None": dict(
    kv_lora_rank=8, qk_rope_head_dim=4, position="rope"
  ),
  "parametrization is mup .*leave it standard": dict(
    parametrization="mup", base_dim=8
  ),
  "cudnn, which cannot leave out a source's padding": dict(attention="cudnn"),
  "blocks, which does not support position='relative'": dict(
    attention="blocks", position="relative"
  ),
  "sinusoidal.*model_dim is 255; it must be even": dict(
    position="sinusoidal", model_dim=255, head_dim=64
  ),
}
ALONE = {
  "num_encoder_layers is 2 and model.family is decoder": dict(
    num_encoder_layers=2
  ),
  "scaled_embeddings is True and model.parametrization is mup": dict(
    scaled_embeddings=True, parametrization="mup", base_dim=8
  ),
  "attn_scale is 1.0 and model.parametrization is mup": dict(
    attn_scale=1.0, parametrization="mup", base_dim=8
  ),
}


@pytest.mark.parametrize("sentence", [*REFUSED, *ALONE])
def test_what_the_family_cannot_have_is_one_sentence(sentence):
  config = base.get_config()
  config.data.objective = "span_corruption"
  config.data.seq_len = 64
  config.model.max_len = 256
  if sentence in REFUSED:
    config.model.family = "encoder_decoder"
  config_lib.freeze(config)
  config.model.update((REFUSED | ALONE)[sentence])
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)


# Attention to a source, by every kernel that it has.

MESHES = {
  "one device": dict(),
  "data 2 x seq 2 x tensor 2": dict(data=2, seq=2, tensor=2),
  "seq 8": dict(seq=8),
  # Four heads of keys do not divide over eight devices.
  "tensor 8": dict(tensor=8),
}


def naive_cross(q, k, v, q_ids, k_ids, scale):
  """Attention in numpy, float64; every query sees the keys of its document."""
  s = scale * np.einsum("BKGTH,BKSH->BKGTS", q, k, dtype=np.float64)
  is_seen = (q_ids[:, :, None] == k_ids[:, None])[:, None, None]
  s = np.where(is_seen, s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  return np.einsum("BKGTS,BKSH->BKGTH", p / p.sum(-1, keepdims=True), v)


def plain_cross(q, k, v, q_ids, k_ids, scale):
  """The same in plain JAX, for its gradients."""
  s = scale * jnp.einsum("BKGTH,BKSH->BKGTS", q, k)
  is_seen = (q_ids[:, :, None] == k_ids[:, None])[:, None, None]
  p = jax.nn.softmax(jnp.where(is_seen, s, -jnp.inf), axis=-1)
  return jnp.einsum("BKGTS,BKSH->BKGTH", p, v)


def draw_case(num_queries: int, num_keys: int):
  """Returns q, k, v, a weight of each output, and both sides' documents."""
  rng, (B, K, G, H) = np.random.default_rng(0), (2, 4, 2, 8)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  both = lambda n, cut: np.tile(np.arange(n) >= cut, (B, 1)).astype(np.int32)
  q, w = (normal(B, K, G, num_queries, H) for _ in range(2))
  k, v = (normal(B, K, num_keys, H) for _ in range(2))
  return q, k, v, w, both(num_queries, 5), both(num_keys, 9)


@pytest.mark.parametrize("kernel", ["dense", "blocks"])
@pytest.mark.parametrize("lengths", [(48, 16), (16, 48)])
@pytest.mark.parametrize("name", MESHES)
def test_attention_to_a_source_is_the_naive_one(name, lengths, kernel):
  config = model_config(
    num_heads=8, num_kv_heads=4, head_dim=8, attention=kernel
  )
  sizes = dict.fromkeys(sharding.AXES, 1) | MESHES[name]
  devices = jax.devices()[: math.prod(sizes.values())]
  mesh = sharding.make_mesh(MeshConfig(**sizes, rules="standard"), devices)
  q, k, v, w, q_ids, k_ids = draw_case(*lengths)

  def attend_source(q, k, v, q_ids, k_ids):
    at = TokenPositions(jnp.arange(q.shape[3])[None], q_ids)
    context = build_cross(
      config, "cpu", at, None, k_ids, is_cached=False, is_dropping=False
    )
    assert context.kernel == kernel
    return attend.attend(q, k, v, context, config, "standard")

  def run(how, *args):
    weighed = lambda q, k, v: ((w * (y := how(q, k, v, *args))).sum(), y)
    return jax.jit(jax.grad(weighed, (0, 1, 2), has_aux=True))(q, k, v)

  with jax.set_mesh(mesh):
    grads, y = run(attend_source, q_ids, k_ids)
  others, _ = run(plain_cross, q_ids, k_ids, 8**-0.5)
  right = naive_cross(q, k, v, q_ids, k_ids, 8**-0.5)
  np.testing.assert_allclose(y, right, atol=5e-6)
  for grad, other in zip(grads, others, strict=True):
    np.testing.assert_allclose(grad, other, atol=2e-5)
  wrong = naive_cross(q, k, v, 0 * q_ids, 0 * k_ids, 8**-0.5)
  assert np.abs(wrong - right).max() > 1e-2  # the control


# Positions.


def test_sines_are_those_of_the_paper():
  width, places = 10, np.array([[0, 1, 2, 50, 511]])
  found = positions.sinusoids(jnp.asarray(places), width)
  for at, place in enumerate(places[0]):
    for i in range(width // 2):
      angle = place / 10000 ** (2 * i / width)
      assert abs(found[0, at, 2 * i] - math.sin(angle)) < 2e-5
      assert abs(found[0, at, 2 * i + 1] - math.cos(angle)) < 2e-5


def test_embeddings_are_scaled_and_then_meet_the_sines():
  model, params = make("attention")
  tokens = tokens_of()
  _, taps = jax.jit(model.apply_tapped)(params, tokens, **source_of(model))
  x_BTD = np.asarray(params["embed"]["tokens"])[tokens] * 32**0.5
  x_BTD = x_BTD + positions.sinusoids(jnp.arange(T)[None], 32)
  np.testing.assert_allclose(taps["embed"], x_BTD, atol=1e-5)
  assert taps["attn"].shape == (2, 2, T, 32)
  assert taps["encoder_attn"].shape == (3, 2, S, 32)


def bucket(distance: int, is_causal: bool) -> int:
  """T5's bucket of key less query, in whole numbers.

  A wide bucket i begins where exact (128 / exact)^(i / wide) does.
  """
  count, first = (32, 0) if is_causal else (16, 16 * (distance > 0))
  away = max(-distance, 0) if is_causal else abs(distance)
  exact = wide = count // 2
  if away < exact:
    return first + away
  ratio = 128 // exact
  reached = [i for i in range(wide) if away**wide >= exact**wide * ratio**i]
  return first + exact + max(reached)


@pytest.mark.parametrize("is_causal", [True, False])
def test_buckets_are_those_of_t5(is_causal):
  distances = np.arange(-300, 301)
  found = positions.buckets_of(distances, is_causal)
  assert found.tolist() == [bucket(d, is_causal) for d in distances.tolist()]
  known = {0: 0, -1: 1, -7: 7, -8: 8, -15: 15 if is_causal else 9}
  known |= {-128: 31 if is_causal else 15, -299: 31 if is_causal else 15}
  known |= {1: 0, 300: 0} if is_causal else {1: 17, 8: 24, 300: 31}
  for distance, expected in known.items():
    assert found[distance + 300] == expected, distance


def test_alibi_of_an_encoder_falls_on_both_sides():
  slots = jnp.arange(5)[None]
  both = positions.alibi_of(slots, slots, 4, 4, is_causal=False)[0, 0, 0]
  np.testing.assert_array_equal(both, both.T)
  assert both[0, 4] == both[4, 0] < both[0, 1] < 0 == both[2, 2]
  causal = positions.alibi_of(slots, slots, 4, 4)[0, 0, 0]
  np.testing.assert_array_equal(jnp.tril(causal), jnp.tril(both))


# T5 by hand.


def rms(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def attention(p, x, read, table, is_causal):
  """T5's: unscaled scores, a bias by bucket, no biases of projections."""
  q = np.einsum("TD,DNH->NTH", x, p["q"])
  k, v = (np.einsum("SD,DNH->NSH", read, p[name]) for name in ("k", "v"))
  s = np.einsum("NTH,NSH->NTS", q, k)
  for t in range(s.shape[1]):
    for j in range(s.shape[2]):
      if table is not None:
        s[:, t, j] += table[bucket(j - t, is_causal)]
      if is_causal and j > t:
        s[:, t, j] = -np.inf
  p_NTS = np.exp(s - s.max(-1, keepdims=True))
  p_NTS /= p_NTS.sum(-1, keepdims=True)
  return np.einsum("NTS,NSH,NHD->TD", p_NTS, v, p["o"])


def mlp(p, x):
  if "gate" not in p:  # v1.0
    return np.maximum(x @ p["in"], 0) @ p["out"]
  gate = x @ p["gate"]
  inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
  return (0.5 * gate * (1 + np.tanh(inner)) * (x @ p["in"])) @ p["out"]


def naive_t5(p, source, tokens, eps):
  """Logits of one row of T5 1.1, or with a tied table of v1.0, in float64."""
  layer = lambda stack, i: jax.tree.map(lambda x: x[i], p[stack])
  x = p["embed"]["tokens"][source]
  for i in range(len(p["encoder"]["norm_mlp"]["scale"])):
    own, table = layer("encoder", i), p["encoder_relative"]
    y = rms(x, own["norm_attn"]["scale"], eps)
    x = x + attention(own["attn"], y, y, table, False)
    x = x + mlp(own["mlp"], rms(x, own["norm_mlp"]["scale"], eps))
  read = rms(x, p["encoder_norm"]["scale"], eps)
  x = p["embed"]["tokens"][tokens]
  for i in range(len(p["blocks"]["norm_mlp"]["scale"])):
    own, table = layer("blocks", i), p["relative"]
    y = rms(x, own["norm_attn"]["scale"], eps)
    x = x + attention(own["attn"], y, y, table, True)
    y = rms(x, own["norm_cross"]["scale"], eps)
    x = x + attention(own["cross"], y, read, None, False)
    x = x + mlp(own["mlp"], rms(x, own["norm_mlp"]["scale"], eps))
  x = rms(x, p["final_norm"]["scale"], eps)
  if "unembed" not in p:
    return x * x.shape[-1] ** -0.5 @ p["embed"]["tokens"].T
  return x @ p["unembed"].T


@pytest.mark.parametrize("form", ["t5", "t5_tied"])
def test_t5_is_t5_by_hand(form):
  model, params = make(form)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for name in ("encoder_relative", "relative"):
    wide[name] = 20 * wide[name]
  tokens, source = tokens_of(), source_of(model)["sources_BS"]
  as_float32 = jax.tree.map(lambda x: x.astype(np.float32), wide)
  found = apply(model, as_float32, tokens, sources_BS=source)
  by_hand = functools.partial(naive_t5, eps=model.config.norm_eps)
  for row in range(2):
    right = by_hand(wide, source[row], tokens[row])[:, :61]
    np.testing.assert_allclose(found[row, :, :61], right, rtol=1e-4, atol=1e-5)
    for name in ("encoder_relative", "relative"):
      without = {**wide, name: 0 * wide[name]}
      other = by_hand(without, source[row], tokens[row])[:, :61]
      assert np.abs(other - right).max() > 1e-3  # the control
