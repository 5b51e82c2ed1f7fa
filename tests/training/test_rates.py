"""optim.rates: frozen parameters and factors of the rate, by path."""

import dataclasses

import jax
import numpy as np
import pytest
from test_step import batch_of, make, small_config

from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.config.options import Rates
from gpt_jax.lab.plan import memory
from gpt_jax.models import build_model
from gpt_jax.training import build, optim, telemetry

OPTIMIZERS = config_lib.KEYS["optim.optimizer"].options


def with_rates(rates: str, word: str = "adamw", **train):
  config = small_config(**train)
  section = dataclasses.replace(config.optim, rates=rates, optimizer=word)
  return dataclasses.replace(config, optim=section)


def moved(config) -> tuple[dict, dict]:
  """Returns (each parameter's change in a step, the optimizer's leaves)."""
  train_step, now = make(config)
  after, _ = train_step(now, batch_of(0))
  change = jax.tree.map(
    lambda a, b: np.asarray(a - b), after.params, now.params
  )
  return (
    tree.flatten_with_names(change),
    tree.flatten_with_names(after.opt_state),
  )


@pytest.mark.parametrize("word", OPTIMIZERS)
def test_what_is_frozen_stays_and_has_no_moments(word):
  config = with_rates("*=0,blocks/mlp=0.5,o=1", word)
  specs = build_model(config.model).abstract_params()[1]
  change, moments = moved(config)
  free = [
    n
    for n in tree.flatten_with_names(specs)
    if "/mlp/" in n or n.endswith("/o")
  ]
  assert {n for n, x in change.items() if np.any(x)} == set(free)
  owners = {n for n in change if any(m.endswith(n) for m in moments)}
  assert owners and owners <= set(free)


@pytest.mark.parametrize("word", ["adamw", "lion"])
def test_a_factor_scales_the_whole_update_decay_included(word):
  whole, _ = moved(with_rates("none", word))
  half, _ = moved(with_rates("blocks/attn/*=0.5", word))
  for name, x in whole.items():
    factor = 0.5 if "/attn/" in name else 1.0
    np.testing.assert_allclose(half[name], factor * x, atol=3e-7)
  assert np.abs(whole["blocks/attn/q"]).max() > 1e-5


def test_microbatches_and_the_moving_average_agree_with_frozen_parameters():
  one, _ = moved(with_rates("embed=0,q=2"))
  parts, _ = moved(with_rates("embed=0,q=2", num_microbatches=2, ema_decay=0.9))
  for name, x in one.items():
    np.testing.assert_allclose(parts[name], x, atol=2e-4)
  assert not parts["embed/tokens"].any()


def test_the_gradient_of_what_is_frozen_is_not_computed():
  def count(rates):
    built = build.assemble(with_rates(rates), jax.devices()[:1])
    return built.lower_step().compile().cost_analysis()["flops"]

  assert count("*=0,final_norm=1") < 0.6 * count("none")


def test_a_plan_counts_gradients_and_moments_of_what_is_learned():
  built = build.assemble(with_rates("*=0,q=1"), jax.devices()[:1])
  size = tree.count_bytes(built.abstract.params["blocks"]["attn"]["q"])
  assert memory.gradient_bytes(built) == size
  moments = memory.shard_bytes(built.abstract.opt_state)
  assert 2 * size <= moments < 2 * size + 64


def test_whole_stacks_are_frozen_in_microbatches_too():
  change, _ = moved(with_rates("blocks=0", num_microbatches=2))
  assert not change["blocks/mlp/in"].any() and change["embed/tokens"].any()


def test_telemetry_leaves_out_what_is_frozen():
  config = with_rates("*=0,blocks=1")
  built = build.assemble(config, jax.devices()[:1])
  _, now = make(config)
  watch = telemetry.make_watch(
    built.model, built.tx, built.schedule, built.config
  )
  found = jax.jit(watch)(now, batch_of(0))
  assert "telemetry/grad_norm/hidden" in found
  assert "telemetry/grad_norm/embed" not in found


@pytest.mark.parametrize(
  "text", ["", "q", "q=x", "q=-1", "=1", "q=nan", "q=1,"]
)
def test_a_text_that_is_no_list_of_factors_is_refused(text):
  with pytest.raises(InputError, match="PATTERN=FACTOR"):
    Rates(text)


@pytest.mark.parametrize(
  "rates, clause",
  [
    ("blocks/attn/w=0", "did you mean blocks/attn"),
    ("*=0", "freezes every parameter"),
  ],
)
def test_a_pattern_of_nothing_and_one_of_everything_are_refused(rates, clause):
  config = with_rates(rates)
  specs = build_model(config.model).abstract_params()[1]
  with pytest.raises(InputError, match=clause):
    optim.build_optimizer(config.optim, specs)
