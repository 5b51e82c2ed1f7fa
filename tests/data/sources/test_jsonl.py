"""JSON records: plain and compressed, bounded, and bad ones named."""

import gzip
import json
import os

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document, jsonl, unpack


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_json_lines_are_read_plain_and_packed(tmp_path):
  import zstandard

  rows = [{"text": "one\n", "n": 1}, {"text": ""}, {"text": ["a", "b國"]}]
  data = ("\n".join(map(json.dumps, rows)) + "\n\n").encode()
  (tmp_path / "a.jsonl").write_bytes(data)
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
  pack = zstandard.compress
  half = data.index(b"\n") + 5
  frames = pack(data[:half]) + pack(data[half:])
  (tmp_path / "a.jsonl.zst").write_bytes(frames)
  for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
    expected = {f"{name}:1": "one\n", f"{name}:3": "a\nb國"}
    assert read(f"jsonl:{tmp_path}/{name}") == expected


@pytest.mark.parametrize(
  "line, said",
  [
    ('{"body": "x", "n": 1}', "document 2 has no field 'text'; it has 'body'"),
    ('{"text": "x"', "line 2 is not JSON"),
    ('{"text": 3}', "document 2: field 'text' is an int"),
    ('"text"', "document 2 is a JSON str"),
    ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ("[" * 100_000, "line 2 is not JSON"),
    ('{"text": "x", "n": ' + "9" * 9999 + "}", "line 2 .* too many digits"),
    ('{"text": null}', "document 2: field 'text' is null"),
    (
      '{"text": "x", "text": "y"}',
      "line 2 has the key 'text' twice, and readers differ in which of them "
      "counts; leave one of them",
    ),
    ('{"text": "x", "n": [{"a": 1, "a": 1}]}', "line 2 has the key 'a' twice"),
    ("null", "document 2 is null"),
  ],
)
def test_bad_json_lines_are_named(tmp_path, line, said):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "fine"}\n')
  assert read(f"jsonl:{path}")
  path.write_text('{"text": "fine"}\n' + line)
  with pytest.raises(InputError, match=f"a.jsonl, {said}|{said}"):
    read(f"jsonl:{path}")


def test_records_may_hold_what_python_writes_beside_the_text(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "x", "score": NaN, "n": 1e999}\n')
  assert read(f"jsonl:{path}") == {"a.jsonl:1": "x"}


def test_no_line_and_no_list_is_read_beyond_its_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(document, "BLOCK", 100)
  monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
  monkeypatch.setattr(jsonl, "MAX_LIST_BYTES", 1000)
  path = tmp_path / "a.jsonl"
  long = json.dumps({"text": "x" * 700}) + "\n"
  path.write_bytes(gzip.compress((long * 9).encode()))
  assert len(read(f"jsonl:{path}")) == 9
  taken = []
  blocks = unpack.read_blocks

  def counted(path, size):
    for block in blocks(path, size):
      taken.append(len(block))
      yield block

  monkeypatch.setattr(unpack, "read_blocks", counted)
  path.write_bytes(gzip.compress(long.encode() + b"x" * 10**7))
  with pytest.raises(InputError, match="a.jsonl, line 2 has more than 1,000"):
    read(f"jsonl:{path}")
  path.write_bytes(gzip.compress(b"[" + b" " * 10**7))
  with pytest.raises(InputError, match="a.jsonl is a JSON list of more than"):
    read(f"jsonl:{path}")
  assert sum(taken) < 10_000


def test_poems_are_read_from_json_lists():
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  poems = read(f"jsonl:{folder}/tang_poetry/*.json#paragraphs")
  assert len(poems) > 1900
  assert poems["poet.tang.0.json:1"].startswith("秦川雄帝宅，函谷壯皇居。\n")
  with pytest.raises(InputError, match="'paragraphs'.* name one after"):
    read(f"jsonl:{folder}/tang_poetry/*.json")
