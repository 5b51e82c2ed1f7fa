"""Chooses the held-out text: documents by hash of name or content, or tails.

Equal texts are never on both sides. By name, a document that repeats an earlier
text goes to the split of the first one. By content, the text alone decides:
copies go to the same split across sources and sets too, and white space and
case do not count. Either costs one more pass over the text and 17 bytes of
memory for each document. A pair goes where its source goes.
"""

import array
import dataclasses
import decimal
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpt_jax.config import Template
from gpt_jax.data.sources.chat import ChatSource
from gpt_jax.data.sources.document import Source
from gpt_jax.data.sources.labelled import LabelledSource
from gpt_jax.data.sources.preference import PreferenceSource
from gpt_jax.exits import InputError


@dataclasses.dataclass
class Part:
  """A source, and which of its text goes into which split.

  Attributes:
    source: where the text comes from.
    role: "split" divides the text; "train" and "valid" take all of it.
    split: "document", "content" or "tail"; a single document is divided by its
      tail.
    valid_frac: the fraction that is held out if role is "split".
    is_labelled: whether the labels of its texts are read too.
    template: the chat template by which dialogues and preferences are stored;
      None for texts.
    num_moved: documents that moved to the split of an equal document.
    notes: remarks for the user on how the text was divided.
    is_made: whether its folder was written by this process.
  """

  source: Source
  role: str
  split: str
  valid_frac: float
  is_labelled: bool = False
  template: Template | None = None
  num_moved: int = 0
  notes: list[str] = dataclasses.field(default_factory=list)
  is_made: bool = False
  # Filled by `survey`. For whole documents: whether each one is held out. For
  # split="tail": how many characters of each document are trained on.
  _is_valid: np.ndarray | None = None
  _train_lens: array.array | None = None
  _digest: Any = None

  def survey(self, add: Callable[[str], None]) -> None:
    """Reads the text to decide how it is divided, unless that is known.

    Args:
      add: called with each piece that is read.
    """
    if not self.is_divided:
      return
    if self.split != "tail" and self._is_valid is None:
      self._is_valid = self._choose(add)
    if self.split == "tail" and self._train_lens is None:
      self._train_lens = self._count_train_lens(add)

  def pieces(self) -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """Yields (document name, [(split, piece)] in order, as an iterator)."""
    self._digest, i = hashlib.sha256(), -1
    for document in self.source.documents():
      i += not document.is_target
      yield document.name, self._tagged(i, self._hashed(document.pieces))

  def examples(self) -> Iterator[tuple[str, Any]]:
    """Yields (split, example) in order: labelled texts, chats or preferences.

    Raises:
      InputError: all texts are the same, so that none can be held out.
    """
    # prepare.list_parts makes sure of it.
    kinds = LabelledSource, ChatSource, PreferenceSource
    assert isinstance(self.source, kinds)
    self._digest = hashlib.sha256()
    if self._train_lens is not None:
      raise InputError(
        f"{self.source.spec} holds one text only, of which none can be held "
        "out; give more, or data.valid_source"
      )
    for i, example in enumerate(self.source.examples()):
      self._digest.update(example.to_bytes())
      yield self._side(i), example

  def text_sha256(self) -> str:
    """Returns the SHA-256 hex digest of the text that `pieces` has yielded."""
    return self._digest.hexdigest()

  def read_text_sha256(self) -> str:
    """Returns the SHA-256 hex digest of the source's text, by reading it."""
    if self.is_labelled or self.template is not None:
      for _ in self.examples():
        pass
      return self.text_sha256()
    for _, tagged in self.pieces():
      for _ in tagged:
        pass
    return self.text_sha256()

  def _tagged(self, i: int, pieces) -> Iterator[tuple[str, str]]:
    if self._train_lens is not None:
      self._require_surveyed(i, len(self._train_lens))
      yield from _cut_tail(pieces, self._train_lens[i])
      return
    split = self._side(i)
    for piece in pieces:
      yield split, piece

  def _side(self, i: int) -> str:
    """Returns the split of document i, which is not cut."""
    if self.role != "split":
      return self.role
    if self._is_valid is None:
      return "train"
    self._require_surveyed(i, len(self._is_valid))
    return "valid" if self._is_valid[i] else "train"

  def _require_surveyed(self, i: int, count: int) -> None:
    if i >= count:
      raise self.changed()

  def changed(self) -> InputError:
    """Returns the error that the source has changed meanwhile."""
    return InputError(
      f"{self.source.spec} changed while it was read; start again when it is "
      "whole"
    )

  def _hashed(self, pieces: Iterator[str]) -> Iterator[str]:
    num_bytes = 0
    for piece in pieces:
      data = piece.encode()
      num_bytes += len(data)
      self._digest.update(data)
      yield piece
    # The digest also covers where documents end.
    if num_bytes:
      self._digest.update(num_bytes.to_bytes(8, "little"))

  def _count_train_lens(self, add) -> array.array:
    lens = array.array("q")
    # Decimals are exact: with floats, (1 - 0.9) * 10 is below 1.
    train_frac = 1 - decimal.Decimal(repr(self.valid_frac))
    for document in self.source.documents():
      self._require_single(document)
      num_chars = 0
      for piece in document.pieces:
        num_chars += len(piece)
        add(piece)
      lens.append(int(num_chars * train_frac))
    return lens

  def _require_single(self, document) -> None:
    if document.is_target:
      raise InputError(
        f"{self.source.spec} holds pairs, whose tails cannot be held out; take "
        "data.split=document and pairs of several sources, or data.valid_source"
      )

  def _choose(self, add) -> np.ndarray | None:
    """Returns which documents are held out, bool (documents,).

    None if there is one document only, which is divided by its tail.
    """
    units, texts = array.array("d"), array.array("Q")
    has_text = bytearray()
    for document in self.source.documents():
      if document.is_target:
        for piece in document.pieces:
          add(piece)
        continue
      digest, size = TextHash(self.split), 0
      for piece in document.pieces:
        digest.update(piece)
        size += len(piece)
        add(piece)
      # By name, not by index: a new file must not move other documents.
      units.append(unit_hash(document.name))
      texts.append(digest.value())
      has_text.append(size > 0)
    is_filled = np.frombuffer(has_text, np.uint8) > 0
    return self._decide(np.array(units), np.array(texts, np.uint64), is_filled)

  def choose_sides(
    self, units: np.ndarray, texts: np.ndarray
  ) -> np.ndarray | None:
    """Returns which documents are held out, bool (documents,).

    None if there is one text only: it is divided by its tail, as `survey` and
    `pieces` do from now on.

    Args:
      units: (documents,) unit_hash of the names of all documents with text.
      texts: (documents,) the TextHash of each.
    """
    if not self.is_divided:
      return np.full(len(units), self.role == "valid")
    return self._decide(units, texts, np.ones(len(units), bool))

  @property
  def is_divided(self) -> bool:
    """Whether some of the text is held out, and some is not."""
    return self.role == "split" and self.valid_frac > 0

  def _decide(
    self, units: np.ndarray, texts: np.ndarray, is_filled: np.ndarray
  ) -> np.ndarray | None:
    filled = np.flatnonzero(is_filled)
    _, first, group = np.unique(
      texts[filled], return_index=True, return_inverse=True
    )
    if len(first) == 1:
      self.split = "tail"
      self._note(
        f"{self.source.spec} is one document: the last {self.valid_frac:g} of "
        "it is held back, as data.split='tail' does"
      )
      return None
    if self.split == "content":
      units = texts / 2.0**64
    is_valid = units < self.valid_frac
    if not len(filled):
      return is_valid
    if self.split == "document" and not self.source.is_divided_by_text:
      return _both_sides(is_valid, units)
    sides = is_valid[filled]
    by_name = _both_sides(sides, units[filled])
    # Each document takes the side of the first one with the same text.
    together = _both_sides(by_name[first], units[filled][first])[group]
    self.num_moved = int((together != by_name).sum())
    is_valid[filled] = together
    if self.num_moved:
      self._note(
        f"{self.source.spec}: {self.num_moved:,} documents repeat a text of "
        "the other side and went there, so that no text is on both sides"
      )
    return is_valid

  def _note(self, line: str) -> None:
    if line not in self.notes:
      self.notes.append(line)


