"""The GRPO loss: a policy learns from the rewards of answers it has sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Judged(NamedTuple):
  """The loss and its statistics for each answer, as means over its tokens.

  Attributes:
    loss_B: what is minimised.
    kl_B: estimated KL divergence from the reference; 0 without one.
    clipped_B: part of the tokens at which the clipped ratio sets the loss.
  """

  loss_B: jax.Array
  kl_B: jax.Array
  clipped_B: jax.Array


def grpo(
  log_p_BT,
  old_BT,
  advantage_B1,
  mask_BT,
  clip: float,
  reference_BT=None,
  kl_weight: float = 0.0,
) -> Judged:
  """Returns the loss of GRPO for each answer (Shao et al. 2024, eq. 3, 4).

  -(min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) - kl_weight KL), the mean
  over the tokens of an answer, with ratio = p / old and the estimate of
  KL = reference / p - log(reference / p) - 1.

  Args:
    log_p_BT: log-probability of each token by the policy.
    old_BT: its log-probability by the policy that sampled it.
    advantage_B1: A, the advantage of each answer.
    mask_BT: 1 at the tokens of an answer.
    clip: the paper's epsilon.
    reference_BT: log-probabilities by the reference; None without one.
    kl_weight: the paper's beta.
  """
  mean = lambda x_BT: (x_BT * mask_BT).sum(1) / jnp.maximum(mask_BT.sum(1), 1)
  # Masked: outside answers a ratio could overflow, and infinity * 0 is NaN.
  ratio_BT = jnp.exp((log_p_BT - old_BT) * mask_BT)
  free_BT = ratio_BT * advantage_B1
  bound_BT = jnp.clip(ratio_BT, 1 - clip, 1 + clip) * advantage_B1
  gain_BT = jnp.minimum(free_BT, bound_BT)
  kl_BT = jnp.zeros_like(gain_BT)
  if reference_BT is not None:
    log_r_BT = (reference_BT - log_p_BT) * mask_BT
    kl_BT = jnp.exp(log_r_BT) - log_r_BT - 1
  loss_B = -mean(gain_BT - kl_weight * kl_BT)
  is_bound_BT = (bound_BT < free_BT).astype(jnp.float32)
  return Judged(loss_B, mean(kl_BT), mean(is_bound_BT))
