"""Text to token ids and back: bytes, characters, byte-pair encodings.

Design choice: special tokens are never read from text. A document
that spells "<|endoftext|>" gets the tokens of these characters, and only the
store writes separators; on the way back a separator decodes to nothing.
"""

import base64
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from gpt_jax import files
from gpt_jax.data import library as library_lib
from gpt_jax.exits import InputError

SEPARATOR = "<|endoftext|>"
KINDS = "bytes, chars, bpe:SIZE, gpt2:PATH, hf:PATH"
FORMAT = 1

# Pieces of this many characters are encoded at once: large enough that calls
# cost nothing, small enough that a batch of them keeps every core busy.
PIECE_LEN = 1 << 15

_GPT2_VOCAB = 50257
# Bytes of a vocabulary file; that of a million tokens has 60 MB.
MAX_FILE_BYTES = 1 << 28
# Bytes of a token of a .tiktoken file; GPT-2's longest has 128.
_MAX_TOKEN_BYTES = 1024
# Texts that normalizers, decoders and small vocabularies change.
_PROBES = (
  *("Word", "déjà", "e\u0301", "ﬁve", "a  b", "a\tb", "a\n\nb", " a", "a "),
  *("x ,y", "do n't", "“a”", "a…", "a\xa0b", "Ⅳ", "國", "🙂"),
)


class Tokenizer(Protocol):
  """What every tokenizer offers.

  Attributes:
    name: the spec that it was made from, such as "bpe:4096".
    vocab_size: V; every id is below it.
    separator_id: the id put before each document, or None.
  """

  name: str
  vocab_size: int
  separator_id: int | None

  def encode(self, text: str) -> np.ndarray:
    """Returns uint32 ids, 1-D.

    Raises:
      InputError: the text holds what this vocabulary cannot say.
    """

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    """Returns `encode` of each text, on all cores where that helps."""

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    """Yields the same text in pieces whose encodings simply concatenate."""

  def decode(self, ids) -> str:
    """Returns the text of ids; broken UTF-8 becomes U+FFFD."""

  def decode_bytes(self, ids) -> bytes:
    """Returns the exact bytes of ids; separators give none."""

  def fingerprint(self) -> str:
    """Returns the sha256 hex of all that decides ids."""

  def to_json(self) -> str:
    """Returns what `from_json` and `load` read back."""


class ByteTokenizer:
  """The 256 bytes of UTF-8 and a separator: V = 257."""

  def __init__(self, name: str = "bytes"):
    self.name = name
    self.vocab_size = 257
    self.separator_id = 256

  def encode(self, text: str) -> np.ndarray:
    data = _utf8(text)
    return np.frombuffer(data, np.uint8).astype(np.uint32)

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def split(self, pieces: Iterable[str]) -> Iterator[str]:
    return (piece for piece in pieces if piece)

  def decode(self, ids) -> str:
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def decode_bytes(self, ids) -> bytes:
    ids = _checked_ids(ids, self.vocab_size)
    return ids[ids < 256].astype(np.uint8).tobytes()

  def fingerprint(self) -> str:
    return _sha256({"kind": "bytes"})

  def to_json(self) -> str:
    return _dump(self, {"kind": "bytes"})


class CharTokenizer:
  """One id for each character of the corpus, in code point order.

  Args:
    characters: the vocabulary; order and repetition do not matter.
  """

  def __init__(self, characters: Iterable[str], name: str = "chars"):
    self.name = name
    self.separator_id = None
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

  def decode(self, ids) -> str:
    codes = self._codes[_checked_ids(ids, self.vocab_size)]
    return codes.astype("<u4").tobytes().decode("utf-32-le")

  def decode_bytes(self, ids) -> bytes:
    return self.decode(ids).encode("utf-8")

  def fingerprint(self) -> str:
    return _sha256({"kind": "chars", "characters": self._characters})

  def to_json(self) -> str:
    return _dump(self, {"kind": "chars", "characters": self._characters})


