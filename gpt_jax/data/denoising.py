"""Span corruption (T5) and a mixture of denoisers (UL2), on arrays of ids.

Spans of a window are replaced by sentinels, and the target lists each sentinel
with its span (Raffel et al. 2020, section 3.1.4 and figure 2):

  window   a b c d e f g h      spans  c d, h
  input    a b S0 e f g S1 end
  target   S0 c d S1 h end

Design choice: how many tokens are noise, and in how many spans, follows from
the window's length alone, as in T5's code. So all windows of a length have
inputs of one length and targets of one length, known before any text is read;
only the lengths of single spans are random. The first token is never noise, the
last always is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax.exits import InputError

# Separates these draws from others of the same seed.
STREAM = 0xC2B2


class Lengths(NamedTuple):
  """Numbers of tokens of a corrupted window.

  Attributes:
    noise: tokens that are hidden.
    spans: spans that they form, each with a sentinel.
    inputs: tokens that stay, sentinels, and the end.
    targets: hidden tokens, sentinels, and the end.
  """

  noise: int
  spans: int
  inputs: int
  targets: int


class Denoiser(NamedTuple):
  """A member of a mixture.

  Attributes:
    mode: name of the token that begins its inputs.
    density: the part of the tokens that is noise.
    mean_span: mean length of its spans; math.inf hides one span, at the end.
  """

  mode: str
  density: float
  mean_span: float


# Tay et al. 2022, table 1: regular, extreme, and sequential, whose only span is
# the last quarter. Each is as likely. Noise is divided into spans as in T5,
# where the paper draws span lengths from a uniform or a normal distribution.
UL2 = (
  Denoiser("R", 0.15, 3.0),
  Denoiser("R", 0.15, 8.0),
  Denoiser("S", 0.25, float("inf")),
  Denoiser("X", 0.5, 3.0),
  Denoiser("X", 0.5, 8.0),
  Denoiser("X", 0.15, 64.0),
  Denoiser("X", 0.5, 64.0),
)


def corrupted_lengths(length: int, density: float, mean_span: float) -> Lengths:
  """Returns the numbers of tokens that a window of `length` gives.

  Args:
    length: at least 2.
    density: the part that is noise, above 0 and below 1; one token at least is
      noise, and one is not.
    mean_span: mean length of a span, 1 or more.
  """
  noise = min(max(round(length * density), 1), length - 1)
  # Between two spans lies a token that stays.
  spans = min(max(round(noise / mean_span), 1), length - noise)
  return Lengths(noise, spans, length - noise + spans + 1, noise + spans + 1)


def span_lengths(
  input_len: int, density: float, mean_span: float
) -> tuple[int, int]:
  """Returns (length of the window that fills an input, length of its target).

  Args:
    input_len: length of the input, at least 3: a token, a sentinel, the end.
    density, mean_span: as in corrupted_lengths.
  """
  length = 2
  while corrupted_lengths(length + 1, density, mean_span).inputs <= input_len:
    length += 1
  return length, corrupted_lengths(length, density, mean_span).targets


def list_sentinels(first: int, count: int, order: str) -> np.ndarray:
  """Returns `count` ids from `first` on, in the order in which spans use them.

  Args:
    order: "ascending", or "descending" as in T5, where the first span has the
      highest id.
  """
  ids = np.arange(first, first + count)
  return {"ascending": ids, "descending": ids[::-1]}[order]


def draws(seed: int, g: np.ndarray) -> list[np.random.Generator]:
  """Returns a generator for each sequence, a function of (seed, its place)."""
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
    ids_BL: windows of ids below every sentinel's; L at least 2.
    draw_B: a generator for each window.
    density, mean_span: as in corrupted_lengths.
    sentinels: (at least the number of spans,) ids in the order of use.
    end_id: the id that ends inputs and targets; the sentinel after the last
      span's gives the form of the paper's figure 2.

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
  # Of the places between tokens, those with the lowest ranks are cut: each
  # division into spans is as likely.
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
    """Returns ids, each hidden run replaced by its sentinel, and the end."""
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


def rebuild(
  inputs: np.ndarray, targets: np.ndarray, sentinels: np.ndarray
) -> np.ndarray:
  """Returns the ids of the window that corrupt_spans was given.

  A sentinel that the targets lack, as a model's may, is taken for an empty
  span.

  Args:
    inputs: (I,) ids of one window, whose last is the end.
    targets: (U,) its targets, whose last is the end.
    sentinels: as in corrupt_spans.
  """
  parts = np.split(
    targets[:-1], np.flatnonzero(np.isin(targets[:-1], sentinels))
  )
  spans = {int(part[0]): part[1:] for part in parts if part.size}
  empty = targets[:0]
  marks = np.flatnonzero(np.isin(inputs[:-1], sentinels))
  found = []
  for part in np.split(inputs[:-1], marks):
    is_marked = part.size and int(part[0]) in set(map(int, sentinels))
    found += [spans.get(int(part[0]), empty), part[1:]] if is_marked else [part]
  return np.concatenate(found)


class Denoised(NamedTuple):
  """Windows that a mixture has corrupted.

  Attributes:
    inputs_BS, targets_BU: ids, padded with the end.
    input_lengths_B, target_lengths_B: ids before the padding.
  """

  inputs_BS: np.ndarray
  targets_BU: np.ndarray
  input_lengths_B: np.ndarray
  target_lengths_B: np.ndarray


def mixture_lengths(
  length: int, mixture: Sequence[Denoiser]
) -> tuple[int, int]:
  """Returns the widths (I, U) of what mix_denoisers returns of a length."""
  found = [corrupted_lengths(length, d.density, d.mean_span) for d in mixture]
  return 1 + max(n.inputs for n in found), max(n.targets for n in found)


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
    mixture: denoisers, each as likely.
    modes: {mode: id that begins its inputs}.

  Raises:
    InputError: there are too few sentinels.
  """
  B, L = ids_BL.shape
  S, U = mixture_lengths(L, mixture)
  inputs_BS = np.full((B, S), end_id, ids_BL.dtype)
  targets_BU = np.full((B, U), end_id, ids_BL.dtype)
  lengths_2B = np.zeros((2, B), np.int64)
  which_B = np.array([draw.integers(len(mixture)) for draw in draw_B])
  for k in np.unique(which_B):
    mine, (mode, density, mean_span) = np.flatnonzero(which_B == k), mixture[k]
    own = [draw_B[row] for row in mine]
    inputs, targets = corrupt_spans(
      ids_BL[mine], own, density, mean_span, sentinels, end_id
    )
    lengths_2B[:, mine] = [[1 + inputs.shape[1]], [targets.shape[1]]]
    inputs_BS[mine, 0] = modes[mode]
    inputs_BS[mine, 1 : 1 + inputs.shape[1]] = inputs
    targets_BU[mine, : targets.shape[1]] = targets
  return Denoised(inputs_BS, targets_BU, *lengths_2B)
