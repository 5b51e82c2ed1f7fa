"""Finds the files that match a pattern, and identifies a set of files."""

import glob
import os
import re
from collections.abc import Sequence

from gpt_jax import digest, files
from gpt_jax.data.sources import unpack
from gpt_jax.exits import InputError
from gpt_jax.machine import cache, places


def find_files(
  pattern: str, suffixes: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
  """Returns sorted (name, path) of the files that match a pattern.

  Names are relative to the folder before the first wildcard.

  Args:
    pattern: as given by the user. A folder stands for all files below it whose
      names have one of the suffixes, compressed or not, and are not hidden.
    suffixes: of the files that are read in a folder; () refuses folders.

  Raises:
    InputError: nothing matches, or a match is not a regular file.
  """
  pattern = files.user_path("data.source", pattern, may_be_address=True)
  if files.is_address(pattern):
    return _find_objects(pattern, suffixes)
  if os.path.isdir(pattern):
    found = _list_folder(pattern, suffixes)
    if not found:
      lacks = f" without {', '.join(suffixes)} files" if suffixes else ""
      wanted = os.path.join(pattern, "**", f"*{(*suffixes, '.txt')[0]}")
      raise InputError(
        f"{pattern} is a directory{lacks}; name files, such as {wanted}"
      )
    return found
  root, paths = _expand(pattern)
  paths = sorted(p for p in paths if not os.path.isdir(p))
  if not paths:
    raise InputError(
      f"no file matches {pattern!r} (from {_current_folder()}); give the path "
      "of at least one file"
    )
  for path in paths:
    if not os.path.isfile(path):
      raise InputError(f"{path} is not a regular file")
  names = [os.path.relpath(p, root).replace(os.sep, "/") for p in paths]
  return sorted(zip(names, paths, strict=True))


def _list_folder(root: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in names:
      path = os.path.join(folder, name)
      is_read = unpack.bare_name(name).lower().endswith(suffixes)
      if suffixes and is_read and name[0] != "." and os.path.isfile(path):
        found.append((os.path.relpath(path, root).replace(os.sep, "/"), path))
  return sorted(found)


def _find_objects(
  pattern: str, suffixes: tuple[str, ...]
) -> list[tuple[str, str]]:
  """Returns sorted (name, address) of the objects that a pattern matches.

  As with files, an address that is no object stands for all objects below it.
  """
  parts = pattern.split("/")
  place = next((i for i, p in enumerate(parts) if glob.has_magic(p)), None)
  if place is not None:
    root = "/".join(parts[:place])
    found = places.glob(root, "/".join(parts[place:]))
  else:
    root, found = pattern, {}
    for key, one in places.find(pattern).items():
      name = unpack.bare_name(key).lower()
      is_hidden = any(part.startswith(".") for part in key.split("/"))
      if suffixes and name.endswith(suffixes) and not is_hidden:
        found[key] = one
    if not found:
      root, key = os.path.split(pattern)
      found[key] = places.stat(pattern)
  if not found:
    raise InputError(f"no object matches {pattern!r}; check its name")
  cache.note({places.join(root, key): one for key, one in found.items()})
  return sorted((key, places.join(root, key)) for key in found)


def split_field(argument: str, default: str = "text") -> tuple[str, str]:
  """Returns (GLOB, FIELD) of GLOB[#FIELD].

  A path may contain "#" too: the first split whose GLOB matches a file wins.
  """
  argument = files.user_path("data.source", argument, may_be_address=True)
  whole = (argument, default)
  if files.is_address(argument):
    pattern, mark, field = argument.rpartition("#")
    return (pattern, field or default) if mark else whole
  cut = [
    (argument[: found.start()], argument[found.end() :] or default)
    for found in re.finditer("#", argument)
    if found.start()
  ]
  for pattern, field in [whole, *cut]:
    if os.path.lexists(pattern) and not os.path.isdir(pattern):
      return pattern, field
  for pattern, field in cut:
    if not os.path.isdir(pattern) and _expand(pattern)[1]:
      return pattern, field
  return whole if not cut or _expand(argument)[1] else cut[-1]


def identify(kind: str, found: list[tuple[str, str]]) -> str:
  """Returns a digest of the names, sizes and modification times of files.

  Raises:
    InputError: a file is gone.
  """
  try:
    rows = [(name, *cache.stat(path)) for name, path in found]
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from None
  return digest.of_json([kind, rows])


def identify_content(found: Sequence[tuple[str, str]]) -> str:
  """Returns a digest of the names and contents of files, which it reads.

  Raises:
    InputError: a file cannot be read.
  """
  rows = []
  for name, path in found:
    try:
      with files.open_bytes(cache.local(path)) as file:
        rows.append((name, digest.of_file(file)))
    except files.Damage as damage:
      raise InputError(f"cannot read {path}: it {damage}") from None
    except OSError as error:
      raise InputError(f"cannot read {path}: {error.strerror}") from None
  return digest.of_json(["content", rows])


def count_bytes(found: list[tuple[str, str]]) -> int | None:
  """Returns the total size of files; None if one is compressed or gone."""
  if any(unpack.is_packed(path) for _, path in found):
    return None
  try:
    return sum(cache.stat(path)[0] for _, path in found)
  except OSError:
    return None


def _expand(pattern: str) -> tuple[str, list[str]]:
  """Returns (the folder before the first wildcard, the paths that match).

  A path that exists is not a pattern: a folder [1] means itself and never 1.
  After the first wildcard a bracket may be literal or a choice of characters;
  if the two readings match different files, this is an error, not a guess.
  """
  if os.path.lexists(pattern):
    return os.path.dirname(pattern) or ".", [pattern]
  parts = pattern.split("/")
  place = 0
  while place < len(parts) - 1 and _is_fixed(parts, place):
    place += 1
  root = "/".join(parts[:place]) or ("/" if pattern[0] == "/" else ".")
  fixed = "".join(part + "/" for part in parts[:place])
  rest = "/".join(parts[place:])
  found = _glob(fixed, rest)
  if "[" in rest:
    literal = _glob(fixed, rest.replace("[", "[[]"))
    if found and literal and set(found) != set(literal):
      raise InputError(
        f"{pattern!r} means {found[0]} where brackets hold a choice of "
        f"characters and {literal[0]} where they stand for themselves; write "
        "[[] for a bracket that stands for itself"
      )
    found = found or literal
  return root, found


def _is_fixed(parts: list[str], place: int) -> bool:
  """Returns whether a part of a path has no wildcard, or exists as written."""
  part = parts[place]
  if not glob.has_magic(part):
    return True
  path = "/".join(parts[: place + 1])
  return not re.search(r"[*?]", part) and os.path.lexists(path)


def _glob(fixed: str, rest: str) -> list[str]:
  try:
    return glob.glob(glob.escape(fixed) + rest, recursive=True)
  except RecursionError:
    raise InputError(
      f"data.source has {rest.count('/')} folders below each other; give a "
      "shorter path"
    ) from None


def _current_folder() -> str:
  try:
    return os.getcwd()
  except OSError:
    return "a folder that was removed"
