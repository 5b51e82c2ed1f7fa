"""csv: and tsv:GLOB[#FIELD]: one document for each row, from a named column.

The first line of a file names its columns.

Design choice: a field of `csv:` may be quoted, with commas and line breaks
inside (RFC 4180); a field of `tsv:` may not, as IANA registered the format and
as other sources here read TSV. A quotation mark at the beginning of a TSV field
is text.
"""

import csv
from collections.abc import Iterator, Sequence

from gpt_jax.data.sources import document, jsonl, paths
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.data.sources.filed import DividedSource
from gpt_jax.exits import InputError

SUFFIXES = {"csv": (".csv",), "tsv": (".tsv", ".tab")}


class ColumnSource(DividedSource):
  """A column of the rows of text files, which may be compressed.

  A row whose text is empty is left out.
  """

  def __init__(self, spec: str, argument: str):
    self._scheme = scheme = spec.partition(":")[0]
    pattern, self._field = paths.split_field(argument)
    found = paths.find_files(pattern, SUFFIXES[scheme])
    super().__init__(spec, f"{scheme}#{self._field}", found)

  def read_file(self, name: str, path: str) -> Iterator[Document]:
    read = {"csv": read_csv, "tsv": read_tsv}[self._scheme]
    for number, text in read(path, self._field):
      if text:
        yield Document(f"{name}:{number}", slice_text(text))


def read_csv(path: str, field: str) -> Iterator[tuple[int, str]]:
  """Yields (number of the row, from 1, its text in a column).

  Raises:
    InputError: the file is no CSV, or has no such column.
  """
  for number, _, (text,) in read_fields(path, [field], "csv"):
    yield number, text


def read_tsv(path: str, field: str) -> Iterator[tuple[int, str]]:
  """As read_csv, for columns that tabs separate."""
  for number, _, (text,) in read_fields(path, [field], "tsv"):
    yield number, text


def read_fields(
  path: str, names: Sequence[str], scheme: str, last_is_optional: bool = False
) -> Iterator[tuple[int, int, list[str]]]:
  """Yields (number of the row from 1, its line, its texts in the columns).

  Args:
    names: of the columns, as in the first line.
    scheme: csv or tsv.
    last_is_optional: leave the last name out if the first line lacks it.

  Raises:
    InputError: the file is not of the scheme, or has no such column.
  """
  rows = {"csv": _read_rows, "tsv": _split_rows}[scheme](path)
  first = next(rows, None)
  if first is None:
    raise InputError(f"{path} is empty; its first line must name its columns")
  head = first[1]
  if last_is_optional and names[-1] not in head:
    names = names[:-1]
  places = [_find_column(path, name, head, scheme) for name in names]
  for number, (line, row) in enumerate(rows, 1):
    if len(row) != len(head):
      raise InputError(
        f"{path}, line {line} has {len(row)} columns, and its first line "
        f"names {len(head)}; each row must have as many"
      )
    yield number, line, [row[at] for at in places]


def describe_lack(path: str, name: str, scheme: str) -> str:
  """Returns the error sentence for a missing column, or "" if it is there."""
  _, head = next({"csv": _read_rows, "tsv": _split_rows}[scheme](path), (0, []))
  if not head or name in head:
    return ""
  return str(_lack_of(path, name, head, scheme))


def _find_column(path: str, field: str, head: list[str], scheme: str) -> int:
  if head.count(field) == 1:
    return head.index(field)
  raise _lack_of(path, field, head, scheme)


def _lack_of(path: str, field: str, head: list[str], scheme: str) -> InputError:
  where = f"{path}, whose first line names its columns,"
  if field in head:
    return InputError(f"{where} names {field!r} twice; give each its own name")
  error = document.missing_field(where, "column", field, head)
  other, between = ("tsv", "\t") if scheme == "csv" else ("csv", ",")
  hint = ""
  if len(head) == 1 and between in head[0]:
    hint = f"; if it has columns, it is to be read as {other}:"
  elif len(head) == 1 and ";" in head[0]:
    hint = "; write it with commas in the place of semicolons"
  return InputError(f"{error}{hint}")


def _split_rows(path: str) -> Iterator[tuple[int, list[str]]]:
  """Yields (number of the line, columns) of lines that are not empty."""
  for number, line in _read_lines(path):
    columns = line.removesuffix("\n").removesuffix("\r").split("\t")
    if columns != [""]:
      yield number, columns


def _read_rows(path: str) -> Iterator[tuple[int, list[str]]]:
  """As _split_rows, for CSV, where a row may span several lines."""
  # The limit is global to the process, where nothing else reads users' CSV.
  csv.field_size_limit(jsonl.MAX_LINE_BYTES)
  lines = (line for _, line in _read_lines(path))
  reader = csv.reader(lines, strict=True)
  first = 1
  while True:
    try:
      row = next(reader, None)
    except csv.Error as error:
      hint = "is a quotation mark left open?"
      if "expected after" in str(error):
        hint = "a quotation mark inside a field is written twice"
      raise InputError(
        f"{path}, line {first} is not CSV: {error}; {hint}"
      ) from None
    if row is None:
      return
    if row:
      yield first, row
    first = reader.line_num + 1


def _read_lines(path: str) -> Iterator[tuple[int, str]]:
  for number, line in jsonl.read_lines(path):
    where = f"{path}, line {number}"
    yield number, document.decode(line, where) + "\n"
