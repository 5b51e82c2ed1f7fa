"""The library and manual of the running Python, as documents."""

import ast
import os
import sysconfig

from gpt_jax.data import sources


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_interpreter_reads_the_library_and_its_manual():
  documents = read("interpreter")
  assert list(documents) == list(read("interpreter"))
  folders = {part for name in documents for part in name.split("/")[:-1]}
  assert "email" in folders and not folders & {"test", "tests"}
  path = os.path.join(sysconfig.get_path("stdlib"), "ast.py")
  with open(path, encoding="utf-8", newline="") as file:
    assert documents["ast.py"] == file.read()
  topics = [name for name in documents if name.startswith("topics/")]
  if os.path.isdir(os.path.join(sysconfig.get_path("stdlib"), "pydoc_data")):
    assert len(topics) > 50
    assert "if_stmt" in documents["topics/if"]
  assert sum(map(len, documents.values())) > 1e6


def test_interpreter_does_without_missing_modules(tmp_path, monkeypatch):
  (tmp_path / "one.py").write_text("x = 1\n")
  (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# \xe9\n")
  for folder in ("test", "site-packages"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "no.py").write_text("no")
  monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
  assert read("interpreter") == {"one.py": "x = 1\n"}
  before = sources.open_source("interpreter").fingerprint()
  (tmp_path / "two.py").write_text("y = 2\n")
  assert sources.open_source("interpreter").fingerprint() != before


def test_topics_are_parsed_and_not_run(tmp_path, monkeypatch):
  (tmp_path / "pydoc_data").mkdir()
  body = f"raise SystemExit\ntopics = {{'b': 'text b', 'a': {'x' * 9!r}}}\n"
  (tmp_path / "pydoc_data" / "topics.py").write_text(body)
  monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
  assert ast.parse(body)
  assert read("interpreter") == {"topics/a": "x" * 9, "topics/b": "text b"}
