"""Loads the tokenizer.json of a run or prepared folder (see `to_json`)."""

import os

from gpt_jax import files
from gpt_jax.data.tokenizers import chat_template
from gpt_jax.data.tokenizers.limits import MAX_FILE_BYTES
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from gpt_jax.data.tokenizers.protocol import FORMAT, Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError


def load(path: str | os.PathLike) -> Tokenizer:
  """Returns the tokenizer of a file that `to_json` wrote.

  Raises:
    InputError: the file is missing or is not such a file.
  """
  try:
    text = files.read_text(str(path), MAX_FILE_BYTES)
  except files.Damage as damage:
    raise InputError(f"cannot read the tokenizer {path}: it {damage}") from None
  return from_json(text, str(path))


def from_json(text: str, where: str = "the text") -> Tokenizer:
  """Returns the tokenizer of a text that `to_json` returned.

  Args:
    where: what errors call the text.

  Raises:
    InputError: `to_json` did not write this text.
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
    own = content.get("chat_template")
    return LibraryTokenizer(
      content["library"],
      name,
      content["separator_id"],
      content.get("start_ids", ()),
      content.get("pair_ids"),
      chat_template.parse(own, where) if own is not None else None,
    )
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(
      f"{where} does not hold a tokenizer of this project ({error!r})"
    ) from None
