"""pairs:GLOB[#SOURCE#TARGET]: sources and their targets, from JSON or TSV.

A pair is two documents after each other, so that it survives preparation: a set
of pairs holds a source and its target in turn.
"""

import re
from collections.abc import Iterator

from gpt_jax.data.sources import document, jsonl, paths, unpack
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.exits import InputError

# Fields of JSON, and columns of TSV, unless the spec names them.
FIELDS = ("source", "target")
COLUMNS = (1, 2)


class PairSource:
  """Two fields of JSON records, or two columns of tab-separated lines.

  Without #SOURCE#TARGET a line of TSV has two columns; with it, such as #2#1,
  columns are counted from 1 and others are left out. Fields of JSON are named.
  """

  is_divided_by_text = True

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    pattern, names = paths.split_field(argument, "")
    if "#" not in names and "#" in pattern:
      # No file matches: the first of the two names was taken for its path.
      pattern, _, first = pattern.rpartition("#")
      names = f"{first}#{names}"
    self.files = paths.find_files(pattern)
    self._names = tuple(names.split("#")) if names else ()
    if names and (len(self._names) != 2 or not all(self._names)):
      raise InputError(
        f"{spec} names {names!r} after its path; a pair has two fields or "
        "columns, as in #source#target or #1#2"
      )
    for _, path in self.files:
      self._check(path)

  def fingerprint(self) -> str:
    return paths.identify("pairs#" + "#".join(self._names), self.files)

  def num_bytes(self) -> int | None:
    return paths.count_bytes(self.files)

  def documents(self) -> Iterator[Document]:
    for name, path in self.files:
      read = self._read_lines if _is_tsv(path) else self._read_records
      for number, texts, where in read(path):
        for text, side in zip(texts, FIELDS, strict=True):
          if not text:
            raise InputError(
              f"{where} has an empty {side}; a pair needs both sides"
            )
        source, target = texts
        yield Document(f"{name}:{number}", slice_text(source))
        yield Document(
          f"{name}:{number}:target", slice_text(target), is_target=True
        )

  def _check(self, path: str) -> None:
    """Refuses a file that holds neither records nor columns."""
    if not _is_tsv(path):
      unpack.refuse_table(path)
      if not unpack.bare_name(path).endswith(jsonl.SUFFIXES):
        raise InputError(
          f"{path} is not known to hold pairs; its name must end in "
          f"{', '.join(jsonl.SUFFIXES)} or .tsv, compressed or not"
        )
    elif not all(re.fullmatch("[1-9][0-9]{0,5}", n) for n in self._names):
      raise InputError(
        f"{self.spec} names {'#'.join(self._names)!r}, and {path} has columns "
        "without names; give their numbers, as in #1#2"
      )

  def _read_records(self, path: str):
    """Yields (number, (source, target), what errors call it)."""
    names = self._names or FIELDS
    for number, value in jsonl.read_values(path):
      where = f"{path}, document {number}"
      hint = "name both after the path as #SOURCE#TARGET"
      texts = [jsonl.text_of(value, name, where, hint) for name in names]
      yield number, texts, where

  def _read_lines(self, path: str):
    """Yields (number, (source, target), what errors call it)."""
    wanted = [int(n) for n in self._names] or COLUMNS
    for number, line in jsonl.read_lines(path):
      where = f"{path}, line {number}"
      columns = document.decode(line, where).removesuffix("\r").split("\t")
      if columns == [""]:
        continue
      is_whole = len(columns) >= max(wanted)
      if not self._names:
        is_whole = len(columns) == 2
      if not is_whole:
        rest = "" if self._names else ", or two named as in FILE#1#2"
        raise InputError(
          f"{where} has {len(columns)} columns; it must have {max(wanted)}, "
          f"with a tab between them{rest}"
        )
      yield number, [columns[n - 1] for n in wanted], where


def _is_tsv(path: str) -> bool:
  return unpack.bare_name(path).endswith(".tsv")
