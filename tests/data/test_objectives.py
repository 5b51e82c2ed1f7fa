"""Masked language modelling: what is hidden, and by which shares."""

import functools

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError, options
from gpt_jax.data import objectives
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer

T, ROWS, SEPARATOR, MASK = 128, 2000, 256, 257
PLAIN = objectives.Vocabulary(257, SEPARATOR, MASK)
SHARES = (0.8, 0.1, 0.1)


@functools.cache
def windows() -> dict:
  ids = np.random.default_rng(0).integers(0, 256, (ROWS, T + 1))
  ids[:, ::40] = SEPARATOR
  return {
    "tokens": ids[:, :-1].astype(np.int32),
    "targets": ids[:, 1:].astype(np.int32),
    "mask": np.ones((ROWS, T), np.float32),
  }


def hide(
  batch=None, seed=0, g=None, vocabulary=PLAIN, rate=0.15, shares=SHARES
) -> dict:
  batch = windows() if batch is None else batch
  g = np.arange(len(batch["tokens"])) if g is None else g
  return objectives.masked_lm(
    batch, seed, g, vocabulary=vocabulary, rate=rate, shares=shares
  )


def test_what_is_hidden_is_what_is_predicted():
  whole, found = windows()["tokens"], hide()
  assert np.array_equal(found["targets"], whole)
  kept = found["mask"] == 0
  assert np.array_equal(found["tokens"][kept], whole[kept])
  assert not np.any(whole[~kept] == SEPARATOR)
  assert np.array_equal(windows()["tokens"], whole)  # the input stays


def test_rate_and_shares_are_those_of_the_config():
  found, whole = hide(), windows()["tokens"]
  texts = (whole != SEPARATOR).sum(1)
  assert np.array_equal(found["mask"].sum(1), np.round(0.15 * texts))
  chosen = found["mask"] == 1
  count = chosen.sum()
  masked = (found["tokens"] == MASK).sum() / count
  same = (found["tokens"] == whole)[chosen].sum() / count
  assert masked == pytest.approx(0.8, abs=0.01)
  assert same == pytest.approx(0.1 + 0.1 / 257, abs=0.01)
  assert (hide(shares=(1.0, 0.0, 0.0))["tokens"] == MASK).sum() == count
  # Every place is as likely, but for the separators'.
  often = chosen.mean(0)[np.arange(T) % 40 > 0]
  assert often.std() < 0.02


def test_a_sequence_is_hidden_alike_in_any_batch_and_at_any_time():
  whole = hide(seed=3)
  part = {k: v[500:510] for k, v in windows().items()}
  again = hide(part, seed=3, g=np.arange(500, 510))
  for name, values in again.items():
    assert np.array_equal(values, whole[name][500:510]), name
  other = hide(part, seed=4, g=np.arange(500, 510))  # the control
  assert not np.array_equal(other["mask"], again["mask"])


def test_padding_is_never_predicted_and_something_always_is():
  batch = {k: v[:50].copy() for k, v in windows().items()}
  batch["mask"][:, 3:] = 0
  batch["mask"][7] = 0
  found = hide(batch)
  assert not found["mask"][:, 3:].any() and not found["mask"][7].any()
  assert np.all(np.delete(found["mask"], 7, 0).sum(1) == 1)


def test_whole_words_are_hidden_together():
  text = "the bank's two old rivers, and 12 more " * 40
  tokenizer = ByteTokenizer()
  ids = tokenizer.encode(text)[None, :512].astype(np.int32)
  batch = {"tokens": ids, "targets": ids, "mask": np.ones(ids.shape)}
  vocabulary = objectives.describe_vocabulary(tokenizer, True)
  found = hide(batch, vocabulary=vocabulary)["mask"][0] == 1
  words, at = set(), 0
  while at < 512:
    end = at + 1
    while end < 512 and text[end].isalnum():
      end += 1
    assert found[at:end].all() or not found[at:end].any(), text[at:end]
    if found[at:end].all():
      words.add(text[at:end])
    at = end
  assert len(words) > 5
  assert 77 <= found.sum() <= 77 + 8  # the last word may go beyond the rate
  apart = hide(batch)["mask"][0] == 1  # the control
  assert any(apart[i] != apart[i + 1] for i in range(1, 3))


def library(model: dict, **parts) -> LibraryTokenizer:
  content = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": model,
  }
  return LibraryTokenizer(content | parts, "hf:test", None)


def test_a_tokenizer_says_its_mask_and_which_pieces_go_on_with_a_word():
  vocab = {"[UNK]": 0, "[MASK]": 1, "play": 2, "##ing": 3, ",": 4}
  pieces = library(
    {
      "type": "WordPiece",
      "unk_token": "[UNK]",
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": vocab,
    }
  )
  assert pieces.mask_id == 1
  found = objectives.describe_vocabulary(pieces, True)
  assert found.mask_id == 1
  assert found.continues_V.tolist() == [False, False, False, True, False]
  plain = objectives.describe_vocabulary(ByteTokenizer(), True)
  assert plain.mask_id == 257
  goes_on = [chr(i) for i in range(128) if plain.continues_V[i]]
  assert goes_on == [c for c in map(chr, range(128)) if c.isalnum()]


@pytest.mark.parametrize(
  "text", ["0.8*mask+0.3*keep", "mask+drop", "0.5", "", "-1*mask+2*keep"]
)
def test_shares_that_are_none_are_refused(text):
  with pytest.raises(InputError, match="data.mask_mix is"):
    options.MaskMix(text)
  assert options.MaskMix("mask").shares == (1.0, 0.0, 0.0)


def test_the_vocabulary_grows_by_the_mask_where_the_tokenizer_has_none():
  from gpt_jax.data.tokenizers import resolve_vocab

  config = base.get_config()
  config.model.family = "encoder"
  config.data.objective = "masked_lm"
  resolved = resolve_vocab(config_lib.freeze(config))
  assert resolved.model.vocab_size == 258
  config.model.vocab_size = 257
  with pytest.raises(InputError, match="has 258 tokens with those that"):
    resolve_vocab(config_lib.freeze(config))
