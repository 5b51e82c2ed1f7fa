"""The bytes of text files, decompressed.

gzip, zstd, xz and bz2 are recognized by their first bytes, whatever the name of
the file. Files that hold no text (tables, archives) are refused with a sentence
that says what they are.
"""

import bz2
import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator

from gpt_jax import files
from gpt_jax.exits import InputError

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
_TABLES = {
  ".csv": "CSV",
  ".tsv": "TSV",
  ".parquet": "parquet",
  ".arrow": "Arrow",
  ".feather": "Arrow",
  ".xlsx": "Excel",
}
_TO_FILES = "which is not read; unpack it, and give its files"
_FOREIGN = {
  rb"PAR1(?![ -~\s])": f"a parquet table, {_TO_LINES}",
  rb"ARROW1\0": f"an Arrow table, {_TO_LINES}",
  rb"SQLite format 3\0": f"a SQLite database, {_TO_LINES}",
  rb"\x89HDF\r\n": f"an HDF5 file, {_TO_LINES}",
  rb"PK\x03\x04": f"a zip archive, {_TO_FILES}",
  rb"7z\xbc\xaf\x27\x1c": f"a 7z archive, {_TO_FILES}",
  rb"(?s:.{257})ustar": f"a tar archive, {_TO_FILES}",
  rb"%PDF-": "a PDF, which is not read; convert it to plain text",
  rb"\xff\xfe|\xfe\xff": "UTF-16 text, which is not read; convert it to UTF-8",
}

# zstd's largest window, used by files that `zstd --long=31` wrote.
_MAX_WINDOW = 1 << 31
# Bytes given to zstd at once; it may expand each to 32 KiB.
_ZSTD_BYTES = 1 << 12


def is_table(path: str) -> bool:
  """Returns whether a file is a table, going by its name."""
  return bare_name(path).lower().endswith(tuple(_TABLES))


def refuse_table(path: str) -> None:
  """Raises InputError if a file is a table, going by its name."""
  bare = bare_name(path).lower()
  for suffix, kind in _TABLES.items():
    if bare.endswith(suffix):
      raise InputError(f"{path} is a table ({kind}), {_TO_LINES}")


def is_packed(path: str) -> bool:
  """Returns whether a file is compressed, going by its name."""
  return path.endswith(tuple(SUFFIXES))


def bare_name(path: str) -> str:
  """Returns a path without the suffix of a compressed file."""
  for suffix in SUFFIXES:
    path = path.removesuffix(suffix)
  return path


def read_blocks(path: str, size: int) -> Iterator[bytes]:
  """Yields the decompressed content of a file in blocks of <= `size` bytes.

  Raises:
    InputError: it cannot be read, is truncated, or is of a format that holds no
      text.
  """
  try:
    with files.open_bytes(path) as file:
      blocks = _unpacked(file, path, size)
      head = next(blocks, b"")
      for pattern, what in _FOREIGN.items():
        if re.match(pattern, head):
          raise InputError(f"{path} is {what}")
      for block in itertools.chain([head], blocks):
        for at in range(0, len(block), size):
          yield block[at : at + size]
  except files.Damage as damage:
    raise InputError(f"cannot read {path}: it {damage}") from None


def _unpacked(file, path: str, size: int) -> Iterator[bytes]:
  head = file.read(16)
  file.seek(0)
  found = (kind for kind, magic in _PACKED.items() if re.match(magic, head))
  kind = next(found, None)
  if kind is None and head:
    for suffix, named in SUFFIXES.items():
      if path.endswith(suffix):
        raise InputError(f"{path} is not a {named} file, as its name says")
  if kind == "zstd":
    yield from _unpack_zstd(file, path)
    return
  stream = {
    None: lambda: file,
    "gzip": lambda: gzip.GzipFile(fileobj=file),
    "xz": lambda: lzma.LZMAFile(file),
    "bz2": lambda: bz2.BZ2File(file),
  }[kind]()
  # The first block must be long enough for the patterns of _FOREIGN.
  for wanted in itertools.chain([max(size, 512)], itertools.repeat(size)):
    try:
      block = stream.read(wanted)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
      if kind is None:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {why}") from None
      raise InputError(f"{path} is not a whole {kind} file: {error}") from None
    if not block:
      return
    yield block


def _unpack_zstd(file, path: str) -> Iterator[bytes]:
  # zstandard's stream reader does not notice that the end is missing.
  import zstandard

  unpacker, whole = None, False
  rest = b""
  while True:
    block = rest or file.read(_ZSTD_BYTES)
    rest = b""
    if not block:
      break
    if unpacker is None:
      unpacker = zstandard.ZstdDecompressor(
        max_window_size=_MAX_WINDOW
      ).decompressobj()
    try:
      out = unpacker.decompress(block)
    except (zstandard.ZstdError, MemoryError) as error:
      raise InputError(f"{path} is not a whole zstd file: {error}") from None
    whole = unpacker.eof
    if whole:
      rest, unpacker = unpacker.unused_data, None
    if out:
      yield out
  if not whole:
    raise InputError(f"{path} is not a whole zstd file: its end is missing")
