"""labelled:GLOB[#TEXT[#TEXT]#LABEL]: texts with labels: JSON, TSV or CSV.

A label is read as it is in the file; data.label decides which form it must have
(data/labels.py).

Design choice: the first line of a CSV file names its columns, as nearly always.
The first line of a TSV file does so only if the spec has names instead of
numbers, or if the line has the names in FIELDS, which cannot be an example.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpt_jax.data.sources import (
  columns,
  document,
  fields,
  jsonl,
  paths,
  unpack,
)
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.data.sources.filed import FiledSource
from gpt_jax.exits import InputError

# Fields of JSON, and columns of TSV, unless the spec names them.
FIELDS = ("text", "label")
COLUMNS = ("1", "2")
# Separates the texts of a pair where they are read as one document.
BETWEEN = "\n"


class Example(NamedTuple):
  """A text, or a pair of them, and its label.

  Attributes:
    name: unique within the source.
    where: what errors call it: the file and the line.
    texts: one or two, none of them empty.
    label: as in the file; None where it has none.
    lack: a sentence on why the file or the record has no label; "" if it has
      one, or if only its value is empty.
  """

  name: str
  where: str
  texts: tuple[str, ...]
  label: Any
  lack: str = ""

  def to_bytes(self) -> bytes:
    """Returns everything that determines how it is stored."""
    return json.dumps([self.texts, self.label]).encode()


class LabelledSource(FiledSource):
  """Two or three fields of JSON records, or columns of TSV or CSV.

  The last field is the label. Columns without names are counted from 1. For
  other objectives, `documents` yields the texts alone.
  """

  def __init__(self, spec: str, argument: str):
    pattern, self.names = fields.split_names(argument)
    kind = "labelled#" + "#".join(self.names)
    super().__init__(spec, kind, paths.find_files(pattern))
    if self.names and (len(self.names) not in (2, 3) or not all(self.names)):
      raise InputError(
        f"{spec} names {'#'.join(self.names)!r} after its path; it must be a "
        "text, or two, and a label, as in #text#label or, of columns, #1#2"
      )
    for _, path in self.files:
      if not self._has_named_columns(path):
        fields.check_file(spec, path, self.names, "labelled texts")

  def documents(self) -> Iterator[Document]:
    for one in self.examples():
      yield Document(one.name, slice_text(BETWEEN.join(one.texts)))

  def examples(self) -> Iterator[Example]:
    """Yields the examples, in the order of `documents`.

    Raises:
      InputError: a record has no text, or cannot be read.
    """
    for name, path in self.files:
      for number, where, texts, label, *why in self._choose_reader(path)(path):
        if not all(texts):
          raise InputError(f"{where} has an empty text; it must have some")
        yield Example(f"{name}:{number}", where, tuple(texts), label, *why)

  def _has_named_columns(self, path: str) -> bool:
    if not fields.is_tsv(path):
      return _is_csv(path)
    return not all(name.isdecimal() for name in self.names)

  def _choose_reader(self, path: str):
    if self._has_named_columns(path):
      return self._read_table
    if not fields.is_tsv(path):
      return self._read_records
    first = next(fields.read_columns(path), None)
    if not self.names and first is not None and {*FIELDS} <= {*first[2]}:
      return self._read_table
    return self._read_lines

  def _read_table(self, path: str):
    """Yields (number, where, texts, label, lack) of rows with named columns."""
    names = self.names or FIELDS
    scheme = "csv" if _is_csv(path) else "tsv"
    lack = columns.describe_lack(path, names[-1], scheme)
    rows = columns.read_fields(path, names, scheme, last_is_optional=True)
    for number, line, found in rows:
      texts, label = found[: len(names) - 1], found[len(names) - 1 :]
      own = (label or [""])[0] or None
      yield number, f"{path}, line {line}", texts, own, lack

  def _read_records(self, path: str):
    """Yields (number, where, texts, label, lack) of JSON records."""
    *texts, label = self.names or FIELDS
    hint = "name the text and the label after the path as #TEXT#LABEL"
    is_said = False
    for number, value in jsonl.read_values(path):
      where = f"{path}, line {number}"
      found = [jsonl.text_of(value, name, where, hint) for name in texts]
      assert isinstance(value, dict)  # as text_of has found
      lack = ""
      if label not in value and not is_said:  # an error quotes the first only
        there, is_said = [*value], True
        lack = str(document.missing_field(where, "field", label, there, hint))
      yield number, where, found, value.get(label), lack

  def _read_lines(self, path: str):
    """Yields (number, where, texts, label, lack) of lines of columns."""
    wanted = [int(n) for n in self.names or COLUMNS]
    # A file may lack the column of labels, if they are to be predicted.
    *texts, label = wanted
    for number, where, cells in fields.read_columns(path):
      if len(cells) < max(texts) or not (self.names or len(cells) <= 2):
        raise fields.wrong_columns(where, cells, max(wanted), bool(self.names))
      has_label = len(cells) >= label and cells[label - 1] != ""
      found = [cells[n - 1] for n in texts]
      lack = ""
      if len(cells) < label:
        is_named = bool(self.names)
        lack = str(fields.wrong_columns(where, cells, max(wanted), is_named))
      yield number, where, found, cells[label - 1] if has_label else None, lack


def _is_csv(path: str) -> bool:
  return unpack.bare_name(path).endswith(".csv")


def spec_like(path: str, argument: str) -> str:
  """Returns the spec of a file, with the fields of another source as default.

  Args:
    path: of the file, with or without fields of its own.
    argument: GLOB[#NAME...] of the other source.
  """
  pattern, own = fields.split_names(path)
  other, names = fields.split_names(argument)
  if not own and fields.is_tsv(pattern) == fields.is_tsv(other):
    own = names
  return "#".join([f"labelled:{pattern}", *own])
