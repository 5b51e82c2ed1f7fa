"""Constrained decoding: which tokens may come next in JSON of a given schema.

llguidance follows the schema. This module gives it the run's tokenizer, and
keeps one matcher for each text.
"""

import functools
import json
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.deploy.serve.fields import Refusal

# No free whitespace between JSON tokens: a weak model could write it endlessly.
OPTIONS = {"whitespace_flexible": False}
MAX_SCHEMA_CHARS = 65_536
# Most characters of the library's reason in an error.
MAX_WHY = 200


class _Vocabulary:
  """A run's tokenizer, with the interface that llguidance expects.

  Attributes:
    tokens: bytes of each id.
    eos_token_id, bos_token_id, special_token_ids: ids that stand for no text.
  """

  bos_token_id = None

  def __init__(self, tokenizer, end_id: int):
    self.tokens = [tokenizer.spell(i) for i in range(tokenizer.vocab_size)]
    self.eos_token_id = end_id
    # llguidance would always allow an id without bytes.
    self.special_token_ids = [
      i for i, data in enumerate(self.tokens) if not data or i == end_id
    ]
    for i in self.special_token_ids:
      self.tokens[i] = b"\xff" + f"[{i}]".encode()
    self._tokenizer = tokenizer
    found = ((data, i) for i, data in enumerate(self.tokens))
    texts = {data: i for data, i in found if i not in self.special_token_ids}
    self._ids, self._longest = texts, max(map(len, texts), default=0)

  def __call__(self, text: str) -> list[int]:
    """Returns ids whose bytes are exactly those of a part of a text."""
    ids, data = self._tokenizer.encode(text).tolist(), text.encode("utf-8")
    if b"".join(self.tokens[i] for i in ids) == data:
      return ids
    # Many vocabularies put a space before a text; then match tokens greedily.
    ids, start = [], 0
    while start < len(data):
      ends = range(min(len(data), start + self._longest), start, -1)
      end = next((e for e in ends if data[start:e] in self._ids), None)
      if end is None:
        break
      ids.append(self._ids[data[start:end]])
      start = end
    return ids


class Grammars:
  """Makes matchers for the texts of a tokenizer.

  Args:
    tokenizer: of the run; its separator ends a text.
  """

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer

  @functools.cached_property
  def _library(self) -> Any:
    """Returns llguidance; raises Refusal where it is not installed."""
    try:
      import llguidance
    except ImportError:
      raise Refusal(
        400,
        "response_format needs the package llguidance, which this server "
        f"lacks: {files.pip('grammar')}",
        param="response_format",
      ) from None
    return llguidance

  @functools.cached_property
  def _vocabulary(self):
    library, end_id = self._library, self._tokenizer.separator_id
    if end_id is None:
      raise Refusal(
        400,
        "the run's tokenizer has no separator, with which a text would end",
        param="response_format",
      )
    wrapped = library.TokenizerWrapper(_Vocabulary(self._tokenizer, end_id))
    return library.LLTokenizer(wrapped)

  def matcher(self, schema: Any) -> "Matcher":
    """Returns a Matcher of texts of a JSON schema.

    Raises:
      Refusal: the schema is invalid, too long or beyond the library's limits,
        or no text matches it, or llguidance is not installed.
    """
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
      raise Refusal(
        400,
        f"the schema has more than {MAX_SCHEMA_CHARS:,} characters",
        param="response_format",
      )
    library = self._library
    grammar = library.LLMatcher.grammar_from_json_schema(
      json.dumps(schema), overrides=OPTIONS
    )
    found = library.LLMatcher(self._vocabulary, grammar, log_level=0)
    if found.is_error():
      raise _no_schema(" ".join(found.get_error().split()))
    matcher = Matcher(found)
    if matcher.is_lost:
      raise _no_schema("no text is of it, as it asks for itself alone")
    return matcher


def _no_schema(why: str) -> Refusal:
  shown = why if len(why) <= MAX_WHY else f"{why[: MAX_WHY - 3]}..."
  return Refusal(
    400, f"the schema cannot be followed: {shown}", param="response_format"
  )


class Matcher:
  """Follows one text through a schema.

  Attributes:
    is_done: whether the text is complete, and must end.
    is_lost: whether no token may come next and the text is not complete, as
      with a schema that requires itself without end.
  """

  def __init__(self, matcher):
    self._matcher, self.is_done = matcher, False
    self._look()

  def _look(self) -> None:
    """Computes the mask of next tokens; the library finds dead ends only so."""
    self._next = self._matcher.compute_bitmask()
    self.is_lost = self._matcher.is_error()

  def copy(self) -> "Matcher":
    return Matcher(self._matcher.deep_copy())

  def fill(self, mask_W: np.ndarray) -> None:
    """Writes a mask into mask_W, with a bit set for each token allowed next."""
    own = np.frombuffer(self._next, np.uint32)
    mask_W[:] = 0
    mask_W[: len(own)] = own[: len(mask_W)]

  def push(self, i: int) -> None:
    """Adds a token that was drawn."""
    self._matcher.consume_token(i)
    self.is_done = self._matcher.is_stopped()
    self.is_lost = self._matcher.is_error()
    if not self.is_done:
      self._look()
