"""Activation patching and ablation: how a prediction depends on activations."""

from collections.abc import Sequence

import numpy as np

from gpt_jax.api import Run
from gpt_jax.config import InputError
from gpt_jax.lab.interp import passes

# {kind of point: name of the point in a layer}.
KINDS = {"residual": "blocks_{}", "attn": "blocks_{}/attn"}
KINDS |= {"mlp": "blocks_{}/mlp", "heads": "blocks_{}/attn/heads"}


def patch(
  run: Run,
  into: Sequence[int],
  source: passes.Record,
  point: str,
  places: Sequence[int] | None = None,
) -> np.ndarray:
  """Returns logits_TV of a text, with another text's activations at a point.

  Args:
    into: ids of the text, as many as the source's.
    source: activations of the other text.
    point: residual, attn, mlp or heads of a layer, as "blocks_1/attn".
    places: positions whose activations are replaced; None replaces all.

  Raises:
    InputError: there is no such point, or the lengths differ.
  """
  T = _check_lengths(into, source)
  mask_BT = np.zeros((1, T), bool)
  mask_BT[0, slice(None) if places is None else list(places)] = True
  value = activation(run, source, point)[None]
  return passes.edited(run, [list(into)], {point: (value, mask_BT)})[0]


def activation(run: Run, found: passes.Record, point: str) -> np.ndarray:
  """Returns the recorded activation at a point, as its module outputs it.

  Raises:
    InputError: there is no such point, or its output was not recorded.
  """
  for layer in range(len(found.attn_LTD)):
    # If a norm closes a sublayer, only the norm's output is recorded.
    given = {
      "residual": found.residual_XTD[layer + 1],
      "attn": found.attn_LTD[layer],
      "mlp": found.mlp_LTD[layer],
      "heads": found.heads_LTNH[layer],
    }
    for kind, pattern in KINDS.items():
      if pattern.format(layer) == point:
        _check_sublayers(run, kind)
        return given[kind]
  raise InputError(
    f"the model has no point {point!r}; points are blocks_0, blocks_0/attn, "
    "blocks_0/mlp and blocks_0/attn/heads of each layer"
  )


def sweep(
  run: Run,
  clean: passes.Record,
  corrupted: Sequence[int],
  kind: str,
  answer: int,
  other: int,
) -> np.ndarray:
  """Returns share_LT (heads: share_LN): how far a patch restores the answer.

  A patch puts the clean activations of one layer and token, or of one layer and
  head at all tokens, into the corrupted text's pass. The share is the
  difference of the two answers' logits at the last token, scaled to 0 for the
  corrupted text and 1 for the clean one (Meng et al. 2022; Wang et al. 2023).

  Args:
    clean: the text whose answer is `answer`.
    corrupted: ids of a text of as many tokens, whose answer is `other`.
    kind: a key of KINDS.
  """
  T = _check_lengths(corrupted, clean)
  _check_kind(kind)
  passes.check_asked(clean, -1, answer, other)
  L, N = clean.heads_LTNH.shape[0], clean.heads_LTNH.shape[2]
  margin = lambda logits: logits[..., answer] - logits[..., other]
  base = passes.record(run, corrupted)
  low, high = margin(base.logits_TV[-1]), margin(clean.logits_TV[-1])
  places, shares = N if kind == "heads" else T, []
  rows = np.tile(np.asarray(corrupted), (places, 1))
  off = np.zeros((places, T), bool)
  points = [KINDS[kind].format(layer) for layer in range(L)]
  shape = activation(run, clean, points[0]).shape
  for layer in range(L):
    # Every pass names all points, so that one program is compiled for all.
    edits = {p: (np.zeros((places, *shape), np.float32), off) for p in points}
    value = activation(run, clean, points[layer])
    if kind == "heads":
      value_BTNH = np.tile(activation(run, base, points[layer]), (N, 1, 1, 1))
      for head in range(N):
        value_BTNH[head, :, head] = value[:, head]
      edits[points[layer]] = (value_BTNH, ~off)
    else:
      whole = np.broadcast_to(value, (places, *value.shape))
      edits[points[layer]] = (whole, np.eye(T, dtype=bool))
    logits = passes.edited(run, rows, edits)[:, -1]
    shares.append((margin(logits) - low) / (high - low))
  return np.stack(shares)


def ablate(
  run: Run, found: passes.Record, kind: str, target: int, at: int = -1
) -> np.ndarray:
  """Returns rise_L (heads: rise_LN) of a token's loss in nats, by ablation.

  The output of one layer's attn or mlp, or of one head, is replaced by zero.

  Args:
    kind: attn, mlp or heads.
    target: the token whose loss is measured.
    at: the position that predicts it.
  """
  _check_kind(kind)
  at = passes.check_asked(found, at, target)
  L, T, N = found.heads_LTNH.shape[:3]
  count = N if kind == "heads" else 1
  rows = np.tile(np.asarray(found.ids), (count, 1))
  on, rises = np.ones((count, T), bool), []
  loss = lambda logits: _cross_entropy(logits[:, at], target)
  base = loss(found.logits_TV[None])
  points = [KINDS[kind].format(layer) for layer in range(L)]
  shape = activation(run, found, points[0]).shape
  for layer in range(L):
    edits = {p: (np.zeros((count, *shape), np.float32), ~on) for p in points}
    value = np.zeros((count, *shape), np.float32)
    if kind == "heads":
      value[:] = found.heads_LTNH[layer]
      for head in range(N):
        value[head, :, head] = 0
    edits[points[layer]] = (value, on)
    rises.append(loss(passes.edited(run, rows, edits)) - base)
  rises = np.stack(rises)
  return rises if kind == "heads" else rises[:, 0]


def _cross_entropy(logits_BV: np.ndarray, target: int) -> np.ndarray:
  logits_BV = logits_BV.astype(np.float64)
  largest = logits_BV.max(-1, keepdims=True)
  sums = np.log(np.exp(logits_BV - largest).sum(-1)) + largest[..., 0]
  return sums - logits_BV[..., target]


def _check_kind(kind: str) -> None:
  if kind not in KINDS:
    raise InputError(
      f"the kind of points is {kind!r:.60}; it must be one of "
      f"{', '.join(KINDS)}"
    )


def _check_lengths(ids: Sequence[int], found: passes.Record) -> int:
  if isinstance(ids, str):
    raise InputError(
      f"the text is {ids!r:.60}; give its ids, as `encode` of the run returns "
      "them"
    )
  if len(ids) != len(found.ids):
    raise InputError(
      f"one text has {len(found.ids)} tokens and the other {len(ids)}; give "
      "texts of as many tokens, so that each place has a counterpart"
    )
  return len(ids)


def _check_sublayers(run: Run, kind: str) -> None:
  from gpt_jax.parametrization import residual_multiplier

  c = run.model.config
  is_plain = c.norm_placement == "pre" and residual_multiplier(c) == 1
  if kind in ("attn", "mlp") and not is_plain:
    raise InputError(
      f"points {kind} are for model.norm_placement pre without a multiplier of "
      "the residual; use residual or heads"
    )
