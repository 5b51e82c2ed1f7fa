"""The divergence of a student from its teacher, as a float32 sum over targets.

Student and teacher each give a distribution over outcomes. An outcome is a
token; or, where only the teacher's K likeliest tokens are stored, one of those
or "any other", with the remaining probability. Merging outcomes never increases
the divergence; where K is the whole vocabulary, it is the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.ops.visibility import MASK_VALUE

# Log-probabilities below this belong to padding rows of the vocabulary.
LEAST = -1e20


class Divergence(NamedTuple):
  """Which divergence (Hinton et al. 2015; reverse: Gu et al. 2024).

  Attributes:
    kind: "forward", KL(teacher || student): the student should give weight to
      whatever the teacher does; or "reverse", KL(student || teacher): it should
      give weight to nothing else.
    temperature: divides the logits of both.
  """

  kind: str
  temperature: float

  def log_probs(self, logits_BTV):
    """Returns log-probabilities of all tokens, float32."""
    return jax.nn.log_softmax(logits_BTV / self.temperature, axis=-1)

  def log_probs_of(self, logits_BTV, ids_BTK):
    """Returns log-probabilities of K tokens and "any other", (B, T, K + 1)."""
    logp_BTV = self.log_probs(logits_BTV)
    named_BTK = jnp.take_along_axis(logp_BTV, ids_BTK, axis=-1)
    B, T, _ = ids_BTK.shape
    at = jnp.arange(B)[:, None, None], jnp.arange(T)[None, :, None], ids_BTK
    others_BTV = logp_BTV.at[at].set(MASK_VALUE)
    other_BT1 = jax.nn.logsumexp(others_BTV, axis=-1, keepdims=True)
    return jnp.concatenate([named_BTK, other_BT1], axis=-1)

  def sum(self, student_BTO, teacher_BTO, mask_BT=None):
    """Returns the sum of nats over targets.

    Args:
      student_BTO, teacher_BTO: log-probabilities of the same outcomes.
      mask_BT: float32 weight of each target; None counts all.
    """
    is_forward = self.kind == "forward"
    p_BTO = jnp.exp(teacher_BTO if is_forward else student_BTO)
    gap_BTO = teacher_BTO - student_BTO
    nats_BTO = p_BTO * (gap_BTO if is_forward else -gap_BTO)
    is_token_BTO = jnp.maximum(teacher_BTO, student_BTO) > LEAST
    nats_BT = jnp.where(is_token_BTO, nats_BTO, 0).sum(-1)
    return (nats_BT if mask_BT is None else nats_BT * mask_BT).sum()
