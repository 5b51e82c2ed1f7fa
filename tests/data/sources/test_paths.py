"""What a pattern names, and what tells that its files changed."""

import os

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_missing_files_and_directories_are_named(tmp_path):
  with pytest.raises(InputError, match="no file matches"):
    sources.open_source(f"text:{tmp_path}/*.txt")
  with pytest.raises(InputError, match="is a directory"):
    sources.open_source(f"text:{tmp_path}")
  (tmp_path / "folder.txt").mkdir()
  with pytest.raises(InputError, match="no file matches"):
    sources.open_source(f"text:{tmp_path}/*.txt")


def test_a_fingerprint_changes_with_the_files(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("one")
  spec = f"text:{tmp_path}/*.txt"
  before = sources.open_source(spec).fingerprint()
  assert sources.open_source(spec).fingerprint() == before
  os.utime(path, ns=(1, 1))
  assert sources.open_source(spec).fingerprint() != before
  changed = sources.open_source(spec).fingerprint()
  (tmp_path / "b.txt").write_text("")
  assert sources.open_source(spec).fingerprint() != changed


def test_the_path_of_what_is_there_is_no_pattern(tmp_path):
  for name in ("[1]", "1", "[x] proj", "deep", "deep/[2]", "deep/2"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text(f"in {name}")
  for name in ("[1]", "1", "[x] proj", "deep/[2]"):
    assert read(f"text:{tmp_path}/{name}/*.txt") == {"a.txt": f"in {name}"}
    assert read(f"text:{tmp_path}/{name}/**/*.txt") == {"a.txt": f"in {name}"}
  (tmp_path / "q[1]b.txt").write_text("brackets")
  assert read(f"text:{tmp_path}/q[1]*.txt") == {"q[1]b.txt": "brackets"}
  (tmp_path / "q1b.txt").write_text("one")
  with pytest.raises(InputError, match=r"write \[\[\] for a bracket"):
    read(f"text:{tmp_path}/q[1]*.txt")
  assert read(f"text:{tmp_path}/q[[]1]*.txt") == {"q[1]b.txt": "brackets"}
  with pytest.raises(InputError, match=r"write \[\[\] for a bracket"):
    read(f"text:{tmp_path}/d*/[2]/*.txt")
  (tmp_path / "q1c.txt").write_text("two")
  assert set(read(f"text:{tmp_path}/q[1][bc]*.txt")) == {"q1b.txt", "q1c.txt"}


def test_a_number_sign_may_be_part_of_a_path(tmp_path):
  folder = tmp_path / "a#b"
  folder.mkdir()
  (folder / "t#1.jsonl").write_text('{"text": "x", "c": "y"}\n')
  name = "t#1.jsonl:1"
  assert read(f"jsonl:{folder}/t#1.jsonl") == {name: "x"}
  assert read(f"jsonl:{folder}/t#1.jsonl#c") == {name: "y"}
  assert read(f"jsonl:{folder}/*.jsonl") == {name: "x"}
  assert read(f"jsonl:{folder}/*.jsonl#c") == {name: "y"}
  (tmp_path / "a").mkdir()
  assert read(f"jsonl:{folder}/t#1.jsonl#") == {name: "x"}
  (folder / "t#1.jsonl#c").write_text('{"text": "z"}\n')
  assert read(f"jsonl:{folder}/t#1.jsonl#c") == {"t#1.jsonl#c:1": "z"}
  with pytest.raises(InputError, match="no file matches"):
    read(f"jsonl:{folder}/none.jsonl#c")


def test_a_file_name_that_is_not_utf8_is_read_by_pattern(tmp_path):
  try:
    (tmp_path / os.fsdecode(b"a\xff.txt")).write_text("x")
  except OSError:
    pytest.skip("this file system takes UTF-8 only")
  assert list(read(f"text:{tmp_path}/*.txt").values()) == ["x"]
