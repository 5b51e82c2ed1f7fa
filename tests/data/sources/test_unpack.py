"""Compressed files are recognized by their bytes; others are refused."""

import bz2
import functools
import gzip
import json
import lzma
import pathlib
import random

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document, unpack


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


@pytest.mark.parametrize("end", ["gz", "zst"])
def test_packed_files_cut_short_are_refused(tmp_path, end):
  import zstandard

  data = b"".join(b'{"text": "%d"}\n' % i for i in range(5000))
  packed = gzip.compress(data) if end == "gz" else zstandard.compress(data)
  path = tmp_path / f"a.jsonl.{end}"
  path.write_bytes(packed)
  assert len(read(f"jsonl:{path}")) == 5000
  path.write_bytes(packed[: len(packed) - 3])
  with pytest.raises(InputError, match="not a whole"):
    read(f"jsonl:{path}")
  path.write_bytes(b"plain text")
  with pytest.raises(InputError, match=f"a.jsonl.{end} is not a"):
    read(f"jsonl:{path}")


PACK = {
  "gz": gzip.compress,
  "xz": lzma.compress,
  "bz2": bz2.compress,
  "zst": lambda data: __import__("zstandard").compress(data),
}


@pytest.mark.parametrize("end", PACK)
def test_packed_text_is_known_by_its_first_bytes(tmp_path, end):
  text = "國 text\n" * 5000
  packed = PACK[end](text.encode())
  rows = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(9))
  for name in ("a.txt", f"a.txt.{end}", "a.TXT.GZ"):
    (tmp_path / name).write_bytes(packed)
    assert read(f"text:{tmp_path}/{name}") == {name: text}
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=f"{name} is not a whole "):
      read(f"text:{tmp_path}/{name}")
  for name in ("a.jsonl", f"b.jsonl.{end}"):
    (tmp_path / name).write_bytes(PACK[end](rows.encode()))
    assert len(read(f"jsonl:{tmp_path}/{name}")) == 9
  (tmp_path / f"l.json.{end}").write_bytes(PACK[end](b'[{"text": "in"}]'))
  found = read(f"jsonl:{tmp_path}/l.json.{end}")
  assert found == {f"l.json.{end}:1": "in"}
  (tmp_path / f"p.{end}").write_bytes(b"plain")
  with pytest.raises(InputError, match=f"p.{end} is not a .* its name says"):
    read(f"text:{tmp_path}/p.{end}")


