"""Chat templates: messages to ids, and which ids count in the loss.

A template writes marks around the turns of a dialogue. The loss is only on what
the assistant says and on the mark that ends its turn: on what the model must
generate after a prompt that `ChatEncoder.prompt` encodes.

Design choice: an answer is tokenized separately from the header before it.
Generation begins there, so no token spans the border at inference either.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.config import Template
from gpt_jax.data.jinja import JinjaEncoder
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

# Chats that are encoded in one call.
BATCH = 1024


class Piece(NamedTuple):
  """A part of a rendered dialogue.

  Attributes:
    text: plain text, or the text of a mark.
    is_mark: whether it is a mark, which is one token.
    counts: whether its tokens count in the loss.
  """

  text: str
  is_mark: bool = False
  counts: bool = False


class Form(NamedTuple):
  """A template: begin; then start, role, after_role, gap, text, end per turn.

  Attributes:
    begin: mark before a dialogue, or "".
    start: mark before a role.
    after_role: mark between role and gap, or "".
    gap: plain text before the content.
    end: mark after the content.
    between: plain text after a turn.
    roles: {role: its name in the template}, where the two differ.
    is_trimmed: whether whitespace around contents is left out.
    has_system: whether the system message has a turn of its own; otherwise the
      user's first turn begins with it.
  """

  begin: str
  start: str
  after_role: str
  gap: str
  end: str
  between: str
  roles: dict[str, str] = {}
  is_trimmed: bool = True
  has_system: bool = True

  @property
  def marks(self) -> tuple[str, ...]:
    found = self.begin, self.start, self.after_role, self.end
    return tuple(filter(None, found))

  def header(self, role: str) -> list[Piece]:
    """Returns the pieces before the content of a turn."""
    name = Piece(self.roles.get(role, role))
    after = Piece(self.after_role, True)
    return [Piece(self.start, True), name, after, Piece(self.gap)]

  def render(self, messages: Sequence[Message]) -> list[Piece]:
    """Returns the pieces of a dialogue, some of them empty."""
    if self.is_trimmed:
      messages = [Message(role, text.strip()) for role, text in messages]
    if messages[0].role == "system" and not self.has_system:
      system, user, *rest = messages
      joined = f"{system.content}\n\n{user.content}"
      messages = [Message("user", joined), *rest]
    pieces = [Piece(self.begin, True)]
    for role, content in messages:
      counts = role == "assistant"
      pieces += [*self.header(role), Piece(content, False, counts)]
      pieces += [Piece(self.end, True, counts), Piece(self.between)]
    return pieces


# {name of a config.Template: its Form}
FORMS = {
  # OpenAI's, as Qwen uses it.
  "chatml": Form(
    "", "<|im_start|>", "", "\n", "<|im_end|>", "\n", is_trimmed=False
  ),
  # Meta's model card of Llama 3.
  "llama3": Form(
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "\n\n",
    "<|eot_id|>",
    "",
  ),
  # Google's, which calls the assistant "model".
  "gemma": Form(
    "<bos>",
    "<start_of_turn>",
    "",
    "\n",
    "<end_of_turn>",
    "\n",
    {"assistant": "model"},
    has_system=False,
  ),
}


class ChatEncoder:
  """Encodes dialogues by a template.

  Args:
    template: data.template.
    tokenizer: the run's.

  Attributes:
    end: the mark that ends a turn.
    end_id: its id; None where it is plain text.

  Raises:
    InputError: the tokenizer lacks a mark of the template.
  """

  def __init__(self, template: Template, tokenizer: Tokenizer):
    self._template, self._tokenizer = template, tokenizer
    self._form, self._ids = FORMS[template.name], {}
    find: Any = getattr(tokenizer, "id_of", lambda mark: None)
    for mark in () if template.is_text else self._form.marks:
      found = find(mark)
      if found is None:
        raise InputError(
          f"data.template is {template}, whose mark {mark!r} is no token of "
          f"{tokenizer.name}; take a tokenizer that has it, or {template}:text,"
          " which spells marks as plain text"
        )
      self._ids[mark] = found
    self.end = self._form.end
    self.end_id = self._ids.get(self.end)

  def encode_batch(
    self, chats: Iterable[Chat]
  ) -> Iterator[tuple[Chat, np.ndarray, np.ndarray]]:
    """Yields (chat, ids, mask), uint32 and uint8; mask is 1 where ids count.

    Raises:
      InputError: a chat cannot be encoded.
    """
    queue = []
    for chat in chats:
      self._check(chat.messages, chat.where)
      queue.append((chat, self._merge(self._form.render(chat.messages))))
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
      InputError: they cannot be encoded.
    """
    return self.go_on(self.open(messages, where))

  def open(self, messages: Sequence[Message], where: str) -> list[Piece]:
    """Renders a dialogue up to an answer, for `go_on`; raises as `prompt`."""
    self._check(messages, where)
    form = self._form
    return [*form.render(messages), *form.header("assistant")]

  def go_on(self, opened: list[Piece], begun: str = "") -> np.ndarray:
    """Returns the ids of an opened dialogue and the beginning of its answer."""
    self._check([Message("assistant", begun)], "an answer")
    pieces = self._merge([*opened, Piece(begun)])
    ((_, ids, _),) = self._encode([(None, pieces)])
    return ids

  def _check(self, messages: Sequence[Message], where: str) -> None:
    if not self._template.is_text:
      return
    text = "\n".join(message.content for message in messages)
    for mark in self._form.marks:
      if mark in text:
        raise InputError(
          f"{where} holds {mark!r}, a mark of data.template {self._template}; "
          "take it out of the text, or a tokenizer that has the mark"
        )

  def _merge(self, pieces: Sequence[Piece]) -> list[Piece]:
    """Joins plain texts that follow each other and count alike."""
    merged: list[Piece] = []
    for piece in pieces:
      if not piece.text:
        continue
      if self._template.is_text:
        piece = piece._replace(is_mark=False)
      last = merged[-1] if merged else None
      is_alike = last is not None and last.counts == piece.counts
      if is_alike and not (last.is_mark or piece.is_mark):
        merged[-1] = last._replace(text=last.text + piece.text)
      else:
        merged.append(piece)
    return merged

  def _encode(self, queue):
    plain = [p.text for _, each in queue for p in each if not p.is_mark]
    encoded = iter(self._tokenizer.encode_batch(plain))
    for chat, pieces in queue:
      ids = [
        np.array([self._ids[p.text]]) if p.is_mark else next(encoded)
        for p in pieces
      ]
      counts = np.array([p.counts for p in pieces], np.uint8)
      mask = np.repeat(counts, [len(part) for part in ids])
      yield chat, np.concatenate(ids).astype(np.uint32), mask


