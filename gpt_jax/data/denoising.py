"""Span corruption (T5) and a mixture of denoisers (UL2).

Spans of a window are replaced by sentinels, and the target lists each sentinel
with its span (Raffel et al. 2020, section 3.1.4 and figure 2):

  window   a b c d e f g h      spans  c d, h
  input    a b S0 e f g S1 end
  target   S0 c d S1 h end

Design choice: how many tokens are noise, and in how many spans, follows from
the window's length alone, as in T5's code. So all windows of a length have
inputs of one length and targets of one length, known before any text is read
(config/lengths.py); only the lengths of single spans are random. The first
token is never noise, the last always is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.config.lengths import (
  Denoiser,
  RowLengths,
  corrupted_lengths,
  mixture_lengths,
)
from gpt_jax.data.marks import Marks, find_marks
from gpt_jax.exits import InputError

# Separates these draws from others of the same seed.
STREAM = 0xC2B2


def draws(seed: int, g: np.ndarray) -> list[np.random.Generator]:
  """Returns a random generator for each sequence, seeded by (seed, g)."""
  return [np.random.default_rng([STREAM, seed, int(i)]) for i in g]


def corrupt_spans(
  ids_BL: np.ndarray,
  draw_B: Sequence[np.random.Generator],
  density: float,
  mean_span: float,
  sentinels: np.ndarray,
  end_id: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (inputs, targets), (B, S) and (B, U): see corrupted_lengths.

  Args:
    ids_BL: windows of ids, all of them below the sentinels; L is at least 2.
    draw_B: a random generator for each window.
    density, mean_span: as in corrupted_lengths.
    sentinels: (at least the number of spans,) ids in the order of use.
    end_id: the id that ends inputs and targets; with the sentinel after the
      last span's as end_id, the result is that of the paper's figure 2.

  Raises:
    InputError: there are too few sentinels.
  """
  B, L = ids_BL.shape
  n = corrupted_lengths(L, density, mean_span)
  if n.spans > len(sentinels):
    raise InputError(
      f"span corruption of {L} tokens makes {n.spans} spans (density "
      f"{density:g}, mean length {mean_span:g}), and there are "
      f"{len(sentinels)} sentinels; take shorter windows or longer spans"
    )
  # Cut at the places between tokens with the lowest random ranks: every
  # division into spans is equally likely.
  rank_B = np.stack([draw.random(L - 2) for draw in draw_B])
  stays_BS = _segment(rank_B[:, : L - n.noise - 1], L - n.noise, n.spans)
  noise_BS = _segment(rank_B[:, L - n.noise - 1 :], n.noise, n.spans)
  ends_B = np.stack([stays_BS, noise_BS], -1).reshape(B, -1).cumsum(1)
  starts_BL = np.zeros((B, L), np.int64)
  np.put_along_axis(starts_BL, ends_B[:, :-1], 1, 1)
  run_BL = starts_BL.cumsum(1)  # 0 stays, 1 is noise, 2 stays, ...
  starts_BL[:, 0] = 1
  mark_BL = np.asarray(sentinels)[run_BL // 2]

  def replace(is_hidden_BL):
    """Returns ids, each hidden run replaced by its sentinel, then end_id."""
    begins_BL = is_hidden_BL & (starts_BL == 1)
    shown = np.where(begins_BL, mark_BL, ids_BL)[~is_hidden_BL | begins_BL]
    return np.pad(
      shown.reshape(B, -1), ((0, 0), (0, 1)), constant_values=end_id
    ).astype(ids_BL.dtype)

  is_noise_BL = run_BL % 2 == 1
  return replace(is_noise_BL), replace(~is_noise_BL)


def _segment(rank_BP: np.ndarray, total: int, count: int) -> np.ndarray:
  """Returns (B, count) lengths, 1 or more, that sum to `total`.

  Args:
    rank_BP: random ranks of the total - 1 places between tokens.
  """
  cuts = np.sort(np.argsort(rank_BP, 1)[:, : count - 1], 1) + 1
  return np.diff(cuts, axis=1, prepend=0, append=total)


class Denoised(NamedTuple):
  """Windows that a mixture has corrupted.

  Attributes:
    inputs_BS, targets_BU: ids, padded with the end id.
    input_lengths_B, target_lengths_B: ids before the padding.
  """

  inputs_BS: np.ndarray
  targets_BU: np.ndarray
  input_lengths_B: np.ndarray
  target_lengths_B: np.ndarray


def mix_denoisers(
  ids_BL: np.ndarray,
  draw_B: Sequence[np.random.Generator],
  mixture: Sequence[Denoiser],
  sentinels: np.ndarray,
  end_id: int,
  modes: dict[str, int],
) -> Denoised:
  """Corrupts each window by a random member of a mixture (Tay et al. 2022).

  Args:
    ids_BL, draw_B, sentinels, end_id: as in corrupt_spans.
    mixture: denoisers, all equally likely.
    modes: {mode: id that begins its inputs}.

  Raises:
    InputError: there are too few sentinels.
  """
  B, L = ids_BL.shape
  S, U = mixture_lengths(L, mixture)
  inputs_BS = np.full((B, S), end_id, ids_BL.dtype)
  targets_BU = np.full((B, U), end_id, ids_BL.dtype)
  lengths_2B = np.zeros((2, B), np.int64)
  which_B = np.zeros(B, np.int64)
  if len(mixture) > 1:
    which_B[:] = [draw.integers(len(mixture)) for draw in draw_B]
  for k in np.unique(which_B):
    mine, (mode, density, mean_span) = np.flatnonzero(which_B == k), mixture[k]
    own = [draw_B[row] for row in mine.tolist()]
    inputs, targets = corrupt_spans(
      ids_BL[mine], own, density, mean_span, sentinels, end_id
    )
    if mode is not None:
      inputs = np.insert(inputs, 0, modes[mode], axis=1)
    lengths_2B[:, mine] = [[inputs.shape[1]], [targets.shape[1]]]
    inputs_BS[mine, : inputs.shape[1]] = inputs
    targets_BU[mine, : targets.shape[1]] = targets
  return Denoised(inputs_BS, targets_BU, *lengths_2B)


def build(config: Config, vocab_size: int) -> Callable:
  """Returns the function that makes the batches of span_corruption and ul2.

  Args:
    vocab_size: of the tokenizer; the ids of marks start here.
  """
  mixture = config_lib.denoisers(config.data)
  return functools.partial(
    denoise,
    mixture=mixture,
    marks=find_marks(vocab_size),
    lengths=config_lib.row_lengths(config),
  )


def denoise(
  batch: dict,
  seed: int,
  g: np.ndarray,
  *,
  mixture: Sequence[Denoiser],
  marks: Marks,
  lengths: RowLengths,
) -> dict:
  """Corrupts each row into inputs and targets.

  In a model with an encoder, the encoder reads the inputs, and the decoder the
  targets, shifted right behind the start id. A decoder-only model reads both in
  one row: the inputs, which attend to each other as a prefix, then the targets,
  which alone are predicted.

  The last window of a set may be shorter, and is then corrupted as a window of
  its length; a window of fewer than 2 ids has no targets.

  Args:
    batch, seed, g: as in objectives.Task.
    mixture: denoisers, all equally likely.
    lengths: of the rows; source is None for a model without an encoder.
  """
  ids_BL, B = batch["tokens"], len(g)
  counts_B = batch["mask"].sum(1).astype(int)
  S, T = lengths
  width = T + 1 if S is None else S
  inputs_BS = np.full((B, width), marks.end, np.int32)
  targets_BT = np.full((B, T), marks.end, np.int32)
  lengths_2B = np.zeros((2, B), np.int32)
  for count in np.unique(counts_B[counts_B > 1]):
    mine = np.flatnonzero(counts_B == count)
    found = mix_denoisers(
      ids_BL[mine, :count],
      draws(seed, g[mine]),
      mixture,
      marks.sentinels,
      marks.end,
      marks.modes,
    )
    inputs_BS[mine, : found.inputs_BS.shape[1]] = found.inputs_BS
    targets_BT[mine, : found.targets_BU.shape[1]] = found.targets_BU
    lengths_2B[:, mine] = found.input_lengths_B, found.target_lengths_B
  if S is None:
    return _join(inputs_BS, targets_BT, lengths_2B)
  place_T = np.arange(T)
  is_shown_BS = np.arange(S) < lengths_2B[0, :, None]
  return {
    "tokens": np.insert(targets_BT[:, :-1], 0, marks.start, axis=1),
    "targets": targets_BT,
    "mask": (place_T < lengths_2B[1, :, None]).astype(np.float32),
    "sources": inputs_BS,
    "source_segments": (~is_shown_BS).astype(np.int32),
    "segments": np.zeros((B, T), np.int32),
  }


def _join(row_BW, targets_BT, lengths_2B) -> dict:
  """Returns a batch in which each row has the inputs, then the targets.

  Args:
    row_BW: padded inputs, with room for the targets (W = T + 1); overwritten.
    targets_BT: targets, padded.
    lengths_2B: the number of ids of the inputs and of the targets.
  """
  for row, (begin, length) in enumerate(lengths_2B.T):
    row_BW[row, begin : begin + length] = targets_BT[row, :length]
  place_T = np.arange(targets_BT.shape[1], dtype=np.int32)
  first_B1 = np.maximum(lengths_2B[0, :, None] - 1, 0)
  last_B1 = lengths_2B.sum(0)[:, None] - 1
  is_asked_BT = (place_T >= first_B1) & (place_T < last_B1)
  return {
    "tokens": row_BW[:, :-1],
    "targets": row_BW[:, 1:],
    "mask": is_asked_BT.astype(np.float32),
    "slots": np.maximum(place_T, first_B1),
  }
