"""Sets made of chunks: the same bytes by any number of workers and machines."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from gpt_jax.config import InputError
from gpt_jax.data import chunks, merging, prepare, workers
from gpt_jax.data.sources.document import Unreachable

ROOT = pathlib.Path(__file__).parents[2]
# Each row group of the table below is a chunk.
CHUNK_BYTES = 6_000


def quiet(line: str) -> None:
  del line


def make_texts(count: int = 300) -> list[str]:
  """Returns texts of many lengths, some of them equal, one of them empty."""
  dice = random.Random(0)
  words = ["one", "two 國", "three\n", "vier\U0001f600"]
  texts = [
    " ".join(dice.choices(words, k=dice.randrange(200))) for _ in range(count)
  ]
  texts[7], texts[50], texts[170] = "", texts[3], texts[3]
  return texts


@pytest.fixture
def table(tmp_path):
  """The spec of files of parquet with several row groups."""
  folder, texts = tmp_path / "table", make_texts()
  folder.mkdir()
  for i in range(3):
    part = pa.table({"id": range(100), "text": texts[i * 100 :][:100]})
    parquet.write_table(part, folder / f"{i}.parquet", row_group_size=30)
  return f"parquet:{folder}"


@pytest.fixture
def make(corpus, tmp_path, monkeypatch):
  """Returns make(name, spec, ...) -> a set in a folder of its own."""
  monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)

  def build(name: str, spec: str, say=quiet, num_workers=1, **changes):
    data = corpus([], source=spec, dir=str(tmp_path / name), **changes)
    return prepare.prepare_data(data, say, num_workers=num_workers)

  return build


def read_folder(prepared) -> dict[str, str]:
  """Returns {file: digest} of the first folder of a set."""
  root = pathlib.Path(prepared.folders[0])
  files = sorted(root.iterdir())
  return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def ids_of(found: dict[str, str]) -> dict[str, str]:
  return {name: d for name, d in found.items() if name != "manifest.json"}


def test_a_set_does_not_depend_on_the_number_of_workers(make, table):
  alone = make("alone", table)
  found = read_folder(alone)
  assert len(os.listdir(alone.folders[0])) == 6
  for count in (2, 5):
    assert read_folder(make(str(count), table, num_workers=count)) == found
    # Nothing is left beside the set.
    folder = pathlib.Path(alone.folders[0]).parent.parent / str(count)
    assert os.listdir(folder) == [os.path.basename(alone.folders[0])]


SETS = {
  "bytes": {},
  "trained": {"tokenizer": "bpe:300"},
  "characters": {"tokenizer": "chars"},
  "all": {"valid_frac": 0.0},
  "tail": {"split": "tail"},
  "tail of none": {"split": "tail", "valid_frac": 0.0},
}


@pytest.mark.parametrize("case", SETS)
def test_chunks_hold_the_ids_of_one_pass(make, table, monkeypatch, case):
  whole, lines = SETS[case], []
  found = make("chunks", table, say=lines.append, **whole)
  monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 40)
  pass_lines = []
  once = make("once", table, say=pass_lines.append, **whole)
  assert ids_of(read_folder(found)) == ids_of(read_folder(once))
  assert found.fingerprint == once.fingerprint
  # The same is said of what moved, and is said once.
  clean = lambda said: [
    s.replace("/once/", "/chunks/") for s in said if "MB/s" not in s
  ]
  assert clean(lines) == clean(pass_lines)
  key = "text_sha256" if case == "tail" else "chunks_sha256"
  with open(f"{found.folders[0]}/manifest.json") as file:
    assert key in json.load(file)


def test_pairs_stay_together_and_files_of_all_kinds_are_chunks(
  make, tmp_path, monkeypatch
):
  texts = [t or "x" for t in make_texts()]
  for i in range(6):
    rows = texts[i * 50 : i * 50 + 50]
    lines = [
      json.dumps({"source": t, "target": t[::-1], "text": t}) for t in rows
    ]
    (tmp_path / f"{i}.jsonl").write_text("\n".join(lines))
    (tmp_path / f"{i}.txt").write_text("".join(rows))
  for kind in ("pairs", "jsonl", "text"):
    end = "txt" if kind == "text" else "jsonl"
    spec = f"{kind}:{tmp_path}/*.{end}"
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)
    found = make(f"{kind} chunks", spec)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 40)
    once = make(f"{kind} once", spec)
    assert ids_of(read_folder(found)) == ids_of(read_folder(once))


def test_one_text_in_many_documents_is_divided_by_its_tail(make, tmp_path):
  for i in range(5):
    (tmp_path / f"{i}.txt").write_text("the same text " * 2000)
  lines = []
  found = make("same", f"text:{tmp_path}/*.txt", say=lines.append)
  assert "is one document: the last 0.1 of it is held back" in lines[-1]
  assert found.valid["valid"].num_documents == 5


def test_what_was_encoded_before_a_kill_is_not_encoded_again(
  make, table, tmp_path, monkeypatch
):
  expected = read_folder(make("whole", table))
  encode, done = chunks.encode, []

  def stops(*args):
    if len(done) == 3:
      raise KeyboardInterrupt
    done.append(args[4].index)
    encode(*args)

  with monkeypatch.context() as patch:
    patch.setattr(chunks, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
      make("killed", table)
  (left,) = (tmp_path / "killed").glob(".chunks-*")
  # A kill in the middle of a chunk leaves one of these.
  (left / "chunk-00003.ids.1.tmp").write_bytes(b"half")
  (left / "chunk-00003.ids").write_bytes(b"half")
  (left / "chunk-00003.docs").write_bytes(b"half")
  rest, lines = [], []

  def counted(*args):
    rest.append(args[4].index)
    encode(*args)

  monkeypatch.setattr(chunks, "encode", counted)
  found = make("killed", table, say=lines.append)
  assert read_folder(found) == expected and not left.exists()
  assert done == [0, 1, 2] and rest[0] == 3 and not set(done) & set(rest)
  assert f"3 of {3 + len(rest)} parts" in lines[0]


def damage(folder: pathlib.Path, name: str) -> None:
  path = folder / name
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("name", ["00001.ids", "00001.docs", "00001.json"])
def test_a_damaged_chunk_is_named_or_encoded_again(
  make, table, tmp_path, monkeypatch, name
):
  expected = read_folder(make("whole", table))
  write = merging.write_splits

  def damaged(folder, part, encoder, *rest):
    (left,) = (tmp_path / "set").glob(".chunks-*")
    damage(left, f"chunk-{name}")
    if name.endswith("json"):
      raise KeyboardInterrupt
    return write(folder, part, encoder, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(merging, "write_splits", damaged)
    error = KeyboardInterrupt if name.endswith("json") else InputError
    with pytest.raises(error) as caught:
      make("set", table)
  if error is InputError:
    assert f"chunk-{name} is damaged: its hash is not" in str(caught.value)
    assert not list((tmp_path / "set").glob(".chunks-*"))
  assert read_folder(make("set", table)) == expected


def test_chunks_of_another_text_or_tokenizer_are_not_taken(make, table, corpus):
  data = corpus([], source=table)
  (part,) = prepare.list_parts(data)
  wanted = merging.find_chunks(part)
  plan = chunks.Plan("0" * 12, "f" * 64, "uint16", len(wanted), "document")
  facts = plan.facts(wanted[0])
  for other in (
    plan._replace(key="1" * 12).facts(wanted[0]),
    plan._replace(tokenizer="e" * 64).facts(wanted[0]),
    plan._replace(count=9).facts(wanted[0]),
    plan.facts(wanted[1]),
  ):
    assert other != facts
  units = [unit for chunk in wanted for unit in chunk.units]
  assert units == part.source.units() and len(wanted) > 5


@pytest.fixture
def shards(corpus, table, tmp_path, monkeypatch):
  """Returns shards(count) -> the folders of shards, of as many machines."""
  monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)

  def build(count: int) -> list[pathlib.Path]:
    found = []
    for i in range(count):
      data = corpus([], source=table, dir=str(tmp_path / f"machine{i}"))
      found += prepare.prepare_shard(data, i, count, quiet, num_workers=1)
    return list(map(pathlib.Path, found))

  return build


@pytest.mark.parametrize("count", [1, 4, 40])
def test_shards_of_several_machines_are_one_set(
  make, table, shards, tmp_path, monkeypatch, count
):
  expected = read_folder(make("once", table))
  for folder in shards(count):
    shutil.copytree(folder, tmp_path / "merged" / folder.name)
  monkeypatch.setattr(chunks, "encode", None)  # nothing is encoded again
  assert read_folder(make("merged", table)) == expected


def test_a_shard_that_is_missing_or_cut_is_encoded_when_merging(
  make, table, shards, tmp_path, monkeypatch
):
  expected = read_folder(make("once", table))
  for folder in shards(4)[:3]:
    shutil.copytree(folder, tmp_path / "merged" / folder.name)
  cut = sorted((tmp_path / "merged").glob("*.shard-1-of-4/*.json"))[0]
  cut.write_text(cut.read_text()[:-9])
  encode, again = chunks.encode, []

  def counted(*args):
    again.append(args[4].index)
    encode(*args)

  monkeypatch.setattr(chunks, "encode", counted)
  assert read_folder(make("merged", table)) == expected
  assert again[0] == 1 and again[1:] == list(range(3, 12, 4))


def test_what_cannot_be_in_shards_is_one_sentence(corpus, table, tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}\n' * 9)
  shard = lambda **c: prepare.prepare_shard(corpus([], **c), 0, 2, quiet)
  with pytest.raises(InputError, match="bpe:300 is learned from all of the te"):
    shard(source=table, tokenizer="bpe:300")
  with pytest.raises(InputError, match="interpreter cannot be prepared in sha"):
    shard(source="interpreter")
  with pytest.raises(InputError, match="cannot be .* data.split=document"):
    shard(source=table, split="tail")
  with pytest.raises(InputError, match="cannot be prepared in shards"):
    shard(source=f"labelled:{tmp_path}/a.jsonl", objective="classification")


def test_shares_are_asked_for_by_the_verb(run_verb, table, tmp_path):
  words = [
    "gpt_jax.data",
    f"--config.data.source={table}",
    f"--config.data.dir={tmp_path}/prepared",
    "--config.data.tokenizer=bytes",
  ]
  found = run_verb(*words, "--shard=1/2", "--workers=2", check=0)
  assert ".shard-1-of-2; with the folders of all 2 shards" in found.stdout
  for wrong in ("--shard=2/2", "--shard=1", "--shard=a/b", "--workers=0"):
    result = run_verb(*words, wrong, check=2)
    assert wrong.partition("=")[2] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_reads_the_text_of_chunks_again(make, corpus, tmp_path):
  for i in range(4):
    (tmp_path / f"{i}.txt").write_text(f"text {i} " * 3000)
  spec = f"text:{tmp_path}/*.txt"
  found = make("set", spec)
  data = corpus([], source=spec, dir=str(tmp_path / "set"))
  prepare.verify_text(data, found, quiet)
  path = tmp_path / "2.txt"
  before = path.stat()
  path.write_bytes(path.read_bytes().replace(b"text 2", b"text 3", 1))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  with pytest.raises(InputError, match="does not hold the text that .* was"):
    prepare.verify_text(data, found, quiet)


def test_errors_of_workers_are_the_sentences_of_one(make, table, tmp_path):
  path = pathlib.Path(table.partition(":")[2]) / "1.parquet"
  parquet.write_table(pa.table({"text": ["a"] * 9 + [None]}), path)
  said = []
  for count in (1, 2):
    with pytest.raises(
      InputError, match="1.parquet, row 10: .* null"
    ) as caught:
      make("set", table, num_workers=count)
    said.append(str(caught.value))
    left = [n for n in os.listdir(tmp_path / "set") if n[:6] != ".lock-"]
    assert not left
  assert said[0] == said[1]


def test_a_full_disk_in_a_worker_is_one_sentence(make, table, monkeypatch):
  environment = workers.cores.worker_environment()
  # A file of the worker may not grow beyond a few bytes.
  code = (
    "import resource, runpy\n"
    "import signal\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
    "runpy.run_module('gpt_jax.data.chunk_worker', run_name='__main__')"
  )
  popen = subprocess.Popen
  limited = lambda words, **how: popen([words[0], "-c", code], **how)
  assert environment
  monkeypatch.setattr(workers.subprocess, "Popen", limited)
  with pytest.raises(InputError, match="no space is left in .*data.dir"):
    make("set", table, num_workers=2)


def test_a_worker_that_is_killed_is_one_sentence_and_work_goes_on(
  make, table, tmp_path, monkeypatch
):
  expected = read_folder(make("whole", table))
  ask, asked = workers._ask, []

  def killing(worker, chunk, add):
    asked.append(chunk)
    if len(asked) == 4:
      worker.send_signal(signal.SIGKILL)
      worker.wait()
    ask(worker, chunk, add)

  with monkeypatch.context() as patch:
    patch.setattr(workers, "_ask", killing)
    with pytest.raises(InputError, match="killed by signal 9; .* --workers"):
      make("set", table, num_workers=2)
  (left,) = (tmp_path / "set").glob(".chunks-*")
  assert len(list(left.glob("*.json"))) >= 2  # and the tokenizer's
  assert read_folder(make("set", table)) == expected


def test_a_source_that_cannot_be_reached_keeps_what_is_encoded(
  make, table, tmp_path, monkeypatch
):
  expected = read_folder(make("whole", table))
  encode = chunks.encode

  def fails(*args):
    if args[4].index == 2:
      raise Unreachable("the hub could not be reached")
    encode(*args)

  with monkeypatch.context() as patch:
    patch.setattr(chunks, "encode", fails)
    with pytest.raises(Unreachable, match="; 2 of .* parts are encoded and k"):
      make("set", table)
  lines = []
  assert read_folder(make("set", table, say=lines.append)) == expected
  assert lines[0].startswith("2 of ")


CODE = """
import dataclasses, json, sys
from configs import base
from gpt_jax import config
from gpt_jax.data import chunks, prepare

