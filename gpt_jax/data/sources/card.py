"""Finds the files of a split of a hub data set, and reads them.

The set's card lists them (`configs` in the metadata of README.md). Otherwise
words such as train, validation and test in the paths decide, as on the hub.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt_jax.data.sources import columns, jsonl, parquet, unpack, warc
from gpt_jax.data.sources.document import missing_field
from gpt_jax.exits import InputError

# Words in the paths of a set without a card: {split: words}.
_WORDS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}
# {suffix: function of (path, field) that yields (number, text) of a file}
READERS: dict[str, Callable[[str, str], Iterator[tuple[int, str]]]] = {
  **dict.fromkeys(parquet.SUFFIXES, parquet.read_column),
  **dict.fromkeys(jsonl.SUFFIXES, jsonl.read_field),
  ".csv": columns.read_csv,
  ".tsv": columns.read_tsv,
  ".wet": lambda path, field: warc.read_texts(path),
}


def read(path: str, field: str) -> Iterator[tuple[int, str]]:
  """Yields (number, text) of a file whose suffix is in READERS."""
  bare = unpack.bare_name(path).lower()
  reader = next(call for end, call in READERS.items() if bare.endswith(end))
  return reader(path, field)


def choose(
  paths: Sequence[str],
  facts: dict[str, Any],
  config: str | None,
  split: str,
  spec: str,
) -> list[str]:
  """Returns the files of a split, sorted.

  Args:
    paths: of all files of the set.
    facts: the metadata of its README.md.
    config: the name of a part of the set, or None for its default.
    split: such as train.
    spec: what errors call the set.

  Raises:
    InputError: it has no such config or split.
  """
  paths = [p for p in paths if _is_readable(p)]
  configs = facts.get("configs")
  listed = configs if isinstance(configs, list) else []
  listed = [e for e in listed if isinstance(e, dict) and "data_files" in e]
  if listed:
    by_name = {str(e.get("config_name", "default")): e for e in listed}
    chosen = by_name.get(config or _default(by_name, spec))
    if chosen is None:
      assert config is not None  # _default is one of them
      raise missing_field(spec, "config", config, list(by_name))
    patterns = _patterns_of(chosen["data_files"])
    found = {s: _match(paths, globs) for s, globs in patterns.items()}
  else:
    if config is not None:
      folders = {part for p in paths for part in p.split("/")[:-1]}
      if config not in folders:
        raise missing_field(spec, "config", config, sorted(folders))
      paths = [p for p in paths if config in p.split("/")[:-1]]
    found = _split_by_name(paths)
  if split not in found and any(found.values()):
    raise missing_field(spec, "split", split, list(found))
  return sorted(found.get(split, ()))


def _default(by_name: dict[str, dict], spec: str) -> str:
  marked = [n for n, entry in by_name.items() if entry.get("default") is True]
  for name in (*marked, "default"):
    if name in by_name:
      return name
  if len(by_name) > 1:
    raise InputError(
      f"{spec} has the configs {', '.join(by_name)}; name one, as in "
      f"hf:NAME:{next(iter(by_name))}:train"
    )
  return next(iter(by_name))


def _patterns_of(data_files: Any) -> dict[str, list[str]]:
  """Returns {split: patterns} of one of the forms that a card may have."""
  if isinstance(data_files, dict):
    data_files = [{"split": s, "path": p} for s, p in data_files.items()]
  if isinstance(data_files, str):
    data_files = [data_files]
  found: dict[str, list[str]] = {}
  for entry in data_files if isinstance(data_files, list) else ():
    if not isinstance(entry, dict):
      entry = {"path": entry}
    globs = entry.get("path")
    globs = globs if isinstance(globs, list) else [globs]
    split = str(entry.get("split", "train"))
    found.setdefault(split, []).extend(map(str, globs))
  return found


def _match(paths: Sequence[str], globs: list[str]) -> list[str]:
  words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
  pattern = "|".join(
    "".join(
      words.get(part) or re.escape(part)
      for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    )
    for glob in globs
  )
  return [p for p in paths if re.fullmatch(pattern, p)]


def _split_by_name(paths: list[str]) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for path in paths:
    for split, words in _WORDS.items():
      if re.search(rf"(?<![a-z0-9])({'|'.join(words)})(?![a-z])", path.lower()):
        found.setdefault(split, []).append(path)
        break
  return found or {"train": paths}


def _is_readable(path: str) -> bool:
  bare = unpack.bare_name(path).lower()
  name = path.rpartition("/")[2]
  # dataset_infos.json and the like describe a set.
  if name[0] == "." or re.fullmatch(r"(dataset_)?infos?\.json", name):
    return False
  return bare.endswith(tuple(READERS))
