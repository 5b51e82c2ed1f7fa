"""A tokenizer of the `tokenizers` library: bpe:, gpt2: and hf:.

Long texts are encoded by tiktoken if it is sure to give the same ids.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt_jax import digest
from gpt_jax.data.tokenizers import limits, ranked
from gpt_jax.data.tokenizers.chat_template import ChatTemplate
from gpt_jax.data.tokenizers.protocol import (
  begins_inside_word,
  check_ids,
  dump,
  encode_utf8,
)
from gpt_jax.exits import InputError

# Characters of a piece that is encoded on its own: long enough to make the cost
# of a call negligible, short enough that a batch keeps every core busy.
PIECE_LEN = 1 << 15
# Characters of long texts after which tiktoken's encoder is built. Building it
# takes as long as the library takes to encode this many.
RANKED_CHARS = 1 << 21
# Names of mask tokens.
MASKS = ("[MASK]", "<mask>")
# The token of one byte, in a vocabulary with byte fallback.
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class LibraryTokenizer:
  """Encodes and decodes as a tokenizer.json says.

  Args:
    library: the parsed content of a tokenizer.json.
    name: the spec that it came from.
    separator_id: the id that is written before documents, or None.
    start_ids, pair_ids: as in protocol.Tokenizer.
    chat_template: the template of its model, or None.
  """

  def __init__(
    self,
    library: dict,
    name: str,
    separator_id: int | None,
    start_ids: Sequence[int] = (),
    pair_ids: Sequence[int] | None = None,
    chat_template: ChatTemplate | None = None,
  ):
    self.name, self.chat_template = name, chat_template
    self.separator_id = separator_id
    self._library = library
    self._inner = limits.build(library, name)
    vocab = self._inner.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values()) + 1
    if separator_id is not None and (
      type(separator_id) is not int or not 0 <= separator_id < self.vocab_size
    ):
      raise InputError(
        f"the separator of {name} has the id {separator_id!r}; it must be one "
        f"of its {self.vocab_size} tokens"
      )
    for i in (*start_ids, *(pair_ids or ())):
      check_ids([i], self.vocab_size)
    self.start_ids = tuple(start_ids)
    self.pair_ids = None
    if pair_ids is not None:
      start, end = pair_ids
      self.pair_ids = start, end
    found = [i for i in map(self._inner.token_to_id, MASKS) if i is not None]
    self.mask_id = found[0] if found else None
    self._token_bytes = None
    self._spelled: dict[int, bytes] = {}
    self._ranked, self._is_ranked_sought = None, False
    self._num_chars = 0
    self._cuts = self._find_safe_cuts()

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    if not self._is_ranked_sought:
      size = sum(map(len, texts))
      # Short prompts do not count, so they never wait for its construction.
      is_long = size >= min(PIECE_LEN, RANKED_CHARS)
      self._num_chars += size if is_long else 0
      self._is_ranked_sought = self._num_chars >= RANKED_CHARS
      if self._is_ranked_sought:
        self._ranked = ranked.find(self._inner)
    if self._ranked is None:
      return self._encode_by_library(texts)
    found = self._ranked.encode_batch(texts)
    left = [text for text, ids in zip(texts, found, strict=True) if ids is None]
    again = iter(self._encode_by_library(left))
    return [next(again) if ids is None else ids for ids in found]

  def _encode_by_library(self, texts: list[str]) -> list[np.ndarray]:
    try:
      with limits.guard(f"{self.name} cannot encode the text"):
        found = self._inner.encode_batch_fast(texts, add_special_tokens=False)
    except InputError:
      # A surrogate is the likely cause, for which encode_utf8 has an error.
      for text in texts:
        encode_utf8(text)
      raise
    return [np.array(encoding.ids, np.uint32) for encoding in found]

  def encode_marked(
    self, texts: list[str]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (ids, their spans in the text): uint32 (T,) and int64 (T, 2).

    Unlike in `encode`, special tokens are recognized in a text. The caller must
    make sure that only the template wrote them.
    """
    with limits.guard(f"{self.name} cannot encode the text"):
      try:
        self._inner.encode_special_tokens = False
        found = self._inner.encode_batch(texts, add_special_tokens=False)
      finally:
        self._inner.encode_special_tokens = True
    return [
      (
        np.array(e.ids, np.uint32),
        np.array(e.offsets, np.int64).reshape(-1, 2),
      )
      for e in found
    ]

  def encode_whole(self, texts: Sequence[str], limit: int) -> list[np.ndarray]:
    """Returns the ids of texts, with those that the post_processor adds.

    Unlike in `encode`, a text is cut so that it has at most `limit` ids,
    including the added ones.
    """
    with limits.guard(f"{self.name} cannot encode the text"):
      try:
        self._inner.enable_truncation(limit)
        found = self._inner.encode_batch(list(texts))
      finally:
        self._inner.no_truncation()
    return [np.array(encoding.ids, np.uint32) for encoding in found]

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    if not self._cuts:
      whole = "".join(pieces)
      if whole:
        yield whole
      return
    rest = ""
    for piece in pieces:
      rest += piece
      start = 0
      while len(rest) - start > PIECE_LEN:
        cut = self._find_cut(rest, start)
        if cut is None:
          break
        yield rest[start:cut]
        start = cut
      rest = rest[start:]
    if rest:
      yield rest

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
    ids = check_ids(ids, self.vocab_size).tolist()
    if not limits.is_byte_level(self._library):
      ids = [i for i in ids if i != self.separator_id]
      with limits.guard(f"{self.name} cannot decode these ids"):
        text = self._inner.decode(ids, skip_special_tokens=False)
      return text.encode("utf-8")
    if self._token_bytes is None:
      self._token_bytes = self._list_token_bytes()
    return b"".join([self._token_bytes[i] for i in ids])

  def spell(self, i: int) -> bytes:
    if i not in self._spelled:
      self._spelled[i] = self._spell(i)
    return self._spelled[i]

  def _spell(self, i: int) -> bytes:
    if limits.is_byte_level(self._library):
      return self.decode_bytes([i])
    byte = BYTE_TOKEN.fullmatch(self._inner.id_to_token(i) or "")
    if byte and limits.has_byte_tokens(self._library):
      return bytes.fromhex(byte[1])
    # The decoder may strip the space that a text begins with.
    before, known = self._word
    return self.decode_bytes([*before, i]).removeprefix(known)

  @functools.cached_property
  def _word(self) -> tuple[list[int], bytes]:
    """Returns ([a token of letters], its bytes); ([], b"") if there is none."""
    for i in range(self.vocab_size):
      if re.fullmatch("[a-zA-Z]+", self.decode([i])):
        return [i], self.decode_bytes([i])
    return [], b""

  def continues_word(self, i: int) -> bool:
    token = self._inner.id_to_token(i) or ""
    if self._library["model"]["type"] == "WordPiece":
      return token.startswith("##")
    if limits.is_byte_level(self._library):
      token = self.decode([i])
    return begins_inside_word(token)  # "▁" is no letter

  def fingerprint(self) -> str:
    content = {"library": self._library, "separator_id": self.separator_id}
    return digest.of_json(content)

  def to_json(self) -> str:
    content = {
      "kind": "library",
      "separator_id": self.separator_id,
      "library": self._library,
    }
    if self.start_ids:
      content["start_ids"] = list(self.start_ids)
    if self.pair_ids is not None:
      content["pair_ids"] = list(self.pair_ids)
    if self.chat_template is not None:
      content["chat_template"] = self.chat_template._asdict()
    return dump(self, content)

  def with_start(self) -> "LibraryTokenizer":
    """Returns a copy whose start_ids are what its post_processor adds."""
    with limits.guard(f"{self.name} cannot encode a text"):
      ids = self._inner.encode("").ids
    return LibraryTokenizer(
      self._library,
      self.name,
      self.separator_id,
      ids,
      chat_template=self.chat_template,
    )

  def with_pairs(self, start: int, end: int) -> "LibraryTokenizer":
    """Returns a copy for a model that reads sources.

    Args:
      start: the id that begins a target.
      end: the id that ends targets and sources. A source begins with the
        start_ids of `with_start`.
    """
    ids = list(self.with_start().start_ids)
    if ids[-1:] == [end]:
      ids.pop()
    return LibraryTokenizer(
      self._library,
      self.name,
      self.separator_id,
      ids,
      (start, end),
      self.chat_template,
    )

  def id_of(self, token: str | None) -> int | None:
    """Returns the id of a token, or None if it is not in the vocabulary."""
    return None if token is None else self._inner.token_to_id(token)

  def special_tokens(self) -> list[str]:
    """Returns the added tokens that are marked as special."""
    return limits.special_tokens(self._library)

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_inner"}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._inner = limits.build(self._library, self.name)

  def _list_token_bytes(self) -> list[bytes]:
    """Returns the bytes of each token of a byte-level vocabulary."""
    byte_of = {c: byte for byte, c in enumerate(limits.byte_characters())}
    added = {t["content"] for t in self._library["added_tokens"]}
    table = [b""] * self.vocab_size
    for token, i in self._inner.get_vocab(with_added_tokens=True).items():
      if i == self.separator_id:
        continue
      if token in added or any(char not in byte_of for char in token):
        table[i] = token.encode("utf-8")
      else:
        table[i] = bytes(byte_of[char] for char in token)
    return table

  def _find_safe_cuts(self) -> str:
    """Returns the characters ("\\n", " ") at which text may be cut.

    A cut is made after a newline or before a space, if it stands between two
    characters that are not whitespace. Whether such a cut changes tokens
    depends on the rules of the vocabulary, so it is tried on examples.
    """
    for token in self._library["added_tokens"]:
      if token["special"]:
        continue
      is_wide = token["lstrip"] or token["rstrip"]
      if is_wide or re.search(r"\s", token["content"]):
        return ""
    at_newlines = (
      ("ends here.\n", "Then 12 more"),
      ("x = f(y);\n", "_z'll 3.5"),
      ("國。\n", "é\r\n--"),
      ("word\n", "word"),
    )
    if any(not self._concatenates(a, b) for a, b in at_newlines):
      return ""
    # Examples cannot cover every rule about spaces, so cut at spaces only under
    # GPT-2's regular expression, where a word takes its leading space along.
    at_spaces = (("one", " two"), ("x;", " 'll"), ("7", " 8"), ("國", " (a"))
    is_gpt2 = limits.has_gpt2_rules(self._library)
    if is_gpt2 and all(self._concatenates(a, b) for a, b in at_spaces):
      return "\n "
    return "\n"

  def _concatenates(self, a: str, b: str) -> bool:
    """Returns whether the ids of a + b are the ids of a, then the ids of b."""
    try:
      left, right, both = self.encode_batch([a, b, a + b])
    except InputError:  # the vocabulary lacks these letters
      return False
    return np.array_equal(np.concatenate([left, right]), both)

  def _find_cut(self, text: str, start: int) -> int | None:
    """Returns where the piece that begins at `start` ends.

    This is the last safe cut within PIECE_LEN characters, else the first safe
    cut beyond, else None.
    """
    stop = start + PIECE_LEN
    for mark in self._cuts:
      after = 1 if mark == "\n" else 0
      at = text.rfind(mark, start + 1, stop)
      while at > start:
        if _is_lone(text, at):
          return at + after
        at = text.rfind(mark, start + 1, at)
    for mark in self._cuts:
      after = 1 if mark == "\n" else 0
      at = text.find(mark, stop)
      while at >= 0:
        if _is_lone(text, at):
          return at + after
        at = text.find(mark, at + 1)
    return None


def _is_lone(text: str, at: int) -> bool:
  """Returns whether neither neighbour of text[at] is whitespace."""
  return (
    0 < at < len(text) - 1
    and not text[at - 1].isspace()
    and not text[at + 1].isspace()
  )
