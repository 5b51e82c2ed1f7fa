"""pairs: two fields of records, or two columns; what is none is named."""

import gzip
import json

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources


def read(spec: str):
  return [
    (d.name, "".join(d.pieces), d.is_target)
    for d in sources.open_source(spec).documents()
  ]


def texts(spec: str):
  found = read(spec)
  assert [is_target for *_, is_target in found] == [False, True] * (
    len(found) // 2
  )
  sides = found[::2], found[1::2]
  return [(a, b) for (_, a, _), (_, b, _) in zip(*sides, strict=True)]


@pytest.fixture
def tsv(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_bytes('één\tone\ntwee\ttwo\r\n\nquote" \tthree\n'.encode())
  return path


@pytest.fixture
def records(tmp_path):
  rows = [
    {"source": "un", "target": "one", "id": 3},
    {"source": "deux\tfois", "target": ["two", "lines"]},
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def test_lines_and_records_are_pairs(tsv, records):
  wanted = [("één", "one"), ("twee", "two"), ('quote" ', "three")]
  assert texts(f"pairs:{tsv}") == wanted
  assert [name for name, *_ in read(f"pairs:{tsv}")[:3]] == [
    "a.tsv:1",
    "a.tsv:1:target",
    "a.tsv:2",
  ]
  assert texts(f"pairs:{records}") == [
    ("un", "one"),
    ("deux\tfois", "two\nlines"),
  ]
  named = tsv.with_name("c.tsv")
  named.write_bytes(b"source\ttarget\n" + tsv.read_bytes() + b"source\ttarget")
  assert texts(f"pairs:{named}") == [*wanted, ("source", "target")]
  packed = tsv.with_name("b.tsv.gz")
  packed.write_bytes(gzip.compress(tsv.read_bytes()))
  assert texts(f"pairs:{packed}") == wanted
  assert sources.spec_of(str(packed)) == f"pairs:{packed}"
  assert sources.is_paired(f"pairs:{tsv}") and not sources.is_paired("text:a")


def test_names_and_numbers_choose_the_sides_and_their_direction(tsv, records):
  assert texts(f"pairs:{records}#target#source")[0] == ("one", "un")
  assert texts(f"pairs:{tsv}#2#1")[1] == ("two", "twee")
  wide = tsv.with_name("wide.tsv")
  wide.write_text("1\ta\tb\tnote\n")
  assert texts(f"pairs:{wide}#3#2") == [("b", "a")]
  one, other = (
    sources.open_source(f"pairs:{tsv}{names}").fingerprint()
    for names in ("", "#2#1")
  )
  assert one != other


@pytest.mark.parametrize(
  "name,content,spec,sentence",
  [
    ("x.tsv", "a\tb\nc\n", "", "x.tsv, line 2 has 1 columns; it must have 2"),
    ("x.tsv", "a\tb\tc\n", "", "x.tsv, line 1 has 3 columns; .*as in FILE#1#2"),
    ("x.tsv", "a\tb\n", "#1#3", "line 1 has 2 columns; it must have 3"),
    ("x.tsv", "a\tb\n\tb\n", "", "x.tsv, line 2 has an empty source"),
    ("x.tsv", "a\t\n", "", "x.tsv, line 1 has an empty target"),
    ("x.tsv", b"a\t\xff\n", "", "x.tsv, line 1 is not UTF-8"),
    ("x.tsv", "a\tb\n", "#de#en", "columns without names; .* as in #1#2"),
    ("x.tsv", "a\tb\n", "#1", "names '1' after its path; a pair has two"),
    ("x.tsv", "a\tb\n", "#1#2#3", "a pair has two fields or columns"),
    ("x.txt", "a\tb\n", "", "x.txt is not known to hold pairs"),
    ("x.csv", "a,b\n", "", "x.csv is a table"),
    (
      "x.jsonl",
      '{"source": "a"}\n',
      "",
      "document 1 has no field 'target'; it has 'source': name both after",
    ),
    ("x.jsonl", '{"source": "a", "target": 3}', "", "field 'target' is an int"),
    ("x.jsonl", '{"source": "", "target": "b"}', "", "has an empty source"),
    ("x.jsonl", '"a"', "", "must be an object with a field 'source'"),
    ("x.jsonl", '{"source": "a"}', "#source#", "a pair has two fields"),
  ],
)
def test_what_is_no_pair_is_one_sentence(
  name, content, spec, sentence, tmp_path
):
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=sentence):
    read(f"pairs:{tmp_path / name}{spec}")


def test_a_missing_file_is_named_without_its_fields(tmp_path):
  with pytest.raises(InputError, match="no file matches '[^'#]*no.tsv'"):
    sources.open_source(f"pairs:{tmp_path}/no.tsv#1#2")
