"""Decodes a text token by token, and gives what no later token changes."""

import codecs
import itertools
import os
from collections.abc import Sequence

from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.inference.texts import safe_length

# Each new token is decoded with a window of the tokens before it. When the
# window has WINDOW tokens, it shrinks to the last CONTEXT: enough for what a
# decoder does at a text's start, and for a character of several tokens.
CONTEXT = 8
WINDOW = 64


def find_offsets(tokenizer, ids: Sequence[int], prompt: str) -> list[int]:
  """Returns each token's offset in the text, in characters.

  A token that is a part of a character has the offset of that character. Start
  tokens such as <s>, and the space that a vocabulary puts before a prompt, are
  not in the text.

  Args:
    prompt: the prompt that the text begins with; "" if ids are drawn tokens
      alone.
  """
  starts = tuple(tokenizer.start_ids) if prompt else ()
  num_starts = len(starts) if tuple(ids[: len(starts)]) == starts else 0
  pieces = [b""] * num_starts + [tokenizer.spell(i) for i in ids[num_starts:]]
  is_padded = b"".join(pieces).startswith(b" " + prompt.encode("utf-8"))
  decoder = codecs.getincrementaldecoder("utf-8")("replace")
  sizes = [len(decoder.decode(piece)) for piece in pieces]
  cut = int(bool(prompt) and is_padded)
  ends = itertools.accumulate(sizes, initial=0)
  return [max(end - cut, 0) for end in ends][: len(ids)]


class Speech:
  """Gives the text that texts.cut_text gives of all tokens, token by token.

  Attributes:
    text: the text so far, with the end that is held back.
    is_done: whether a stop string or a separator has ended it.
  """

  def __init__(self, tokenizer, prompt: Sequence[int], stop: tuple[str, ...]):
    ends = (tokenizer.separator_id,)
    if isinstance(tokenizer, ChatTokenizer):
      ends, stop = tokenizer.end_ids, (*stop, *tokenizer.stop)
    self._tokenizer, self._ends = tokenizer, ends
    self._stop = tuple(filter(None, stop))
    self._longest = max(map(len, self._stop), default=0)
    self.text, self.is_done = "", False
    self._settled, self._shown = "", 0
    self._rebase([int(i) for i in prompt[-CONTEXT:]])

  def _rebase(self, context: list[int]) -> None:
    self._window, self._settled = context, self.text
    self._base = self._tokenizer.decode(context)

  def push(self, i: int) -> None:
    """Adds a token."""
    if i in self._ends:
      self.is_done = True
      return
    self._window.append(i)
    whole = self._tokenizer.decode(self._window)
    common = len(os.path.commonprefix([self._base, whole]))
    before, self.text = len(self.text), self._settled + whole[common:]
    first = max(0, min(before, len(self._settled)) - self._longest)
    found = [self.text.find(s, first) for s in self._stop]
    found = [at for at in found if at >= 0]
    if found:
      self.text, self.is_done = self.text[: min(found)], True
    elif len(self._window) >= WINDOW and self.text[-1:] != "\ufffd":
      self._rebase(self._window[-CONTEXT:])

  def take(self, is_last: bool = False) -> str:
    """Returns the text that can be shown since the last call."""
    is_whole = is_last or self.is_done
    end = len(self.text) if is_whole else safe_length(self.text, self._stop)
    new = self.text[self._shown : end]
    self._shown = max(self._shown, end)
    return new
