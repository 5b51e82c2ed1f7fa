"""The `tokenizers` library, and limits on what a tokenizer.json may demand.

Such a file comes from a third party and is a program: it can make the library
panic, expand a letter into a megabyte, or number its tokens up to 2^32. Its
demands are checked here before any text is encoded. Regular expressions are
limited by the library itself: Oniguruma panics after 10 million retries.
"""

import base64
import contextlib
import json
import re

from gpt_jax import digest, files
from gpt_jax.exits import InputError

# The most bytes of a vocabulary file; a million tokens take 60 MB.
MAX_FILE_BYTES = 1 << 28
# With V tokens, every id must be below 2 V plus this.
MAX_GAP = 1024
# The most characters of a replacement, prefix or suffix.
MAX_STRING = 1024
# The most characters that a normalizer or decoder may turn one character into.
# NFKC turns U+FDFA into 18 characters, and T5's table has one of 33 bytes.
MAX_GROWTH = 128

# End tokens, the preferred ones first. If there is none, names are compared
# without their brackets; a begin token separates as well as an end token.
SEPARATORS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
_SEPARATOR_NAMES = (
  *("endoftext", "/s", "eos", "end_of_text", "end_of_sentence", "eos_token"),
  *("end_of_document", "endofdoc", "eod", "eot", "eot_id", "sep", "im_end"),
  *("return", "bos", "s", "begin_of_text", "begin_of_sentence", "bos_token"),
  *("startoftext", "cls"),
)


def read_bytes(path: str) -> bytes:
  """Returns the content of a vocabulary file.

  Raises:
    InputError: it is missing, not a regular file, or above MAX_FILE_BYTES.
  """
  try:
    return files.read_bytes(path, MAX_FILE_BYTES)
  except files.Damage as damage:
    raise InputError(
      f"cannot read the vocabulary file {path} of data.tokenizer: it {damage}"
    ) from None


def hash_files(paths: list[str]) -> str:
  """Returns the digest of the digests of files, in the order given."""
  found = [bytes.fromhex(digest.of_bytes(read_bytes(path))) for path in paths]
  return digest.of_bytes(b"".join(found))


def byte_characters() -> list[str]:
  """Returns the character that byte-level BPE writes for each byte.

  Printable bytes stand for themselves, the others for U+0100 and onwards
  (Radford et al. 2019, encoder.py).
  """
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [b for b in range(256) if b not in shown]
  code = {b: b for b in shown}
  code.update({b: 256 + i for i, b in enumerate(hidden)})
  return [chr(code[b]) for b in range(256)]


@contextlib.contextmanager
def guard(what: str):
  """Turns what the library raises into InputError("<what>: <why>").

  Its panics are of a class that cannot be imported, PanicException, whose only
  base is BaseException.
  """
  try:
    yield
  except InputError:
    raise
  except BaseException as error:
    is_panic = type(error).__name__ == "PanicException"
    if not is_panic and not isinstance(error, Exception):
      raise
    why = " ".join(str(error).split())[:300] or type(error).__name__
    raise InputError(f"{what}: {why}") from None


def build(library: dict, name: str):
  """Returns the library's tokenizer for a tokenizer.json.

  Args:
    library: the parsed content of the file.
    name: what errors call it.

  Raises:
    InputError: the library refuses it, or it exceeds MAX_GAP, MAX_STRING or
      MAX_GROWTH.
  """
  from tokenizers import Tokenizer

  wrong = f"the vocabulary of {name} cannot be used"
  with guard(wrong):
    inner = Tokenizer.from_str(json.dumps(library))
    _check_steps(library, wrong)
    vocab = inner.get_vocab(with_added_tokens=True)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
  if not vocab:
    raise InputError(f"the vocabulary of {name} is empty")
  token = max(vocab, key=lambda token: vocab[token])
  if vocab[token] >= 2 * len(vocab) + MAX_GAP:
    raise InputError(
      f"{wrong}: the id of {token!r} is {vocab[token]:,} and there are "
      f"{len(vocab):,} tokens; ids must be numbered without large gaps"
    )
  dropout = library["model"].get("dropout")
  if dropout:
    raise InputError(
      f"{wrong}: its model.dropout is {dropout}, with which a text has other "
      "ids each time; set it to null"
    )
  return inner


def special_tokens(library: dict) -> list[str]:
  """Returns the added tokens that are marked as special."""
  return [t["content"] for t in library["added_tokens"] if t["special"]]


