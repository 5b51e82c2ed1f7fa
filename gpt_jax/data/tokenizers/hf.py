"""hf:PATH: a tokenizer.json, of the library or of a run of this project."""

import os

from gpt_jax import files
from gpt_jax.data.tokenizers import chat_template, limits, stored
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError
from gpt_jax.machine import cache

# The files of a folder that are read.
NAMES = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


def find_files(path: str) -> list[str]:
  """Returns [the tokenizer.json]; PATH is the file or its folder."""
  path = files.user_path("data.tokenizer", path, may_be_address=True)
  # Fetch no other files: PATH may be the workdir of a run, which has many.
  path = cache.local_folder(path, lambda key: key in NAMES)
  file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
  return [file]


def read(path: str, spec: str) -> Tokenizer:
  """Returns the tokenizer of hf:PATH.

  Raises:
    InputError: there is no such file, or it is not a tokenizer.json.
  """
  (file,) = find_files(path)
  data = limits.read_bytes(file)
  why = ""
  try:
    library = files.parse_json(data)
    if "gpt_jax_tokenizer" in library:  # from the workdir of a run
      return stored.load(file)
    is_known = isinstance(library["model"], dict)
    is_known = is_known and isinstance(library["added_tokens"], list)
  except files.Damage as damage:
    is_known, why = False, f" (it {damage})"
  except (TypeError, LookupError, AttributeError):
    is_known = False
  if not is_known:
    raise InputError(
      f"{file} is not a tokenizer.json{why}; it must be a JSON object with a "
      "model and added_tokens"
    )
  own = chat_template.find(os.path.dirname(file))
  encoder = LibraryTokenizer(library, spec, None, chat_template=own)
  # Look the separator up by its text: the library renumbers added tokens whose
  # id in the file is wrong.
  encoder.separator_id = encoder.id_of(limits.find_separator(library))
  return encoder
