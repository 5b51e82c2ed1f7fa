"""Prepared folders: opened whole, or refused by the name of a file."""

import pathlib

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import folders
from gpt_jax.data.prepare import prepare_data

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


def stream(token_set) -> np.ndarray:
  return token_set.read(0, token_set.num_ids)


def test_what_changes_ids_changes_the_folder(corpus):
  base = corpus(TEXTS)
  folders = set()
  for changes in (
    {},
    {"split": "tail"},
    {"valid_frac": 0.2},
    {"tokenizer": "chars"},
    {"tokenizer": "bpe:300"},
    {"valid_source": base.source},
  ):
    folders.update(prepare_data(corpus([], **changes), say=quiet).folders)
  assert len(folders) == 7  # a source for validation has its own
  same = prepare_data(corpus([], seq_len=99, num_workers=3), say=quiet)
  assert set(same.folders) < folders


def test_a_split_far_from_its_fraction_is_told(corpus, run_verb):
  lines = []
  data = corpus(["a" * 3000, *TEXTS[:9]], valid_frac=0.1)
  prepared = prepare_data(data, say=lines.append)
  note = folders.describe_share(prepared.folders[0])
  assert "of the text is held back for data.valid_frac 0.1" in lines[0]
  assert note and lines[0].endswith(note)
  even = prepare_data(corpus([], valid_frac=0.0), say=quiet)
  assert folders.describe_share(even.folders[0]) == ""


def test_a_file_cut_short_is_named_with_its_sizes(corpus):
  (folder,) = prepare_data(corpus(TEXTS), say=quiet).folders
  for name in ("train-00000.bin", "valid.offsets.bin"):
    path = pathlib.Path(folder, name)
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    said = f"{name} has {len(data) - 2} bytes .* says {len(data)}"
    with pytest.raises(InputError, match=said):
      prepare_data(corpus([]), say=quiet)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
      folders.open_prepared(folder)
    path.write_bytes(data)
  folders.open_prepared(folder)


def test_a_changed_file_is_found_by_verify_and_by_reading(corpus):
  prepared = prepare_data(corpus(TEXTS), say=quiet)
  (folder,) = prepared.folders
  folders.verify_folder(folder)
  path = pathlib.Path(folder, "train-00000.bin")
  data = bytearray(path.read_bytes())
  data[10] ^= 1
  path.write_bytes(data)
  for look in (folders.verify_folder, folders.open_prepared):
    with pytest.raises(InputError, match="train-00000.bin has sha256"):
      look(folder)
  stream(folders.open_prepared(folder, "never")["train"])
  data[10:12] = b"\xff\xff"
  path.write_bytes(data)
  with pytest.raises(InputError, match="train-00000.bin holds id 65535 at 5,"):
    folders.open_prepared(folder, "never")["train"].read(2, 9)


@pytest.mark.parametrize(
  "text, said",
  [
    ("{", "is damaged"),
    ("[]", "is damaged"),
    ('{"format": 99}', "format 99; this version reads format 1"),
    ('{"format": 1}', "has no 'splits'"),
  ],
)
def test_damaged_manifests_are_refused(corpus, text, said):
  (folder,) = prepare_data(corpus(TEXTS), say=quiet).folders
  pathlib.Path(folder, "manifest.json").write_text(text)
  with pytest.raises(InputError, match=said):
    prepare_data(corpus([]), say=quiet)


def test_a_folder_that_is_no_prepared_set_is_refused(tmp_path):
  with pytest.raises(InputError, match="no manifest.json"):
    folders.open_prepared(str(tmp_path))
