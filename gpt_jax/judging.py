"""Losses and metrics of answers: sums over preferences or sampled answers.

objective.make_loss calls these in place of the cross-entropy of targets.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.metric_names import (
  CHOSEN_LOG_PROB,
  CHOSEN_REWARD,
  CLIPPED,
  KL,
  LOSS,
  NUM_TARGETS,
  REJECTED_LOG_PROB,
  REJECTED_REWARD,
  REWARD,
  REWARD_ACCURACY,
  REWARD_MARGIN,
)
from gpt_jax.ops import cross_entropy, policy, preferences

# For preferences: the name of the numbers of chosen and rejected answers, and
# the sums that are averaged over the first (0) or the second (1) of these.
SIDES = "sides"
PER_SIDE = {
  CHOSEN_REWARD: 0,
  REJECTED_REWARD: 1,
  CHOSEN_LOG_PROB: 0,
  REJECTED_LOG_PROB: 1,
}


def build_judge(config: Config) -> Callable | None:
  """Returns make_loss's `prefer` for training; None for most objectives.

  It is a function of (logits_BTV, batch) that returns sums.
  """
  word, train = config.data.objective, config.train
  if config_lib.OBJECTIVES[word].is_sampled:
    return functools.partial(
      _judge_samples, clip=train.clip_ratio, kl_weight=train.kl_weight
    )
  return build_preference(word, train.preference_beta)


def _judge_samples(logits_BTV, batch, *, clip: float, kl_weight: float) -> dict:
  """Returns sums over sampled answers: LOSS (ops.policy), REWARD, KL, ..."""
  judged = policy.grpo(
    cross_entropy.log_probs(logits_BTV, batch["targets"]),
    batch["old_log_probs"],
    batch["advantages"],
    batch["mask"],
    clip,
    batch.get("reference_log_probs"),
    kl_weight,
  )
  sums = {
    LOSS: judged.loss_B.sum(),
    REWARD: batch["rewards"].sum(),
    CLIPPED: judged.clipped_B.sum(),
    NUM_TARGETS: jnp.float32(batch["targets"].shape[0]),
  }
  return sums | ({KL: judged.kl_B.sum()} if kl_weight else {})


@functools.cache
def build_preference(word: str, beta: float) -> Callable | None:
  """Returns make_loss's argument `prefer`; None without preferences.

  It is a function of (logits_BTV, batch) that returns sums over rows: LOSS
  (ops.preferences), REWARD_ACCURACY, those of PER_SIDE, NUM_TARGETS (rows that
  are not padding), and SIDES.

  Args:
    word: option of data.objective.
    beta: train.preference_beta.
  """
  if not config_lib.OBJECTIVES[word].is_preference:
    return None
  judge = preferences.LOSSES[word]

  def prefer(logits_BTV, batch):
    answers = answers_of(logits_BTV, batch)
    judged, has_B = judge(answers, beta), jnp.abs(answers.label_B)
    values = {
      LOSS: judged.loss_B,
      REWARD_ACCURACY: judged.is_right_B.astype(jnp.float32),
      NUM_TARGETS: jnp.ones_like(has_B),
    }
    sums = {name: (value_B * has_B).sum() for name, value_B in values.items()}
    sides = [(sign * batch["labels"] > 0) for sign in (1, -1)]
    for name, side in PER_SIDE.items():
      is_log = name in (CHOSEN_LOG_PROB, REJECTED_LOG_PROB)
      value_B2 = answers.log_p_B2 if is_log else judged.reward_B2
      sums[name] = jnp.where(sides[side], value_B2, 0).sum()
    return sums | {SIDES: count_sides(batch)}

  return prefer


def count_sides(batch: dict):
  """Returns the numbers of (chosen, rejected) answers, float32 (2,)."""
  labels_B2 = batch["labels"]
  return jnp.stack([(labels_B2 > 0).sum(), (labels_B2 < 0).sum()]) * 1.0


def answers_of(logits_BTV, batch: dict) -> preferences.Answers:
  """Returns the inputs of a preference loss from a batch's rows."""
  log_p_BT = cross_entropy.log_probs(logits_BTV, batch["targets"])
  is_side = [(batch["segments"] == side) * batch["mask"] for side in range(2)]
  over_rows = lambda values_BT: jnp.stack([x.sum(1) for x in values_BT], 1)
  baseline = batch.get("baseline")
  return preferences.Answers(
    over_rows([log_p_BT * mask_BT for mask_BT in is_side]),
    batch.get("reference"),
    over_rows(is_side),
    batch["labels"][:, 0],
    None if baseline is None else baseline[0, 0],
  )


def average_sides(sums: dict, num_sides) -> dict:
  """Returns the means of PER_SIDE, and REWARD_MARGIN, {} without such sums."""
  if CHOSEN_REWARD not in sums:
    return {}
  means = {
    name: sums[name] / jnp.maximum(num_sides[side], 1.0)
    for name, side in PER_SIDE.items()
  }
  margin = means[CHOSEN_REWARD] - means[REJECTED_REWARD]
  return means | {REWARD_MARGIN: margin}