class LibraryTokenizer:
  """A tokenizer of the `tokenizers` library: bpe:, gpt2: and hf:.

  Args:
    library: the content of a tokenizer.json, as parsed.
    name: the spec that it came from.
    separator_id: the id put before documents, or None.
  """

  def __init__(self, library: dict, name: str, separator_id: int | None):
    self.name = name
    self.separator_id = separator_id
    self._library = library
    self._inner = library_lib.build(library, name)
    vocab = self._inner.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values()) + 1
    if separator_id is not None and (
      type(separator_id) is not int or not 0 <= separator_id < self.vocab_size
    ):
      raise InputError(
        f"the separator of {name} has the id {separator_id!r}; it must be one "
        f"of its {self.vocab_size} tokens"
      )
    self._token_bytes = None
    self._cuts = self._safe_cuts()

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    try:
      with library_lib.guard(f"{self.name} cannot encode the text"):
        found = self._inner.encode_batch_fast(texts, add_special_tokens=False)
    except InputError:
      for text in texts:
        _utf8(text)
      raise
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
        cut = self._cut(rest, start)
        if cut is None:
          break
        yield rest[start:cut]
        start = cut
      rest = rest[start:]
    if rest:
      yield rest

  def decode(self, ids) -> str:
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def decode_bytes(self, ids) -> bytes:
    ids = _checked_ids(ids, self.vocab_size).tolist()
    if not library_lib.is_byte_level(self._library):
      ids = [i for i in ids if i != self.separator_id]
      with library_lib.guard(f"{self.name} cannot decode these ids"):
        text = self._inner.decode(ids, skip_special_tokens=False)
      return text.encode("utf-8")
    if self._token_bytes is None:
      self._token_bytes = self._list_token_bytes()
    return b"".join([self._token_bytes[i] for i in ids])

  def fingerprint(self) -> str:
    kept = {"library": self._library, "separator_id": self.separator_id}
    return _sha256(kept)

  def to_json(self) -> str:
    content = {
      "kind": "library",
      "separator_id": self.separator_id,
      "library": self._library,
    }
    return _dump(self, content)

  def id_of(self, token: str | None) -> int | None:
    """Returns the id of a token, None where there is none."""
    return None if token is None else self._inner.token_to_id(token)

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_inner"}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._inner = library_lib.build(self._library, self.name)

  def _list_token_bytes(self) -> list[bytes]:
    byte_of = {char: byte for byte, char in enumerate(_byte_characters())}
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

  def _safe_cuts(self) -> str:
    """Returns the characters ("\\n", " ") at which text may be cut.

    A cut lies after a lone newline or before a lone space, both between
    characters that are not whitespace. Whether it changes tokens depends on
    the vocabulary's rules, so a probe decides.
    """
    for token in self._library["added_tokens"]:
      if token["special"]:
        continue
      is_wide = token["lstrip"] or token["rstrip"]
      if is_wide or re.search(r"\s", token["content"]):
        return ""
    probes = (
      ("ends here.\n", "Then 12 more"),
      ("x = f(y);\n", "_z'll 3.5"),
      ("國。\n", "é\r\n--"),
      ("word\n", "word"),
    )
    if any(not self._joins(a, b) for a, b in probes):
      return ""
    spaced = (("one", " two"), ("x;", " 'll"), ("7", " 8"), ("國", " (a"))
    known = library_lib.has_gpt2_rules(self._library)
    if known and all(self._joins(a, b) for a, b in spaced):
      return "\n "
    return "\n"

  def _joins(self, a: str, b: str) -> bool:
    try:
      left, right, both = self.encode_batch([a, b, a + b])
    except InputError:  # a vocabulary without these letters
      return False
    return np.array_equal(np.concatenate([left, right]), both)

  def _cut(self, text: str, start: int) -> int | None:
    """Returns where the piece from `start` ends: the last cut in PIECE_LEN,
    else the first after it, else None."""
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


def parse_spec(spec: str) -> tuple[str, str]:
  """Returns (kind, argument) of a tokenizer spec.

  Raises:
    InputError: the kind is unknown, or its size or path is missing or wrong.
  """
  kind, colon, argument = spec.partition(":")
  if kind in ("bytes", "chars") and not colon:
    return kind, ""
  if kind == "bpe" and colon:
    is_number = re.fullmatch("[0-9]{1,9}", argument)
    if not is_number or not 257 <= int(argument) <= 1 << 20:
      raise InputError(
        f"data.tokenizer is {spec!r}; the size of a bpe vocabulary must be a "
        "whole number from 257 (256 bytes and the separator) to 1048576"
      )
    return kind, argument
  if kind in ("gpt2", "hf") and argument:
    return kind, argument
  raise InputError(f"data.tokenizer is {spec!r}; it must be one of {KINDS}")


def is_trained(spec: str) -> bool:
  """Returns whether the vocabulary is made from the corpus."""
  return parse_spec(spec)[0] in ("chars", "bpe")


