"""Prepared folders: their names, and how one is opened and verified.

A folder holds manifest.json, tokenizer.json and the shards of each split. Its
name ends with a digest of everything that determines its content, so a config
finds its folder without reading the text.
"""

import contextlib
import os
import re

from gpt_jax import config, digest, encryption, files
from gpt_jax.data import integrity, sources, tokenizers
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.manifest import FORMAT, SPLITS
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.splitting import Part
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

# Suffix of a folder for which documents of equal text were moved into one
# split. Earlier versions did not move them, and wrote other ids under the name
# without the suffix.
APART = "-apart"
# Hashed into the names of preference sets whose answers are tokenized in the
# context of their prompts; earlier versions tokenized them separately.
BEHIND = "behind"


def name_folder(
  part: Part, spec: str, identity: str, key: encryption.Key | None = None
) -> str:
  """Returns the name of the folder of a part.

  Args:
    spec: of the tokenizer; the name shows its kind.
    identity: what the vocabulary and the labels depend on.
    key: the key that encrypts the folder, or None.
  """
  is_divided = part.role == "split"
  facts = [
    FORMAT,
    part.source.fingerprint(),
    part.role,
    part.split,
    part.valid_frac if is_divided else None,
    identity,
  ]
  if part.template is not None:
    facts.append(part.template)
  if isinstance(part.source, sources.PreferenceSource):
    facts.append(BEHIND)
  if key is not None:
    facts.append(key.id)
  digits = digest.of_json(facts)[: manifest_lib.KEY_DIGITS]
  kind, argument = config.tokenizer_spec(spec)
  word = kind + argument if kind == "bpe" else kind
  return f"{slug(part.source.spec)}-{word}-{digits}"


def slug(spec: str) -> str:
  """Returns the scheme and the last words of a source's spec, joined by "-"."""
  scheme, argument = sources.parse_spec(spec)
  words = re.findall(r"[A-Za-z0-9]+", argument.partition("#")[0])
  return "-".join([scheme, *words[-3:]]).lower()[:48]


def find_folder(dir: str, name: str) -> str:
  """Returns the path of a folder, with APART if only that one exists."""
  path = os.path.join(dir, name)
  if not is_prepared(path) and is_prepared(path + APART):
    return path + APART
  return path


def is_prepared(path: str) -> bool:
  """Returns whether a path exists and is no empty folder.

  Whether it is a complete prepared set is checked when it is opened.
  """
  try:
    return bool(os.listdir(path))
  except OSError:
    return os.path.lexists(path)


def open_prepared(path: str, verify: str = "once") -> dict[str, TokenSet]:
  """Returns {"train": set, "valid": set} of a prepared folder.

  Args:
    verify: as data.verify.

  Raises:
    InputError: it is not a prepared folder, or a file is missing, truncated or
      changed.
  """
  manifest = manifest_lib.read(path)
  _check_tokenizer_file(path, manifest, verify)
  key = None
  if "encryption" in manifest:
    key = encryption.find(manifest["encryption"], path)
  sets = {s: TokenSet(path, s, manifest, verify, key) for s in SPLITS}
  if "seal" not in manifest and all(s.check.is_over for s in sets.values()):
    if verify != "never":
      _seal(path, manifest)
  return sets


def require_same(path: str, part: Part, name: str) -> None:
  """Raises InputError unless a folder was prepared under its name for a part.

  This detects a folder that was renamed, or replaced by another one.
  """
  manifest = manifest_lib.read(path)
  key = name[-manifest_lib.KEY_DIGITS :]
  if manifest.get("key", key) != key or manifest["role"] != part.role:
    raise InputError(
      f"{path} holds another prepared set, made of {manifest['source']}: a "
      "folder was renamed or replaced; remove it, and it is prepared again"
    )


def verify_folder(path: str) -> None:
  """Reads a whole prepared folder and checks the hash of each file.

  Raises:
    InputError: a file is missing, truncated or changed; it is named.
  """
  for token_set in open_prepared(path, "open").values():
    _ = token_set.document_starts  # mapping the offsets checks them
  load_tokenizer(path)


def load_tokenizer(path: str) -> Tokenizer:
  """Returns the tokenizer of a prepared folder.

  Raises:
    InputError: it is not the tokenizer that encoded the folder's ids.
  """
  noted = manifest_lib.read(path)["tokenizer"]
  file = os.path.join(path, "tokenizer.json")
  encoder = tokenizers.load(file)
  found = {
    "fingerprint": encoder.fingerprint(),
    "vocab_size": encoder.vocab_size,
    "separator_id": encoder.separator_id,
  }
  if found != {key: noted[key] for key in found}:
    raise InputError(
      f"{file} holds another tokenizer ({encoder.name}, {encoder.vocab_size} "
      f"tokens) than the one that made the ids beside it ({noted['spec']}, "
      f"{noted['vocab_size']} tokens); {manifest_lib.REMEDY}"
    )
  return encoder


def describe_share(path: str) -> str:
  """Returns a clause if much more or less is held out than asked for, or ""."""
  manifest = manifest_lib.read(path)
  wanted = manifest["valid_frac"]
  if manifest["role"] != "split" or not wanted:
    return ""
  train, held = (manifest["splits"][s]["num_bytes"] for s in SPLITS)
  share = held / max(1, held + train)
  if wanted / 2 <= share <= wanted * 2:
    return ""
  # Labelled texts are never cut, so "tail" cannot be recommended for them.
  hint = "" if "labels" in manifest else ": data.split='tail' is exact"
  return (
    f"{share:.1%} of the text is held back for data.valid_frac {wanted:g}, as "
    f"its documents are few or uneven{hint}"
  )


def _check_tokenizer_file(path: str, manifest: dict, verify: str) -> None:
  expected = manifest["tokenizer"].get("sha256")
  if expected is not None and verify != "never":
    integrity.check_file(os.path.join(path, "tokenizer.json"), expected)


def _seal(path: str, manifest: dict) -> None:
  """Seals a manifest of an earlier version, once its files were checked."""
  with contextlib.suppress(OSError):  # the folder may be read-only
    text = manifest_lib.dump(manifest_lib.sealed(manifest))
    files.write_text(os.path.join(path, "manifest.json"), text)
