"""Latent attention: which form reads the cache, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import flops
from gpt_jax.config import InputError
from gpt_jax.models import build_model, latent
from gpt_jax.training import optim, state

LATENT = dict(
  position="rope",
  head_dim=12,
  kv_lora_rank=16,
  qk_rope_head_dim=4,
  v_head_dim=10,
)


def model_of(**changes):
  model = config_lib.freeze(base.get_config()).model
  small = dict(
    num_layers=2, model_dim=32, num_heads=4, mlp_dim=32, vocab_size=64
  )
  return dataclasses.replace(model, **{**small, **LATENT, **changes})


def decode(model, params, tokens, size: int):
  """Returns logits of tokens that are read `size` at a time from a cache."""
  prepared = jax.jit(model.prepare_for_decoding)(params)
  cache, outs = model.init_cache(len(tokens), tokens.shape[1]), []
  # Traced anew for each call, since tests change what it does.
  apply_cached = jax.jit(lambda *a: model.apply_cached(*a))
  for start in range(0, tokens.shape[1], size):
    at = jnp.full(len(tokens), start, jnp.int32)
    some = tokens[:, start : start + size]
    logits, cache = apply_cached(prepared, some, cache, at)
    outs.append(logits)
  return jnp.concatenate(outs, 1), cache


@pytest.mark.parametrize("changes", [{}, dict(q_lora_rank=8)])
def test_both_forms_of_reading_the_cache_equal_the_full_pass(
  changes, monkeypatch
):
  model = build_model(model_of(**changes))
  params = state.init_params(model, 0)
  # Larger, so that scores differ and the softmax is not nearly flat; with 8
  # times the rounding of float32 alone moves logits by more than the bound.
  params = jax.tree.map(lambda x: 4 * x, params)
  tokens = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
  full, worst = jax.jit(model.apply)(params, tokens), {}
  for absorbs in (True, False):
    monkeypatch.setattr(latent, "is_absorbed", lambda *_, a=absorbs: a)
    for num_new in (1, 4):
      got = decode(model, params, tokens, num_new)[0]
      worst[absorbs, num_new] = float(jnp.abs(got - full).max())
  size = float(jnp.abs(full[..., :64]).max())
  assert max(worst.values()) < 1e-5 * size, (worst, size)
  # The control: without its scale, the absorbed form has other scores.
  monkeypatch.setattr(latent, "is_absorbed", lambda *_: True)
  wrong = lambda q, *rest: real(2 * q, *rest)
  real = latent.attend_absorbed
  monkeypatch.setattr(latent, "attend_absorbed", wrong)
  assert (
    float(jnp.abs(decode(model, params, tokens, 1)[0] - full).max())
    > 1e-2 * size
  )


def test_one_token_is_absorbed_and_a_long_prompt_is_not():
  # Of DeepSeek-V2: a token more costs 2 * 576 - 192 - 128 = 832 products with a
  # cached vector, and one key and value of it 512 * 256.
  c = model_of(
    head_dim=192, kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128
  )
  last = 512 * 256 // 832
  assert latent.is_absorbed(c, 1) and latent.is_absorbed(c, last)
  assert not latent.is_absorbed(c, last + 1)


@pytest.mark.parametrize("dtype, itemsize", [("float32", 4), ("bfloat16", 2)])
def test_the_cache_takes_the_bytes_of_the_ledger(dtype, itemsize):
  model = build_model(model_of(compute_dtype=dtype), platform="gpu")
  cache = jax.eval_shape(lambda: model.init_cache(3, 64))
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert held == 3 * 64 * (16 + 4) * itemsize * 2
  assert held == 3 * flops.cache_bytes(model.config, 64, itemsize)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_low_bit_weights_decode_as_the_rounded_model_does(weights):
  c = model_of(q_lora_rank=32, kv_lora_rank=32, scan_layers=True)
  full = build_model(c)
  model = build_model(c, weights=weights)
  params = jax.tree.map(lambda x: 8 * x, state.init_params(full, 0))
  tokens = np.random.default_rng(0).integers(0, 64, (2, 8)).astype(np.int32)
  apply = jax.jit(full.apply)
  rounded = apply(jax.jit(model.round_weights)(params), tokens)[..., :64]
  got = decode(model, params, tokens, 1)[0][..., :64]
  # Activations are rounded to 16 bits.
  assert float(jnp.abs(got - rounded).max()) < 2e-2
  far = jnp.abs(apply(params, tokens)[..., :64] - rounded).max()
  assert float(far) > 4e-2  # the control: rounding is seen


def test_telemetry_sees_the_largest_score():
  model = build_model(model_of())
  params = jax.tree.map(lambda x: 8 * x, state.init_params(model, 0))
  tokens = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
  tops, apply_tapped = [], jax.jit(model.apply_tapped)
  for factor in (1, 2):
    attn = params["blocks"]["attn"] | {
      "q": factor * params["blocks"]["attn"]["q"]
    }
    blocks = params["blocks"] | {"attn": attn}
    _, taps = apply_tapped({**params, "blocks": blocks}, tokens)
    tops.append(np.asarray(taps["score_max"]))
  assert tops[0].shape == (2,) and tops[0][0] > 0
  np.testing.assert_allclose(tops[1][0], 2 * tops[0][0], rtol=1e-5)


def test_the_compiled_pass_does_the_flops_of_the_ledger():
  c = model_of(
    num_layers=2,
    model_dim=256,
    mlp_dim=256,
    vocab_size=256,
    head_dim=192,
    kv_lora_rank=128,
    q_lora_rank=64,
    qk_rope_head_dim=64,
    v_head_dim=128,
    max_len=512,
    attention="dense",
  )
  model = build_model(c)
  tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)
  forward = jax.jit(model.apply).lower(model.abstract_params()[0], tokens)
  measured = forward.compile().cost_analysis()["flops"]
  ledger = lambda c: 512 * flops.train_flops_per_token(c, 512) / 3
  assert measured == pytest.approx(ledger(c), rel=0.05)  # norms and softmax
  wide = dataclasses.replace(c, v_head_dim=192)  # the control
  assert measured != pytest.approx(ledger(wide), rel=0.05)


def test_muon_orthogonalises_every_matrix_of_it():
  config = base.get_config()
  config.optim.update(optimizer="muon", weight_decay=0.0)
  model = build_model(model_of(q_lora_rank=16))
  specs = model.abstract_params()[1]["blocks"]["attn"]
  params = state.init_params(model, 0)["blocks"]["attn"]
  tx = optim.build_optimizer(config_lib.freeze(config).optim, specs)
  grads = jax.tree.map(lambda x: x + 0.01, params)
  moved = tx.update(grads, tx.init(params), params)[0]
  for name in ("q_down", "q_up", "kv_down", "k_up", "v_up", "o"):
    num_in = 2 if name == "o" else 1
    x = np.asarray(moved[name][0])
    x = x.reshape(np.prod(x.shape[:num_in]), -1)
    s = np.linalg.svd(x / (0.2 * max(x.shape) ** 0.5), compute_uv=False)
    assert 0.5 < s.min() <= s.max() < 1.5, (name, s)


REFUSED = {
  "v_head_dim is 8, a width of latent attention": dict(
    kv_lora_rank=None, qk_rope_head_dim=None
  ),
  "qk_rope_head_dim None; it needs rope, and": dict(qk_rope_head_dim=None),
  "model.position learned": dict(position="learned"),
  "qk_rope_head_dim must be even; it is 3": dict(qk_rope_head_dim=3),
  "qk_rope_head_dim is 12, a part of the head's 12": dict(qk_rope_head_dim=12),
  "keys of its own, and model.num_kv_heads is 2": dict(num_kv_heads=2),
  "model.qk_norm is True": dict(qk_norm=True),
  "model.qkv_bias is True": dict(qkv_bias=True),
  "is mup, which was not found to keep": dict(
    parametrization="mup", base_dim=32
  ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_latent_attention_cannot_be_is_refused(sentence):
  config = base.get_config()
  config.model.update({**LATENT, "v_head_dim": 8})
  config_lib.freeze(config)
  config.model.update(REFUSED[sentence])
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)