def identity(spec: str) -> str:
  """Returns what names the vocabulary before it is built: the spec, or the
  hash of its files. Cheap, and without the tokenizers library.

  Raises:
    InputError: the spec is wrong or a file is not there.
  """
  kind, argument = parse_spec(spec)
  if kind == "gpt2":
    return "gpt2:" + _hash_files(_gpt2_files(argument))
  if kind == "hf":
    return "hf:" + _hash_files([_hf_file(argument)])
  return spec


def build_tokenizer(spec: str) -> Tokenizer:
  """Returns the tokenizer of a spec that needs no corpus.

  Raises:
    InputError: the vocabulary is missing, cut short or not one.
  """
  kind, argument = parse_spec(spec)
  if kind == "bytes":
    return ByteTokenizer(spec)
  if kind == "gpt2":
    return _read_gpt2(argument, spec)
  if kind == "hf":
    return _read_hf(argument, spec)
  raise InputError(f"data.tokenizer {spec!r} is made from a corpus")


def train_bpe(
  spec: str, pieces: Iterable[str], show_progress: bool = False
) -> Tokenizer:
  """Returns a byte-level BPE of at most SIZE tokens, the separator the last.

  Args:
    spec: "bpe:SIZE".
    pieces: text; a corpus too small for SIZE gives fewer tokens.
    show_progress: draw the library's bar.
  """
  from tokenizers import Tokenizer as Library
  from tokenizers import decoders, models, pre_tokenizers, trainers

  size = int(parse_spec(spec)[1])
  inner = Library(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size - 1,
    min_frequency=2,
    show_progress=show_progress,
    initial_alphabet=sorted(_byte_characters()),
  )
  with library_lib.guard(f"the vocabulary of {spec} cannot be learned"):
    inner.train_from_iterator(pieces, trainer)
    inner.add_special_tokens([SEPARATOR])
    library = json.loads(inner.to_str())
  return LibraryTokenizer(library, spec, inner.token_to_id(SEPARATOR))


def load(path: str | os.PathLike) -> Tokenizer:
  """Returns the tokenizer that `to_json` wrote into a file.

  Raises:
    InputError: the file is missing or not such a file.
  """
  try:
    text = files.read_text(str(path), MAX_FILE_BYTES)
  except files.Damage as damage:
    raise InputError(f"cannot read the tokenizer {path}: it {damage}") from None
  return from_json(text, str(path))


def from_json(text: str, where: str = "the text") -> Tokenizer:
  """Returns the tokenizer of `to_json`'s text; `where` names it in errors.

  Raises:
    InputError: the text is not that of `to_json`.
  """
  try:
    content = files.parse_json(text)
    if content["gpt_jax_tokenizer"] != FORMAT:
      raise InputError(
        f"{where} holds a tokenizer of format {content['gpt_jax_tokenizer']}; "
        f"this version reads format {FORMAT}"
      )
    name, kind = content["name"], content["kind"]
    if type(name) is not str:
      raise TypeError(f"name is {name!r:.40}")
    if kind == "bytes":
      return ByteTokenizer(name)
    if kind == "chars":
      if type(content["characters"]) is not str or not content["characters"]:
        raise TypeError("characters is not a text")
      return CharTokenizer(content["characters"], name)
    if kind != "library":
      raise ValueError(f"kind is {kind!r:.40}")
    return LibraryTokenizer(content["library"], name, content["separator_id"])
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(
      f"{where} does not hold a tokenizer of this project ({error!r})"
    ) from None


def remarks(tokenizer: Tokenizer) -> list[str]:
  """Returns lines on what a tokenizer of others does to a text.

  It may have no separator, or give back another text than it was given.
  """
  if not isinstance(tokenizer, LibraryTokenizer):
    return []
  lines = []
  if tokenizer.separator_id is None:
    special = library_lib.special_tokens(tokenizer._library)
    found = ", ".join(map(repr, itertools.islice(special, 8))) or "none"
    lines.append(
      f"{tokenizer.name} has no end token that is known here (its special "
      f"tokens: {found}): documents follow each other without a separator"
    )
  for probe in _PROBES:
    try:
      back = tokenizer.decode(tokenizer.encode(probe))
    except InputError:
      continue
    if back != probe:
      lines.append(
        f"{tokenizer.name} changes text: {probe!r} comes back as {back!r}; "
        "losses and bits per byte are of the changed text, and compare with "
        "no other tokenizer's"
      )
      break
  return lines