class TextHash:
  """A 64-bit hash of a document's text, which is added in pieces.

  Args:
    split: under "content", white space and capitals do not count.
  """

  def __init__(self, split: str):
    self._by_content = split == "content"
    self._digest = hashlib.blake2b(digest_size=8)

  def update(self, piece: str) -> None:
    if self._by_content:
      # casefold, unlike lower, takes each character alone, so that the borders
      # of pieces do not matter.
      piece = "".join(piece.casefold().split())
    self._digest.update(piece.encode())

  def value(self) -> int:
    return int.from_bytes(self._digest.digest(), "little")


def unit_hash(name: str) -> float:
  """Returns a number in [0, 1) that depends on nothing but the name."""
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def _both_sides(is_valid: np.ndarray, units: np.ndarray) -> np.ndarray:
  """Returns is_valid with both sides filled, by moving at most one document.

  Args:
    is_valid: (documents,) bool.
    units: (documents,) unit_hash of their names.
  """
  if is_valid.all():
    is_valid = is_valid.copy()
    is_valid[np.argmax(units)] = False
  elif not is_valid.any():
    is_valid = is_valid.copy()
    is_valid[np.argmin(units)] = True
  return is_valid


def _cut_tail(pieces, num_train: int) -> Iterator[tuple[str, str]]:
  """Yields ("train", ...) for the first num_train characters, then "valid"."""
  left = num_train
  for piece in pieces:
    if left:
      yield "train", piece[:left]
    if len(piece) > left:
      yield "valid", piece[left:]
    left = max(0, left - len(piece))