@pytest.mark.parametrize("end", PACK)
def test_joined_files_are_read_to_the_last_and_damage_is_named(tmp_path, end):
  path = tmp_path / "a.txt"
  pack, texts = PACK[end], [f"part {i} of many\n" * 99 for i in range(3)]
  parts = [pack(text.encode()) for text in texts]
  path.write_bytes(b"".join(parts))
  assert read(f"text:{path}") == {"a.txt": "".join(texts)}
  path.write_bytes(parts[0] + pack(b"") + parts[1])
  assert read(f"text:{path}") == {"a.txt": texts[0] + texts[1]}
  # Whatever the place of the damage, no text is lost in silence.
  for broken in (
    parts[0] + parts[1][:-4],
    parts[0] + b"\xff" + parts[1][1:],
    parts[0] + b"not compressed",
    parts[0] + parts[1][:4],
  ):
    path.write_bytes(broken)
    with pytest.raises(InputError, match="a.txt is not a whole .* file: "):
      read(f"text:{path}")
  path.write_bytes(parts[0] + b"\xff" * 40)
  with pytest.raises(InputError, match="in part 2 of those that were joined"):
    read(f"text:{path}")
  flipped = bytearray(parts[0])
  flipped[len(flipped) // 2] ^= 0x10
  path.write_bytes(flipped)
  if end != "zst":  # which has a checksum only if it was asked for one
    with pytest.raises(InputError, match="a.txt is not a whole .* file: "):
      read(f"text:{path}")


@pytest.mark.parametrize("end", ["gz", "xz"])
def test_zeros_after_a_member_are_padding(tmp_path, end):
  path = tmp_path / "a.txt"
  for zeros in (4, 8192):
    path.write_bytes((PACK[end](b"x") + b"\0" * zeros) * 2)
    assert read(f"text:{path}") == {"a.txt": "xx"}


@pytest.mark.parametrize("end", PACK)
def test_unpacking_holds_a_bounded_part_of_a_file(tmp_path, end):
  path, size = str(tmp_path / "a.txt"), 96 << 20
  pack = (
    functools.partial(lzma.compress, preset=0) if end == "xz" else PACK[end]
  )
  pathlib.Path(path).write_bytes(pack(b"\0" * size))
  with open(path, "rb") as file:
    kind = unpack.SUFFIXES[f".{end}"]
    sizes = list(map(len, unpack._unpack(file, path, kind)))
  assert sum(sizes) == size and max(sizes) <= 32 << 20
  blocks = list(map(len, unpack.read_blocks(path, 1 << 20)))
  assert sum(blocks) == size and max(blocks) <= 1 << 20


@pytest.mark.parametrize("end", PACK)
def test_blocks_are_the_same_however_a_file_is_packed(tmp_path, end):
  data = random.Random(0).randbytes(300_000)
  (tmp_path / "plain").write_bytes(data)
  (tmp_path / "packed").write_bytes(PACK[end](data[:99]) + PACK[end](data[99:]))
  for size in (7, 1000, 70_000, 1 << 20):
    plain, packed = (
      list(unpack.read_blocks(f"{tmp_path}/{name}", size))
      for name in ("plain", "packed")
    )
    assert b"".join(plain) == data and plain == packed
    assert max(map(len, plain)) == min(size, len(data))


def test_xz_that_asks_for_too_much_memory_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(unpack, "_MAX_XZ_BYTES", 1 << 20)
  (tmp_path / "a.xz").write_bytes(lzma.compress(b"x", preset=6))
  with pytest.raises(InputError, match="a.xz is not .*Memory usage limit"):
    read(f"text:{tmp_path}/a.xz")


def test_a_window_above_zstds_default_is_read(tmp_path):
  import zstandard

  wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
  pack = zstandard.ZstdCompressor(compression_params=wide).compressobj()
  (tmp_path / "a.txt.zst").write_bytes(pack.compress(b"wide") + pack.flush())
  assert read(f"text:{tmp_path}/a.txt.zst") == {"a.txt.zst": "wide"}


FOREIGN = {
  "a.parquet": (b"PAR1\x15\x04", "is a table .parquet.* parquet:FILE#COLUMN"),
  "b.txt": (b"PAR1\x15\x04", "is a parquet table, .* parquet:FILE#COLUMN"),
  "a.csv": (b"id,text\n1,x\n", "is a table .CSV.* csv:FILE#COLUMN"),
  "a.xlsx": (b"PK\x03\x04", "is a table .Excel.* jsonl:FILE#COLUMN"),
  "a.csv.gz": (gzip.compress(b"id,text\n"), "is a table .CSV"),
  "a.zip": (b"PK\x03\x04\0\0", "is a zip archive, which"),
  "a.tgz": (
    gzip.compress(b"x" * 257 + b"ustar\0" + b"\0" * 99),
    "is a tar arch",
  ),
  "a.lz4": (b"\x04\x22\x4d\x18\x40", "is an lz4 file, which"),
  "a.pdf": (b"%PDF-1.7\n", "is a PDF, which"),
  "u.txt": ("wide".encode("utf-16"), "is UTF-16 text, .* to UTF-8"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("scheme", ["text", "jsonl"])
def test_what_holds_no_text_is_named_for_what_it_is(
  tmp_path, monkeypatch, name, scheme
):
  # However little is read at once, a tar archive shows at its 257th byte.
  monkeypatch.setattr(document, "BLOCK", 16)
  data, said = FOREIGN[name]
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=f"{name} {said}"):
    read(f"{scheme}:{tmp_path}/{name}")
