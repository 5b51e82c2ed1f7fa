"""CSV and TSV: a column by its name, and what is no such table."""

import gzip

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document, jsonl


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_fields_of_csv_may_hold_commas_quotes_and_line_breaks(tmp_path):
  path = tmp_path / "a.csv"
  rows = 'id,text,"a, b"\r\n1,"one, ""two""\r\nthree\n",x\r\n2,,y\r\n\r\n3,國,z'
  path.write_bytes(b"\xef\xbb\xbf" + rows.encode())
  texts = {"a.csv:1": 'one, "two"\r\nthree\n', "a.csv:3": "國"}
  assert read(f"csv:{path}") == texts
  assert list(read(f"csv:{path}#a, b").values()) == ["x", "y", "z"]
  path.write_bytes(gzip.compress(rows.encode()))
  assert read(f"csv:{path}#text") == texts


def test_fields_of_tsv_are_what_is_between_tabs(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_bytes('n\ttext\r\n1\t"a, b\r\n\r\n2\t\r\n3\t \x0b國'.encode())
  assert read(f"tsv:{path}") == {"a.tsv:1": '"a, b', "a.tsv:3": " \x0b國"}


def test_texts_and_marks_may_lie_across_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(document, "BLOCK", 5)
  path = tmp_path / "a.csv"
  text = '"quoted"\n' * 9 + "國" * 9
  quoted = text.replace('"', '""')
  path.write_text(f'text\n"{quoted}"\n')
  assert read(f"csv:{path}") == {"a.csv:1": text}


BAD = {
  "": ("csv", "a.csv is empty; its first line must name"),
  "id,txet\n1,x\n": ("csv", "'text'; it has 'id', 'txet': did you mean 'txet'"),
  "a,b\n": ("csv", "no column 'text'; it has 'a', 'b'$"),
  "a\ttext\n": ("csv", "it is to be read as tsv:"),
  "a,text\n": ("tsv", "it is to be read as csv:"),
  "a;text\n": ("csv", "commas in the place of semicolons"),
  "text,text\n1,2\n": ("csv", "names 'text' twice"),
  "a,text\n1,2\n1,2,3\n": ("csv", "line 3 has 3 columns, .* names 2"),
  "a\ttext\n1\n": ("tsv", "line 2 has 1 columns, .* names 2"),
  'a,text\n1,"open\n2,x\n': ("csv", "line 2 is not CSV: .* left open"),
  'a,text\n1,"x"y\n': ("csv", "line 2 is not CSV: .* written twice"),
  "a,text\rb,c\r": ("csv", "line 1 is not CSV"),
  "text\n\udcff\n": ("csv", "line 2 is not UTF-8: byte 0xff at offset 0"),
}


@pytest.mark.parametrize("content", BAD)
def test_what_is_no_table_of_columns_is_one_sentence(tmp_path, content):
  scheme, said = BAD[content]
  path = tmp_path / "a.csv"
  path.write_bytes(content.encode(errors="surrogateescape"))
  with pytest.raises(InputError, match=said):
    read(f"{scheme}:{path}")


def test_a_row_is_read_within_its_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(document, "BLOCK", 100)
  monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
  path = tmp_path / "a.csv"
  path.write_text("text\n" + "x" * 900 + "\n")
  assert read(f"csv:{path}")
  path.write_text("text\n" + "x" * 2000 + "\n")
  with pytest.raises(InputError, match="line 2 has more than 1,000 bytes"):
    read(f"csv:{path}")
  path.write_text('text\n"' + "open\n" * 10_000)
  with pytest.raises(InputError, match="line 2 is not CSV: field larger"):
    read(f"csv:{path}")


def test_a_folder_stands_for_its_tables(tmp_path):
  for name in ("b.csv", "sub/a.csv.gz", ".git/c.csv", "d.tsv", "e.txt"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    data = b"text\n" + name.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  assert list(read(f"csv:{tmp_path}")) == ["b.csv:1", "sub/a.csv.gz:1"]
  assert list(read(f"tsv:{tmp_path}#text").values()) == ["d.tsv"]
