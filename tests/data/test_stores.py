"""Sources, sets and tokenizers at an address: the same as on a disk."""

import os
import pathlib
import shutil

import pytest

from gpt_jax.data import chunks, sources, stores, tokenizers
from gpt_jax.data.prepare import prepare_data, prepare_shard
from gpt_jax.exits import InputError
from gpt_jax.machine import cache, places

TEXTS = [f"document {i} says {'é' * i} {i * i}\n" * 3 for i in range(40)]


def quiet(line: str) -> None:
  del line


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Makes another machine: one whose cache is empty."""
  made = []

  def new() -> None:
    for name in list(cache._HELD):
      cache.release(name)
    cache._KNOWN.clear()
    made.append(tmp_path / f"machine-{len(made)}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(made[-1]))

  new()
  yield new
  for name in list(cache._HELD):
    cache.release(name)


@pytest.fixture
def root(tmp_path, machine):
  return f"file://{tmp_path}/bucket"


@pytest.fixture
def remote(corpus, root):
  """Makes the section of a corpus whose text and sets are at an address."""

  def build(**changes):
    data = corpus(TEXTS)
    folder = data.source.removeprefix("text:").removesuffix("/*.txt")
    for name in os.listdir(folder):
      places.put(os.path.join(folder, name), f"{root}/text/{name}")
    values = {"source": f"text:{root}/text/*.txt", "dir": f"{root}/sets"}
    return corpus(TEXTS, **(values | changes))

  return build


def content(folder) -> dict[str, bytes]:
  """Returns the files of a prepared folder that hold text."""
  found = pathlib.Path(folder).iterdir()
  return {p.name: p.read_bytes() for p in found if p.name != "manifest.json"}


def test_a_set_at_an_address_is_that_of_a_disk_and_is_read_elsewhere(
  corpus, remote, machine, monkeypatch
):
  here, data, said = prepare_data(corpus(TEXTS), quiet), remote(), []
  there = prepare_data(data, said.append)
  assert there.fingerprint == here.fingerprint
  assert content(there.folders[0]) == content(here.folders[0])
  assert any(f"in {data.dir}/text-" in line for line in said)
  name = os.path.basename(there.folders[0])
  assert f"{name}/manifest.json" in places.find(data.dir)
  # Elsewhere nothing of the text is read.
  machine()
  monkeypatch.setattr(places, "read", None)
  fetched, fetch = [], places.fetch
  keep = lambda at, *rest: (fetched.append(at), fetch(at, *rest))
  monkeypatch.setattr(places, "fetch", keep)
  again = prepare_data(data, quiet)
  assert again.fingerprint == here.fingerprint
  assert all(at.startswith(f"{data.dir}/{name}/") for at in fetched)
  assert content(again.folders[0]) == content(here.folders[0])


def test_a_set_that_was_sent_in_part_does_not_count(
  remote, machine, monkeypatch
):
  data, put = remote(), places.put

  def fail(path, at):
    if "/sets/" in at and at.endswith("train-00000.bin"):
      raise places.Unreached(f"{at} cannot be written: gone")
    put(path, at)

  monkeypatch.setattr(places, "put", fail)
  with pytest.raises(InputError, match="cannot be written: gone"):
    prepare_data(data, quiet)
  assert not any("manifest" in key for key in places.find(data.dir))
  monkeypatch.setattr(places, "put", put)
  # The same command sends it, here as elsewhere.
  prepare_data(data, quiet)
  assert any("manifest" in key for key in places.find(data.dir))


def test_a_damaged_set_at_an_address_is_refused(remote, machine):
  data = remote()
  prepare_data(data, quiet)
  (key,) = [k for k in places.find(data.dir) if k.endswith("train-00000.bin")]
  at = places.join(data.dir, key)
  wrong = bytearray(places.read(at))
  wrong[100] ^= 1
  places.write(at, bytes(wrong))
  machine()
  with pytest.raises(InputError, match="train-00000.bin"):
    prepare_data(data, quiet).train[0][1].check.finish()


def test_shards_of_several_machines_are_merged(
  corpus, remote, machine, monkeypatch
):
  here, data = prepare_data(corpus(TEXTS), quiet), remote()
  monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
  for index in range(2):
    machine()
    prepare_shard(data, index, 2, quiet)
  machine()
  there = prepare_data(data, quiet)
  assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize("rest", ["/*.txt", "", "/000.txt"])
def test_a_source_at_an_address_has_the_text_of_a_folder(
  corpus, remote, rest, root
):
  folder = corpus(TEXTS).source.removeprefix("text:").removesuffix("/*.txt")
  remote()
  here = sources.open_source(f"text:{folder}{rest}")
  there = sources.open_source(f"text:{root}/text{rest}")
  read = lambda source: [
    (d.name, "".join(d.pieces)) for d in source.documents()
  ]
  assert read(there) == read(here)
  assert there.num_bytes() == here.num_bytes()
  assert sources.content_identity(there) == sources.content_identity(here)


def test_a_text_that_changes_gets_another_set(remote, machine, root):
  data = remote()
  first = prepare_data(data, quiet).fingerprint
  places.write(f"{root}/text/000.txt", b"something else " * 20)
  machine()
  assert prepare_data(data, quiet).fingerprint != first


def test_a_tokenizer_at_an_address_is_that_of_a_folder(corpus, root):
  data = corpus(TEXTS, tokenizer="bpe:300")
  folder = prepare_data(data, quiet).folders[0]
  path = os.path.join(folder, "tokenizer.json")
  places.put(path, f"{root}/run/tokenizer.json")
  places.write(f"{root}/run/checkpoints/1/large", b"x")
  for spec in (f"hf:{root}/run", f"hf:{root}/run/tokenizer.json"):
    there = tokenizers.build_tokenizer(spec)
    assert there.fingerprint() == tokenizers.load(path).fingerprint()
  held = [p for p in pathlib.Path(cache.top()).rglob("large")]
  assert held == []


def test_two_processes_of_a_machine_fetch_a_set_once(remote, machine, tmp_path):
  data = remote()
  name = os.path.basename(prepare_data(data, quiet).folders[0])
  dir = stores.local_dir(data.dir)
  shutil.rmtree(os.path.join(dir, name))
  stores.bring(data.dir, dir, name)
  stores.bring(data.dir, dir, name)  # what the other has fetched stays
  assert os.path.exists(os.path.join(dir, name, "manifest.json"))
  assert not [n for n in os.listdir(dir) if n.endswith(".fetched")]
