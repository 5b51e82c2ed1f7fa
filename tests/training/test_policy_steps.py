"""Steps of GRPO: rewards, advantages, the loss and its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_preference_steps import assert_close, begin, config_of, gradient_of

from gpt_jax import metric_names
from gpt_jax.training import rollouts

T, ROWS, GROUP, CLIP = 32, 8, 4, 0.2
END = 49


def policy_config(**train):
  train = dict(group_size=GROUP, clip_ratio=CLIP, kl_weight=0.1) | train
  return config_of("grpo", **train)


@pytest.fixture(scope="module")
def case():
  """(prompts, answers, advantages, old and reference's log-probabilities)."""
  rng = np.random.default_rng(3)
  ids = lambda low, high: rng.integers(1, 49, rng.integers(low, high))
  prompts = [ids(2, 6) for _ in range(ROWS)]
  written = [ids(1, 9) for _ in range(ROWS)]
  advantage_B = rng.normal(0, 1, ROWS).astype(np.float32)
  return prompts, written, advantage_B


def batch_of(case, old_BT, reference_BT):
  prompts, written, advantage_B = case
  batch = rollouts.fill_rows(prompts, written, T)
  return batch | {
    "rewards": (advantage_B[:, None] > 0).astype(np.float32),
    "advantages": advantage_B[:, None],
    "old_log_probs": np.asarray(old_BT, np.float32),
    "reference_log_probs": np.asarray(reference_BT, np.float32),
  }


def by_hand(model, params, case, old_BT, reference_BT):
  """Shao et al. 2024, equations 3 and 4, an answer at a time."""
  total = 0.0
  ids_BT = np.zeros((ROWS, T + 1), np.int32)
  for row, (prompt, answer, _) in enumerate(zip(*case, strict=True)):
    ids = np.concatenate([prompt, answer])
    ids_BT[row, : len(ids)] = ids
  log_p_BTV = jax.nn.log_softmax(model.apply(params, ids_BT[:, :-1]))
  for row, (prompt, answer, A) in enumerate(zip(*case, strict=True)):
    first = len(prompt) - 1
    places = np.arange(first, first + len(answer))
    log_p = log_p_BTV[row, places, answer]
    old, reference = old_BT[row, places], reference_BT[row, places]
    ratio = jnp.exp(log_p) / jnp.exp(old)
    gain = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * A)
    r = jnp.exp(reference) / jnp.exp(log_p)
    total += (gain - 0.1 * (r - jnp.log(r) - 1)).mean()
  return -total / ROWS


def near(model, params, case, seed: int):
  """Returns log-probabilities a little beside the model's own, (B, T)."""
  batch = rollouts.fill_rows(*case[:2], T)
  log_p_BTV = jax.nn.log_softmax(model.apply(params, batch["tokens"]))
  ids_BT1 = batch["targets"][..., None]
  found_BT = np.take_along_axis(np.asarray(log_p_BTV), ids_BT1, -1)[..., 0]
  rng = np.random.default_rng(seed)
  return found_BT + rng.normal(0, 0.3, found_BT.shape)


@pytest.mark.wide
def test_loss_and_gradient_are_those_of_the_paper(case):
  config = policy_config()
  built, now = begin(config)
  old_BT = near(built.model, now.params, case, 0)
  reference_BT = near(built.model, now.params, case, 1)
  loss = lambda p: by_hand(built.model, p, case, old_BT, reference_BT)
  wanted, grads = jax.jit(jax.value_and_grad(loss))(now.params)
  batch = batch_of(case, old_BT, reference_BT)
  found, metrics = gradient_of(config, batch, now.params)
  assert metrics[metric_names.LOSS] == pytest.approx(float(wanted), rel=1e-5)
  assert_close(found, grads)
  assert 0.1 < metrics[metric_names.CLIPPED] < 0.9  # the bound does decide
  assert metrics[metric_names.KL] > 0
  assert metrics[metric_names.REWARD] == np.mean(case[2] > 0)
  parts = policy_config(num_microbatches=4)
  split, summed = gradient_of(parts, batch, now.params)
  assert_close(split, found)
  assert_close(summed, metrics)


def test_advantages_are_normalised_in_the_group():
  reward_B = np.float32([1, 0, 0, 0, 1, 1, 1, 1])
  found = rollouts.find_advantages(reward_B, 4)
  wanted = np.array([0.75, -0.25, -0.25, -0.25]) / np.std([1, 0, 0, 0])
  np.testing.assert_allclose(found[:4], wanted, rtol=1e-5)
  assert not found[4:].any()


def test_an_answer_is_right_to_the_letter_and_ends():
  right = np.array([5, 6, END])
  ids_BC = np.array([[5, 6, END, 7], [5, 6, 7, END], [5, END, 6, 6]])
  written = rollouts.cut_answers(np.vstack([ids_BC, [5, 6, 5, 6]]), END)
  assert [len(ids) for ids in written] == [3, 4, 2, 4]
  assert rollouts.judge(written, [right] * 4).tolist() == [1, 0, 0, 0]


def rows_of(case) -> dict:
  prompts, _, _ = case
  prompts = [prompts[i // GROUP] for i in range(ROWS)]
  return rollouts.fill_rows(prompts, [np.array([5, END])] * ROWS, T)


def test_sampling_stops_when_all_answers_have_ended():
  chunks = iter(
    np.array([[[1, END], [2, 3]], [[4, 4], [END, 5]], [[6] * 2] * 2])
  )
  ids_BC = rollouts.read_until_ended(chunks, END)
  assert ids_BC.tolist() == [[1, END, 4, 4], [2, 3, END, 5]]
  assert next(chunks).tolist() == [[6, 6], [6, 6]]
  endless = rollouts.read_until_ended(iter([np.ones((2, 3))] * 2), END)
  assert endless.shape == (2, 6)


def test_samples_are_a_function_of_seed_and_step(case):
  config = policy_config(kl_weight=0.0)
  built, now = begin(config)
  make = lambda seed: rollouts.Rollouts(
    dataclasses.replace(config, seed=seed), built.model, END, 50
  )
  draw = lambda seed, step: jax.device_get(
    make(seed).sample(now.params, step, rows_of(case), lambda batch: batch)
  )
  one, again = draw(0, 3), draw(0, 3)
  for name, x in one.items():
    np.testing.assert_array_equal(x, again[name], name)
  for other in (draw(0, 4), draw(1, 3)):
    assert not np.array_equal(other["targets"], one["targets"])
  prompts, written = rollouts.split_rows(one)
  assert [list(p) for p in prompts] == [
    list(case[0][i // GROUP]) for i in range(ROWS)
  ]
  assert len({tuple(ids) for ids in written[:GROUP]}) > 1  # a group differs
  logits = jax.nn.log_softmax(built.model.apply(now.params, one["tokens"]))
  own = np.take_along_axis(np.asarray(logits), one["targets"][..., None], -1)
  np.testing.assert_allclose(one["old_log_probs"], own[..., 0], atol=1e-4)
