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
  got = flops.cache_bytes_per_token(model_of("llama.py:8b"), 2)
  assert got == 2 * 32 * 8 * 128 * 2 == 131_072


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_recomputation_lowers_the_estimate(remat):
  model = model_of("gpt2.py:124m", remat=remat)
  need = flops.estimate_passing_bytes(model, 8 * 1024)
  whole = flops.estimate_passing_bytes(
    dataclasses.replace(model, remat="none"), 8 * 1024
  )
  assert need <= whole and (need < whole) == (remat != "none")
