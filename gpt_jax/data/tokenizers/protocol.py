"""What a tokenizer offers, and checks that all tokenizers share.

Design choice: special tokens are never read from text. A document that spells
"<|endoftext|>" gets the tokens of these characters; only data preparation
writes separators. A separator decodes to the empty string.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from gpt_jax.exits import InputError

SEPARATOR = "<|endoftext|>"
# Version of the files that `to_json` writes.
FORMAT = 1


class Tokenizer(Protocol):
  """Text to ids and back.

  Attributes:
    name: the spec that it was made from, such as "bpe:4096".
    vocab_size: V; every id is below V.
    separator_id: the id that is written before each document, or None.
    mask_id: the id of its mask token, or None; text never gives it.
    start_ids: what its model expects before a prompt; of imported models.
    pair_ids: what begins a target, and what ends it and its source, of imported
      models that read sources; None: ids after its own (data/marks.py).
  """

  name: str
  vocab_size: int
  separator_id: int | None
  mask_id: int | None
  start_ids: tuple[int, ...]
  pair_ids: tuple[int, int] | None

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a text, uint32, 1-D.

    Raises:
      InputError: the vocabulary cannot represent the text.
    """

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    """Returns `encode` of each text, using all cores where that helps."""

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    """Yields the same text cut where cutting does not change its tokens.

    The ids of the whole text are the concatenated ids of these pieces.
    """

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids; invalid UTF-8 becomes U+FFFD."""

  def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
    """Returns the exact bytes of ids; a separator has none."""

  def spell(self, i: int) -> bytes:
    """Returns the bytes that an id adds to a text that it continues.

    A decoder may leave out the space that begins a text, and `decode_bytes` of
    a single id would then lack it.
    """

  def continues_word(self, i: int) -> bool:
    """Returns whether a token, where a word stands before it, goes on with it.

    A space belongs to the word after it.
    """

  def fingerprint(self) -> str:
    """Returns the SHA-256 hex digest of everything that determines ids."""

  def to_json(self) -> str:
    """Returns the text that `stored.from_json` and `stored.load` read."""


def dump(tokenizer: Tokenizer, content: dict) -> str:
  """Returns what `to_json` returns: a header and the vocabulary."""
  head = {"gpt_jax_tokenizer": FORMAT, "name": tokenizer.name}
  return json.dumps(head | content, ensure_ascii=False)


def encode_utf8(text: str) -> bytes:
  """Returns the UTF-8 of a text.

  Raises:
    InputError: the text holds half of a surrogate pair.
  """
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError as error:
    code = ord(text[error.start])
    # PEP 383: Python represents an undecodable byte b of the command line as
    # U+DC00 + b.
    is_byte = 0xDC80 <= code <= 0xDCFF
    what = (
      f"byte {code - 0xDC00:#04x} at position {error.start}, which is not UTF-8"
      if is_byte
      else f"{text[error.start]!r} at position {error.start}, half of a "
      "surrogate pair"
    )
    raise InputError(f"the text holds {what}; it must be Unicode") from None


def ids_behind(
  start: np.ndarray, whole: np.ndarray, alone: np.ndarray
) -> np.ndarray:
  """Returns the ids of a text that goes on with another.

  They are those that follow the other's in the text of both: many tokenizers
  put a space before a text. Where a token spans the border of the two, they are
  the text's own.

  Args:
    start: ids of the other text.
    whole: of both as one text.
    alone: of the text by itself.
  """
  rest = whole[len(start) :]
  is_behind = len(rest) > 0 and np.array_equal(whole[: len(start)], start)
  return rest if is_behind else alone


def begins_inside_word(text: str) -> bool:
  """Returns whether a token of this text goes on with a word before it."""
  return text[:1].isalnum() or text[:1] == "\N{REPLACEMENT CHARACTER}"


def check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
  """Returns ids as a flat int64 array.

  Raises:
    InputError: an id is not in [0, vocab_size).
  """
  ids = np.asarray(ids).reshape(-1)
  if ids.size == 0:
    return ids.astype(np.int64)
  for i in (ids.min(), ids.max()):
    if not 0 <= i < vocab_size:
      raise InputError(
        f"token id {i} is outside the vocabulary of {vocab_size} tokens"
      )
  return ids.astype(np.int64)
