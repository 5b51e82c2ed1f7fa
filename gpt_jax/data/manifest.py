"""manifest.json of a prepared folder: its schema, its seal, how it is read.

File names are plain names inside the folder, and "seal" is a digest of all
other keys. Earlier versions wrote no seal; such a manifest is accepted if its
counts agree with each other and with its files. The seal detects damage and
edits, not forgery: whoever can forge it can forge the text as well.
"""

import json
import os
import re
from typing import Any

from gpt_jax import digest, files
from gpt_jax.config import LABELS
from gpt_jax.exits import InputError

FORMAT = 1
SPLITS = ("train", "valid")
# Hexadecimal digits of "key", which the folder's name ends with.
KEY_DIGITS = 12

REMEDY = "remove its folder, and it is prepared again"

# Names that cannot point outside the folder on any file system.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


class _Maybe:
  """Marks a key of the schema that earlier versions did not write."""

  def __init__(self, rule):
    self.rule = rule


# A rule returns None for a valid value, else what the value must be.


def _count(value) -> str | None:
  if type(value) is not int or not 0 <= value < 1 << 62:
    return "a whole number of at least 0"
  return None


def _text(value) -> str | None:
  return None if type(value) is str else "a string"


def _digest(value) -> str | None:
  if type(value) is str and _DIGEST.fullmatch(value):
    return None
  return "64 hexadecimal digits"


def _key(value) -> str | None:
  if type(value) is str and _KEY.fullmatch(value):
    return None
  return "12 hexadecimal digits"


def _plain_name(value) -> str | None:
  if type(value) is str and _PLAIN_NAME.fullmatch(value):
    return None
  return "the plain name of a file in this folder"


def _two(value) -> str | None:
  return None if type(value) is int and value == 2 else "2"


def _fraction(value) -> str | None:
  if type(value) in (int, float) and 0 <= value < 1:
    return None
  return "a number of at least 0 and below 1"


def _vocab_size(value) -> str | None:
  if type(value) is int and 1 <= value < 1 << 31:
    return None
  return "a whole number from 1 to 2,147,483,647"


def _optional_count(value) -> str | None:
  return None if value is None else _count(value)


def _object(value) -> str | None:
  return None if type(value) is dict else "an object"


def _one_of(*choices):
  wanted = "one of " + ", ".join(map(repr, choices))
  return lambda value: (
    None if type(value) is str and value in choices else wanted
  )


_SHARD = {"file": _plain_name, "num_ids": _count, "sha256": _digest}
_SPLIT = {
  "num_tokens": _count,
  "num_separators": _count,
  "num_documents": _count,
  "num_bytes": _count,
  "shards": [_SHARD],
  "offsets": {"file": _plain_name, "sha256": _digest},
  "labels": _Maybe({"file": _plain_name, "sha256": _digest}),
  # For each id, whether it counts in the loss.
  "mask": _Maybe({"file": _plain_name, "sha256": _digest}),
}
_SCHEMA = {
  "format": _count,
  "splits": {split: _SPLIT for split in SPLITS},
  "source": _text,
  "role": _one_of("split", "train", "valid"),
  "split": _one_of("document", "content", "tail"),
  "valid_frac": _fraction,
  "tokenizer": {
    "spec": _text,
    "fingerprint": _digest,
    "vocab_size": _vocab_size,
    "separator_id": _optional_count,
    "notes": _object,
    "sha256": _Maybe(_digest),
  },
  "dtype": _one_of("uint16", "uint32"),
  # The number of documents of each example, 2 in sets of pairs; else absent.
  "num_parts": _Maybe(_two),
  "labels": _Maybe({"kind": _one_of(*LABELS), "classes": [_text]}),
  # The end of the folder's name, and the digest of the text: of the whole text,
  # or of the digests of its chunks.
  "key": _Maybe(_key),
  "text_sha256": _Maybe(_digest),
  "chunks_sha256": _Maybe(_digest),
  # The records beside the source's files: how each was cleaned (card.py).
  "records": _Maybe([_object]),
  # Which key encrypts the set; the hashes are then keyed, by Key.mark.
  "encryption": _Maybe({"id": _text, "origin": _text}),
  "seal": _Maybe(_digest),
}


def read(folder: str) -> dict:
  """Returns the checked manifest of a prepared folder.

  Raises:
    InputError: it is missing, damaged, edited or of another format.
  """
  path = os.path.join(folder, "manifest.json")
  try:
    content = files.read_json(path)
  except files.Damage as damage:
    if damage.is_missing:
      raise InputError(
        f"{folder} is not a prepared set: it has no manifest.json; remove it, "
        "and it is prepared again"
      ) from None
    raise InputError(f"{path} is damaged: it {damage}; {REMEDY}") from None
  return check(content, path)


