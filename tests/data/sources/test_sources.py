"""The table of sources: a battery for each, mixtures, and what is not one."""

import csv
import json
import random
import sysconfig

import pyarrow
import pytest
from pyarrow import parquet

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document, text


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def write_text(folder, texts, _) -> str:
  for number, each in enumerate(texts):
    (folder / f"{number}.txt").write_text(each)
  return f"text:{folder}/*.txt"


def write_json(folder, texts, _) -> str:
  lines = [json.dumps({"body": each}) + "\n" for each in texts]
  (folder / "a.jsonl").write_text("".join(lines))
  return f"jsonl:{folder}/*.jsonl#body"


def write_modules(folder, texts, monkeypatch) -> str:
  for number, each in enumerate(texts):
    (folder / f"{number}.py").write_text(each)
  monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
  return "interpreter"


def write_csv(folder, texts, _) -> str:
  with open(folder / "a.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerows([("id", "body"), *enumerate(texts)])
  return f"csv:{folder}/*.csv#body"


def write_tsv(folder, texts, _) -> str:
  with open(folder / "a.tsv", "w", newline="") as file:
    file.write("id\tbody\n")
    file.writelines(f"{i}\t{each}\n" for i, each in enumerate(texts))
  return f"tsv:{folder}/*.tsv#body"


def write_parquet(folder, texts, _) -> str:
  table = pyarrow.table({"id": range(len(texts)), "body": texts})
  parquet.write_table(table, folder / "a.parquet", row_group_size=2)
  return f"parquet:{folder}/*.parquet#body"


def write_warc(folder, texts, _) -> str:
  head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
  bodies = [text.encode() for text in texts]
  records = [
    f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"
    for body in bodies
  ]
  (folder / "a.wet").write_bytes(b"".join(records))
  return f"warc:{folder}/*.wet"


# {scheme: what writes these texts into a folder and returns their spec}
WRITERS = {
  "interpreter": write_modules,
  "text": write_text,
  "jsonl": write_json,
  "csv": write_csv,
  "tsv": write_tsv,
  "parquet": write_parquet,
  "warc": write_warc,
}
# What a format cannot hold is left out of the texts.
LOSES = {"tsv": str.maketrans("", "", "\r\n")}
TEXTS = ["a = 1\n" * 9, "國\U0001f600\r\n" * 5, "b"]


@pytest.fixture(params=WRITERS)
def writer(request, tmp_path, monkeypatch):
  """Returns write(texts) -> the spec of a source of these documents."""
  write = WRITERS[request.param]
  return lambda texts: write(tmp_path, texts, monkeypatch)


@pytest.fixture
def kept(request, writer):
  """Returns kept(text) -> what the format of the source holds of it."""
  table = LOSES.get(request.node.callspec.params["writer"], {})
  return lambda text: text.translate(table)


def test_the_battery_covers_every_source():
  # Those of other hosts, of pairs, labels, chats and preferences have files of
  # their own.
  others = sources.HOSTED + sources.PAIRED + sources.LABELLED + sources.CHATS
  others += sources.PREFERENCES
  assert {*WRITERS, *others} == set(sources.SOURCES)


def test_documents_are_the_texts_in_bounded_pieces(writer, kept, monkeypatch):
  monkeypatch.setattr(document, "BLOCK", 7)
  texts = list(map(kept, TEXTS))
  spec = writer(texts)
  found = sources.open_source(spec).documents()
  pieces = {d.name: list(d.pieces) for d in found}
  assert ["".join(p) for p in pieces.values()] == texts  # and names differ
  assert max(len(p) for each in pieces.values() for p in each) <= 7
  assert list(read(spec)) == list(pieces)


def test_a_source_is_known_by_its_texts(writer, kept):
  texts = list(map(kept, TEXTS))
  spec = writer(texts)
  one, same = sources.open_source(spec), sources.open_source(spec)
  assert one.spec == spec and isinstance(one.is_divided_by_text, bool)
  size = one.num_bytes()
  assert size is None or size >= sum(len(t.encode()) for t in texts)
  for know in (lambda s: s.fingerprint(), sources.content_identity):
    before = know(one)
    assert know(same) == before
    writer([*texts[:2], "bc"])
    assert know(sources.open_source(spec)) != before
    writer(texts)


def test_a_source_stands_in_a_mixture(writer):
  spec = writer(TEXTS)
  mixed = sources.parse_mixture(f"3*{spec}, interpreter")
  assert mixed == [(0.75, spec), (0.25, "interpreter")]
  scheme = spec.partition(":")[0]
  with pytest.raises(InputError, match=f"not a source.*{scheme}"):
    sources.parse_mixture(f"{scheme}s:x")


def test_a_mixture_is_split_only_before_sources():
  parse = sources.parse_mixture
  assert parse("interpreter") == [(1.0, "interpreter")]
  mixed = parse("3*text:a,b/{x,y}.txt, 1*interpreter")
  assert mixed == [(0.75, "text:a,b/{x,y}.txt"), (0.25, "interpreter")]
  assert parse("text:a,jsonl:b#c") == [(0.5, "text:a"), (0.5, "jsonl:b#c")]
  assert parse(".5*tfds:a:train,.5*hf:b")[1] == (0.5, "hf:b")


@pytest.mark.parametrize("spec", ["", "a.txt", "no:a", "0.5*no:a", "text"])
def test_unknown_schemes_list_the_known_ones(spec):
  with pytest.raises(InputError, match="interpreter, text:GLOB, jsonl:GLOB"):
    sources.parse_mixture(spec)


@pytest.mark.parametrize("weight", ["0", "-1"])
def test_weights_must_be_positive(weight):
  with pytest.raises(InputError, match="must be above 0"):
    sources.parse_mixture(f"{weight}*interpreter")


@pytest.mark.parametrize(
  "spec, said",
  [
    ("text:odd://bucket/x.txt", "odd:// is no address that can be opened"),
    ("text:memory://none/x.txt", "memory://none/x.txt does not exist"),
    ("text:memory://none/*.txt", "no object matches 'memory://none"),
    ("text:memory://", "which names no bucket"),
    ("s3://a/b", "an address .did you mean text:s3://a/b"),
    ("tfds:gs://a/b", "a path of this machine, not an address"),
    ("hf:https://a.b/c", "a path of this machine, not an address"),
    ("text: ", "is not a source of text"),
    ("text:a\0b", "NUL"),
    ("text:a\udcff.txt", "not UTF-8"),
    ("text:" + "**/" * 3000 + "x", "folders below each other"),
    ("1e999*interpreter", "must be above 0 and finite"),
    ("1e308*interpreter,1e-300*text:x", "differ too much"),
  ],
)
def test_what_cannot_be_a_source_is_one_sentence(spec, said):
  with pytest.raises(InputError, match=said):
    for _, source in sources.parse_mixture(spec):
      sources.open_source(source)


def test_a_path_without_a_scheme_is_told_what_was_meant(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  (tmp_path / "a.jsonl").write_text("{}")
  for path, meant in (
    (tmp_path, f"text:{tmp_path}/[*][*]/[*].txt"),
    (tmp_path / "a.txt", f"text:{tmp_path}/a.txt"),
    (tmp_path / "a.jsonl", f"jsonl:{tmp_path}/a.jsonl"),
  ):
    for parse in (sources.parse_mixture, sources.open_source):
      with pytest.raises(InputError, match=f"did you mean {meant}"):
        parse(str(path))


def test_a_source_is_one_entry_of_a_table(monkeypatch):
  class Upper(text.TextSource):
    pass

  monkeypatch.setitem(sources.SOURCES, "upper", (Upper, "GLOB"))
  spec = f"2*interpreter, upper:{__file__}"
  (_, first), (_, second) = sources.parse_mixture(spec)
  assert isinstance(sources.open_source(second), Upper)
  assert sources.spec_of(second) == second
  with pytest.raises(InputError, match="interpreter, .*upper:GLOB"):
    sources.parse_mixture("uper:x")


def test_mutated_specs_and_lines_end_in_a_sentence(tmp_path):
  (tmp_path / "a#[1].jsonl").write_text('{"text": "x"}\n')
  seed = f"0.5*jsonl:{tmp_path}/a#[1].jsonl#text,text:{tmp_path}/*,interpreter"
  line = b'{"text": "one", "n": [1, 2.5e3, true, null], "o": {"text": "x"}}'
  dice = random.Random(0)
  parts = [
    *"*?[]#:,~/.\0\udcff\n%-+\\ ",
    "e999*",
    "://",
    "text:",
    "9" * 400,
  ]
  path = tmp_path / "m.jsonl"
  for _ in range(300):
    at = dice.randrange(len(seed))
    spec = seed[:at] + dice.choice(parts) + seed[at + dice.randrange(6) :]
    try:
      for _, source in sources.parse_mixture(spec):
        if source != "interpreter":
          opened = sources.open_source(source)
          opened.fingerprint(), opened.num_bytes()
    except InputError:
      pass
    changed = bytearray(line)
    at = dice.randrange(len(line))
    changed[at : at + dice.randrange(4)] = dice.choice(
      [b"[" * 3000, b"9" * 6000, b"\xff", b"\\ud800", b"\0", b'"', b"}", b"{"]
    )
    path.write_bytes(bytes(changed) + b"\n" + line)
    try:
      read(f"jsonl:{path}#{dice.choice(['text', 'n', 'o'])}")
    except InputError:
      pass
