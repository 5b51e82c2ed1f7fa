"""Sources: every document once, in order, and bad files named exactly."""

import ast
import bz2
import gzip
import json
import lzma
import os
import random
import sys
import sysconfig

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def test_a_mixture_is_split_only_before_sources():
  parse = sources.parse_mixture
  assert parse("interpreter") == [(1.0, "interpreter")]
  mixed = parse("3*text:a,b/{x,y}.txt, 1*interpreter")
  assert mixed == [(0.75, "text:a,b/{x,y}.txt"), (0.25, "interpreter")]
  assert parse("text:a,jsonl:b#c") == [(0.5, "text:a"), (0.5, "jsonl:b#c")]
  assert parse(".5*tfds:a:train,.5*hf:b")[1] == (0.5, "hf:b")


@pytest.mark.parametrize("spec", ["", "a.txt", "csv:a", "0.5*csv:a", "text"])
def test_unknown_schemes_list_the_known_ones(spec):
  with pytest.raises(InputError, match="interpreter, text:GLOB, jsonl:GLOB"):
    sources.parse_mixture(spec)


@pytest.mark.parametrize("weight", ["0", "-1"])
def test_weights_must_be_positive(weight):
  with pytest.raises(InputError, match="must be above 0"):
    sources.parse_mixture(f"{weight}*interpreter")


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


def test_text_is_taken_as_it_is_one_document_a_file(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "b.txt").write_bytes("é\r\nb".encode())
  (tmp_path / "sub" / "a.txt").write_bytes("國".encode())
  (tmp_path / "empty.txt").write_bytes(b"")
  documents = read(f"text:{tmp_path}/**/*.txt")
  assert documents == {"b.txt": "é\r\nb", "sub/a.txt": "國"}
  assert read(f"text:{tmp_path}/b.txt") == {"b.txt": "é\r\nb"}


def test_pieces_are_bounded_and_never_break_a_character(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "BLOCK", 7)
  text = "a國é\U0001f600" * 20
  (tmp_path / "a.txt").write_text(text, encoding="utf-8")
  (document,) = sources.open_source(f"text:{tmp_path}/a.txt").documents()
  pieces = list(document.pieces)
  assert "".join(pieces) == text
  assert max(map(len, pieces)) <= 7 and len(pieces) > 10


@pytest.mark.parametrize("at", [0, 6, 7, 8, 20, 29])
def test_invalid_utf8_is_named_by_file_and_offset(tmp_path, monkeypatch, at):
  monkeypatch.setattr(sources, "BLOCK", 7)
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


@pytest.mark.parametrize(
  "line, said",
  [
    ('{"body": "x", "n": 1}', "document 2 has no field 'text'; it has 'body'"),
    ('{"text": "x"', "line 2 is not JSON"),
    ('{"text": 3}', "document 2: field 'text' is a int"),
    ('"text"', "document 2 is a JSON str"),
    ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ("[" * 100_000, "line 2 is not JSON"),
    ('{"text": "x", "n": ' + "9" * 9999 + "}", "line 2 .* too many digits"),
    ('{"text": null}', "document 2: field 'text' is null"),
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


def test_no_line_and_no_list_is_read_beyond_its_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "BLOCK", 100)
  monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)
  monkeypatch.setattr(sources, "MAX_LIST_BYTES", 1000)
  path = tmp_path / "a.jsonl"
  long = json.dumps({"text": "x" * 700}) + "\n"
  path.write_bytes(gzip.compress((long * 9).encode()))
  assert len(read(f"jsonl:{path}")) == 9
  taken = []
  blocks = sources.unpack.read_blocks

  def counted(path, size):
    for block in blocks(path, size):
      taken.append(len(block))
      yield block

  monkeypatch.setattr(sources.unpack, "read_blocks", counted)
  path.write_bytes(gzip.compress(long.encode() + b"x" * 10**7))
  with pytest.raises(InputError, match="a.jsonl, line 2 has more than 1,000"):
    read(f"jsonl:{path}")
  path.write_bytes(gzip.compress(b"[" + b" " * 10**7))
  with pytest.raises(InputError, match="a.jsonl is a JSON list of more than"):
    read(f"jsonl:{path}")
  assert sum(taken) < 10_000


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


