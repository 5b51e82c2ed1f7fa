"""The chat template that lies beside a tokenizer.json of the hub."""

import os
from typing import Any, NamedTuple

from gpt_jax import files
from gpt_jax.exits import InputError

# The most bytes of a hub file that may hold a template.
MAX_BYTES = 1 << 23
# The most characters of a template; published ones have up to 30,000.
MAX_CHARS = 1 << 18


class ChatTemplate(NamedTuple):
  """A Jinja program that renders a dialogue.

  Attributes:
    text: the program.
    names: special tokens by their names in the program: bos_token, ...
  """

  text: str
  names: dict[str, str]


def find(folder: str) -> ChatTemplate | None:
  """Returns the template in a folder, None if there is none.

  It is chat_template.jinja, or an entry of tokenizer_config.json. If that has
  several templates, the one named default is taken.

  Raises:
    InputError: a file is there and cannot be used.
  """
  beside = os.path.join(folder, "tokenizer_config.json")
  apart = os.path.join(folder, "chat_template.jinja")
  where, stated = apart, _read(beside, files.read_json)
  stated = {} if stated is None else stated
  if not isinstance(stated, dict):
    raise InputError(f"{beside} is no JSON object; it must be one")
  text = _read(apart, files.read_text)
  if text is None:
    text, where = stated.get("chat_template"), beside
  if isinstance(text, list):
    named = {t.get("name"): t for t in text if isinstance(t, dict)}
    text = named.get("default", {}).get("template")
  if text is None:
    return None
  names = {}
  for name, value in stated.items():
    value = value.get("content") if isinstance(value, dict) else value
    if name.endswith("_token") and isinstance(value, str):
      names[name] = value
  return parse({"text": text, "names": names}, where)


def parse(content: Any, where: str) -> ChatTemplate:
  """Returns the template in a parsed {"text": ..., "names": ...}.

  Raises:
    InputError: the content is something else, or the template is too long.
  """
  text, names = content["text"], content["names"]
  if not isinstance(text, str) or len(text) > MAX_CHARS:
    raise InputError(
      f"{where} holds a chat template that is no text of at most "
      f"{MAX_CHARS:,} characters; take it out, or name another template"
    )
  if not all(isinstance(value, str) for value in names.values()):
    raise InputError(f"{where} names special tokens that are no texts")
  return ChatTemplate(text, dict(names))


def _read(path: str, read) -> Any:
  try:
    return read(path, MAX_BYTES)
  except files.Damage as damage:
    if damage.is_missing:
      return None
    raise InputError(f"{path} {damage}; repair or remove it") from None
