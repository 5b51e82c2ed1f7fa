"""Preference losses: direct, identity, odds ratio, Kahneman-Tversky (KTO).

w and l are the chosen and the rejected answer to a prompt, y their tokens, x
the prompt. KTO judges each answer alone: a row also has the answer to another
prompt, and the mean log ratio of these says how far the model is from its
reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Largest mean log-probability of a token: there the odds are 10^7 to 1.
MOST_LOG_P = -1e-7


class Answers(NamedTuple):
  """Inputs of a preference loss for a batch.

  Attributes:
    log_p_B2: log-probabilities of both answers of a row, in nats.
    reference_B2: the same by the reference; None without one.
    num_B2: numbers of tokens of both answers.
    label_B: 1 for a row, 0 for padding; in KTO -1 where the first answer is
      undesirable.
    baseline: KTO's mean ratio of the whole batch; None where the rows are the
      whole batch.
  """

  log_p_B2: jax.Array
  reference_B2: jax.Array | None
  num_B2: jax.Array
  label_B: jax.Array
  baseline: jax.Array | None = None

  @property
  def ratio_B2(self) -> jax.Array:
    """log(p(y|x) / reference(y|x))."""
    assert self.reference_B2 is not None  # by config.OBJECTIVES
    return self.log_p_B2 - self.reference_B2


class Judged(NamedTuple):
  """Results of a preference loss.

  Attributes:
    loss_B: loss of each row.
    reward_B2: implicit rewards of both answers.
    is_right_B: whether the better answer has the higher reward; in KTO whether
      the reward is on the label's side of the baseline.
  """

  loss_B: jax.Array
  reward_B2: jax.Array
  is_right_B: jax.Array


def dpo(answers: Answers, beta: float) -> Judged:
  """Returns the DPO loss (Rafailov et al. 2023, eq. 7).

  -log sigmoid(r(y_w) - r(y_l)), with r(y) = beta log(p(y|x) / reference(y|x)).
  """
  reward_B2 = beta * answers.ratio_B2
  margin_B = reward_B2[:, 0] - reward_B2[:, 1]
  return Judged(-jax.nn.log_sigmoid(margin_B), reward_B2, margin_B > 0)


def ipo(answers: Answers, beta: float) -> Judged:
  """Returns the IPO loss (Azar et al. 2023, eq. 17).

  (h - 1 / (2 beta))^2, with h the difference of log(p(y|x) / reference(y|x)),
  sums over tokens. beta is the paper's tau.
  """
  ratio_B2 = answers.ratio_B2
  h_B = ratio_B2[:, 0] - ratio_B2[:, 1]
  return Judged(jnp.square(h_B - 0.5 / beta), beta * ratio_B2, h_B > 0)


def orpo(answers: Answers, beta: float) -> Judged:
  """Returns the ORPO loss (Hong et al. 2024, eq. 6, 7).

  -log p(y_w|x) - beta log sigmoid(log(odds(y_w|x) / odds(y_l|x))), with odds
  p / (1 - p) and log p the mean over tokens. beta is the paper's lambda.
  """
  # A row without answers has log p 0, whose odds are infinite.
  is_empty_B2 = answers.num_B2 == 0
  mean_B2 = answers.log_p_B2 / jnp.where(is_empty_B2, 1, answers.num_B2)
  mean_B2 = jnp.where(is_empty_B2, -1.0, mean_B2)
  # In float32 so are the odds of a certain answer.
  bound_B2 = jnp.minimum(mean_B2, MOST_LOG_P)
  odds_B2 = bound_B2 - jnp.log(-jnp.expm1(bound_B2))
  margin_B = odds_B2[:, 0] - odds_B2[:, 1]
  loss_B = -mean_B2[:, 0] - beta * jax.nn.log_sigmoid(margin_B)
  return Judged(loss_B, beta * mean_B2, margin_B > 0)


def kto(answers: Answers, beta: float) -> Judged:
  """Returns the KTO loss (Ethayarajh et al. 2024, eq. 8).

  1 - sigmoid(beta (r - z)) for a desirable answer, 1 - sigmoid(beta (z - r))
  for an undesirable one, with r = log(p(y|x) / reference(y|x)) and z the
  baseline. Both weights of the paper are 1.
  """
  ratio_B2, baseline = answers.ratio_B2, answers.baseline
  if baseline is None:
    baseline = kto_baseline(ratio_B2, answers.label_B)
  above_B = answers.label_B * (ratio_B2[:, 0] - baseline)
  loss_B = jax.nn.sigmoid(-beta * above_B)
  return Judged(loss_B, beta * ratio_B2, above_B > 0)


def kto_baseline(ratio_B2, label_B) -> jax.Array:
  """Returns z: max(0, mean of log(p(y'|x) / reference(y'|x))), no gradient.

  y' is the second answer of a row, which answers another prompt than x.

  Args:
    ratio_B2, label_B: as in Answers.
  """
  has_B = jnp.abs(label_B)
  mean = (ratio_B2[:, 1] * has_B).sum() / jnp.maximum(has_B.sum(), 1)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0))


# By option of data.objective: function of (answers, train.preference_beta).
LOSSES = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "kto": kto}