def find_separator(library: dict) -> str | None:
  """Returns the token that ends documents, or None if none is recognized.

  Only special tokens count: an ordinary token with these characters is text.
  """
  special = special_tokens(library)
  for word in SEPARATORS:
    if word in special:
      return word
  # If two tokens reduce to one name, take the first: a dict keeps the last.
  named = {_bare(word): word for word in reversed(special)}
  return next((named[n] for n in _SEPARATOR_NAMES if n in named), None)


def has_gpt2_rules(library: dict) -> bool:
  """Returns whether GPT-2's regular expression splits the text into words."""
  rules = library.get("pre_tokenizer") or {}
  return (
    not library.get("normalizer")
    and rules.get("type") == "ByteLevel"
    and not rules.get("add_prefix_space", True)
    and rules.get("use_regex", True)
  )


def is_byte_level(library: dict) -> bool:
  """Returns whether each token stands for bytes that decoding concatenates."""
  return [step["type"] for step in _steps(library, "decoder")] == ["ByteLevel"]


def has_byte_tokens(library: dict) -> bool:
  """Returns whether decoding reads tokens such as <0x0A> as bytes."""
  return any(s["type"] == "ByteFallback" for s in _steps(library, "decoder"))


def _bare(word: str) -> str:
  """Returns "end_of_sentence" for "<｜end▁of▁sentence｜>"."""
  return re.sub(r"[\s▁-]", "_", word.strip("<>[]|｜ ")).lower()


def _steps(library: dict, part: str) -> list[dict]:
  """Returns the steps of a normalizer or decoder, with sequences flattened."""
  inner = {"normalizer": "normalizers", "decoder": "decoders"}[part]
  todo, steps = [library.get(part)], []
  while todo:
    step = todo.pop(0)
    if step and step["type"] == "Sequence":
      todo = step[inner] + todo
    elif step:
      steps.append(step)
  return steps


def _check_steps(library: dict, wrong: str) -> None:
  for part in ("normalizer", "pre_tokenizer", "model", "decoder"):
    for key, text in _strings(library.get(part)):
      if len(text) > MAX_STRING:
        raise InputError(
          f"{wrong}: {key!r} of its {part} has {len(text):,} characters; at "
          f"most {MAX_STRING:,} are taken"
        )
  for part in ("normalizer", "decoder"):
    growth = _growth(_steps(library, part))
    if growth > MAX_GROWTH:
      raise InputError(
        f"{wrong}: its {part} may make {growth:,} characters of one; at most "
        f"{MAX_GROWTH} are taken"
      )


def _strings(node, key: str = ""):
  """Yields (key, text) of all strings except tables and regular expressions."""
  if isinstance(node, str):
    yield key, node
  elif isinstance(node, dict):
    for name, inner in node.items():
      if name not in ("vocab", "merges", "precompiled_charsmap", "Regex"):
        yield from _strings(inner, name)
  elif isinstance(node, list):
    for inner in node:
      yield from _strings(inner, key)


def _growth(steps: list[dict]) -> int:
  """Returns an upper bound on the characters that one character may become.

  Growth multiplies where a step may match the output of an earlier step: its
  pattern is a regular expression, or shares a character with that output.
  """
  written = []  # (output of a step, None for any text; growth up to it)
  for step in steps:
    pattern, factor, content = None, 1, None
    if step["type"] == "Replace":
      content = step["content"]
      pattern = step["pattern"].get("String") or None
      factor = -(-len(content) // len(pattern or "x"))
      # A pattern that matches the empty string adds to the text.
      factor += pattern is None and len(content) > 1
    elif step["type"] == "Prepend":
      content = step["prepend"]
      factor = len(content)
    elif step["type"] == "Precompiled":
      factor = _longest_mapped(step["precompiled_charsmap"])
    else:
      continue
    before = [
      growth
      for made, growth in written
      if pattern is None or made is None or set(pattern) & set(made)
    ]
    written.append((content, max(1, factor) * max(before, default=1)))
  return max((growth for _, growth in written), default=1)


def _longest_mapped(charsmap: str) -> int:
  """Returns the length in bytes of the longest text in a SentencePiece table.

  The table holds the size of a trie (4 bytes), the trie, and texts that end
  in 0.
  """
  table = base64.b64decode(charsmap)
  texts = table[4 + int.from_bytes(table[:4], "little") :]
  return max(map(len, texts.split(b"\0")), default=1)
