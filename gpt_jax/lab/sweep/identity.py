"""A cell's id: a hash of everything that determines its result.

It covers the config without its free keys, the text for training and
validation, and the code of this package without lab/. So the same run has the
same id in every sweep and on every machine. The id does not depend on the
checkpoint that a cell starts from: a branch is refused unless it equals a run
from step 0.
"""

import contextlib
import functools
import os
import re

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import digest, files
from gpt_jax.config import Config
from gpt_jax.data import sources, tokenizers
from gpt_jax.lab.sweep import syntax
from gpt_jax.machine import runtime

ID_DIGITS = 12


def make_id(config: Config, data: str, code: str) -> str:
  """Returns a run's id: a hash of config, text and code."""
  content = [config_lib.fingerprint(config), data, code]
  return digest.of_json(content)[:ID_DIGITS]


@functools.cache
def data_identity(data: config_lib.DataConfig) -> tuple[str, str]:
  """Returns (hash of text, split and tokenizer; hash of validation text).

  The second says which losses may be compared, see losses.find_unit.
  Design choice: the text is hashed, not the data prepared from it. An id must
  be known before anything is prepared, and stay the same afterwards.
  """
  specs = [data.source] + ([data.valid_source] if data.valid_source else [])
  content = [
    [
      (weight, sources.content_identity(sources.open_source(spec)))
      for weight, spec in sources.parse_mixture(mixture)
    ]
    for mixture in specs
  ]
  how = [] if data.valid_source else [data.split, data.valid_frac]
  # Weights of a mixture change the training data, not the validation text.
  valid = [[found for _, found in content[-1]], how]
  whole = [content, tokenizers.identity(data.tokenizer)]
  ids = digest.of_json(whole), digest.of_json(valid)
  return ids[0][:ID_DIGITS], ids[1][:ID_DIGITS]


@functools.cache
def code_version() -> str:
  """Returns a hash of what the package without lab/ computes, see syntax.py.

  Editing comments, docstrings or formatting, or moving a definition to another
  file, leaves the hash as it is; changing any other constant, name, operator or
  default value changes it.
  """
  root = os.path.dirname(os.path.abspath(gpt_jax.__file__))
  # Hashing the trees takes half a second, so the result is cached. The key is a
  # hash of all bytes of the files, so an entry is never out of date.
  entry = os.path.join(runtime.cache_dir(), "code", _hash_files(root))
  with contextlib.suppress(files.Damage):
    known = files.read_text(entry)
    if re.fullmatch(f"[0-9a-f]{{{ID_DIGITS}}}", known):
      return known
  found = syntax.hash_package(root, without=("lab",))[:ID_DIGITS]
  with contextlib.suppress(OSError):
    files.write_text(entry, found)
  return found


def _hash_files(root: str) -> str:
  """Returns a hash of the names and texts of a package without lab/."""
  rows = []
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(f for f in folders if f != "__pycache__")
    if folder == root:
      folders.remove("lab")
    paths = [os.path.join(folder, n) for n in names if n.endswith(".py")]
    rows += [(os.path.relpath(p, root), _hash_file(p)) for p in sorted(paths)]
  # lab/ is left out, but syntax.py decides the hash, so it is part of the key.
  return digest.of_json([rows, _hash_file(syntax.__file__)])


def _hash_file(path: str) -> str:
  with open(path, "rb") as file:
    return digest.of_file(file)
