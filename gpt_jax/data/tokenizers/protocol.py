"""What a tokenizer offers, and checks that all tokenizers share.

Design choice: special tokens are never recognized in text. A document that
spells "<|endoftext|>" gets the tokens of these characters; only data
preparation writes separators. A separator decodes to the empty string.
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
  """Encodes text to ids, and decodes ids to text.

  Attributes:
    name: the spec that it was made from, such as "bpe:4096".
    vocab_size: V; every id is below V.
    separator_id: the id that is written before each document, or None.
    mask_id: the id of its mask token, or None; text is never encoded to it.
    start_ids: ids that an imported model expects before a prompt; else ().
    pair_ids: of an imported model that reads sources, (the id that begins a
      target, the id that ends targets and sources); if None, they are ids after
      the tokenizer's own (data/marks.py).
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
    """Yields the same text, cut only where a cut does not change its tokens.

    The ids of the whole text are the concatenated ids of the yielded pieces.
    """

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids; invalid UTF-8 becomes U+FFFD."""

  def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
    """Returns the exact bytes of ids; a separator adds none."""

  def spell(self, i: int) -> bytes:
    """Returns the bytes that an id adds to a text that it continues.

    A decoder may leave out the space that begins a text, and `decode_bytes` of
    a single id would then lack it.
    """

  def continues_word(self, i: int) -> bool:
    """Returns whether a token that follows a word continues that word.

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
  """Returns the ids of a text that continues another one.

  They are the rest of the ids of both texts joined, because many tokenizers put
  a space before a text that stands alone. If a token spans the border of the
  two, they are the ids of the text alone.

  Args:
    start: ids of the other text.
    whole: ids of both, joined to one text.
    alone: ids of the text alone.
  """
  rest = whole[len(start) :]
  is_behind = len(rest) > 0 and np.array_equal(whole[: len(start)], start)
  return rest if is_behind else alone


def begins_inside_word(text: str) -> bool:
  """Returns whether a token with this text continues a word before it."""
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
