"""preference:GLOB: prompts with rated answers, from JSON records.

  {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
  {"prompt": "2 + 2 =", "completion": " 4", "label": true}

The form of the first record is required of all others. A prompt and its answers
are strings, or lists of messages with a role and a content. If both answers are
whole dialogues, the prompt is the messages that they have in common, and its
field may be left out (TRL calls the two layouts explicit and implicit).
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpt_jax.data.sources import document, fields, jsonl
from gpt_jax.data.sources.chat import Message, check_turns, read_list
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.data.sources.filed import FiledSource
from gpt_jax.exits import InputError

SIDES = ("chosen", "rejected")
SINGLE = ("completion", "label")
LAYOUT = (
  "a prompt, a chosen and a rejected answer, or a prompt, a completion and a "
  "label"
)


class Preference(NamedTuple):
  """A prompt and answers to it.

  Attributes:
    name: unique within the source.
    where: what errors call it: the file and the line.
    prompt: its messages; a string becomes one user message.
    answers: the messages of each answer, the better one first.
    is_plain: whether prompt and answers were strings.
    label: whether a single answer is good; None if there are two answers.
  """

  name: str
  where: str
  prompt: tuple[Message, ...]
  answers: tuple[tuple[Message, ...], ...]
  is_plain: bool
  label: bool | None = None

  def to_bytes(self) -> bytes:
    """Returns everything that determines how it is stored."""
    return json.dumps(self[2:]).encode()


class PreferenceSource(FiledSource):
  """Preferences of JSON records, in files that may be compressed.

  Attributes:
    is_paired: whether its prompts have two answers; known once it is read.
  """

  is_paired = True

  def __init__(self, spec: str, argument: str):
    super().__init__(spec, "preference", fields.find_records(spec, argument))

  def documents(self) -> Iterator[Document]:
    """Yields each prompt, by which texts are split, and then its answers."""
    join = lambda turns: slice_text("\n".join(turn.content for turn in turns))
    for one in self.examples():
      yield Document(one.name, join(one.prompt))
      for number, answer in enumerate(one.answers, 1):
        name = f"{one.name}:{number}"
        yield Document(name, join(answer), is_target=True)

  def examples(self) -> Iterator[Preference]:
    """Yields the preferences, in the order of `documents`.

    Raises:
      InputError: a record is no preference, or of another kind than the first;
        or all labels are the same.
    """
    first, labels = None, set()
    for name, path in self.files:
      for number, record in jsonl.read_values(path):
        where = f"{path}, line {number}"
        one = read_record(record, f"{name}:{number}", where)
        first = one if first is None else first
        self.is_paired = first.label is None
        if (one.label is None) != self.is_paired:
          kinds = ("a single answer", "two answers")
          raise InputError(
            f"{where} has {kinds[not self.is_paired]}, and {first.where} "
            f"{kinds[self.is_paired]}; all of a source must have the same"
          )
        labels.add(one.label)
        yield one
    if len(labels) == 1 and not self.is_paired:
      raise InputError(
        f"{self.spec} has answers whose labels are all "
        f"{str(labels.pop()).lower()}; it must have some that are true and "
        "some that are false"
      )


def read_record(record: Any, name: str, where: str) -> Preference:
  """Returns the preference of a record.

  Raises:
    InputError: the prompt or an answer is missing, or has a wrong form.
  """
  if not isinstance(record, dict):
    raise InputError(
      f"{where} is {document.kind_of(record)}; it must be an object with "
      f"{LAYOUT}"
    )
  if any(field in record for field in SINGLE):
    return _read_single(record, name, where)
  there = [side for side in SIDES if side in record]
  if len(there) < len(SIDES):
    found = f"a {there[0]} answer only" if there else "neither answer"
    wanted = [side for side in SIDES if side not in there]
    raise InputError(
      f"{where} has {found}, with the fields "
      f"{document.listed(record, wanted)}; it must have {LAYOUT}"
    )
  is_plain = all(isinstance(record[side], str) for side in SIDES)
  if is_plain:
    prompt, answers = _read_strings(record, where)
  else:
    prompt, answers = _read_messages(record, where)
  if answers[0] == answers[1]:
    raise InputError(
      f"{where} has a chosen answer that is equal to the rejected one; they "
      "must differ"
    )
  return Preference(name, where, prompt, answers, is_plain)


def _read_single(record: dict, name: str, where: str) -> Preference:
  for field in SINGLE:
    if field not in record:
      raise InputError(f"{where} has no {field}; it must have {LAYOUT}")
  label = record["label"]
  if not isinstance(label, bool):
    raise InputError(
      f"{where} has the label {label!r:.40}; it must be true or false"
    )
  both, is_plain = SINGLE[:1], isinstance(record["completion"], str)
  read = _read_strings if is_plain else _read_messages
  prompt, answers = read(record, where, both)
  return Preference(name, where, prompt, answers, is_plain, label)


def _read_strings(record: dict, where: str, sides: Sequence[str] = SIDES):
  text = lambda field: jsonl.text_of(record, field, where, "give it one")
  prompt = text("prompt")
  for field, content in (("prompt", prompt), *((s, text(s)) for s in sides)):
    if not content:
      raise InputError(f"{where} has an empty {field}; it must have {LAYOUT}")
  answers = tuple((Message("assistant", text(side)),) for side in sides)
  return (Message("user", prompt),), answers


def _read_messages(record: dict, where: str, names: Sequence[str] = SIDES):
  sides = [
    _read_list(record[side], where, f"the {side} answer") for side in names
  ]
  prompt = record.get("prompt")
  if isinstance(prompt, list):
    prompt = _read_list(prompt, where, "the prompt")
  elif len(names) == 1:
    prompt = (Message("user", prompt),) if isinstance(prompt, str) else ()
  else:
    both = itertools.takewhile(
      lambda pair: pair[0] == pair[1], zip(*sides, strict=False)
    )
    shared = [message for message, _ in both]
    while shared and shared[-1].role == "assistant":
      shared.pop()
    sides = [side[len(shared) :] for side in sides]
    if not shared and isinstance(prompt, str) and prompt:
      shared = [Message("user", prompt)]
    prompt = tuple(shared)
  if not prompt:
    raise InputError(
      f"{where} has no prompt, and no two answers that begin with the same "
      f"messages; it must have {LAYOUT}"
    )
  for side, answer in zip(names, sides, strict=True):
    at = f"{where}, the prompt and the {side} answer"
    if not answer or answer[-1].role != "assistant":
      raise InputError(
        f"{at} do not end with a turn of the assistant; they must, as that is "
        "what is learned"
      )
    check_turns((*prompt, *answer), at)
  if prompt[-1].role != "user":
    raise InputError(
      f"{where} has a prompt that ends with a turn of the {prompt[-1].role}; "
      "its last turn must be the user's, to be answered"
    )
  return prompt, tuple(sides)


def _read_list(turns: Any, where: str, what: str) -> tuple[Message, ...]:
  if not isinstance(turns, list):
    raise InputError(
      f"{where}: {what} is {document.kind_of(turns, '')}; where one is a list "
      "of messages, both answers must be"
    )
  return read_list(turns, "messages", f"{where}, {what}")


def count_answers(messages: Sequence[Message]) -> int:
  """Returns the number of turns of the assistant."""
  return sum(message.role == "assistant" for message in messages)
