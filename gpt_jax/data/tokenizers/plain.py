"""Tokenizers without merges: one id for each byte, or for each character."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt_jax import digest
from gpt_jax.data.tokenizers.protocol import (
  begins_inside_word,
  check_ids,
  dump,
  encode_utf8,
)
from gpt_jax.exits import InputError


class ByteTokenizer:
  """The 256 bytes of UTF-8 and a separator: V = 257."""

  def __init__(self, name: str = "bytes"):
    self.name = name
    self.vocab_size = 257
    self.separator_id: int | None = 256
    self.mask_id = None
    self.start_ids: tuple[int, ...] = ()
    self.pair_ids = None

  def encode(self, text: str) -> np.ndarray:
    data = encode_utf8(text)
    return np.frombuffer(data, np.uint8).astype(np.uint32)

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    return (piece for piece in pieces if piece)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
    ids = check_ids(ids, self.vocab_size)
    return ids[ids < 256].astype(np.uint8).tobytes()

  def spell(self, i: int) -> bytes:
    return self.decode_bytes([i])

  def continues_word(self, i: int) -> bool:
    return begins_inside_word(self.decode([i]))

  def fingerprint(self) -> str:
    return digest.of_json({"kind": "bytes"})

  def to_json(self) -> str:
    return dump(self, {"kind": "bytes"})


class CharTokenizer:
  """One id for each character of the corpus, in code point order.

  Args:
    characters: the vocabulary; order and duplicates do not matter.
  """

  def __init__(self, characters: Iterable[str], name: str = "chars"):
    self.name = name
    self.separator_id = self.mask_id = None
    self.start_ids: tuple[int, ...] = ()
    self.pair_ids = None
    self._characters = "".join(sorted(set(characters)))
    self._codes = _code_points(self._characters)
    self.vocab_size = len(self._codes)

  def encode(self, text: str) -> np.ndarray:
    codes = _code_points(text)
    ids = np.searchsorted(self._codes, codes)
    ids = np.minimum(ids, self.vocab_size - 1)
    wrong = np.flatnonzero(self._codes[ids] != codes)
    if wrong.size:
      at = int(wrong[0])
      raise InputError(
        f"character {text[at]!r} at position {at} is not among the "
        f"{self.vocab_size} characters of the training corpus; use only those, "
        "or another data.tokenizer"
      )
    return ids.astype(np.uint32)

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    return (piece for piece in pieces if piece)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    codes = self._codes[check_ids(ids, self.vocab_size)]
    return codes.astype("<u4").tobytes().decode("utf-32-le")

  def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
    return self.decode(ids).encode("utf-8")

  def spell(self, i: int) -> bytes:
    return self.decode_bytes([i])

  def continues_word(self, i: int) -> bool:
    return begins_inside_word(self.decode([i]))

  def fingerprint(self) -> str:
    return digest.of_json({"kind": "chars", "characters": self._characters})

  def to_json(self) -> str:
    return dump(self, {"kind": "chars", "characters": self._characters})


def _code_points(text: str) -> np.ndarray:
  try:
    data = text.encode("utf-32-le")
  except UnicodeEncodeError:
    data = encode_utf8(text)  # raises the InputError
  return np.frombuffer(data, "<u4")
