"""parquet:GLOB[#FIELD]: one document for each row, from one column of text.

Only that column is read, a batch of rows at a time, so memory use does not
depend on the size of a file or of its row groups.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax import files
from gpt_jax.data.sources import document, paths, unpack
from gpt_jax.data.sources.document import (
  BOM,
  Document,
  Unit,
  first_line,
  slice_text,
)
from gpt_jax.exits import InputError
from gpt_jax.machine import cache

SUFFIXES = (".parquet", ".pq")
# The most bytes of text, on average, and the most rows of a batch.
BATCH_BYTES = 1 << 20
BATCH_ROWS = 1 << 12
# Bytes that are read from a file at once.
_BUFFER_BYTES = 1 << 18
# Limits on what a file's footer can make the reader allocate.
_MAX_STRING_BYTES = 1 << 26
_MAX_ITEMS = 1 << 22


class ParquetSource:
  """A column of strings in parquet files."""

  is_divided_by_text = True

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    pattern, self._field = paths.split_field(argument)
    self.files = paths.find_files(pattern, SUFFIXES)
    self._paths = dict(self.files)

  def fingerprint(self) -> str:
    return paths.identify(f"parquet#{self._field}", self.files)

  def num_bytes(self) -> int | None:
    return sum(unit.num_bytes or 0 for unit in self._units)

  def documents(self) -> Iterator[Document]:
    yield from document.read_units(self)

  def units(self) -> list[Unit]:
    return self._units

  def read_unit(self, unit: Unit) -> Iterator[Document]:
    path = self._paths[unit.name]
    for number, text in read_column(path, self._field, unit.part):
      if text:
        yield Document(f"{unit.name}:{number}", slice_text(text))

  @functools.cached_property
  def _units(self) -> list[Unit]:
    return [
      Unit(name, i, size)
      for name, path in self.files
      for i, (_, size) in enumerate(list_groups(path, self._field))
    ]


def list_groups(path: str, field: str) -> list[tuple[int, int]]:
  """Returns (number of rows, decompressed bytes of the column) of row groups.

  Raises:
    InputError: as read_column, for faults that the footer shows.
  """
  with _open(path) as table:
    column, meta = _find_column(table, path, field), table.metadata
    return [_size(meta, column, i) for i in range(meta.num_row_groups)]


def read_column(
  path: str, field: str, group: int | None = None
) -> Iterator[tuple[int, str]]:
  """Yields (number of the row in the file, from 1, its text).

  Args:
    path: of a parquet file.
    field: name of the column.
    group: the row group that is read, or None for all of them.

  Raises:
    InputError: the file is incomplete, or the column is missing, has another
      type, or is null in some row.
  """
  with _open(path) as table:
    column = _find_column(table, path, field)
    meta, first = table.metadata, group or 0
    last = meta.num_row_groups if group is None else group + 1
    number = sum(meta.row_group(i).num_rows for i in range(first))
    for i in range(first, last):
      num_rows, size = _size(meta, column, i)
      average = max(1, size // max(1, num_rows))
      rows = max(1, min(BATCH_ROWS, BATCH_BYTES // average))
      for values in _read_batches(table, path, field, i, rows):
        for value in values:
          number += 1
          yield number, _text_of(value, f"{path}, row {number}", field)


def read_table(
  path: str, fields: Sequence[str]
) -> Iterator[tuple[int, list[Any]]]:
  """Yields (number of the row, from 1, its values in some columns).

  Raises:
    InputError: the file is incomplete, or a column is missing or nested.
  """
  import pyarrow

  with _open(path) as table:
    schema = table.schema_arrow
    for field in fields:
      _require_column(schema, path, field)
      if pyarrow.types.is_nested(schema.field(field).type):
        raise InputError(
          f"{path}: column {field!r} is nested, of type "
          f"{str(schema.field(field).type):.80}; name one of plain values"
        )
    batches = table.iter_batches(
      BATCH_ROWS, columns=list(fields), use_threads=False
    )
    number = 0
    while True:
      try:
        batch = next(batches, None)
        if batch is None:
          return
        # By name: the batch has the file's order of columns, not the caller's.
        found = [batch.column(field).to_pylist() for field in fields]
      except (OSError, pyarrow.ArrowException, MemoryError) as error:
        raise _damaged(path, error) from None
      for values in zip(*found, strict=True):
        number += 1
        yield number, list(values)


def _open(path: str):
  """Returns the ParquetFile at a path; opening it reads the footer."""
  import pyarrow
  from pyarrow import parquet

  try:
    here = cache.local(path)
    with files.open_bytes(here) as file:
      packed = unpack.kind_of(file.read(16))
  except files.Damage as damage:
    raise InputError(f"cannot read {path}: it {damage}") from None
  if packed is not None:
    raise InputError(
      f"{path} is compressed with {packed}; unpack it: what is inside a "
      "parquet file is compressed already"
    )
  try:
    return parquet.ParquetFile(
      here,
      buffer_size=_BUFFER_BYTES,
      pre_buffer=False,
      page_checksum_verification=True,
      thrift_string_size_limit=_MAX_STRING_BYTES,
      thrift_container_size_limit=_MAX_ITEMS,
      schema_depth_limit=files.MAX_DEPTH,
    )
  except (OSError, pyarrow.ArrowException, MemoryError) as error:
    raise _damaged(path, error) from None


def _find_column(table, path: str, field: str) -> int:
  """Returns the index of the column among the leaves of the schema."""
  from pyarrow import types

  schema = table.schema_arrow
  _require_column(schema, path, field)
  kind = schema.field(field).type
  if types.is_dictionary(kind):
    kind = kind.value_type
  is_text = (
    types.is_string,
    types.is_large_string,
    types.is_string_view,
    types.is_binary,
    types.is_large_binary,
  )
  if not any(check(kind) for check in is_text):
    texts = [f.name for f in schema if any(t(f.type) for t in is_text)]
    nested = "nested, " if types.is_nested(kind) else ""
    raise InputError(
      f"{path}: column {field!r} is {nested}of type {str(kind):.80}; it must "
      f"be of strings, and {', '.join(map(repr, texts)) or 'none'} in it is"
    )
  leaves = [table.schema.column(i).path for i in range(len(table.schema.names))]
  return leaves.index(field)


def _require_column(schema, path: str, field: str) -> None:
  """Raises InputError unless a file has exactly one column of a name."""
  if field not in schema.names:
    raise InputError(
      str(document.missing_field(path, "column", field, schema.names))
    )
  if schema.names.count(field) > 1:
    raise InputError(
      f"{path} has two columns {field!r}; give each its own name"
    )


def _size(meta, column: int, group: int) -> tuple[int, int]:
  found = meta.row_group(group)
  return found.num_rows, found.column(column).total_uncompressed_size


def _read_batches(table, path: str, field: str, group: int, rows: int):
  """Yields lists of values; see _text_of."""
  import pyarrow

  batches = table.iter_batches(
    rows, row_groups=[group], columns=[field], use_threads=False
  )
  while True:
    try:
      batch = next(batches, None)
      values = None if batch is None else _to_list(batch.column(0))
    except (OSError, pyarrow.ArrowException, MemoryError) as error:
      raise _damaged(path, error) from None
    if values is None:
      return
    yield values


def _to_list(column) -> list[Any]:
  try:
    return column.to_pylist()
  except UnicodeDecodeError:
    # One text of the batch is not UTF-8; as bytes, it can be found.
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
      column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()


def _text_of(value: Any, where: str, field: str) -> str:
  if value is None:
    raise InputError(
      f"{where}: column {field!r} is null; it must be a string: leave out "
      "such rows, or write empty strings"
    )
  if isinstance(value, bytes):
    value = document.decode(value, f"{where}: column {field!r}")
  return value.removeprefix(BOM)


def _damaged(path: str, error: Exception) -> InputError:
  return InputError(f"{path} is not a whole parquet file: {first_line(error)}")