def test_a_mark_before_utf8_is_no_text(tmp_path):
  mark = b"\xef\xbb\xbf"
  (tmp_path / "a.txt").write_bytes(mark + b"text\xef\xbb\xbf")
  assert read(f"text:{tmp_path}/a.txt") == {"a.txt": "text\ufeff"}
  (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "\\ufeffx"}\n')
  assert read(f"jsonl:{tmp_path}/a.jsonl") == {"a.jsonl:1": "x"}


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


@pytest.mark.parametrize(
  "spec, said",
  [
    ("text:gs://bucket/x.txt", "gs://bucket/x.txt.*addresses are not read"),
    ("jsonl:https://a.b/c.jsonl#d", "addresses are not read"),
    ("s3://a/b", "addresses are not read"),
    ("tfds:gs://a/b", "addresses are not read"),
    ("hf:https://a.b/c", "addresses are not read"),
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


def test_a_file_name_that_is_not_utf8_is_read_by_pattern(tmp_path):
  try:
    (tmp_path / os.fsdecode(b"a\xff.txt")).write_text("x")
  except OSError:
    pytest.skip("this file system takes UTF-8 only")
  assert list(read(f"text:{tmp_path}/*.txt").values()) == ["x"]


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
  class Upper(sources.TextSource):
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


def test_poems_are_read_from_json_lists():
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  poems = read(f"jsonl:{folder}/tang_poetry/*.json#paragraphs")
  assert len(poems) > 1900
  assert poems["poet.tang.0.json:1"].startswith("秦川雄帝宅，函谷壯皇居。\n")
  with pytest.raises(InputError, match="'paragraphs'.* name one after"):
    read(f"jsonl:{folder}/tang_poetry/*.json")


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  tfds = pytest.importorskip("tensorflow_datasets")

  class SmallText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"label": tfds.features.Scalar(np.int64)}
      features["body"] = tfds.features.Text()
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(20):
        yield i, {"label": i, "body": f"document {i} 國"}

  root = tmp_path_factory.mktemp("tfds")
  builder = SmallText(data_dir=str(root), file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)


def test_tfds_folders_are_read_without_tensorflow(tfds_folder):
  documents = read(f"tfds:{tfds_folder}")
  assert sorted(documents.values()) == sorted(
    f"document {i} 國" for i in range(20)
  )
  assert len(read(f"tfds:{tfds_folder}:train[:25%]")) == 5
  assert "tensorflow" not in sys.modules
  with pytest.raises(InputError, match="split 'other' .*; there are train"):
    read(f"tfds:{tfds_folder}:other")


def test_tfds_folders_are_known_by_their_content(tfds_folder, tmp_path):
  source = sources.open_source(f"tfds:{tfds_folder}")
  half = sources.open_source(f"tfds:{tfds_folder}:train[:50%]")
  assert source.fingerprint() != half.fingerprint()
  with pytest.raises(InputError, match="no dataset_info.json"):
    sources.open_source(f"tfds:{tmp_path}").fingerprint()
  with pytest.raises(InputError, match="is not a folder"):
    sources.open_source("tfds:/nowhere").fingerprint()


def test_hub_sources_name_the_missing_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(InputError, match=r"python -m pip install -e '.\[hf\]'"):
    read("hf:some/name:train")


def test_names_keep_their_version_and_give_their_split():
  split = sources._name_and_split
  assert split("lm1b") == ("lm1b", "train")
  assert split("lm1b:test") == ("lm1b", "test")
  assert split("lm1b:1.1.0") == ("lm1b:1.1.0", "train")
  sliced = "train[:9%]+test[5:]"
  assert split(f"/a/1.0.0:{sliced}") == ("/a/1.0.0", sliced)
  assert split("lm1b:1.1.0:test") == ("lm1b:1.1.0", "test")


def _write(folder, data: bytes):
  path = folder / "a.txt"
  path.write_bytes(data)
  return path