chunks.CHUNK_BYTES = {chunk_bytes}
data = config.freeze(base.get_config()).data
data = dataclasses.replace(data, source={source!r}, dir={dir!r},
  tokenizer="bytes")
prepare.prepare_data(data, num_workers={workers})
"""


def kill_and_go_on(
  source, folder, kills, longest, num_workers=2, chunk_bytes=CHUNK_BYTES
):
  """Prepares, with `kills` kills at random times; returns how many hit."""
  code = CODE.format(
    source=source, dir=str(folder), workers=num_workers, chunk_bytes=chunk_bytes
  )
  words, dice, hit = [sys.executable, "-c", code], random.Random(1), 0
  for _ in range(kills):
    run = subprocess.Popen(
      words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    time.sleep(dice.uniform(0.3, longest))
    run.send_signal(signal.SIGKILL)
    # Its workers end soon after, without a word.
    assert run.communicate(timeout=60)[1] == b""
    hit += run.returncode != 0
  subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  return hit


@pytest.mark.wide
def test_kills_at_random_leave_the_same_bytes(make, table, tmp_path):
  expected = read_folder(make("whole", table))
  assert kill_and_go_on(table, tmp_path / "killed", 3, 2.0) >= 1
  (folder,) = (tmp_path / "killed").glob("parquet-*")
  found = {
    f.name: hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(folder.iterdir())
  }
  assert found == expected
  left = os.listdir(tmp_path / "killed")
  assert [name for name in left if name[:6] != ".lock-"] == [folder.name]


def test_chunks_that_outlived_their_set_are_removed(make, table, tmp_path):
  folder = make("set", table).folders[0]
  left = tmp_path / "set" / f".chunks-{os.path.basename(folder)}"
  left = pathlib.Path(str(left).removesuffix("-apart"))
  left.mkdir()
  (left / "chunk-00000.ids").write_bytes(b"ids")
  make("set", table)
  assert not left.exists()