def _dump(tokenizer: Tokenizer, content: dict) -> str:
  head = {"gpt_jax_tokenizer": FORMAT, "name": tokenizer.name}
  return json.dumps(head | content, ensure_ascii=False)


def _sha256(content) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _utf8(text: str) -> bytes:
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError as error:
    code = ord(text[error.start])
    # How Python passes on a byte of the command line that it cannot decode.
    is_byte = 0xDC80 <= code <= 0xDCFF
    what = (
      f"byte {code - 0xDC00:#04x} at position {error.start}, which is not UTF-8"
      if is_byte
      else f"{text[error.start]!r} at position {error.start}, half of a "
      "surrogate pair"
    )
    raise InputError(f"the text holds {what}; it must be Unicode") from None


def _code_points(text: str) -> np.ndarray:
  try:
    data = text.encode("utf-32-le")
  except UnicodeEncodeError:
    data = _utf8(text)
  return np.frombuffer(data, "<u4")


def _checked_ids(ids, vocab_size: int) -> np.ndarray:
  ids = np.asarray(ids).reshape(-1)
  if ids.size == 0:
    return ids.astype(np.int64)
  for i in (ids.min(), ids.max()):
    if not 0 <= i < vocab_size:
      raise InputError(
        f"token id {i} is outside the vocabulary of {vocab_size} tokens"
      )
  return ids.astype(np.int64)


def _is_lone(text: str, at: int) -> bool:
  """Returns whether text[at] stands between two that are not whitespace."""
  return (
    0 < at < len(text) - 1
    and not text[at - 1].isspace()
    and not text[at + 1].isspace()
  )


def _byte_characters() -> list[str]:
  """Returns the character that byte-level BPE writes for each byte.

  Printable bytes stand for themselves, the others for U+0100 and onwards
  (Radford et al. 2019, encoder.py).
  """
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [b for b in range(256) if b not in shown]
  code = {b: b for b in shown}
  code.update({b: 256 + i for i, b in enumerate(hidden)})
  return [chr(code[b]) for b in range(256)]


def _byte_level_library(vocab: dict[str, int], merges: list) -> dict:
  """Returns GPT-2's rules around a vocabulary, as a tokenizer.json."""
  level = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
  }
  separator = {
    "id": vocab[SEPARATOR],
    "content": SEPARATOR,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
  }
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [separator],
    "normalizer": None,
    "pre_tokenizer": level,
    "post_processor": None,
    "decoder": level,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": vocab,
      "merges": [list(pair) for pair in merges],
    },
  }


def _hash_files(paths: list[str]) -> str:
  digest = hashlib.sha256()
  for path in paths:
    digest.update(hashlib.sha256(_read_bytes(path)).digest())
  return digest.hexdigest()


def _read_bytes(path: str) -> bytes:
  try:
    return files.read_bytes(path, MAX_FILE_BYTES)
  except files.Damage as damage:
    raise InputError(
      f"cannot read the vocabulary file {path} of data.tokenizer: it {damage}"
    ) from None


def _gpt2_files(path: str) -> list[str]:
  path = files.user_path("data.tokenizer", path)
  if not os.path.lexists(path):
    raise InputError(
      f"{path} of data.tokenizer does not exist; gpt2:PATH names the folder of "
      "encoder.json and vocab.bpe, or a .tiktoken file"
    )
  if not os.path.isdir(path):
    return [path]
  pairs = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
  for names in pairs:
    found = [os.path.join(path, name) for name in names]
    if all(os.path.lexists(f) for f in found):
      return found
  try:
    ranks = sorted(f for f in os.listdir(path) if f.endswith(".tiktoken"))
  except OSError as error:
    raise InputError(
      f"{path} of data.tokenizer cannot be read: {error.strerror}"
    ) from None
  if len(ranks) == 1:
    return [os.path.join(path, ranks[0])]
  raise InputError(
    f"{path} of data.tokenizer holds no GPT-2 vocabulary; it must hold "
    "encoder.json and vocab.bpe, vocab.json and merges.txt, or one .tiktoken"
  )


def _hf_file(path: str) -> str:
  path = files.user_path("data.tokenizer", path)
  return os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path