def build_encoder(
  template: Template, tokenizer: Tokenizer
) -> ChatEncoder | JinjaEncoder:
  """Returns the encoder of dialogues; raises InputError as its class does."""
  if template.name == "tokenizer":
    return JinjaEncoder(tokenizer)
  return ChatEncoder(template, tokenizer)


class Prompt(str):
  """The last user message of a dialogue; an attribute has all of it.

  Attributes:
    messages: all messages, the last one included.
    where: what errors call them.
  """

  messages: tuple[Message, ...]
  where: str

  def __new__(cls, messages: tuple[Message, ...], where: str):
    prompt = super().__new__(cls, messages[-1].content)
    prompt.messages, prompt.where = messages, where
    return prompt


class ChatTokenizer:
  """Wraps a run's tokenizer: prompts are user messages, which are answered.

  All other attributes are those of the run's tokenizer.

  Args:
    tokenizer: the run's.
    template: data.template.

  Attributes:
    plain: the run's tokenizer.
    encoder: encodes dialogues by the template.
    start_ids: (), as the template writes what a dialogue begins with.
    separator_id: the id that ends an answer; the run's separator if the
      template's end is plain text.
    end_ids: separator_id and the run's separator; either ends generation.
    stop: strings that end an answer; () if an id does.
  """

  start_ids = ()

  def __init__(self, tokenizer: Tokenizer, template: Template):
    self.plain = tokenizer
    self.encoder: Any = build_encoder(template, tokenizer)
    end_id = self.encoder.end_id
    self.separator_id = tokenizer.separator_id if end_id is None else end_id
    self.end_ids = (self.separator_id, tokenizer.separator_id)
    is_spelled = end_id is None and self.encoder.end
    self.stop = (self.encoder.end,) if is_spelled else ()

  def __getattr__(self, name: str):
    return getattr(self.plain, name)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a dialogue up to where the assistant answers.

    Args:
      text: what the user says: a string, or a Prompt if other turns precede.
    """
    if not isinstance(text, Prompt):
      text = Prompt((Message("user", text),), "the prompt")
    return self.encoder.prompt(text.messages, text.where)

  def encode_target(self, text: str) -> np.ndarray:
    """Returns the ids of an answer and its end."""
    if self.stop:
      return self.plain.encode(text + self.stop[0])
    ids = self.plain.encode(text)
    if self.separator_id is None:
      return ids
    return np.append(ids, np.asarray(self.separator_id, ids.dtype))
