"""Schedules at their corners; the optimizers have contracts/test_optimizers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config
from gpt_jax.config import InputError
from gpt_jax.training import optim

WORDS = config.KEYS["optim.schedule"].options
PEAK, WARMUP, STEPS, FINAL, DECAY = 2e-3, 10, 100, 0.1, 0.2
# Rate at the last step, as a fraction of the peak.
ENDS = {
  "cosine": FINAL,
  "linear": FINAL,
  "inverse_sqrt": (WARMUP / (STEPS - 1)) ** 0.5,
  "constant": 1.0,
  "wsd": FINAL,
}


def rates(word: str, num_steps: int = STEPS, extra: int = 0, **changes):
  section = dataclasses.replace(
    config.freeze(base.get_config()).optim,
    schedule=word,
    **dict(
      learning_rate=PEAK,
      warmup_steps=WARMUP,
      final_rate_frac=FINAL,
      decay_frac=DECAY,
    )
    | changes,
  )
  schedule = jax.jit(optim.build_schedule(section, num_steps))
  first = schedule(jnp.int32(0))
  assert first.dtype == jnp.float32 and first.shape == ()
  steps = jnp.arange(num_steps + extra, dtype=jnp.int32)
  return np.asarray(jax.vmap(schedule)(steps))


def test_every_schedule_has_an_end_to_check():
  assert set(ENDS) == set(WORDS)


def test_an_unknown_schedule_is_refused_with_the_valid_ones():
  with pytest.raises(InputError, match="cosine, linear"):
    rates("step")


@pytest.mark.parametrize("word", WORDS)
def test_the_warm_up_rises_by_equal_parts_to_the_peak(word):
  expected = PEAK * np.arange(1, WARMUP + 2) / (WARMUP + 1)
  np.testing.assert_allclose(rates(word)[: WARMUP + 1], expected, rtol=1e-5)


@pytest.mark.parametrize("word", WORDS)
def test_without_warm_up_the_first_step_is_at_the_peak(word):
  assert rates(word, warmup_steps=0)[0] == pytest.approx(PEAK)


@pytest.mark.parametrize("word", WORDS)
def test_the_last_step_ends_where_the_schedule_says(word):
  assert rates(word)[-1] == pytest.approx(PEAK * ENDS[word], rel=1e-4)


@pytest.mark.parametrize("word", WORDS)
def test_after_the_warm_up_the_rate_never_rises(word):
  after = rates(word, extra=20)[WARMUP:]
  assert (np.diff(after) <= 1e-9).all()
  assert (np.diff(rates(word)[: WARMUP + 1]) > 0).all()


@pytest.mark.parametrize("word", ["cosine", "linear", "wsd"])
def test_past_the_last_step_the_rate_stays_at_its_end(word):
  tail = rates(word, extra=20)[STEPS - 1 :]
  np.testing.assert_allclose(tail, PEAK * FINAL, rtol=1e-4)


def test_cosine_and_linear_are_half_way_down_in_the_middle():
  for word in ("cosine", "linear"):
    middle = rates(word, num_steps=WARMUP + 101)[WARMUP + 50]
    assert middle == pytest.approx(PEAK * (1 + FINAL) / 2, rel=1e-4)
  quarter = [
    rates(word, num_steps=WARMUP + 101)[WARMUP + 25]
    for word in ("cosine", "linear")
  ]
  assert quarter[0] > 1.05 * quarter[1]


def test_inverse_sqrt_is_halved_when_steps_are_fourfold():
  assert rates("inverse_sqrt")[4 * WARMUP] == pytest.approx(PEAK / 2)


def test_wsd_is_level_until_its_last_steps_and_falls_by_equal_parts():
  found = rates("wsd")
  start = STEPS - 1 - round(DECAY * STEPS)
  np.testing.assert_allclose(found[WARMUP : start + 1], PEAK, rtol=1e-6)
  falls = np.diff(found[start:])
  np.testing.assert_allclose(falls, -PEAK * (1 - FINAL) / 20, rtol=1e-2)


def test_wsd_without_decay_is_constant():
  np.testing.assert_allclose(
    rates("wsd", decay_frac=0.0), rates("constant"), rtol=1e-6
  )


def test_wsd_that_would_decay_during_warm_up_decays_after_it():
  np.testing.assert_allclose(
    rates("wsd", decay_frac=1.0), rates("linear"), rtol=1e-6
  )


@pytest.mark.parametrize("word", WORDS)
def test_a_run_of_one_step_has_a_finite_rate(word):
  (only,) = rates(word, num_steps=1, warmup_steps=0)
  assert only == pytest.approx(PEAK)
