"""Measures what the heads of a run attend to."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.api import Run
from gpt_jax.lab.interp import passes


class Statistics(NamedTuple):
  """Means over the queries of a text, each (L, N).

  Attributes:
    entropy_LN: entropy of the weights, in nats.
    distance_LN: mean distance from a query to its keys, in tokens.
    first_LN: weight of the first token.
    own_LN: weight of the query's own token.
    previous_LN: weight of the token before.
  """

  entropy_LN: np.ndarray
  distance_LN: np.ndarray
  first_LN: np.ndarray
  own_LN: np.ndarray
  previous_LN: np.ndarray


def describe(weights_LNTS: np.ndarray) -> Statistics:
  """Returns the statistics of attention weights."""
  w, T = weights_LNTS.astype(np.float64), weights_LNTS.shape[-1]
  distance_TS = np.arange(T)[:, None] - np.arange(T)
  logs = np.log(np.where(w > 0, w, 1))
  diagonal = lambda k: np.diagonal(w, -k, 2, 3).mean(-1)
  return Statistics(
    -(w * logs).sum(-1).mean(-1),
    (w * distance_TS).sum(-1).mean(-1),
    w[..., 0].mean(-1),
    diagonal(0),
    diagonal(1) if T > 1 else np.zeros(w.shape[:2]),
  )


def repeated(
  run: Run, length: int, count: int, seed: int, ids: Sequence[int] | None = None
) -> np.ndarray:
  """Returns (count, 2 * length) ids: random tokens, then the same again.

  Args:
    ids: the ids to draw from; None is the whole vocabulary.
  """
  rng = np.random.default_rng(seed)
  V = config_lib.vocab_size(run.config.model)
  half = rng.choice(np.arange(V) if ids is None else ids, (count, length))
  return np.concatenate([half, half], axis=1)


def induction_scores(run: Run, rows_BT: np.ndarray) -> np.ndarray:
  """Returns score_LN: each head's induction score (Olsson et al. 2022).

  The score is the attention weight from a token of the second half to the token
  after its own first occurrence, averaged over tokens and rows.

  Args:
    rows_BT: from `repeated`.
  """
  half, scores = rows_BT.shape[1] // 2, []
  for row in rows_BT:
    w = passes.record(run, row.tolist()).weights_LNTS
    # The diagonal's first entry is of the first half's last token: drop it.
    scores.append(np.diagonal(w, 1 - half, 2, 3)[..., 1:].mean(-1))
  return np.mean(scores, axis=0)


def losses_by_place(
  run: Run, rows_BT: np.ndarray, without: Sequence[tuple[int, int]] = ()
) -> np.ndarray:
  """Returns the loss in nats, (B, T - 1), of each token but the first.

  Args:
    without: (layer, head) pairs to ablate: their weighted sums of values are
      replaced by the mean over all rows and positions.
  """
  edits, everywhere = {}, np.ones(rows_BT.shape, bool)
  if without:
    sums = [passes.record(run, row.tolist()).heads_LTNH for row in rows_BT]
    z_BLTNH = np.stack(sums)
    for layer in sorted({layer for layer, _ in without}):
      value_BTNH = z_BLTNH[:, layer].copy()
      for _, head in (pair for pair in without if pair[0] == layer):
        value_BTNH[:, :, head] = value_BTNH[:, :, head].mean((0, 1))
      edits[f"blocks_{layer}/attn/heads"] = (value_BTNH, everywhere)
  logits = passes.edited(run, rows_BT, edits)[:, :-1].astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  own = np.take_along_axis(logits, rows_BT[:, 1:, None], -1)[..., 0]
  return np.log(np.exp(logits).sum(-1)) - own
