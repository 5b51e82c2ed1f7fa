"""Pruning: weights become zero by their size, or also by their inputs' size.

  magnitude   |W_ij|
  wanda       |W_ij| * |X_j| (Sun et al. 2024), |X_j| being the norm of input j
              over the calibration text

Design choice: both scores are compared within a matrix. The paper compares
Wanda's within an output, which was worse on one of two small models
(configs/LOG.md).

In 2:4 sparsity, the two weights with the largest scores of every four
consecutive inputs stay, which GPUs multiply faster. It works with either score.
"""

from typing import Any

import numpy as np

from gpt_jax.deploy.compress import calibrate, layerwise
from gpt_jax.models import Model

GROUP, KEPT = 4, 2


def prune(
  model: Model, params: Any, share: float | None, rows_BT: np.ndarray | None
):
  """Returns the parameters, stacked, with zeros in the matrices of layers.

  Args:
    params: stacked.
    share: fraction of each matrix's weights that become zero; None keeps two of
      every four.
    rows_BT: ids of calibration text for wanda; None prunes by magnitude.
  """

  def fit(w, role, gram_DD):
    w_FD = calibrate.by_rows(w, role)
    score_FD = np.abs(w_FD)
    if gram_DD is not None:
      score_FD = score_FD * np.sqrt(np.diag(gram_DD))
    kept = calibrate.from_rows(w_FD * choose(score_FD, share), w, role)
    return kept, kept

  return layerwise.refit(model, params, rows_BT, fit)


def choose(score_FD: np.ndarray, share: float | None) -> np.ndarray:
  """Returns mask_FD, true where a weight stays.

  Args:
    share: fraction of weights that become zero; None keeps two of every four.
      If four does not divide D, the last inputs are a smaller group.
  """
  F, D = score_FD.shape
  if share is None:
    padded = np.pad(
      score_FD, ((0, 0), (0, -D % GROUP)), constant_values=-np.inf
    )
    return _largest(padded.reshape(-1, GROUP), KEPT).reshape(F, -1)[:, :D]
  kept = F * D - round(share * F * D)
  return _largest(score_FD.reshape(1, -1), kept).reshape(F, D)


def _largest(score_RC: np.ndarray, count: int) -> np.ndarray:
  """Returns a mask of the `count` largest of each row, exactly as many."""
  order_RC = np.argsort(-score_RC, axis=1, kind="stable")
  mask_RC = np.zeros(score_RC.shape, bool)
  np.put_along_axis(mask_RC, order_RC[:, :count], True, axis=1)
  return mask_RC
