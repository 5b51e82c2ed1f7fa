"""The ledger against figures that others publish."""

import dataclasses
import pathlib

import pytest

from gpt_jax import cli, config, flops

ROOT = pathlib.Path(__file__).parents[1]


def model_of(name: str, **changes) -> config.ModelConfig:
  path, _, variant = name.partition(":")
  file = f"{ROOT / 'configs' / path}:{variant}"
  model = config.freeze(cli.load_config(file, {})).model
  return dataclasses.replace(model, **changes)


def test_flops_per_token_follow_the_palm_convention():
  # 6 N + 12 L D T with N = 124,439,808 less the 1024 x 768 positions.
  assert (
    flops.train_flops_per_token(model_of("gpt2.py:124m"), 1024) == 855_166_464
  )
  # An untied input embedding multiplies nothing.
  weights = 8_030_261_248 - 128_256 * 4096
  expected = 6 * weights + 12 * 32 * 4096 * 8192
  got = flops.train_flops_per_token(model_of("llama.py:8b"), 8192)
  assert got == expected


def test_a_token_of_8x7b_meets_12_9_billion_of_46_7_billion_parameters():
  model = model_of("moe.py:8x7b")
  assert sum(flops.count_parameters(model).values()) == 46_702_792_704
  # Jiang et al. 2024 say 13 B: 46.7 B less 6 of 8 experts of 3 x 4096 x 14336.
  active = 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336
  assert sum(flops.count_active_parameters(model).values()) == active
  assert active == 12_879_925_248
  weights = active - 32_000 * 4096
  expected = 6 * weights + 12 * 32 * 4096 * 4096
  assert flops.train_flops_per_token(model, 4096) == expected


def test_a_cached_token_of_llama_8b_takes_128_kib():
  model = model_of("llama.py:8b")
  assert flops.cache_bytes(model, 1, 2) == 2 * 32 * 8 * 128 * 2 == 131_072
  # One of four layers is global; the others hold 100 of 1,000 tokens.
  mixed = dataclasses.replace(
    model, layer_pattern="3*local+global", sliding_window=100
  )
  part = flops.cache_bytes(mixed, 1000, 2) / flops.cache_bytes(model, 1000, 2)
  assert part == 0.25 + 0.75 * 0.1
  # So with the scores that a causal kernel cannot skip: 0.095 of a local layer.
  part = flops.visible_part(mixed, 1000)
  assert part == pytest.approx(0.25 * 0.5 + 0.75 * 0.1 * (1 - 0.05))


