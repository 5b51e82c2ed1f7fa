"""Losses over logits: sums in float32 with the count that they are over.

Sums, not means, so that microbatches, devices and evaluation batches add up
to the same figure whatever the split.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV, targets_BT, mask_BT=None):
  """Returns (sum of negative log-likelihoods in nats, number of targets).

  Args:
    logits_BTV: float32.
    targets_BT: int32 ids below V.
    mask_BT: float32 weight of each target; None counts all.
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  nll_BT = log_z_BT - picked[..., 0]
  if mask_BT is None:
    return nll_BT.sum(), jnp.float32(nll_BT.size)
  return (nll_BT * mask_BT).sum(), mask_BT.sum()
