"""Text files: every document once, as it is, and bad bytes named."""

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document as document_lib


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_text_is_taken_as_it_is_one_document_a_file(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "b.txt").write_bytes("é\r\nb".encode())
  (tmp_path / "sub" / "a.txt").write_bytes("國".encode())
  (tmp_path / "empty.txt").write_bytes(b"")
  documents = read(f"text:{tmp_path}/**/*.txt")
  assert documents == {"b.txt": "é\r\nb", "sub/a.txt": "國"}
  assert read(f"text:{tmp_path}/b.txt") == {"b.txt": "é\r\nb"}


def test_pieces_are_bounded_and_never_break_a_character(tmp_path, monkeypatch):
  monkeypatch.setattr(document_lib, "BLOCK", 7)
  text = "a國é\U0001f600" * 20
  (tmp_path / "a.txt").write_text(text, encoding="utf-8")
  (document,) = sources.open_source(f"text:{tmp_path}/a.txt").documents()
  pieces = list(document.pieces)
  assert "".join(pieces) == text
  assert max(map(len, pieces)) <= 7 and len(pieces) > 10


@pytest.mark.parametrize("at", [0, 6, 7, 8, 20, 29])
def test_invalid_utf8_is_named_by_file_and_offset(tmp_path, monkeypatch, at):
  monkeypatch.setattr(document_lib, "BLOCK", 7)
  data = bytearray("國國國國國國國國國國".encode())
  data[at - at % 3 : at - at % 3 + 3] = b"abc"
  assert read(f"text:{_write(tmp_path, data)}")
  data[at] = 0xFF
  path = _write(tmp_path, data)
  with pytest.raises(
    InputError, match=rf"a.txt is not .* 0xff at offset {at};"
  ):
    read(f"text:{path}")


def test_a_file_that_ends_inside_a_character_is_refused(tmp_path):
  path = _write(tmp_path, "ab國".encode()[:-1])
  with pytest.raises(InputError, match="0xe5 at offset 2;"):
    read(f"text:{path}")


def test_a_mark_before_utf8_is_no_text(tmp_path):
  mark = b"\xef\xbb\xbf"
  (tmp_path / "a.txt").write_bytes(mark + b"text\xef\xbb\xbf")
  assert read(f"text:{tmp_path}/a.txt") == {"a.txt": "text\ufeff"}
  (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "\\ufeffx"}\n')
  assert read(f"jsonl:{tmp_path}/a.jsonl") == {"a.jsonl:1": "x"}


def _write(folder, data: bytes):
  path = folder / "a.txt"
  path.write_bytes(data)
  return path
