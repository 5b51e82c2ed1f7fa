"""Renders dialogues by the tokenizer's own chat template, untrusted Jinja code.

The template runs in a sandboxed process (sandbox.py). Its output is tokenized
as transformers does: as one text, in which special tokens are recognized. So a
dialogue that spells one of them is refused.

The loss is on the text between {% generation %} and {% endgeneration %}, where
the template has them. Otherwise the dialogue is rendered up to each answer, and
again up to the answer's end: the loss is on what the second text adds, up to
and including the first special token after the answer.
"""

import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import files
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers.chat_template import ChatTemplate
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError

# Dialogues that one process renders, one after another.
BATCH = 256
# Limits for rendering one text: CPU seconds (wall-clock seconds are ten times
# as many), bytes of memory, and characters beyond 4 times its messages'.
SECONDS = 2.0
MAX_BYTES = 1 << 30
MAX_CHARS = 1 << 16


class Request(NamedTuple):
  """A text to be rendered.

  Attributes:
    messages: of the dialogue.
    is_prompt: whether the header of an answer follows them.
    where: what errors call the dialogue.
  """

  messages: Sequence[Message]
  is_prompt: bool
  where: str


def find_template(tokenizer: Any, name: str) -> ChatTemplate:
  """Returns the template of a tokenizer.

  Args:
    tokenizer: None where its vocabulary is still to be learned.
    name: data.tokenizer, for the error.

  Raises:
    InputError: it has none, or jinja2 is not installed.
  """
  template = getattr(tokenizer, "chat_template", None)
  if template is None:
    raise InputError(
      f"data.template is tokenizer, and the tokenizer {name} has no chat "
      "template; take one that has, or name another template"
    )
  if importlib.util.find_spec("jinja2") is None:
    raise InputError(
      "the tokenizer's own chat template needs the package `jinja2`; in the "
      f"folder of this project, install it with {files.pip('chat')}"
    )
  return template


