"""Labelled texts: encodes them, writes their labels, reads them as rows.

A text, or a pair of texts with a separator between them, is one document of a
set; labels are stored in a file beside the shards. A row holds one document. A
document longer than the row is cut at its end, the longer text of a pair first,
and counted.

In a model with an encoder, the encoder reads the text and the decoder only the
start id; a head classifies the decoder's output there, where T5 would predict
its first token.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gpt_jax import digest
from gpt_jax.data.labels import DTYPES, NO_LABEL, Labels, parse, words_of
from gpt_jax.data.shards import SideWriter, TokenSet
from gpt_jax.data.sources.labelled import Example
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

# Texts, or words, that are encoded in one call.
BATCH = 4096


class Layout(NamedTuple):
  """How labelled texts become rows.

  Attributes:
    seq_len: T.
    kind: option of data.label.
    marks: for a model with an encoder, the ids of (the start that its decoder
      reads, the end of a text); else None.
  """

  seq_len: int
  kind: str
  marks: tuple[int, int] | None = None


@dataclasses.dataclass(eq=False)
class Labelled:
  """A set of labelled texts in memory; it offers what `Rows` reads of TokenSet.

  Attributes:
    name: what messages call the set.
    labels: the Labels of the run that reads it.
    document_starts: int64, ascending.
    values: as TokenSet.read_labels returns them; if the texts have no labels,
      None, or 0 at the end of each word if labels are of words.
    has_labels: whether the texts have labels.
    lack: a sentence on why the first text has no label, or "".
  """

  name: str
  labels: Labels
  ids: np.ndarray
  document_starts: np.ndarray
  values: np.ndarray | None
  separator_id: int | None
  has_labels: bool
  lack: str = ""

  @property
  def fingerprint(self) -> str:
    """A digest of the texts and labels."""
    values = b"" if self.values is None else self.values.tobytes()
    return digest.of_bytes(self.ids.tobytes() + values)

  @property
  def num_ids(self) -> int:
    return len(self.ids)

  @property
  def num_documents(self) -> int:
    return len(self.document_starts)

  def read(self, start: int, stop: int) -> np.ndarray:
    return self.ids[start:stop]

  def read_labels(self) -> np.ndarray | None:
    return self.values


def encode(
  examples: Iterable[Example], encoder: Tokenizer, labels: Labels
) -> Iterator[tuple[Example, np.ndarray, np.ndarray]]:
  """Yields (example, ids, stored values of its label).

  The texts of a pair have a separator between them; the caller adds the one
  before the document. A word's label is stored at its last id, where a causal
  model too has read the whole word. An example without a label has no values,
  or 0 at the end of each word if labels are of words.

  Raises:
    InputError: as encoder.encode and labels.parse; the tokenizer has no
      separator for a pair, or no id for a word.
  """
  queue: list[tuple[Example, list[str]]] = []
  for example in examples:
    queue.append((example, _pieces(example, encoder, labels.kind)))
    if sum(len(pieces) for _, pieces in queue) >= BATCH:
      yield from _encode(queue, encoder, labels)
      queue = []
  yield from _encode(queue, encoder, labels)


def _pieces(example: Example, encoder: Tokenizer, kind: str) -> list[str]:
  if len(example.texts) > 1 and kind == "word":
    raise InputError(
      f"{example.where} is a pair of texts, and data.label is word; a text "
      "whose words have labels stands alone"
    )
  if len(example.texts) > 1 and encoder.separator_id is None:
    raise InputError(
      f"{example.where} is a pair of texts, and the tokenizer {encoder.name} "
      "has no separator to put between them; use one that has, such as bytes"
    )
  if kind != "word":
    return list(example.texts)
  words = words_of(example)
  return words[:1] + [f" {word}" for word in words[1:]]


def _encode(queue, encoder: Tokenizer, labels: Labels):
  encoded = iter(encoder.encode_batch([p for _, each in queue for p in each]))
  for example, pieces in queue:
    parts = [next(encoded) for _ in pieces]
    value = np.zeros(0, DTYPES[labels.kind])
    if example.label is not None:
      parsed = parse(labels.kind, example)
      value = labels.encode(parsed, example.where)
    if labels.kind == "word":
      ids = np.concatenate([*parts, np.zeros(0, np.uint32)])
      lengths = np.array([len(part) for part in parts], np.int64)
      if not lengths.all():
        word = pieces[int(np.argmin(lengths))]
        raise InputError(
          f"{example.where} has the word {word!r}, of which the tokenizer "
          f"{encoder.name} leaves nothing to label; use another data.tokenizer"
        )
      spread = np.full(len(ids), NO_LABEL, DTYPES["word"])
      spread[np.cumsum(lengths) - 1] = value if len(value) else 0
      value = spread
    else:
      middle = np.array([encoder.separator_id or 0] * (len(parts) - 1))
      ids = np.concatenate([parts[0], middle, *parts[1:]])
    yield example, ids, value


class LabelWriter:
  """Writes the labels of a split into SPLIT.labels.bin.

  Args:
    key: encrypts the file, unless it is None.
    has_separators: whether a separator stands before each text; if labels are
      of words, the separator has NO_LABEL.
  """

  def __init__(
    self, folder: str, split: str, labels: Labels, has_separators, key=None
  ):
    self._name, self._folder = f"{split}.labels.bin", folder
    self._key = key
    self._values: list[np.ndarray] = []
    before = [NO_LABEL] if has_separators and labels.kind == "word" else []
    self._before = np.array(before, DTYPES[labels.kind])

  def write(self, value: np.ndarray) -> None:
    self._values += [self._before, value]

  def join(self) -> np.ndarray:
    """Returns all labels in one array."""
    return np.concatenate([self._before[:0], *self._values])

  def finish(self) -> dict:
    """Writes the file; returns its entry in the manifest."""
    file = SideWriter(self._folder, self._name, self._key)
    file.write(self.join())
    return file.finish()


def read_whole(
  name: str, examples: Iterable[Example], encoder: Tokenizer, labels: Labels
) -> Labelled:
  """Returns examples as a set in memory; all must have a label, or none.

  Raises:
    InputError: as `encode`, or there are no examples, or only some have labels.
  """
  has_separators = encoder.separator_id is not None
  writer = LabelWriter("", "", labels, has_separators)
  before = np.array([encoder.separator_id] * has_separators, np.int32)
  ids, starts, size, first = [], [], 0, None
  for example, found, value in encode(examples, encoder, labels):
    has_label = example.label is not None
    first = (example, has_label) if first is None else first
    if has_label != first[1]:
      one, other = (example, first[0]) if first[1] else (first[0], example)
      raise InputError(
        f"{one.where} has no label and {other.where} has one; all texts must "
        "have one, or none"
      )
    starts.append(size)
    ids += [before, found.astype(np.int32)]
    size += len(before) + len(found)
    writer.write(value)
  if first is None:
    raise InputError(f"{name} holds no text; it must hold some")
  has_labels = first[1]
  values = writer.join() if has_labels or labels.kind == "word" else None
  if values is not None and labels.kind != "word":
    values = values.reshape(-1, labels.width())
  starts = np.array(starts, np.int64)
  separator_id = encoder.separator_id
  return Labelled(
    name,
    labels,
    np.concatenate(ids),
    starts,
    values,
    separator_id,
    has_labels,
    first[0].lack,
  )


class Rows:
  """The rows of a set of labelled texts, one for each.

  Args:
    token_set: a set with labels, or one in memory.
    layout: how they become rows.

  Attributes:
    num_rows: the number of rows in an epoch.
    num_cut: the number of texts that are longer than a row.

  Raises:
    InputError: the set has no labels of this kind.
  """

  def __init__(self, token_set: TokenSet | Labelled, layout: Layout):
    self._set, self._marks = token_set, layout.marks
    self._room = layout.seq_len - (layout.marks is not None)
    if token_set.labels is None or token_set.labels.kind != layout.kind:
      raise InputError(
        f"{token_set.name} has no labels of data.label {layout.kind}, which "
        "data.objective classification needs; prepare it from labelled:FILE"
      )
    self.labels = token_set.labels
    self._borders = np.append(token_set.document_starts, token_set.num_ids)
    self._values = token_set.read_labels()
    self.num_rows = len(self._borders) - 1
    self.num_cut = int((np.diff(self._borders) > self._room).sum())

  def read(self, rows: np.ndarray) -> dict:
    """Returns a batch of rows; rows beyond the last have mask 0.

    segments is 1 in the padding; types is 1 in the second text of a pair. If
    the set has no labels, mask and targets are 0. If labels are of words, mask
    is 1 at the end of each word, with or without labels. With marks, the texts
    are sources, each followed by the end id.
    """
    b, T, kind = len(rows), self._room, self.labels.kind
    blank = lambda width, dtype: np.zeros((b, width), dtype)
    batch = {name: blank(T, np.int32) for name in ("tokens", "segments")}
    batch["types"] = blank(T, np.int32)
    width = T if kind == "word" else self.labels.width()
    is_id = kind in ("single", "word")
    batch["targets"] = blank(width, np.int32 if is_id else np.float32)
    batch["mask"] = blank(T if kind == "word" else 1, np.float32)
    for at, row in enumerate(rows):
      if row < self.num_rows:
        self._fill({name: x[at] for name, x in batch.items()}, int(row))
    return batch if self._marks is None else _as_sources(batch, *self._marks)

  def word_ends(self, row: int) -> np.ndarray:
    """Returns the positions in a row where its words end, ascending."""
    return np.flatnonzero(self.read(np.array([row]))["mask"][0])

  def count_words(self, row: int) -> int:
    """Returns the number of words of a text."""
    assert self._values is not None  # stored for words even without labels
    start, stop = map(int, self._borders[row : row + 2])
    return int((self._values[start:stop] != NO_LABEL).sum())

  def _fill(self, batch: dict, row: int) -> None:
    start, stop = map(int, self._borders[row : row + 2])
    ids = self._set.read(start, stop)
    places, num_first = self._cut(ids)
    batch["tokens"][: len(places)] = ids[places]
    batch["segments"][len(places) :] = 1
    batch["types"][num_first : len(places)] = 1
    if self._values is None:
      return
    if self.labels.kind != "word":
      batch["targets"][:], batch["mask"][:] = self._values[row], 1
      return
    values = self._values[start:stop][places]
    batch["targets"][: len(places)] = np.maximum(values, 0)
    batch["mask"][: len(places)] = values != NO_LABEL

  def _cut(self, ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns (indices of the ids that fit, how many precede the second text).

    The separator between two texts is always kept.
    """
    T, first = self._room, len(ids)
    if self._set.separator_id is not None:
      separators = np.flatnonzero(ids == self._set.separator_id)
      first = int(separators[1]) if len(separators) > 1 else first
    second = len(ids) - first
    # Each text gets half of the row, plus what the other one leaves free.
    keep = min(first, max(T - second, T - T // 2 if second else T))
    kept = min(second, T - keep)
    return np.r_[:keep, first : first + kept], keep + (second > 0)


def _as_sources(batch: dict, start: int, end: int) -> dict:
  """Returns a batch whose sources are the texts, whose token is the start."""
  lengths_B = (batch["segments"] == 0).sum(1)
  pad = lambda x, value: np.pad(x, ((0, 0), (0, 1)), constant_values=value)
  sources, filled = pad(batch["tokens"], 0), pad(batch["segments"], 1)
  each = np.arange(len(sources))
  sources[each, lengths_B], filled[each, lengths_B] = end, 0
  return {
    "tokens": np.full((len(sources), 1), start, np.int32),
    "segments": np.zeros((len(sources), 1), np.int32),
    "sources": sources,
    "source_segments": filled,
    "targets": batch["targets"],
    "mask": batch["mask"],
  }


@functools.lru_cache(maxsize=8)
def open_rows(token_set: TokenSet | Labelled, layout: Layout) -> Rows:
  """Returns Rows of the arguments, cached."""
  return Rows(token_set, layout)


def describe_cut(token_set: TokenSet | Labelled, layout: Layout) -> str | None:
  """Returns a sentence on texts that are longer than a row; None if none is.

  Raises:
    InputError: as Rows.
  """
  rows = open_rows(token_set, layout)
  if not rows.num_cut:
    return None
  less = "" if layout.marks is None else ", an end included,"
  return (
    f"{rows.num_cut:,} of {rows.num_rows:,} texts of {token_set.name} are "
    f"longer than data.seq_len {layout.seq_len}{less} and cut at their end; "
    "raise it to read them whole"
  )
