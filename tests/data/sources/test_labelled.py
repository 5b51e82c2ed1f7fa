"""Labelled texts of JSON, TSV and CSV, and what errors say of bad ones."""

import gzip

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import labels, sources
from gpt_jax.data.sources.labelled import spec_like


def read(spec: str) -> list[tuple]:
  source = sources.open_source(spec)
  return [(e.name, e.texts, e.label) for e in source.examples()]


def test_fields_of_json_are_texts_and_a_label(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(
    '{"text": "one", "label": "x", "other": 1}\n\n'
    '{"text": "two", "label": 3}\n{"text": "three"}\n'
  )
  assert read(f"labelled:{path}") == [
    ("a.jsonl:1", ("one",), "x"),
    ("a.jsonl:3", ("two",), 3),
    ("a.jsonl:4", ("three",), None),
  ]
  (tmp_path / "b.jsonl").write_text('{"p": "one", "h": "two", "y": [1]}')
  pair = f"labelled:{tmp_path}/b.jsonl#p#h#y"
  assert read(pair) == [("b.jsonl:1", ("one", "two"), [1])]
  documents = sources.open_source(pair).documents()
  assert ["".join(d.pieces) for d in documents] == ["one\ntwo"]


def test_columns_are_texts_and_a_label_plain_and_packed(tmp_path):
  data = "one\tx\r\ntwo\ty\n\nthree\n"
  (tmp_path / "a.tsv").write_text(data)
  (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(data.encode()))
  for name in ("a.tsv", "a.tsv.gz"):
    assert read(f"labelled:{tmp_path}/{name}") == [
      (f"{name}:1", ("one",), "x"),
      (f"{name}:2", ("two",), "y"),
      (f"{name}:4", ("three",), None),
    ]
  (tmp_path / "b.tsv").write_text("1\tx\tone\ttwo\n")
  found = read(f"labelled:{tmp_path}/b.tsv#3#4#2")
  assert found == [("b.tsv:1", ("one", "two"), "x")]


def test_columns_may_have_names(tmp_path):
  csv = 'id,label,text\n7,x,"one, ""1"""\n8,,"two\nlines"\n'
  (tmp_path / "a.csv").write_text(csv)
  (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv.encode()))
  for name in ("a.csv", "a.csv.gz"):
    assert read(f"labelled:{tmp_path}/{name}") == [
      (f"{name}:1", ('one, "1"',), "x"),
      (f"{name}:2", ("two\nlines",), None),
    ]
  found = read(f"labelled:{tmp_path}/a.csv#text#id")
  assert [label for _, _, label in found] == ["7", "8"]
  (tmp_path / "b.csv").write_text("text\none\n")  # labels to be predicted
  assert read(f"labelled:{tmp_path}/b.csv") == [("b.csv:1", ("one",), None)]
  (tmp_path / "c.tsv").write_text('label\ttext\nx\t"one\n')
  assert read(f"labelled:{tmp_path}/c.tsv") == [("c.tsv:1", ('"one',), "x")]
  (tmp_path / "d.tsv").write_text("p\th\ty\none\ttwo\tx\n")
  found = read(f"labelled:{tmp_path}/d.tsv#p#h#y")
  assert found == [("d.tsv:1", ("one", "two"), "x")]


@pytest.mark.parametrize(
  "name, text, said",
  [
    ("a.jsonl", '{"text": "", "label": 1}', "line 1 has an empty text"),
    ("a.jsonl", '{"label": 1}', "line 1 has no field 'text'; it has 'label'"),
    ("a.jsonl", '{"text": 1, "label": 1}', "line 1: field 'text' is an int"),
    ("a.jsonl", "{", "line 1 is not JSON"),
    ("a.tsv", "one\ttwo\tx", "line 1 has 3 columns; it must have 2"),
    ("a.csv", "one,x", "has no column 'text'; it has 'one', 'x'"),
    ("a.csv", "text,label\none", "line 2 has 1 columns, and its first line"),
    ("a.csv", "text,label\n,x", "line 2 has an empty text"),
    ("a.csv", 'text,label\n"one,x', "line 2 is not CSV"),
    ("a.csv#p#h#y", "p,y\none,x", "has no column 'h'"),
    ("a.tsv#0#1", "one\tx", "columns without names"),
    ("a.txt", "one", "is not known to hold labelled texts"),
    ("a.jsonl#text", "{}", "names 'text' after its path; it must be a text"),
    ("a.tsv#text#label", "one\tx", "has no column 'text'; it has 'one', 'x'"),
  ],
)
def test_bad_files_are_named(tmp_path, name, text, said):
  (tmp_path / name.partition("#")[0]).write_text(text)
  with pytest.raises(InputError, match=said):
    read(f"labelled:{tmp_path}/{name}")


@pytest.mark.parametrize(
  "name, text, said",
  [
    ("a.csv#body#lable", "id,body,label\n1,one,x", "'lable'; it has 'id', 'bo"),
    ("a.csv#body#lable", "id,body,label\n1,one,x", "did you mean 'label'"),
    ("a.csv", "text,Label\none,x", "no column 'label'; it has 'text', 'Label'"),
    ("a.tsv#p#h#z", "p\th\ty\none\ttwo\tx", "no column 'z'; it has 'p', 'h'"),
    ("a.jsonl#t#lable", '{"t": "a", "label": 1}', "1 has no field 'lable'; it"),
    ("a.jsonl#t#lable", '{"t": "a", "label": 1}', "did you mean 'label'"),
    ("a.tsv#1#9", "one\tx", "line 1 has 2 columns; it must have 9"),
    ("a.csv", "text,label,label\none,x,y", "names 'label' twice"),
    ("a.csv", "\ufefftext,lable\none,x", "column 'label'; it has 'text', 'la"),
    ("a.csv", 'text,label\n"one\ntwo",\n', "line 2 has no label; every text"),
    ("a.csv", "text,label\n", "has no class; there must be 2 or more"),
    ("a.csv", "", "is empty; its first line must name its columns"),
    ("a.jsonl", "", "has no class; there must be 2 or more"),
    ("a.jsonl", '{"text": "a", "label": null}', "line 1 has no label; every"),
  ],
)
def test_a_label_that_is_not_where_it_is_sought_is_named(
  tmp_path, name, text, said
):
  path = tmp_path / name.partition("#")[0]
  path.write_text(text, encoding="utf-8")
  spec = f"labelled:{tmp_path}/{name}"
  with pytest.raises(InputError, match=said) as caught:
    labels.find_labels("single", [sources.open_source(spec)], spec)
  assert "\n" not in str(caught.value)


def test_another_file_has_the_fields_of_the_first_unless_it_names_its_own():
  assert spec_like("b.jsonl", "a.jsonl#t#l") == "labelled:b.jsonl#t#l"
  assert spec_like("b.jsonl#x#y", "a.jsonl#t#l") == "labelled:b.jsonl#x#y"
  assert spec_like("b.tsv", "a.jsonl#t#l") == "labelled:b.tsv"
  assert spec_like("b.csv", "a.jsonl#t#l") == "labelled:b.csv#t#l"
  assert spec_like("b.csv", "a.tsv#2#1") == "labelled:b.csv"
  assert spec_like("b.tsv", "a.tsv#2#1") == "labelled:b.tsv#2#1"