class JinjaEncoder:
  """Encodes dialogues by the tokenizer's own template.

  It has the interface of templates.ChatEncoder.

  Args:
    tokenizer: the run's.

  Attributes:
    end: the text that ends an answer; "" if the template writes none.
    end_id: the id of `end` if it is a special token, else None.

  Raises:
    InputError: the tokenizer has no template, the template fails, or an answer
      cannot be found in its output.
  """

  def __init__(self, tokenizer: Tokenizer):
    template = find_template(tokenizer, tokenizer.name)
    assert isinstance(tokenizer, LibraryTokenizer)  # others have no template
    self._tokenizer, self._template = tokenizer, template
    special = sorted(filter(None, tokenizer.special_tokens()), key=len)
    words = "|".join(re.escape(word) for word in reversed(special))
    self._special = re.compile(words or "(?!)")
    self._is_marked = re.search(r"\{%[-+]?\s*generation\b", template.text)
    probe = Message("user", "Ask."), Message("assistant", "Answer.")
    chat = Chat("", f"the chat template of {tokenizer.name}", probe)
    ((text, ((begin, stop),)),) = self._write([chat])
    self.end = text[begin:stop].partition("Answer.")[2]
    found = self._special.search(self.end)
    self.end = self.end.strip() if found is None else found[0]
    self.end_id = None if found is None else tokenizer.id_of(self.end)

  def encode_batch(
    self, chats: Iterable[Chat]
  ) -> Iterator[tuple[Chat, np.ndarray, np.ndarray]]:
    """Yields (chat, ids, mask), uint32 and uint8; mask is 1 where ids count.

    Raises:
      InputError: a chat cannot be written or encoded.
    """
    queue = []
    for chat in chats:
      queue.append(chat)
      if len(queue) == BATCH:
        yield from self._encode(queue)
        queue = []
    yield from self._encode(queue)

  def prompt(self, messages: Sequence[Message], where: str) -> np.ndarray:
    """Returns the ids after which the model answers.

    Args:
      messages: the last one is the user's.
      where: what errors call them.

    Raises:
      InputError: they cannot be written or encoded.
    """
    return self.go_on(self.open(messages, where))

  def open(self, messages: Sequence[Message], where: str) -> str:
    """Renders a dialogue up to an answer, for `go_on`; raises as `prompt`."""
    ((text, _),) = self._render([Request(messages, True, where)])
    return text

  def go_on(self, opened: str, begun: str = "") -> np.ndarray:
    """Returns the ids of an opened dialogue and the beginning of its answer."""
    self._check([Message("assistant", begun)], "an answer")
    ((ids, _),) = self._tokenizer.encode_marked([opened + begun])
    return ids

  def _check(self, messages: Sequence[Message], where: str) -> None:
    for message in messages:
      if mark := self._special.search(message.content):
        raise InputError(
          f"{where} holds {mark[0]!r}, a special token of "
          f"{self._tokenizer.name}; take it out of the text"
        )

  def _encode(self, chats: list[Chat]):
    written = self._write(chats)
    encoded = self._tokenizer.encode_marked([text for text, _ in written])
    for chat, (_, spans), (ids, places) in zip(
      chats, written, encoded, strict=True
    ):
      mask = np.zeros(len(ids), np.uint8)
      for begin, stop in spans:
        mask[(places[:, 1] > begin) & (places[:, 0] < stop)] = 1
      yield chat, ids, mask

  def _write(self, chats: list[Chat]) -> list[tuple[str, list]]:
    """Returns (text, [(begin, end) of each span in the loss]) of dialogues."""
    requests, counts = [], []
    for chat in chats:
      own = [Request(chat.messages, False, chat.where)]
      for i, message in enumerate(chat.messages):
        if message.role == "assistant" and not self._is_marked:
          own.append(Request(chat.messages[:i], True, chat.where))
          own.append(Request(chat.messages[: i + 1], False, chat.where))
      requests += own
      counts.append(len(own))
    texts, found = iter(self._render(requests)), []
    for chat, count in zip(chats, counts, strict=True):
      (whole, spans), *parts = [next(texts) for _ in range(count)]
      answers = [m.content for m in chat.messages if m.role == "assistant"]
      if not self._is_marked:
        spans = [
          self._span(whole, begin, both, answer, chat.where)
          for (begin, _), (both, _), answer in zip(
            parts[::2], parts[1::2], answers, strict=True
          )
        ]
      if len(spans) != len(answers):
        raise InputError(
          f"{chat.where}: the template marks {len(spans)} answers, and there "
          f"are {len(answers)}; name another template"
        )
      found.append((whole, spans))
    return found

  def _span(self, whole, begin: str, both: str, answer: str, where: str):
    """Returns (begin, stop) of an answer with its end within a dialogue.

    Args:
      whole: the dialogue.
      begin: the dialogue up to the answer.
      both: the dialogue up to the end of the answer.
    """
    answer = answer.strip()
    at = both.find(answer, len(begin))
    if both.startswith(begin) and at >= 0:
      stop = at + len(answer)
      mark = self._special.search(both, stop)
      stop = len(both) if mark is None else mark.end()
      if whole.startswith(both[:stop]):
        return len(begin), stop
    raise InputError(
      f"{where}: the tokenizer's chat template writes an answer otherwise in a "
      "dialogue that goes on, so that what is learned cannot be found; put "
      "{% generation %} into it, or name another template"
    )

  def _render(self, requests: list[Request]) -> list[tuple[str, list]]:
    """Returns (text, [(begin, end) of generation blocks]) of each request.

    Raises:
      InputError: a message spells a special token, or the template fails.
    """
    for one in requests:
      self._check(one.messages, one.where)
    borders = secrets.token_hex(16), secrets.token_hex(16)
    job = {
      "template": self._template.text,
      "names": self._template.names,
      "borders": borders,
      "seconds": SECONDS,
      "bytes": MAX_BYTES,
      "requests": [
        (
          [m._asdict() for m in one.messages],
          one.is_prompt,
          MAX_CHARS + 4 * sum(len(m.content) for m in one.messages),
        )
        for one in requests
      ],
    }
    path = os.path.join(os.path.dirname(__file__), "sandbox.py")
    done = subprocess.run(
      [sys.executable, "-P", path],
      input=json.dumps(job),
      capture_output=True,
      encoding="utf-8",
      env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
      timeout=60 + 10 * SECONDS * len(requests),
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one, result in zip(requests, found, strict=False):
      if "error" in result:
        raise InputError(
          f"{one.where}: the tokenizer's chat template cannot be used: "
          f"{result['error']}"
        )
    if len(found) < len(requests):
      why = f"it took more than {SECONDS:g} s"
      if done.returncode > 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason is given"]
        why = f"its process ended: {last[0][:300]}"
      raise InputError(
        f"{requests[len(found)].where}: the tokenizer's chat template cannot "
        f"be used: {why}"
      )
    return [
      _take_out(result["text"], borders, one.where)
      for one, result in zip(requests, found, strict=True)
    ]


def _take_out(
  text: str, borders: tuple[str, str], where: str
) -> tuple[str, list[tuple[int, int]]]:
  """Returns (text without borders, [(begin, end) of what was between them])."""
  begin, end = borders
  first, *rest = text.split(begin)
  spans, size, parts = [], len(first), [first]
  for part in rest:
    inner, found, outer = part.partition(end)
    if not found:
      raise InputError(
        f"{where}: the tokenizer's chat template has {{% generation %}} inside "
        "another one; they must follow each other"
      )
    spans.append((size, size + len(inner)))
    parts += [inner, outer]
    size += len(inner) + len(outer)
  return "".join(parts), spans
