"""A prepared set is what was written, or it is refused by name."""

import dataclasses
import json
import os
import pathlib
import pickle

import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import batches, folders, integrity
from gpt_jax.data.prepare import PreparedData, prepare_data

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  folder = tmp_path / "cache"
  monkeypatch.setattr(integrity.runtime, "cache_dir", lambda: str(folder))
  return folder


@pytest.fixture
def folder(corpus) -> pathlib.Path:
  data = corpus(TEXTS, tokenizer="bpe:300")
  return pathlib.Path(prepare_data(data, say=quiet).folders[0])


@pytest.fixture
def is_large(monkeypatch):
  """Any set is a large one, hashed once and remembered."""
  monkeypatch.setattr(integrity, "SMALL_BYTES", 1)


def flip(path: pathlib.Path, at: int = 20) -> None:
  data = bytearray(path.read_bytes())
  data[at] ^= 1
  path.write_bytes(data)


def read_all(folder) -> None:
  for token_set in folders.open_prepared(str(folder)).values():
    token_set.read(0, token_set.num_ids)
    assert len(token_set.document_starts) == token_set.num_documents


FILES = [
  "train-00000.bin",
  "train.offsets.bin",
  "valid-00000.bin",
  "valid.offsets.bin",
  "tokenizer.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_changed_bit_of_any_file_is_refused_by_name(
  corpus, folder, name, size, monkeypatch
):
  if size == "large":
    monkeypatch.setattr(integrity, "SMALL_BYTES", 1)
  read_all(folder)
  data = (folder / name).read_bytes()
  for at in (0, len(data) // 2, len(data) - 1):
    flip(folder / name, at)
    with pytest.raises(InputError, match=f"{name} has sha256 .* is damaged"):
      read_all(folder)
    (folder / name).write_bytes(data)
  read_all(folder)


def test_nothing_is_trained_on_before_the_verdict(corpus, is_large):
  data = corpus(TEXTS)
  (folder,) = prepare_data(data, say=quiet).folders
  flip(pathlib.Path(folder, "train-00000.bin"))
  for workers in (0, 1):
    lines = []
    prepared = prepare_data(
      corpus([], num_workers=workers), lines.append, ("train",)
    )
    assert "checking the hashes of" in lines[0] and len(lines) == 1
    config = config_lib.freeze(base.get_config())
    data = corpus([], num_workers=workers)
    config = dataclasses.replace(config, data=data)
    with pytest.raises(InputError, match="train-00000.bin has sha256"):
      found = batches.make_train_iterator(prepared, config, 0, 2, [0, 1], 0)
      next(found)
    with pytest.raises(InputError, match="train-00000.bin has sha256"):
      pickle.dumps(prepared.train[0][1])


def test_a_large_set_is_hashed_once_until_it_changes(
  folder, cache, is_large, monkeypatch
):
  looked = []
  check_file = integrity.check_file

  def noted(path, *rest):
    looked.append(os.path.basename(path))
    check_file(path, *rest)

  monkeypatch.setattr(integrity, "check_file", noted)
  read_all(folder)
  assert sorted(looked) == sorted([*FILES])
  looked.clear()
  read_all(folder)
  assert looked == ["tokenizer.json"]
  path = folder / "train-00000.bin"
  before = path.stat()
  # Size and date as they were: the inode still knows that it was written.
  flip(path)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  with pytest.raises(InputError, match="train-00000.bin has sha256"):
    read_all(folder)
  flip(path)
  read_all(folder)
  for memory in (cache / "verified").iterdir():
    flip(memory, 30)
  looked.clear()
  read_all(folder)
  assert len(looked) == 5
  looked.clear()
  folders.verify_folder(str(folder))
  assert len(looked) == 5


def test_files_may_go_unchecked_where_this_is_asked_for(folder, monkeypatch):
  monkeypatch.setattr(integrity, "check_file", None)
  folders.open_prepared(str(folder), "never")["train"].read(0, 3)


def test_offsets_that_do_not_ascend_are_refused_even_unchecked(folder):
  path = folder / "valid.offsets.bin"
  data = path.read_bytes()
  for at in (0, 7, len(data) - 1):
    flip(path, at)
    token_set = folders.open_prepared(str(folder), "never")["valid"]
    with pytest.raises(InputError, match="offsets must ascend from 0"):
      _ = token_set.document_starts
    path.write_bytes(data)


def edit(folder, change) -> None:
  path = pathlib.Path(folder, "manifest.json")
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_a_manifest_of_before_seals_opens_and_is_sealed(folder):
  def older(content):
    for key in ("seal", "key", "text_sha256"):
      content.pop(key, None)
    content["tokenizer"].pop("sha256")

  before = folders.open_prepared(str(folder))["train"].fingerprint
  edit(folder, older)
  flip(folder / "train-00000.bin")
  with pytest.raises(InputError, match="has sha256"):
    folders.open_prepared(str(folder))
  flip(folder / "train-00000.bin")
  assert "seal" not in json.loads((folder / "manifest.json").read_text())
  assert folders.open_prepared(str(folder))["train"].fingerprint == before
  edit(folder, lambda m: m["splits"]["valid"].update(num_bytes=9999))
  with pytest.raises(InputError, match="its seal does not match"):
    folders.open_prepared(str(folder))


def test_another_tokenizer_beside_the_ids_is_refused(corpus, folder, tmp_path):
  other = corpus([f"wholly other {i}" for i in range(40)], tokenizer="bpe:300")
  other = prepare_data(other, say=quiet)
  foreign = pathlib.Path(other.tokenizer_path).read_text()
  (folder / "tokenizer.json").write_text(foreign)
  with pytest.raises(InputError, match="tokenizer.json has sha256"):
    folders.open_prepared(str(folder))
  prepared = PreparedData([], {}, [str(folder)])
  with pytest.raises(InputError, match="tokenizer.json holds another tokenize"):
    _ = prepared.tokenizer


def test_a_folder_under_the_name_of_another_is_refused(corpus):
  first = prepare_data(corpus(TEXTS), say=quiet).folders[0]
  changed = corpus([], valid_frac=0.2)
  second = prepare_data(changed, say=quiet).folders[0]
  os.rename(second, second + "x")
  os.rename(first, second)
  with pytest.raises(InputError, match="holds another prepared set"):
    prepare_data(changed, say=quiet)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("kind", ["fifo", "zero", "nowhere", "folder"])
def test_what_is_no_file_is_one_sentence(corpus, name, kind):
  data = corpus(TEXTS)
  folder = pathlib.Path(prepare_data(data, say=quiet).folders[0])
  path = folder / name
  path.unlink()
  {
    "fifo": lambda: os.mkfifo(path),
    "zero": lambda: path.symlink_to("/dev/zero"),
    "nowhere": lambda: path.symlink_to("/nowhere"),
    "folder": path.mkdir,
  }[kind]()
  with pytest.raises(InputError, match="; remove "):
    prepare_data(data, say=quiet)