def _read_gpt2(path: str, spec: str) -> Tokenizer:
  files = _gpt2_files(path)
  if len(files) == 1:
    vocab, merges = _read_ranks(files[0])
  else:
    vocab, merges = _read_merges(*files)
  vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
  if list(vocab.values()) != list(range(_GPT2_VOCAB)):
    raise InputError(
      f"{files[0]} holds {len(vocab)} tokens; the GPT-2 vocabulary has "
      f"{_GPT2_VOCAB}, numbered from 0 without gaps"
    )
  if list(vocab)[-1] != SEPARATOR or len(merges) != _GPT2_VOCAB - 257:
    raise InputError(
      f"{files[-1]} gives {len(merges)} merges and {list(vocab)[-1]!r} as the "
      f"last token; GPT-2 has {_GPT2_VOCAB - 257} and {SEPARATOR!r}"
    )
  return LibraryTokenizer(
    _byte_level_library(vocab, merges), spec, vocab[SEPARATOR]
  )


def _read_merges(vocab_file: str, merges_file: str):
  try:
    vocab = files.parse_json(_read_bytes(vocab_file))
    valid = all(type(i) is int for i in vocab.values())
  except (ValueError, AttributeError):
    valid = False
  if not valid:
    raise InputError(
      f"{vocab_file} is not a vocabulary; it must be one JSON object of "
      "{token: id}"
    )
  merges = []
  lines = _read_bytes(merges_file).decode("utf-8", errors="replace")
  for number, line in enumerate(lines.split("\n"), 1):
    if not line.strip() or (number == 1 and line.startswith("#version")):
      continue
    pair = line.split()
    if len(pair) != 2 or pair[0] + pair[1] not in vocab:
      raise InputError(
        f"{merges_file}, line {number} is {line[:40]!r}; each line must be two "
        "tokens that join to one of the vocabulary"
      )
    merges.append(pair)
  return vocab, merges


def _read_ranks(path: str):
  """Returns (vocab, merges) of a .tiktoken file: base64 token and its rank.

  The merges are not in the file. A token's last merge joins the two parts
  that remain when its bytes are merged by lower ranks only.
  """
  ranks = {}
  for number, line in enumerate(_read_bytes(path).splitlines(), 1):
    try:
      token, rank = line.split()
      token = base64.b64decode(token, validate=True)
      if len(token) > _MAX_TOKEN_BYTES:
        raise ValueError
      ranks[token] = int(rank)
    except ValueError:
      raise InputError(
        f"{path}, line {number} is {line[:40]!r}; each line must be a base64 "
        "token and its rank"
      ) from None
  if len(ranks) != _GPT2_VOCAB - 1:
    raise InputError(
      f"{path} holds {len(ranks)} ranks; that of GPT-2 has {_GPT2_VOCAB - 1}"
    )
  chars = _byte_characters()
  shown = {t: "".join(chars[b] for b in t) for t in ranks}
  merges = []
  for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
    if len(token) == 1:
      continue
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
      joined = [
        ranks[a + b] if a + b in ranks else rank
        for a, b in zip(parts, parts[1:], strict=False)
      ]
      i = (
        int(np.argmin(joined)) if len(joined) > 8 else joined.index(min(joined))
      )
      if joined[i] >= rank:
        break
      parts[i : i + 2] = [parts[i] + parts[i + 1]]
    if len(parts) != 2 or not all(part in ranks for part in parts):
      raise InputError(
        f"{path}: token {token!r} of rank {rank} joins no two tokens of lower "
        "rank; this is not a byte-pair vocabulary"
      )
    merges.append([shown[parts[0]], shown[parts[1]]])
  vocab = {shown[t]: rank for t, rank in ranks.items()}
  vocab[SEPARATOR] = len(ranks)
  return vocab, merges


def _read_hf(path: str, spec: str) -> Tokenizer:
  file = _hf_file(path)
  data = _read_bytes(file)
  why = ""
  try:
    library = files.parse_json(data)
    if "gpt_jax_tokenizer" in library:  # as a run's workdir holds it
      return load(file)
    is_known = isinstance(library["model"], dict)
    is_known = is_known and isinstance(library["added_tokens"], list)
  except files.Damage as damage:
    is_known, why = False, f" (it {damage})"
  except (TypeError, LookupError, AttributeError):
    is_known = False
  if not is_known:
    raise InputError(
      f"{file} is not a tokenizer.json{why}; it must be a JSON object with a "
      "model and added_tokens"
    )
  encoder = LibraryTokenizer(library, spec, None)
  # By its word: the library numbers anew what the file numbers wrong.
  encoder.separator_id = encoder.id_of(library_lib.find_separator(library))
  return encoder
