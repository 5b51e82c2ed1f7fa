"""warc:GLOB: the text of web crawls, one document for each page.

It reads the records of plain text (`conversion` and `resource`) that WET files
consist of. The format of a record is ISO 28500: a version, header lines, an
empty line, Content-Length bytes, and two line breaks.

Design choice: HTML in `response` records is not read. Extracting the text of a
page is a task for tools of its own; WET files have the crawler's extraction.
"""

import re
from collections.abc import Iterator

from gpt_jax.data.sources import document, paths, unpack
from gpt_jax.data.sources.document import BOM, Document, slice_text
from gpt_jax.data.sources.filed import DividedSource
from gpt_jax.exits import InputError

SUFFIXES = (".wet", ".warc")
# The most bytes of one record, and of its header.
MAX_RECORD_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 20

_VERSION = re.compile(rb"WARC/\d+\.\d+")
_TYPES = ("conversion", "resource")


class WarcSource(DividedSource):
  """Plain text records, in files that may be compressed record by record.

  A record without text is left out.
  """

  def __init__(self, spec: str, pattern: str):
    super().__init__(spec, "warc", paths.find_files(pattern, SUFFIXES))

  def read_file(self, name: str, path: str) -> Iterator[Document]:
    for number, text in read_texts(path):
      yield Document(f"{name}:{number}", slice_text(text))


def read_texts(path: str) -> Iterator[tuple[int, str]]:
  """Yields (number of the record, from 1, its text).

  Raises:
    InputError: as read_records, or the file holds no text but HTML.
  """
  num_texts = num_responses = 0
  for number, header, body in read_records(path):
    where = f"{path}, record {number}"
    kind = header.get("content-type", "").partition(";")[0].strip().lower()
    if header.get("warc-type") in _TYPES and kind == "text/plain":
      num_texts += 1
      text = document.decode(body, where).removeprefix(BOM)
      if text.strip():
        yield number, text
    num_responses += header.get("warc-type") == "response"
  if num_responses and not num_texts:
    raise InputError(
      f"{path} holds {num_responses:,} responses of servers and no plain text; "
      "give the WET files of the crawl, or extract the text first"
    )


def read_records(path: str) -> Iterator[tuple[int, dict[str, str], bytes]]:
  """Yields (number of the record, from 1, its header, its content).

  Raises:
    InputError: the file is no WARC, or a record is cut or too large.
  """
  stream = _Stream(unpack.read_blocks(path, document.BLOCK))
  number = 0
  while True:
    line = stream.read_line(MAX_HEADER_BYTES)
    while line in (b"\n", b"\r\n"):
      line = stream.read_line(MAX_HEADER_BYTES)
    if not line:
      return
    number += 1
    where = f"{path}, record {number}"
    if not _VERSION.fullmatch(line.strip()):
      raise InputError(
        f"{where} begins with {line[:20]!r}; a record of WARC begins with "
        "its version, as in WARC/1.0"
      )
    header = _read_header(stream, where)
    length = header.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
      raise InputError(
        f"{where} has the Content-Length {length!r}; it must be its number of "
        "bytes"
      )
    if int(length) > MAX_RECORD_BYTES:
      raise InputError(
        f"{where} has {int(length):,} bytes; at most {MAX_RECORD_BYTES:,} are "
        "read of one"
      )
    body = stream.read(int(length))
    if len(body) < int(length):
      raise InputError(
        f"{where} is cut: it has {len(body):,} of {int(length):,} bytes"
      )
    yield number, header, body


def _read_header(stream: "_Stream", where: str) -> dict[str, str]:
  header, left = {}, MAX_HEADER_BYTES
  while True:
    line = stream.read_line(left)
    left -= len(line)
    if line in (b"\n", b"\r\n"):
      return header
    if not line.endswith(b"\n"):
      most = f"longer than {MAX_HEADER_BYTES:,} bytes"
      what = "cut" if left > 0 else most
      raise InputError(f"{where} has a header that is {what}")
    name, _, value = line.decode("utf-8", "replace").partition(":")
    header[name.strip().lower()] = value.strip()


class _Stream:
  """Reads lines, and given numbers of bytes, from an iterator of blocks."""

  def __init__(self, blocks: Iterator[bytes]):
    self._blocks = blocks
    self._held = b""
    self._at = 0

  def read(self, size: int) -> bytes:
    """Returns the next `size` bytes, or what is left."""
    parts = [self._held[self._at : self._at + size]]
    self._at += len(parts[0])
    missing = size - len(parts[0])
    while missing and (block := next(self._blocks, None)) is not None:
      parts.append(block[:missing])
      self._held, self._at = block, len(parts[-1])
      missing -= len(parts[-1])
    return b"".join(parts)

  def read_line(self, limit: int) -> bytes:
    """Returns the next line with its end; at most `limit` bytes of it."""
    parts = []
    while limit > 0:
      end = self._held.find(b"\n", self._at, self._at + limit)
      stop = self._at + limit if end < 0 else end + 1
      part = self._held[self._at : stop]
      self._at += len(part)
      limit -= len(part)
      parts.append(part)
      if end >= 0:
        break
      if self._at == len(self._held):
        block = next(self._blocks, None)
        if block is None:
          break
        self._held, self._at = block, 0
    return b"".join(parts)
