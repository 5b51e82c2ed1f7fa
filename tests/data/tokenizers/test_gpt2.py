"""GPT-2's vocabulary: counts as published, and damage is named."""

import os
import shutil

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources, tokenizers

TEXT = 'It\'s  naïve:\n\n\t"<|endoftext|>" 42\r\n国语 \U0001f600'


@pytest.fixture(scope="module")
def shared():
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  return folder


@pytest.mark.wide
def test_gpt2_counts_tiny_shakespeare_as_published(shared):
  path = os.path.join(shared, "tinyshakespeare", "input.txt")
  with open(path, encoding="utf-8") as file:
    text = file.read()
  cut = len(text) * 9 // 10
  folder = os.path.join(shared, "gpt2_bpe")
  forms = [folder, os.path.join(folder, "gpt2.tiktoken")]
  first, second = [tokenizers.build_tokenizer(f"gpt2:{p}") for p in forms]
  assert first.fingerprint() == second.fingerprint()
  for encoder in (first, second):
    assert (encoder.vocab_size, encoder.separator_id) == (50257, 50256)
    train = np.concatenate(
      encoder.encode_batch(list(encoder.split([text[:cut]])))
    )
    valid = encoder.encode(text[cut:])
    assert (len(train), len(valid)) == (301_966, 36_059)
    assert encoder.decode_bytes(train) == text[:cut].encode()


def test_gpt2_survives_any_unicode(shared):
  encoder = tokenizers.build_tokenizer(f"gpt2:{shared}/gpt2_bpe")
  poems = sources.open_source(f"jsonl:{shared}/tang_poetry/*.json#paragraphs")
  text = "\n".join("".join(d.pieces) for d in poems.documents())[:50_000]
  ids = encoder.encode(text + TEXT)
  assert encoder.decode(ids) == text + TEXT


def test_damaged_gpt2_vocabularies_are_refused(shared, tmp_path):
  source = os.path.join(shared, "gpt2_bpe")
  for name in ("encoder.json", "vocab.bpe"):
    shutil.copyfile(os.path.join(source, name), tmp_path / name)
  spec = f"gpt2:{tmp_path}"
  before = tokenizers.identity(spec)
  merges = (tmp_path / "vocab.bpe").read_text(encoding="utf-8")
  (tmp_path / "vocab.bpe").write_text(merges[: len(merges) // 2] + "\nx y z")
  assert tokenizers.identity(spec) != before
  with pytest.raises(InputError, match=r"vocab.bpe, line \d+ is"):
    tokenizers.build_tokenizer(spec)
  short = "\n".join(merges.split("\n")[:1000])
  (tmp_path / "vocab.bpe").write_text(short, encoding="utf-8")
  with pytest.raises(InputError, match="gives 999 merges"):
    tokenizers.build_tokenizer(spec)
  (tmp_path / "encoder.json").write_text('{"a": 0')
  with pytest.raises(InputError, match="encoder.json is not a vocabulary"):
    tokenizers.build_tokenizer(spec)
  (tmp_path / "encoder.json").unlink()
  with pytest.raises(InputError, match="holds no GPT-2 vocabulary"):
    tokenizers.build_tokenizer(spec)
  ranks = tmp_path / "gpt2.tiktoken"
  with open(os.path.join(source, "gpt2.tiktoken"), "rb") as file:
    lines = file.read().splitlines()
  ranks.write_bytes(b"\n".join(lines[:300]))
  with pytest.raises(InputError, match="holds 300 ranks"):
    tokenizers.build_tokenizer(f"gpt2:{ranks}")
  ranks.write_bytes(b"IQ== 0\nrubbish\n")
  with pytest.raises(InputError, match="line 2 is b'rubbish'"):
    tokenizers.build_tokenizer(f"gpt2:{ranks}")
