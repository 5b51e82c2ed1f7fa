"""Turns (source, target) pairs into rows: one per row, or as many as fit.

In a model with an encoder, the encoder reads the source and an end id; the
decoder reads a start id and the target, and predicts the target and an end id.
A decoder-only model reads source, start id and target in one row, and predicts
the target and an end id. Either way, a pair takes as many positions of a row as
it has tokens to read.

Pairs are never cut: one that is longer than a row is left out, and counted.

Design choice: which pairs share a row is decided once, from the lengths in the
prepared folder. So the rows of a set are numbered, and order.py orders them
like windows, by a function of (seed, step).
"""

import functools
from typing import ClassVar, NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError, RowLengths
from gpt_jax.data import order
from gpt_jax.data.marks import pair_ids
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.tokenizers.protocol import Tokenizer

# First fit looks at this many rows: those begun last that still have room.
OPEN_ROWS = 64


class Layout(NamedTuple):
  """How pairs become rows.

  Attributes:
    lengths: of a row; source is None for a model without an encoder.
    is_packed: whether a row holds as many pairs as fit.
    start, end: ids of the marks.
    first: ids that an imported model expects before a source.
  """

  lengths: RowLengths
  is_packed: bool
  start: int
  end: int
  first: tuple[int, ...] = ()


def build_layout(config: Config, tokenizer: Tokenizer) -> Layout:
  """Returns the layout of a config's pairs."""
  is_packed = config.data.packing == "documents"
  lengths = config_lib.row_lengths(config)
  first = tuple(tokenizer.start_ids)
  return Layout(lengths, is_packed, *pair_ids(tokenizer), first)


