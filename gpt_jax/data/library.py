"""The `tokenizers` library, and what a tokenizer.json may ask of it.

Such a file comes from others and is a program: it may panic, expand a letter
into a megabyte, or number its tokens up to 2^32. What it asks for is bounded
here before any text is encoded; the library bounds its own regular
expressions (Oniguruma stops after 10 million retries, and panics).
"""

import base64
import contextlib
import json
import re

from gpt_jax.exits import InputError

# A vocabulary's ids may leave gaps up to its number of tokens and this.
MAX_GAP = 1024
# Characters of a replacement, prefix or suffix.
MAX_STRING = 1024
# Characters that normalizing or decoding may make of one. Normal form KC makes
# 18 of U+FDFA, and the table of T5 33 bytes.
MAX_GROWTH = 128

# End tokens, the first that is there. The names after these are compared
# without brackets: a begin token separates as well as an end token.
SEPARATORS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
_SEPARATOR_NAMES = (
  *("endoftext", "/s", "eos", "end_of_text", "end_of_sentence", "eos_token"),
  *("end_of_document", "endofdoc", "eod", "eot", "eot_id", "sep", "im_end"),
  *("return", "bos", "s", "begin_of_text", "begin_of_sentence", "bos_token"),
  *("startoftext", "cls"),
)


@contextlib.contextmanager
def guard(what: str):
  """Raises InputError, "<what>: <why>", for whatever the library raises.

  Its panics (PanicException, a class that cannot be imported) derive from
  BaseException alone.
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
  """Returns the library's tokenizer of a tokenizer.json.

  Args:
    library: the file's content, as parsed.
    name: what it is called in errors.

  Raises:
    InputError: the library refuses it, or it asks for what MAX_GAP,
      MAX_STRING and MAX_GROWTH exclude.
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
  token = max(vocab, key=vocab.get)
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
  """Returns the added tokens that are special."""
  return [t["content"] for t in library["added_tokens"] if t["special"]]


def find_separator(library: dict) -> str | None:
  """Returns the token that ends documents, None where none is known.

  Only special tokens count: an ordinary token of the same characters is text.
  """
  special = special_tokens(library)
  for word in SEPARATORS:
    if word in special:
      return word
  # The first of a name counts.
  named = {_bare(word): word for word in reversed(special)}
  return next((named[n] for n in _SEPARATOR_NAMES if n in named), None)


def has_gpt2_rules(library: dict) -> bool:
  """Returns whether text is cut into words by GPT-2's regular expression."""
  rules = library.get("pre_tokenizer") or {}
  return (
    not library.get("normalizer")
    and rules.get("type") == "ByteLevel"
    and not rules.get("add_prefix_space", True)
    and rules.get("use_regex", True)
  )


def is_byte_level(library: dict) -> bool:
  """Returns whether tokens spell bytes, and decoding joins them."""
  return [step["type"] for step in _steps(library, "decoder")] == ["ByteLevel"]


def _bare(word: str) -> str:
  """Returns "end_of_sentence" of "<｜end▁of▁sentence｜>"."""
  return re.sub(r"[\s▁-]", "_", word.strip("<>[]|｜ ")).lower()


def _steps(library: dict, part: str) -> list[dict]:
  """Returns the steps of a normalizer or decoder, sequences flattened."""
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
  """Yields (key, text) of all texts but tables and regular expressions."""
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
  """Returns how many characters the steps make of one, at most.

  Steps multiply where a later one may match what an earlier one has written:
  its pattern shares a character with that, or is a regular expression.
  """
  written = []  # (characters, or None for any; growth up to there)
  for step in steps:
    pattern, factor, content = None, 1, None
    if step["type"] == "Replace":
      content = step["content"]
      pattern = step["pattern"].get("String") or None
      factor = -(-len(content) // len(pattern or "x"))
      # A pattern that matches nothing at all adds to what is there.
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
  """Returns the bytes of the longest text of a table of SentencePiece.

  The table is the size of a trie in bytes, the trie, and texts that end in 0.
  """
  table = base64.b64decode(charsmap)
  texts = table[4 + int.from_bytes(table[:4], "little") :]
  return max(map(len, texts.split(b"\0")), default=1)