def test_a_token_of_latent_attention_is_cached_as_one_small_vector():
  # DeepSeek-V2-Lite's attention: 27 layers, 16 heads of 128 + 64 dims.
  model = model_of(
    "llama.py:8b",
    num_layers=27,
    model_dim=2048,
    num_heads=16,
    num_kv_heads=None,
    head_dim=192,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    v_head_dim=128,
  )
  assert flops.cache_bytes(model, 1, 2) == (512 + 64) * 2 * 27 == 31_104
  plain = dict.fromkeys(("kv_lora_rank", "qk_rope_head_dim", "v_head_dim"))
  plain = dataclasses.replace(model, **plain)
  assert flops.cache_bytes(plain, 1, 2) == 2 * 16 * 192 * 2 * 27
  # Queries, down and up; what is written back; the norm of the vector.
  reads = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * (128 + 128)
  assert flops.count_attention(model) == (reads, 16 * 128 * 2048, 512)
  # Scores are 192 wide and values 128: 2 (192 + 128) T forward, thrice that.
  scores = flops.train_flops_per_token(model, 4096) - (
    flops.train_flops_per_token(model, 0)
  )
  assert scores == 27 * 16 * 3 * 2 * (192 + 128) * 4096
  assert flops.masked_flops_per_token(
    model, 4096
  ) == flops.train_flops_per_token(model, 4096) - (scores // 2)


def test_a_source_counts_by_its_own_length():
  model, D, V = model_of("t5.py:base"), 768, 32_128
  # Rows of the two tables of biases, and of the embedding, are looked up.
  weights = 247_577_856 - 2 * 32 * 12 - V * D
  same = flops.train_flops_per_token(model, 512)
  assert same == 6 * weights + 12 * D * (12 + 12 + 12) * 512
  # A token of the source passes the encoder, and becomes keys and values.
  layer = 4 * D * D + 3 * D * 2048 + 2 * D
  source = 12 * layer + D + 12 * 2 * D * D
  scores = 12 * D * (12 * 114 + 12 * 512 + 12 * 512**2 / 114)
  expected = 6 * (weights - source + source * 512 / 114) + scores
  got = flops.train_flops_per_token(model, 114, 512)
  assert got == pytest.approx(expected, rel=1e-6) and got > 3 * same / 2
  # Only the decoder's own scores are causal.
  hidden = 0.5 * 12 * D * 12 * 114
  masked = flops.masked_flops_per_token(model, 114, 512)
  assert masked == pytest.approx(got - hidden, rel=1e-6)
  # The window that its recipe makes rows of 512 and 114 of.
  whole = config.freeze(cli.load_config(str(ROOT / "configs/t5.py:base"), {}))
  assert config.row_lengths(whole) == (512, 114)
  assert flops.train_flops_of(whole) == got * 114 // 568


def test_biases_of_keys_and_values_are_passed_by_a_source():
  plain, biased = (
    flops.count_source_parameters(model_of("t5.py:base", qkv_bias=is_biased))
    for is_biased in (False, True)
  )
  assert biased - plain == 12 * 3 * 768 + 12 * 2 * 768


def test_a_source_is_cached_in_every_layer():
  model = model_of("t5.py:base")
  own = flops.cache_bytes(model, 10, 2)
  assert own == 10 * 2 * 768 * 2 * 12
  assert flops.cache_bytes(model, 10, 2, num_source=512) == 522 / 10 * own
  plain = model_of("gpt2.py:124m")
  with_source = flops.cache_bytes(plain, 10, 2, num_source=512)
  assert with_source == flops.cache_bytes(plain, 10, 2)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_recomputation_lowers_the_estimate(remat):
  model = model_of("gpt2.py:124m", remat=remat)
  need = flops.estimate_temporary_bytes(model, 8 * 1024)
  whole = flops.estimate_temporary_bytes(
    dataclasses.replace(model, remat="none"), 8 * 1024
  )
  assert need <= whole and (need < whole) == (remat != "none")


@pytest.mark.parametrize(
  "name, params, scores",
  [
    ("6N", 124_439_808, 0),
    ("6N-no-embed", 85_056_000, 0),
    ("6N-no-embed+head", 85_056_000 + 50_257 * 768, 0),
    ("6N-no-embed+attention", 85_056_000, 1),
    ("6N+attention", 85_056_000 + 50_257 * 768, 1),
    ("6N+attention-causal", 85_056_000 + 50_257 * 768, 0.5),
  ],
)
def test_a_convention_counts_what_its_name_says(name, params, scores):
  # GPT-2 124M: 12 blocks of 12 D^2 + 13 D, and a last norm of 2 D.
  assert 12 * (12 * 768**2 + 13 * 768) + 2 * 768 == 85_056_000
  got = flops.count_by_convention(model_of("gpt2.py:124m"), 1024, name)
  per_token = 6 * params + scores * 12 * 12 * 768 * 1024
  assert got == (params, per_token)


@pytest.mark.parametrize("name", ["gpt2.py:124m", "llama.py:8b", "moe.py:8x7b"])
def test_the_ledger_is_the_convention_with_head_and_attention(name):
  model = model_of(name)
  _, got = flops.count_by_convention(model, 1024, "6N+attention")
  # The ledger counts a tied embedding's table once, as the head.
  assert got == flops.train_flops_per_token(model, 1024)
  params, _ = flops.count_by_convention(model, 1024, "6N")
  assert params == sum(flops.count_active_parameters(model).values())