class PairRows:
  """The rows of a set of pairs.

  Args:
    token_set: a set whose documents are sources and targets in turn.
    layout: how they become rows.
    seed: of the random order in which pairs fill the rows; None keeps the order
      of the set.

  Attributes:
    num_rows: the number of rows in an epoch.
    num_all: the number of pairs in the set.
    num_kept: the number of pairs that fit a row.
    pairs: int64 indices into the set of the pairs that fit, in row order.

  Raises:
    InputError: the set holds no pairs, or none is short enough.
  """

  # For messages: what examples are called, and the keys that lengthen a row.
  NAME: ClassVar = "pairs"
  KEYS: ClassVar = "data.seq_len, and data.source_len where it is set,"

  def __init__(self, token_set: TokenSet, layout: Layout, seed: int | None):
    if not token_set.is_paired:
      raise InputError(
        f"{token_set.name} holds no pairs, which data.objective "
        "sequence_to_sequence needs; prepare them from pairs:FILE"
      )
    self._set, self._layout = token_set, layout
    starts = token_set.document_starts
    borders = np.append(starts, token_set.num_ids)
    # Separators stand before all documents, or before none.
    self._skip = int(token_set.num_ids > token_set.num_tokens)
    self._borders = borders
    lengths = np.diff(borders) - self._skip
    sizes = _sizes(lengths[::2] + len(layout.first), lengths[1::2], layout)
    limits = [n for n in layout.lengths if n is not None]
    fits = np.all(sizes <= limits, axis=1)
    if len(fits) and not fits.any():
      raise InputError(
        f"no pair of {token_set.name} fits a row: the shortest takes "
        f"{_say(sizes.min(0))} tokens, and a row has {_say(limits)}; raise "
        "data.seq_len, and data.source_len where it is set"
      )
    self.num_all = len(fits)
    found = arrange(sizes, np.array(limits), layout.is_packed, seed)
    self.pairs, self._rows = found
    self.num_kept = len(self.pairs)

  @property
  def num_rows(self) -> int:
    return len(self._rows) - 1

  def parts(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a pair's texts (source, target), int32."""
    begin, middle, end = map(int, self._borders[2 * pair : 2 * pair + 3])
    ids = self._set.read(begin, end)
    return ids[self._skip : middle - begin], ids[middle - begin + self._skip :]

  def read(self, rows: np.ndarray) -> dict:
    """Returns a batch of rows; rows beyond the last have mask 0."""
    S, T = self._layout.lengths
    blank = lambda length: np.zeros((len(rows), length), np.int32)
    batch: dict = {name: blank(T) for name in ("tokens", "targets")}
    batch["mask"] = np.zeros((len(rows), T), np.float32)
    sides = {"": T} if S is None else {"": T, "source_": S}
    if S is not None:
      batch["sources"] = blank(S)
    for side, length in sides.items():
      if S is not None or self._layout.is_packed:
        batch[f"{side}segments"] = blank(length)
      if self._layout.is_packed:
        batch[f"{side}positions"] = blank(length)
    for at, row in enumerate(rows):
      if row < self.num_rows:
        one = {name: values[at] for name, values in batch.items()}
        self._fill(one, self.pairs[self._rows[row] : self._rows[row + 1]])
    return batch

  def _fill(self, row: dict, pairs: np.ndarray) -> None:
    """Writes pairs into a row, whose arrays are views into the batch."""
    start, end, t, s = self._layout.start, self._layout.end, 0, 0
    for part, pair in enumerate(pairs):
      source, target = self.parts(pair)
      source = np.append(np.array(self._layout.first, np.int32), source)
      if "sources" in row:
        s_end = s + len(source) + 1
        row["sources"][s:s_end] = np.append(source, end)
        _number(row, "source_", s, s_end, part)
        s, source = s_end, source[:0]
      t_end = t + len(source) + 1 + len(target)
      row["tokens"][t:t_end] = np.concatenate([source, [start], target])
      row["targets"][t : t_end - 1] = row["tokens"][t + 1 : t_end]
      row["targets"][t_end - 1] = end
      row["mask"][t + len(source) : t_end] = 1
      _number(row, "", t, t_end, part)
      t = t_end
    # Padding after the last target joins its pair, as no earlier token attends
    # to it. Padding after the last source gets a segment of its own.
    _number(row, "", t, None, len(pairs) - 1)
    _number(row, "source_", s, None, len(pairs))


def _number(row: dict, side: str, begin: int, end: int | None, part: int):
  """Writes `part` as the segment of [begin, end), and positions, if present."""
  if f"{side}segments" in row:
    row[f"{side}segments"][begin:end] = part
  if f"{side}positions" in row:
    place = row[f"{side}positions"][begin:end]
    place[:] = np.arange(len(place))


class SourceTokenizer:
  """Wraps a run's tokenizer: prompts are sources, and targets are written.

  All other attributes are those of the wrapped tokenizer.

  Args:
    first: marks before a source.
    hidden: the sentinel after a source, which asks for the hidden span there.

  Attributes:
    vocab_size: every id that may be generated is below it: the wrapped
      tokenizer's, start and end.
    target_start_ids: what the decoder reads first in a model with an encoder,
      else ().
    separator_id: the id that ends a target.
    last_id: the id that ends an encoded prompt.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    has_source: bool,
    first: tuple[int, ...] = (),
    hidden: tuple[int, ...] = (),
  ):
    self._tokenizer, self._first, self._hidden = tokenizer, first, hidden
    start, end = pair_ids(tokenizer)
    self.target_start_ids = (start, *hidden) if has_source else ()
    self.separator_id = end
    self.vocab_size = max(tokenizer.vocab_size, start + 1, end + 1)
    self.last_id = end if has_source else start
    self._marks = start, end

  def __getattr__(self, name: str):
    return getattr(self._tokenizer, name)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a source, as a model reads it in training."""
    ids = self._tokenizer.encode(text)
    ids = [*self._tokenizer.start_ids, *ids]
    return np.array([*self._first, *ids, *self._hidden, self.last_id], np.int32)

  def encode_target(self, text: str) -> np.ndarray:
    """Returns the ids of a target and its end."""
    return np.append(self._tokenizer.encode(text), self.separator_id)

  def decode(self, ids) -> str:
    """Returns the text of ids, marks left out."""
    limit = self._tokenizer.vocab_size
    own = [i for i in ids if i < limit and i not in self._marks]
    return self._tokenizer.decode(own)


@functools.lru_cache(maxsize=8)
def pair_rows(token_set: TokenSet, layout: Layout, seed: int | None):
  """Returns PairRows of the arguments, cached."""
  return PairRows(token_set, layout, seed)


def arrange(
  sizes: np.ndarray, limits: np.ndarray, is_packed: bool, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (indices of examples in row order, borders of the rows therein).

  Examples larger than a row are left out. Row r holds the examples from
  borders[r] to borders[r + 1]; sides are sources and targets, or one.

  Args:
    sizes: (P, sides) positions of a row that each example takes.
    limits: (sides,) positions of a row.
    is_packed: whether a row holds as many examples as fit.
    seed: of the random order in which examples fill the rows; None keeps the
      given order.
  """
  fits = np.all(sizes <= limits, axis=1)
  places = np.arange(len(fits))
  if seed is not None:
    places = order.permute(places, len(fits), seed, 0, np.zeros_like(places))
  places = places[fits[places]]
  if not is_packed:
    return places, np.arange(len(places) + 1)
  row_of = first_fit(sizes[places], limits)
  places = places[np.argsort(row_of, kind="stable")]
  counts = np.bincount(row_of) if len(row_of) else row_of
  return places, np.append(0, np.cumsum(counts))


def first_fit(sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
  """Returns the row of each pair: the first open row with room for it.

  Args:
    sizes: (P, sides) positions that each pair takes, at most `limits`.
    limits: (sides,) positions of a row.
  """
  row_of, num_rows = np.zeros(len(sizes), np.int64), 0
  rows, left = np.zeros(0, np.int64), np.zeros((0, len(limits)), np.int64)
  least = sizes.min(0) if len(sizes) else limits
  for pair, size in enumerate(sizes):
    at = np.flatnonzero((left >= size).all(1))[:1]
    if not at.size:
      rows, left = np.append(rows, num_rows), np.vstack([left, limits])
      num_rows, at = num_rows + 1, np.array([len(rows) - 1])
    row_of[pair] = rows[at[0]]
    left[at] -= size
    if (left[at] < least).any():
      rows, left = np.delete(rows, at), np.delete(left, at, 0)
    elif len(rows) > OPEN_ROWS:
      rows, left = rows[1:], left[1:]
  return row_of


def target_ids(token_set: TokenSet) -> np.ndarray:
  """Returns the ids of all targets of a set of pairs, without separators."""
  starts = np.append(token_set.document_starts, token_set.num_ids)
  ids = token_set.read(0, token_set.num_ids)
  side = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) % 2
  return ids[(side == 1) & (ids != token_set.separator_id)]


def _sizes(source_P, target_P, layout: Layout) -> np.ndarray:
  """Returns (P, sides): the positions of a row that each pair takes."""
  if layout.lengths.source is None:
    return (source_P + 1 + target_P)[:, None]
  return np.stack([source_P + 1, target_P + 1], 1)


def _say(numbers) -> str:
  return " and ".join(f"{int(n):,}" for n in numbers)
