"""Shards: the ids that were written, across the borders of files."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import shards, tokenizers
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.shards import check_vocab
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


def stream(token_set) -> np.ndarray:
  return token_set.read(0, token_set.num_ids)


def test_shards_are_read_across_their_borders(corpus, monkeypatch):
  whole = stream(prepare_data(corpus(TEXTS), say=quiet).train[0][1])
  _remove(pathlib.Path(corpus([]).dir))
  monkeypatch.setattr(shards, "SHARD_IDS", 64)
  prepared = prepare_data(corpus([]), say=quiet)
  token_set = prepared.train[0][1]
  files = list(pathlib.Path(token_set.folder).glob("train-*.bin"))
  assert len(files) == -(-len(whole) // 64)
  assert np.array_equal(stream(token_set), whole)
  for start in range(0, len(whole) - 150, 13):
    found = token_set.read(start, start + 150)
    assert np.array_equal(found, whole[start : start + 150])
  again = pickle.loads(pickle.dumps(token_set))
  assert np.array_equal(again.read(60, 70), whole[60:70])
  with pytest.raises(IndexError):
    token_set.read(0, len(whole) + 1)
  with pytest.raises(IndexError):
    token_set.read(-1, 3)


def test_large_vocabularies_take_four_bytes(corpus, monkeypatch):
  class Wide(ByteTokenizer):
    def __init__(self):
      super().__init__()
      self.vocab_size = 1 << 17

    def encode(self, text):
      return super().encode(text) + 100_000

  monkeypatch.setattr(tokenizers, "build_tokenizer", lambda spec: Wide())
  prepared = prepare_data(corpus(TEXTS), say=quiet)
  token_set = prepared.train[0][1]
  manifest = json.loads(
    (pathlib.Path(prepared.folders[0]) / "manifest.json").read_text()
  )
  assert manifest["dtype"] == "uint32"
  assert stream(token_set).max() > 100_000


def test_a_set_of_another_vocabulary_is_refused(corpus):
  prepared = prepare_data(corpus(TEXTS), say=quiet)
  token_set = prepared.train[0][1]
  check_vocab(token_set, prepared.tokenizer)
  with pytest.raises(InputError, match="257 tokens.* than chars .of 2"):
    check_vocab(token_set, CharTokenizer("ab"))


def _remove(folder: pathlib.Path) -> None:
  for path in sorted(folder.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  folder.rmdir()
