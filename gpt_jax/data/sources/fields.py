"""Fields of JSON records, and columns of tab-separated lines.

These functions are shared by all sources that read several texts per record.
"""

import re
from collections.abc import Iterator, Sequence

from gpt_jax.data.sources import document, jsonl, paths, unpack
from gpt_jax.exits import InputError


def split_names(argument: str) -> tuple[str, tuple[str, ...]]:
  """Returns (GLOB, names) of GLOB[#NAME...]; the files need not exist."""
  pattern, names = argument, []
  while True:
    pattern, name = paths.split_field(pattern, "")
    if not name:
      return pattern, tuple("#".join(names).split("#")) if names else ()
    names.insert(0, name)


def is_tsv(path: str) -> bool:
  """Returns whether a file has columns, going by its name."""
  return unpack.bare_name(path).endswith(".tsv")


def check_file(spec: str, path: str, names: Sequence[str], what: str) -> None:
  """Raises InputError for a file that holds neither records nor columns.

  Args:
    names: of the fields that the spec gives, if it does.
    what: what the file is to hold, for the error.
  """
  if not is_tsv(path):
    unpack.refuse_table(path)
    if not unpack.bare_name(path).endswith(jsonl.SUFFIXES):
      raise InputError(
        f"{path} is not known to hold {what}; its name must end in "
        f"{', '.join(jsonl.SUFFIXES)} or .tsv, compressed or not"
      )
  elif not all(re.fullmatch("[1-9][0-9]{0,5}", n) for n in names):
    raise InputError(
      f"{spec} names {'#'.join(names)!r}, and {path} has columns without "
      "names; give their numbers, as in #1#2"
    )


def read_columns(path: str) -> Iterator[tuple[int, str, list[str]]]:
  """Yields (number, what errors call it, columns) of each non-empty line."""
  for number, line in jsonl.read_lines(path):
    where = f"{path}, line {number}"
    columns = document.decode(line, where).removesuffix("\r").split("\t")
    if columns != [""]:
      yield number, where, columns


def wrong_columns(
  where: str, columns: Sequence[str], count: int, is_named: bool
) -> InputError:
  """Returns the error for a line that does not have `count` columns."""
  rest = "" if is_named else ", or they must be named as in FILE#1#2"
  return InputError(
    f"{where} has {len(columns)} columns; it must have {count}, with a tab "
    f"between them{rest}"
  )


def find_records(spec: str, argument: str) -> list[tuple[str, str]]:
  """Returns (name, path) of JSON files whose fields the spec does not name.

  Raises:
    InputError: the argument names fields, or a file does not hold records.
  """
  pattern, names = split_names(argument)
  found = paths.find_files(pattern)
  scheme = spec.partition(":")[0]
  if names:
    raise InputError(
      f"{spec} names {'#'.join(names)!r} after its path; the fields of "
      f"{scheme}: are those of its layout: leave it out"
    )
  for _, path in found:
    if is_tsv(path):
      raise InputError(
        f"{path} has columns, and {scheme}: reads fields; give JSON records "
        f"({', '.join(jsonl.SUFFIXES)})"
      )
    check_file(spec, path, (), f"what {scheme}: reads")
  return found