def check(content: Any, path: str) -> dict:
  """Returns a parsed manifest once it is checked.

  Args:
    path: what errors call it.

  Raises:
    InputError: it contradicts the schema, its own counts or its seal.
  """
  if type(content) is not dict or "format" not in content:
    raise InputError(f"{path} is damaged: it has no 'format'; {REMEDY}")
  found = content["format"]
  if type(found) is int and found != FORMAT:
    raise InputError(
      f"{path} has format {found}; this version reads format {FORMAT}: remove "
      "its folder, and it is prepared again"
    )
  fault = _find_fault(content, _SCHEMA, "") or _find_contradiction(content)
  if fault is None and content.get("seal", "") != "":
    if content["seal"] != find_seal(content):
      fault = "its seal does not match its other keys, so one was changed"
  if fault:
    raise InputError(f"{path} is damaged: {fault}; {REMEDY}")
  return content


def sealed(content: dict) -> dict:
  """Returns a manifest with the seal added."""
  return content | {"seal": find_seal(content)}


def find_seal(content: dict) -> str:
  """Returns the digest of all keys but "seal"."""
  return digest.seal_of(content, "seal")


def dump(content: dict) -> str:
  """Returns the text of manifest.json."""
  return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def dtype_of(vocab_size: int) -> str:
  """Returns the narrowest dtype that ids below vocab_size fit in."""
  return "uint16" if vocab_size <= 1 << 16 else "uint32"


def text_key(content: dict) -> str | None:
  """Returns the key of the digest of the text; earlier versions had none."""
  keys = (key for key in ("text_sha256", "chunks_sha256") if key in content)
  return next(keys, None)


def num_ids(split: dict) -> int:
  """Returns the number of ids of a split's entry, separators included."""
  return sum(shard["num_ids"] for shard in split["shards"])


def _find_fault(value, rule, where: str) -> str | None:
  """Returns what contradicts the schema, or None."""
  if isinstance(rule, list):
    if type(value) is not list:
      return f"{where} is {_show(value)}; it must be a list"
    faults = (
      _find_fault(item, rule[0], f"{where}[{i}]")
      for i, item in enumerate(value)
    )
    return next(filter(None, faults), None)
  if not isinstance(rule, dict):
    wanted = rule(value)
    return f"{where} is {_show(value)}; it must be {wanted}" if wanted else None
  if type(value) is not dict:
    return f"{where} is {_show(value)}; it must be an object"
  inside = f" in {where}" if where else ""
  for key in value:
    if key not in rule:
      return f"it has an unknown key {_show(key)}{inside}"
  for key, inner in rule.items():
    if key not in value:
      if isinstance(inner, _Maybe):
        continue
      return f"it has no {key!r}{inside}"
    inner = inner.rule if isinstance(inner, _Maybe) else inner
    fault = _find_fault(value[key], inner, f"{where}.{key}".strip("."))
    if fault:
      return fault
  return None


def _find_contradiction(content: dict) -> str | None:
  """Returns how two fields contradict each other, or None."""
  tokenizer = content["tokenizer"]
  vocab_size, separator_id = tokenizer["vocab_size"], tokenizer["separator_id"]
  if separator_id is not None and separator_id >= vocab_size:
    return f"its separator {separator_id} is outside the vocabulary"
  dtype = dtype_of(vocab_size)
  if content["dtype"] != dtype:
    return (
      f"its dtype is {content['dtype']}, which for {vocab_size} tokens is "
      f"{dtype}"
    )
  names = []
  for split, entry in content["splits"].items():
    total = num_ids(entry)
    counted = entry["num_tokens"] + entry["num_separators"]
    if total != counted:
      return f"its {split} shards hold {total} ids and its counts say {counted}"
    if entry["num_separators"] not in (0, entry["num_documents"]):
      return f"its {split} separators are neither none nor one a document"
    if entry["num_tokens"] and not (
      entry["num_bytes"] and entry["num_documents"]
    ):
      return f"its {split} tokens are of no text"
    if "num_parts" in content and entry["num_documents"] % 2:
      return f"its {split} documents are pairs, and their number is odd"
    names += [shard["file"] for shard in entry["shards"]]
    names.append(entry["offsets"]["file"])
    if ("labels" in entry) != ("labels" in content):
      return f"its {split} labels have no classes, or its classes no labels"
    beside = [entry[k]["file"] for k in ("labels", "mask") if k in entry]
    names += beside
  if len(set(names)) < len(names):
    return "two of its files have one name"
  return None


def _show(value) -> str:
  kind = {dict: "an object", list: "a list"}.get(type(value))
  text = kind or json.dumps(value)
  return text if len(text) <= 40 else text[:37] + "..."
