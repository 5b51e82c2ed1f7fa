"""Reads the bytes of text files, and decompresses them.

gzip, zstd, xz and bz2 are recognized by their first bytes, whatever the name of
the file. Files that hold no text (tables, archives) are refused with an error
that says what they are.
"""

import bz2
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import Any

from gpt_jax import files
from gpt_jax.exits import InputError
from gpt_jax.machine import cache

# Suffixes of compressed files.
SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bz2"}

_PACKED = {
  "gzip": rb"\x1f\x8b",
  "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
  "xz": rb"\xfd7zXZ\0",
  "bz2": rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)",
}
_TO_LINES = (
  "which is not read; write its column of text as JSON lines, and give "
  "jsonl:FILE#COLUMN"
)
_BY = "which {}:FILE#COLUMN reads"
# {suffix: (what the file is, what to do)}
_TABLES = {
  ".csv": ("CSV", _BY.format("csv")),
  ".tsv": ("TSV", _BY.format("tsv")),
  ".parquet": ("parquet", _BY.format("parquet")),
  ".arrow": ("Arrow", _TO_LINES),
  ".feather": ("Arrow", _TO_LINES),
  ".xlsx": ("Excel", _TO_LINES),
}
_TO_FILES = "which is not read; unpack it, and give its files"
_FOREIGN = {
  rb"PAR1(?![ -~\s])": f"a parquet table, {_BY.format('parquet')}",
  rb"ARROW1\0": f"an Arrow table, {_TO_LINES}",
  rb"SQLite format 3\0": f"a SQLite database, {_TO_LINES}",
  rb"\x89HDF\r\n": f"an HDF5 file, {_TO_LINES}",
  rb"PK\x03\x04": f"a zip archive, {_TO_FILES}",
  rb"\x04\x22\x4d\x18": f"an lz4 file, {_TO_FILES}",
  rb"7z\xbc\xaf\x27\x1c": f"a 7z archive, {_TO_FILES}",
  rb"(?s:.{257})ustar": f"a tar archive, {_TO_FILES}",
  rb"%PDF-": "a PDF, which is not read; convert it to plain text",
  rb"\xff\xfe|\xfe\xff": "UTF-16 text, which is not read; convert it to UTF-8",
}

# zstd's largest window, used by files that `zstd --long=31` wrote.
_MAX_WINDOW = 1 << 31
# Memory limit for decompressing xz; the largest preset, xz -9, takes 65 MiB.
_MAX_XZ_BYTES = 1 << 30
# Compressed bytes that are decompressed at once. They may expand to 32 MiB with
# zstd and to 1 MiB with gzip. bz2 and xz may expand them further, and pause
# after _PAUSE_BYTES of output.
_FED_BYTES = 1 << 10
_PAUSE_BYTES = 1 << 22
# Bytes that are read at once of a file that is not compressed.
_READ_BYTES = 1 << 20
# Bytes at the beginning of a file that the patterns of _FOREIGN look at.
_HEAD_BYTES = 512


def is_table(path: str) -> bool:
  """Returns whether a file is a table, going by its name."""
  return bare_name(path).lower().endswith(tuple(_TABLES))


def refuse_table(path: str) -> None:
  """Raises InputError if a file is a table, going by its name."""
  bare = bare_name(path).lower()
  for suffix, (kind, remedy) in _TABLES.items():
    if bare.endswith(suffix):
      raise InputError(f"{path} is a table ({kind}), {remedy}")


def is_packed(path: str) -> bool:
  """Returns whether a file is compressed, going by its name."""
  return path.endswith(tuple(SUFFIXES))


def bare_name(path: str) -> str:
  """Returns a path without the suffix of a compressed file."""
  for suffix in SUFFIXES:
    path = path.removesuffix(suffix)
  return path


def kind_of(head: bytes) -> str | None:
  """Returns the compression of a file with these first 16 bytes, or None."""
  found = (kind for kind, magic in _PACKED.items() if re.match(magic, head))
  return next(found, None)


def read_blocks(path: str, size: int) -> Iterator[bytes]:
  """Yields the decompressed content of a file in blocks of <= `size` bytes.

  Raises:
    InputError: it cannot be read, is truncated, or is of a format that holds no
      text.
  """
  try:
    with files.open_bytes(cache.local(path)) as file:
      # The first block is long enough for the patterns of _FOREIGN.
      blocks = _gather(_unpacked(file, path), max(size, _HEAD_BYTES))
      head = next(blocks, b"")
      for pattern, what in _FOREIGN.items():
        if re.match(pattern, head):
          raise InputError(f"{path} is {what}")
      for block in itertools.chain([head], blocks):
        for at in range(0, len(block), size):
          yield block[at : at + size]
  except files.Damage as damage:
    raise InputError(f"cannot read {path}: it {damage}") from None


def _unpacked(file, path: str) -> Iterator[bytes]:
  head = file.read(16)
  file.seek(0)
  kind = kind_of(head)
  if kind is not None:
    yield from _unpack(file, path, kind)
    return
  for suffix, named in SUFFIXES.items():
    if head and path.endswith(suffix):
      raise InputError(f"{path} is not a {named} file, as its name says")
  while block := _read(file, path, _READ_BYTES):
    yield block


def _gather(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
  """Yields the same bytes in blocks of exactly `size`, but for the last."""
  parts, held = [], 0
  for block in blocks:
    parts.append(block)
    held += len(block)
    if held >= size:
      whole = b"".join(parts)
      end = held - held % size
      for at in range(0, end, size):
        yield whole[at : at + size]
      parts, held = [whole[end:]], held - end
  if held:
    yield b"".join(parts)


def _read(file, path: str, size: int) -> bytes:
  try:
    return file.read(size)
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


def _unpack(file, path: str, kind: str) -> Iterator[bytes]:
  """Yields the content of all members of a compressed file.

  Design choice: the file readers of gzip, lzma and bz2 are not used. Those of
  lzma and bz2 silently stop after a member if no valid member follows, so that
  a damaged member would be lost.
  """
  # Some writers pad the last block of a tape or a disk with zeros.
  may_be_padded = kind in ("gzip", "xz")
  member, number, rest = None, 0, b""
  while data := rest or _read(file, path, _FED_BYTES):
    rest = b""
    if member is None:
      if number and may_be_padded:
        data = data.lstrip(b"\0")
        if not data:
          continue
      member, number = _new_member(kind), number + 1
    try:
      yield from _expand(member, data)
    except Exception as error:  # each of the four libraries has its own class
      what = f"is not a whole {kind} file: {error}"
      if number > 1:
        what += f", in part {number} of those that were joined in it"
      raise InputError(f"{path} {what}") from None
    if member.eof:
      rest, member = member.unused_data, None
  if member is not None:
    raise InputError(f"{path} is not a whole {kind} file: its end is missing")


def _expand(member, data: bytes) -> Iterator[bytes]:
  """Yields the decompressed bytes of `data` in bounded blocks."""
  if not hasattr(member, "needs_input"):
    yield member.decompress(data)
    return
  yield member.decompress(data, _PAUSE_BYTES)
  while not (member.eof or member.needs_input):
    yield member.decompress(b"", _PAUSE_BYTES)


def _new_member(kind: str) -> Any:
  """Returns a decompressor of one member: decompress, eof and unused_data."""
  if kind == "gzip":
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
  if kind == "xz":
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_BYTES)
  if kind == "bz2":
    return bz2.BZ2Decompressor()
  import zstandard

  return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
