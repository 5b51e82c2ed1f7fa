"""pairs:GLOB[#SOURCE#TARGET]: sources and their targets, from JSON or TSV.

A pair becomes two consecutive documents, the source and its target, and the
documents of a prepared set alternate likewise.
"""

from collections.abc import Iterator

from gpt_jax.data.sources import fields, jsonl, paths
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.data.sources.filed import DividedSource
from gpt_jax.exits import InputError

# Fields of JSON, and columns of TSV, unless the spec names them.
FIELDS = ("source", "target")
COLUMNS = (1, 2)


class PairSource(DividedSource):
  """Two fields of JSON records, or two columns of tab-separated lines.

  Without #SOURCE#TARGET, a TSV line must have two columns, and a first line of
  `source` and `target` is a header. With it, as in #2#1, columns are counted
  from 1 and all others are ignored. Fields of JSON go by their names.
  """

  def __init__(self, spec: str, argument: str):
    pattern, self._names = fields.split_names(argument)
    kind = "pairs#" + "#".join(self._names)
    super().__init__(spec, kind, paths.find_files(pattern))
    if self._names and (len(self._names) != 2 or not all(self._names)):
      raise InputError(
        f"{spec} names {'#'.join(self._names)!r} after its path; a pair has "
        "two fields or columns, as in #source#target or #1#2"
      )
    for _, path in self.files:
      fields.check_file(spec, path, self._names, "pairs")

  def read_file(self, name: str, path: str) -> Iterator[Document]:
    read = self._read_lines if fields.is_tsv(path) else self._read_records
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
    for number, where, columns in fields.read_columns(path):
      is_whole = len(columns) >= max(wanted)
      if not self._names:
        is_whole = len(columns) == 2
      if not is_whole:
        raise fields.wrong_columns(
          where, columns, max(wanted), bool(self._names)
        )
      if number == 1 and not self._names and (*columns,) == FIELDS:
        continue
      yield number, [columns[n - 1] for n in wanted], where
