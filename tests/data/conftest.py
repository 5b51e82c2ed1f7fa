"""Corpora of small files, and the config that prepares them."""

import pytest

from gpt_jax.config import DataConfig


@pytest.fixture
def corpus(tmp_path):
  """Returns a function that makes a DataConfig over written documents."""

  def build(documents, **changes) -> DataConfig:
    folder = tmp_path / "text"
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(documents):
      (folder / f"{i:03d}.txt").write_bytes(text.encode())
    values = {
      "source": f"text:{folder}/*.txt",
      "valid_source": None,
      "split": "document",
      "valid_frac": 0.1,
      "tokenizer": "bytes",
      "dir": str(tmp_path / "prepared"),
      "verify": "once",
      "seq_len": 8,
      "packing": "stream",
      "num_workers": 0,
    }
    return DataConfig(**(values | changes))

  return build
