"""jsonl:GLOB[#FIELD]: one document for each JSON line, or list element."""

import itertools
import re
from collections.abc import Iterator

from gpt_jax import files
from gpt_jax.data.sources import document, paths, unpack
from gpt_jax.data.sources.document import BOM, Document, slice_text
from gpt_jax.data.sources.filed import DividedSource
from gpt_jax.exits import InputError

SUFFIXES = (".jsonl", ".json", ".ndjson")
# The most bytes of one line.
MAX_LINE_BYTES = 1 << 28
# The most bytes of a JSON list, which is read whole.
MAX_LIST_BYTES = 1 << 30

_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonSource(DividedSource):
  """A field of JSON records, in files that may be compressed.

  A file that begins with a bracket is one list and is read whole; any other
  file is read line by line. A field that is a list of strings is joined with
  newlines.
  """

  def __init__(self, spec: str, argument: str):
    pattern, self._field = paths.split_field(argument)
    found = paths.find_files(pattern, SUFFIXES)
    super().__init__(spec, f"jsonl#{self._field}", found)
    for _, path in self.files:
      unpack.refuse_table(path)

  def read_file(self, name: str, path: str) -> Iterator[Document]:
    for number, text in read_field(path, self._field):
      if text:
        yield Document(f"{name}:{number}", slice_text(text))


def read_field(path: str, field: str) -> Iterator[tuple[int, str]]:
  """Yields (number of the line or element, from 1, the text in a field).

  Raises:
    InputError: as read_values and text_of.
  """
  for number, value in read_values(path):
    where = f"{path}, document {number}"
    hint = "name one after the path as #FIELD"
    yield number, text_of(value, field, where, hint)


def text_of(value, field: str, where: str, hint: str) -> str:
  """Returns the text in a field of a record.

  Args:
    where: what errors call the record.
    hint: what to do if the field is missing.

  Raises:
    InputError: the value is no record, or its field is missing or no text.
  """
  if not isinstance(value, dict):
    raise InputError(
      f"{where} is {document.kind_of(value)}; it must be an object with a "
      f"field {field!r}"
    )
  if field not in value:
    raise document.missing_field(where, "field", field, list(value), hint)
  text = value[field]
  if isinstance(text, list) and all(isinstance(t, str) for t in text):
    text = "\n".join(text)
  if not isinstance(text, str):
    raise InputError(
      f"{where}: field {field!r} is {document.kind_of(text, '')}; it "
      "must be a string or a list of strings"
    )
  # isascii only reads a flag, whereas the search reads the whole text.
  if not text.isascii() and (surrogate := _SURROGATE.search(text)):
    raise InputError(
      f"{where}: field {field!r} holds half of a surrogate pair at "
      f"character {surrogate.start()}; it must be valid Unicode"
    )
  return text.removeprefix(BOM)


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields (number, line) of a file that may be compressed."""
  blocks = _drop_bom(unpack.read_blocks(path, document.BLOCK))
  yield from enumerate(_split_lines(blocks, path), 1)


def read_values(path: str) -> Iterator[tuple[int, object]]:
  """Yields (number of the line or element, its value)."""
  blocks = _drop_bom(unpack.read_blocks(path, document.BLOCK))
  first = next(blocks, b"")
  while first and not first.strip() and len(first) < 16 * document.BLOCK:
    block = next(blocks, None)
    if block is None:
      return
    first += block
  blocks = itertools.chain([first], blocks)
  if first.lstrip()[:1] == b"[":
    data = _join(blocks, path)
    # If each line is a list of its own, parsing raises an error.
    yield from enumerate(_parse_json(data, path), 1)
    return
  for number, line in enumerate(_split_lines(blocks, path), 1):
    if line.strip():
      yield number, _parse_json(line, f"{path}, line {number}")


def _drop_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
  yield next(blocks, b"").removeprefix(BOM.encode())
  yield from blocks


def _join(blocks, path: str) -> bytes:
  parts, size = [], 0
  for block in blocks:
    parts.append(block)
    size += len(block)
    if size > MAX_LIST_BYTES:
      raise InputError(
        f"{path} is a JSON list of more than {MAX_LIST_BYTES:,} bytes, which "
        "would be read whole; write it as JSON lines, an element a line"
      )
  return b"".join(parts)


def _split_lines(blocks, path: str) -> Iterator[bytes]:
  # Only b"\n" ends a line of JSON. The parts of a line are joined once, when
  # it is whole, so a long line takes linear time.
  parts, size, number = [], 0, 1
  for block in blocks:
    *lines, last = block.split(b"\n")
    for line in lines:
      yield b"".join([*parts, line])
      parts, size, number = [], 0, number + 1
    parts.append(last)
    size += len(last)
    if size > MAX_LINE_BYTES:
      raise InputError(
        f"{path}, line {number} has more than {MAX_LINE_BYTES:,} bytes; a "
        "document that long must be divided, or given as text:GLOB"
      )
  yield b"".join(parts)


def _parse_json(data: bytes, where: str):
  """Returns the value of a line or a file.

  Design choice: a duplicate key in an object is an error, as in pyarrow but not
  in Python's json. RFC 8259 does not say which of the two counts, so one of two
  texts would be lost silently.
  """
  text = document.decode(data, where)
  try:
    return files.parse_json(text, is_bounded=False, is_unique=True)
  except files.Doubled as damage:
    raise InputError(
      f"{where} {damage}, and readers differ in which of them counts; leave "
      "one of them"
    ) from None
  except files.Damage as damage:
    if str(damage).startswith("is not JSON"):
      raise InputError(f"{where} {damage}") from None
    raise InputError(
      f"{where} is not JSON that can be read: it {damage}"
    ) from None
