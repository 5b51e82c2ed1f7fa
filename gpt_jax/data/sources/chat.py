"""chat:GLOB: dialogues, from JSON records in one of three common layouts.

  messages  {"messages": [{"role": "user", "content": ...}, ...]}
  ShareGPT  {"conversations": [{"from": "human", "value": ...}, ...]}
  Alpaca    {"instruction": ..., "input": ..., "output": ...}

The layout of the first record is required of all others. A record of any layout
may have a system message as "system"; an Alpaca record may have earlier turns
as "history".
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpt_jax.data.sources import document, fields, jsonl
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.data.sources.filed import FiledSource
from gpt_jax.exits import InputError

# {role in a file: role of a Message}
ROLES = {
  "system": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
}
# {field with the list of turns: (layout, field of the role, field of the text)}
LISTS = {
  "messages": ("messages", "role", "content"),
  "conversations": ("ShareGPT", "from", "value"),
}
# Fields that are refused: no template here writes them, and the dialogue would
# not be the same without them.
UNREAD = ("tools", "functions", "tool_calls", "function_call")


class Message(NamedTuple):
  """A turn of a dialogue.

  Attributes:
    role: system, user or assistant.
    content: not empty.
  """

  role: str
  content: str


class Chat(NamedTuple):
  """A dialogue.

  Attributes:
    name: unique within the source.
    where: what errors call it: the file and the line.
    messages: in order; user and assistant alternate.
  """

  name: str
  where: str
  messages: tuple[Message, ...]

  def to_bytes(self) -> bytes:
    """Returns everything that determines how it is stored."""
    return json.dumps(self.messages).encode()


class ChatSource(FiledSource):
  """Dialogues of JSON records, in files that may be compressed."""

  def __init__(self, spec: str, argument: str):
    super().__init__(spec, "chat", fields.find_records(spec, argument))

  def documents(self) -> Iterator[Document]:
    for chat in self.examples():
      text = "\n".join(message.content for message in chat.messages)
      yield Document(chat.name, slice_text(text))

  def examples(self) -> Iterator[Chat]:
    """Yields the dialogues, in the order of `documents`.

    Raises:
      InputError: a record is no chat, or of another layout than the first.
    """
    first = None
    for name, path in self.files:
      for number, where, layout, messages in _read_file(path):
        first = (layout, where) if first is None else first
        if layout != first[0]:
          raise InputError(
            f"{where} has the layout {layout}, and {first[1]} has {first[0]}; "
            "all chats of a source must have one layout"
          )
        if all(role != "assistant" for role, _ in messages):
          raise InputError(
            f"{where} has no turn of the assistant; a chat must have one to "
            "learn from"
          )
        yield Chat(f"{name}:{number}", where, messages)


def read_prompts(path: str) -> Iterator[tuple[str, tuple[Message, ...]]]:
  """Yields (what errors call it, messages) of each dialogue to be answered.

  Raises:
    InputError: as ChatSource.examples; or there is no dialogue, or the last
      turn of one is not the user's.
  """
  where = None
  for _, where, _, messages in _read_file(path):
    if messages[-1].role != "user":
      raise InputError(
        f"{where} ends with a turn of the {messages[-1].role}; the last turn "
        "must be the user's, to be answered"
      )
    yield where, messages
  if where is None:
    raise InputError(f"{path} holds no chat; it must hold one or more")


def _read_file(path: str):
  """Yields (number, what errors call it, layout, messages) of records."""
  for number, record in jsonl.read_values(path):
    where = f"{path}, line {number}"
    layout, messages = read_record(record, where)
    check_turns(messages, where)
    yield number, where, layout, messages


def read_record(record: Any, where: str) -> tuple[str, tuple[Message, ...]]:
  """Returns (layout, messages) of a record.

  Raises:
    InputError: it has none of the layouts, or a turn is wrong.
  """
  if not isinstance(record, dict):
    raise InputError(
      f"{where} is {document.kind_of(record)}; it must be an object with "
      "messages, conversations, or instruction and output"
    )
  _refuse_unread(record, where)
  for field, (layout, _, _) in LISTS.items():
    if field in record:
      turns = read_list(record[field], field, where)
      return layout, (*_read_system(record, where), *turns)
  if "instruction" in record and "output" in record:
    turns = _read_alpaca(record, where)
    return "Alpaca", (*_read_system(record, where), *turns)
  raise InputError(
    f"{where} is no chat, with the fields "
    f"{document.listed(record, [*LISTS, 'instruction', 'output'])}; it must "
    "have messages, conversations, or instruction and output"
  )


def read_list(turns: Any, field: str, where: str) -> tuple[Message, ...]:
  """Returns the messages of a list of turns.

  Args:
    field: key of LISTS.

  Raises:
    InputError: a turn is no object, has an unknown role or no text.
  """
  _, role_field, text_field = LISTS[field]
  if not isinstance(turns, list) or not turns:
    raise InputError(
      f"{where}: field {field!r} must be a list of turns with {role_field} and "
      f"{text_field}, and is {'empty' if turns == [] else 'none'}"
    )
  found = []
  for i, turn in enumerate(turns, 1):
    at = f"{where}, turn {i}"
    if isinstance(turn, dict):
      _refuse_unread(turn, at)
      content = turn.get(text_field)
      joined = join_parts(content) if isinstance(content, list) else None
      turn = turn if joined is None else turn | {text_field: joined}
    text = jsonl.text_of(turn, text_field, at, f"give it {text_field}")
    assert isinstance(turn, dict)  # as text_of has found
    role = turn.get(role_field)
    if not isinstance(role, str) or role not in ROLES:
      raise InputError(
        f"{at} has the role {role!r}; it must be one of {', '.join(ROLES)}"
      )
    weight = turn.get("weight")
    if ROLES[role] == "assistant" and weight not in (None, 1):
      raise InputError(
        f"{at} has the weight {weight!r:.60}; every turn of the assistant is "
        "learned with weight 1"
      )
    found.append(Message(ROLES[role], text))
  return tuple(found)


def _read_alpaca(record: dict, where: str) -> tuple[Message, ...]:
  text = lambda name: jsonl.text_of(record, name, where, "give it one")
  asked = text("instruction")
  more = text("input") if record.get("input") else ""
  asked = f"{asked}\n\n{more}" if more else asked
  earlier = record.get("history") or []
  is_pair = lambda x: (
    isinstance(x, list) and len(x) == 2 and all(isinstance(t, str) for t in x)
  )
  if not isinstance(earlier, list) or not all(map(is_pair, earlier)):
    raise InputError(
      f"{where}: field 'history' must be a list of [instruction, output], the "
      "earlier turns"
    )
  roles = ("user", "assistant")
  turns = [Message(*one) for p in earlier for one in zip(roles, p, strict=True)]
  return *turns, Message("user", asked), Message("assistant", text("output"))


def _read_system(record: dict, where: str) -> tuple[Message, ...]:
  """Returns the message in the field "system" of a record, if there is one."""
  if not record.get("system"):
    return ()
  text = jsonl.text_of(record, "system", where, "leave it out")
  return (Message("system", text),)


def _refuse_unread(fields: dict, where: str) -> None:
  """Refuses fields of a record or a turn that change what is learned."""
  for name in UNREAD:
    if fields.get(name):
      raise InputError(
        f"{where} has {name}, and dialogues here are of texts alone; leave the "
        "record out, or write it as text"
      )


def join_parts(parts: list) -> str | None:
  """Returns the text of a content's parts; None if one is no text."""
  texts = [
    part["text"]
    for part in parts
    if isinstance(part, dict)
    and part.get("type") == "text"
    and {name for name, x in part.items() if x is not None} == {"type", "text"}
  ]
  is_text = len(texts) == len(parts) and all(isinstance(t, str) for t in texts)
  return "\n".join(texts) if is_text else None


def check_turns(messages: Sequence[Message], where: str) -> None:
  """Raises InputError for an empty turn, and for turns out of order.

  A system message may come first; then user and assistant alternate.
  """
  is_first_system = bool(messages) and messages[0].role == "system"
  for i, message in enumerate(messages):
    if not message.content.strip():
      raise InputError(
        f"{where}, turn {i + 1} of the {message.role} is empty; it must have "
        "some text"
      )
    wanted = ("user", "assistant")[(i - is_first_system) % 2]
    if i == 0 and is_first_system:
      wanted = "system"
    if message.role != wanted:
      raise InputError(
        f"{where}, turn {i + 1} is of the {message.role}; it must be of the "
        f"{wanted}, as a user and an assistant take turns, after a system's "
        "message or none"
      )
