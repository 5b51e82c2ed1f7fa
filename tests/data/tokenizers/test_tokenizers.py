"""Tokenizers: text comes back, cuts change nothing, bad vocabularies say so."""

import json
import pickle

import numpy as np
import pytest

from configs import base
from gpt_jax import config
from gpt_jax.config import InputError
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import subword
from gpt_jax.data.tokenizers.bpe import train_bpe
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

TEXT = (
  "def f(x):\n  return x + 1  # 国语 naïve\n\nIt's the end.\nOne more line 42\n"
  '<|endoftext|> is text here.\nA tab\tand "quotes" \U0001f600\r\nend'
) * 50


@pytest.fixture(scope="module")
def bpe():
  return train_bpe("bpe:320", [TEXT])


def test_every_kind_gives_back_what_it_encoded(bpe):
  chars = CharTokenizer(TEXT)
  for encoder in (ByteTokenizer(), chars, bpe):
    ids = encoder.encode(TEXT)
    assert ids.dtype == np.uint32 and ids.ndim == 1
    assert ids.max() < encoder.vocab_size
    assert encoder.decode(ids) == TEXT
    assert encoder.decode_bytes(ids) == TEXT.encode()
    assert encoder.decode_bytes(ids[:-1]) != TEXT.encode()


def test_text_never_becomes_a_separator(bpe):
  assert bpe.vocab_size == 320 and bpe.separator_id == 319
  assert bpe.separator_id not in bpe.encode("a<|endoftext|>b")
  assert bpe.decode([bpe.separator_id]) == ""
  assert ByteTokenizer().decode([256, 65, 256]) == "A"


def test_broken_utf8_decodes_to_a_mark():
  assert ByteTokenizer().decode([0xE5, 65]) == "\ufffdA"


def test_cutting_a_stream_changes_no_token(bpe, monkeypatch):
  monkeypatch.setattr(subword, "PIECE_LEN", 64)
  stream = [TEXT[i : i + 37] for i in range(0, len(TEXT), 37)]
  pieces = list(bpe.split(stream))
  assert "".join(pieces) == TEXT and len(pieces) > 20
  joined = np.concatenate(bpe.encode_batch(pieces))
  assert np.array_equal(joined, bpe.encode(TEXT))
  careless = np.concatenate(bpe.encode_batch(stream))
  assert not np.array_equal(careless, bpe.encode(TEXT))


def test_a_vocabulary_that_marks_line_starts_is_never_cut(tmp_path):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  inner = Tokenizer(models.BPE(unk_token="<unk>"))
  inner.pre_tokenizer = pre_tokenizers.Metaspace()
  inner.decoder = decoders.Metaspace()
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False
  )
  inner.train_from_iterator([TEXT], trainer)
  path = tmp_path / "tokenizer.json"
  inner.save(str(path))
  encoder = tokenizers.build_tokenizer(f"hf:{path}")
  assert encoder.separator_id == inner.token_to_id("</s>")
  assert list(encoder.split([TEXT, TEXT])) == [TEXT + TEXT]


def test_hf_file_of_a_byte_level_vocabulary_agrees(bpe, tmp_path):
  library = json.loads(bpe.to_json())["library"]
  (tmp_path / "tokenizer.json").write_text(json.dumps(library))
  for path in (tmp_path, tmp_path / "tokenizer.json"):
    encoder = tokenizers.build_tokenizer(f"hf:{path}")
    assert np.array_equal(encoder.encode(TEXT), bpe.encode(TEXT))
    assert encoder.separator_id == bpe.separator_id


def test_saved_tokenizers_are_the_same_when_loaded(bpe, tmp_path):
  chars = CharTokenizer("héello国")
  for encoder in (ByteTokenizer(), chars, bpe):
    path = tmp_path / "tokenizer.json"
    path.write_text(encoder.to_json(), encoding="utf-8")
    for again in (tokenizers.load(path), pickle.loads(pickle.dumps(encoder))):
      assert again.fingerprint() == encoder.fingerprint()
      assert again.name == encoder.name
      assert again.separator_id == encoder.separator_id
      assert np.array_equal(again.encode("hello"), encoder.encode("hello"))
  other = CharTokenizer("hélo")
  assert other.fingerprint() != chars.fingerprint()


def test_training_twice_gives_one_vocabulary(bpe):
  again = train_bpe("bpe:320", [TEXT])
  assert again.fingerprint() == bpe.fingerprint()
  other = train_bpe("bpe:320", [TEXT.upper()])
  assert other.fingerprint() != bpe.fingerprint()


def test_unknown_character_is_named_with_its_place():
  encoder = CharTokenizer("abc")
  assert encoder.encode("cab").tolist() == [2, 0, 1]
  with pytest.raises(InputError, match=r"'国' at position 2 .* 3 characters"):
    encoder.encode("ab国")


def test_half_a_surrogate_pair_is_refused(bpe):
  chars = CharTokenizer("abc")
  for encoder in (ByteTokenizer(), chars, bpe):
    with pytest.raises(InputError, match="surrogate"):
      encoder.encode("a\ud800")


def test_ids_outside_the_vocabulary_are_refused(bpe):
  for encoder in (ByteTokenizer(), bpe):
    for bad in (-1, encoder.vocab_size):
      with pytest.raises(InputError, match=f"id {bad} is outside"):
        encoder.decode([0, bad])


def test_every_kind_of_the_config_is_built_or_learned():
  assert set(tokenizers.FILES) < set(tokenizers.BUILDERS)
  learned = {"chars", "bpe"}
  assert set(tokenizers.BUILDERS) | learned == set(config.TOKENIZERS)
  for spec in ("chars", "bpe:300"):
    assert tokenizers.is_trained(spec)
    with pytest.raises(InputError, match="made from a corpus"):
      tokenizers.build_tokenizer(spec)


def test_a_wrong_spec_is_refused_before_anything_is_read():
  c = base.get_config()
  config.freeze(c)
  c.data.tokenizer = "words"
  with pytest.raises(InputError, match="data.tokenizer is 'words'; .* bpe:SIZ"):
    config.freeze(c)


def test_a_spec_tells_the_vocabulary_as_far_as_it_can():
  find = tokenizers.find_vocab_size
  found = [find(spec) for spec in ("bytes", "bpe:4096", "gpt2:nowhere")]
  assert found == [257, 4096, 50257]
  assert find("bytes") == ByteTokenizer().vocab_size
  assert find("chars") is None and find("hf:nowhere") is None


@pytest.mark.parametrize(
  "spec", ["byte", "bytes:3", "bpe", "bpe:", "bpe:256", "bpe:x", "gpt2:", "hf"]
)
def test_wrong_specs_are_refused(spec):
  with pytest.raises(InputError, match="data.tokenizer is"):
    config.tokenizer_spec(spec)


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    tokenizers.build_tokenizer(f"gpt2:{tmp_path}/nowhere")
  with pytest.raises(InputError, match="cannot read"):
    tokenizers.identity(f"hf:{tmp_path}/nowhere.json")
  path = tmp_path / "tokenizer.json"
  for content in ("[]", "{}", '{"model": {}, "added_tokens": []}', "\x00"):
    path.write_text(content)
    with pytest.raises(InputError):
      tokenizers.build_tokenizer(f"hf:{path}")
    with pytest.raises(InputError, match="tokenizer"):
      tokenizers.load(path)
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(InputError, match="cannot read the tokenizer"):
    tokenizers.load(path)
