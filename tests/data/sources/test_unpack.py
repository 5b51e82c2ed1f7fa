"""Compressed files are recognized by their bytes; others are refused."""

import bz2
import gzip
import json
import lzma

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources


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


def test_a_window_above_zstds_default_is_read(tmp_path):
  import zstandard

  wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
  pack = zstandard.ZstdCompressor(compression_params=wide).compressobj()
  (tmp_path / "a.txt.zst").write_bytes(pack.compress(b"wide") + pack.flush())
  assert read(f"text:{tmp_path}/a.txt.zst") == {"a.txt.zst": "wide"}


FOREIGN = {
  "a.parquet": (b"PAR1\x15\x04", "is a table .parquet.* jsonl:FILE#COLUMN"),
  "b.txt": (b"PAR1\x15\x04", "is a parquet table, .* jsonl:FILE#COLUMN"),
  "a.csv": (b"id,text\n1,x\n", "is a table .CSV.* jsonl:FILE#COLUMN"),
  "a.csv.gz": (gzip.compress(b"id,text\n"), "is a table .CSV"),
  "a.zip": (b"PK\x03\x04\0\0", "is a zip archive, which"),
  "a.tgz": (
    gzip.compress(b"x" * 257 + b"ustar\0" + b"\0" * 99),
    "is a tar arch",
  ),
  "a.pdf": (b"%PDF-1.7\n", "is a PDF, which"),
  "u.txt": ("wide".encode("utf-16"), "is UTF-16 text, .* to UTF-8"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("scheme", ["text", "jsonl"])
def test_what_holds_no_text_is_named_for_what_it_is(tmp_path, name, scheme):
  data, said = FOREIGN[name]
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=f"{name} {said}"):
    read(f"{scheme}:{tmp_path}/{name}")
