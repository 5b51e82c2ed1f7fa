"""Parquet: one column, streamed, and what cannot be read is named."""

import gzip
import random

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import parquet

TEXTS = ["one", "", "two 國\n", "x" * 5000, "\ufeffmarked"]
READ = {1: "one", 3: "two 國\n", 4: "x" * 5000, 5: "marked"}


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def write(path, columns: dict, **how):
  table = pa.table(columns)
  pq.write_table(table, path, **how)
  return path


KINDS = {
  "string": pa.string(),
  "large_string": pa.large_string(),
  "binary": pa.binary(),
  "dictionary": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", ["snappy", "zstd", "none"])
def test_texts_are_read_in_the_order_of_rows(tmp_path, kind, codec):
  texts = pa.array([t.encode() for t in TEXTS]) if kind == "binary" else TEXTS
  column = pa.array(texts).cast(KINDS[kind])
  if kind == "dictionary":
    column = pa.array(TEXTS).dictionary_encode()
  columns = {"list": [[1]] * 5, "text": column, "id": range(5)}
  write(tmp_path / "a.parquet", columns, row_group_size=2, compression=codec)
  expected = {f"a.parquet:{number}": text for number, text in READ.items()}
  assert read(f"parquet:{tmp_path}/a.parquet") == expected


def test_folders_and_patterns_name_many_files(tmp_path):
  for name in ("b.parquet", "sub/a.parquet", ".x/c.parquet"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, {"body": [name]})
  names = {f"{n}:1": n for n in ("b.parquet", "sub/a.parquet")}
  assert read(f"parquet:{tmp_path}#body") == names
  assert read(f"parquet:{tmp_path}/**/*.parquet#body") == names
  one = sources.open_source(f"parquet:{tmp_path}#body")
  other = sources.open_source(f"parquet:{tmp_path}#b")
  assert one.fingerprint() != other.fingerprint()
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="is a directory without .parquet, .pq"):
    sources.open_source(f"parquet:{tmp_path}/empty")


def test_only_the_column_of_text_is_read(tmp_path):
  noise = [random.Random(i).randbytes(500).hex() for i in range(2000)]
  texts = [f"text {i}" for i in range(2000)]
  columns, how = {"noise": noise, "text": texts}, {"row_group_size": 500}
  how |= {"compression": "none", "write_page_checksum": True}
  path = write(tmp_path / "a.parquet", columns, **how)
  # Damage in another column is not met, since no byte of it is read.
  data = bytearray(path.read_bytes())
  at = data.index(noise[1000].encode())
  data[at : at + 1000] = bytes(1000)
  path.write_bytes(data)
  assert len(read(f"parquet:{path}")) == 2000
  with pytest.raises(InputError, match="a.parquet is not a whole parquet file"):
    read(f"parquet:{path}#noise")


def test_batches_are_bounded_by_bytes_and_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "BATCH_BYTES", 10_000)
  monkeypatch.setattr(parquet, "BATCH_ROWS", 64)
  sizes, to_list = [], parquet._to_list

  def counted(column):
    sizes.append((len(column), sum(map(len, column.to_pylist()))))
    return to_list(column)

  monkeypatch.setattr(parquet, "_to_list", counted)
  texts = [chr(65 + i % 26) * 500 + str(i) for i in range(300)]
  texts += [str(i) for i in range(300)]
  path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=300)
  assert list(read(f"parquet:{path}").values()) == texts
  assert max(rows for rows, _ in sizes) <= 64
  assert max(size for _, size in sizes) <= 10_000


def test_row_groups_can_be_read_alone(tmp_path):
  texts = [f"text {i}" for i in range(10)]
  path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=4)
  groups = parquet.list_groups(str(path), "text")
  assert [rows for rows, _ in groups] == [4, 4, 2]
  found = [
    row for i in range(3) for row in parquet.read_column(str(path), "text", i)
  ]
  assert found == list(enumerate(texts, 1))
  assert list(parquet.read_column(str(path), "text", 1))[0] == (5, "text 4")
  size = sources.open_source(f"parquet:{path}").num_bytes()
  assert size == sum(n for _, n in groups) >= len("".join(texts))


BAD = {
  "missing": ({"txt": ["a"], "id": [1]}, "no column 'text'; .* mean 'txt'"),
  "number": (
    {"text": [1], "body": ["a"]},
    "column 'text' is of type int64; it must be of strings, and 'body'",
  ),
  "list": ({"text": [["a"]]}, "is nested, of type list<.*and none in it is"),
  "struct": ({"text": [{"a": "b"}]}, "is nested, of type struct<a: string>"),
  "null": ({"text": ["a", None]}, "row 2: column 'text' is null; .* leave out"),
  "nulls": ({"text": pa.nulls(2)}, "is of type null; it must be of strings"),
  "bytes": ({"text": [b"a", b"\xff"]}, "row 2: column 'text' is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_column_without_text_is_one_sentence(tmp_path, case):
  columns, said = BAD[case]
  path = write(tmp_path / "a.parquet", columns)
  with pytest.raises(InputError, match=f"a.parquet.*{said}"):
    read(f"parquet:{path}")


def test_a_string_that_is_not_utf8_is_named_by_its_row(tmp_path):
  buffers = pa.array([b"a", b"\xff\xfe"]).buffers()
  column = pa.StringArray.from_buffers(2, *buffers[1:])
  path = write(tmp_path / "a.parquet", {"text": column}, use_dictionary=False)
  with pytest.raises(InputError, match="row 2: .* is not UTF-8: byte 0xff"):
    read(f"parquet:{path}")


def test_files_of_mixed_types_name_the_one_that_differs(tmp_path):
  write(tmp_path / "a.parquet", {"text": ["a"]})
  write(tmp_path / "b.parquet", {"text": [1.5]})
  with pytest.raises(InputError, match="b.parquet: column .* of type double"):
    read(f"parquet:{tmp_path}")


def test_a_file_that_is_cut_or_none_is_one_sentence(tmp_path):
  texts = [f"some text {i}" * 9 for i in range(999)]
  path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=100)
  data = path.read_bytes()
  assert len(read(f"parquet:{path}")) == 999
  for cut in (0, 3, 4, 12, len(data) // 2, len(data) - 4, len(data) - 1):
    path.write_bytes(data[:cut])
    with pytest.raises(InputError, match="a.parquet is not a whole parquet"):
      read(f"parquet:{path}")
  # A copy that lost or never got a stretch, with its footer whole.
  at = len(data) // 3
  for stretch in (b"", b"\0" * 4096):
    path.write_bytes(data[:at] + stretch + data[at + 4096 :])
    with pytest.raises(InputError, match="a.parquet is not a whole parquet"):
      read(f"parquet:{path}")
  path.write_bytes(gzip.compress(data))
  with pytest.raises(InputError, match="compressed with gzip; unpack it"):
    read(f"parquet:{path}")
  path.write_text("text,id\n" * 99)
  with pytest.raises(InputError, match="a.parquet is not a whole parquet"):
    read(f"parquet:{path}")
  with pytest.raises(InputError, match="no file matches"):
    read(f"parquet:{tmp_path}/b.parquet")


def test_damaged_bytes_end_in_a_sentence_or_in_the_text(tmp_path):
  texts = [f"some text {i}" * 3 for i in range(200)]
  path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=50)
  data, dice = path.read_bytes(), random.Random(0)
  for _ in range(150):
    broken = bytearray(data)
    broken[dice.randrange(len(data))] = dice.randrange(256)
    path.write_bytes(broken)
    try:
      read(f"parquet:{path}")
    except InputError as error:
      assert "\n" not in str(error)
