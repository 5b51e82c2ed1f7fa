"""Which text is held out: whole documents or exact tails, none twice."""

import json
import os

import numpy as np
import pytest

from gpt_jax.data import chunks, overlap, splitting
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.sources import document
from gpt_jax.data.sources.interpreter import InterpreterSource

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


def stream(token_set) -> np.ndarray:
  return token_set.read(0, token_set.num_ids)


@pytest.mark.wide
def test_a_tail_is_cut_as_nanogpt_cuts_it(corpus):
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  path = f"{folder}/tinyshakespeare/input.txt"
  spec = {"source": f"text:{path}", "split": "tail"}
  prepared = prepare_data(corpus([], tokenizer="chars", **spec), say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  assert (train.num_ids, valid.num_ids) == (1_003_854, 111_540)
  assert prepared.vocab_size == 65 and prepared.tokenizer.vocab_size == 65
  with open(path, encoding="utf-8") as file:
    text = file.read()
  assert (
    prepared.tokenizer.decode(stream(train)) == text[: int(len(text) * 0.9)]
  )
  gpt2 = f"gpt2:{folder}/gpt2_bpe"
  prepared = prepare_data(corpus([], tokenizer=gpt2, **spec), say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  assert (train.num_tokens, valid.num_tokens) == (301_966, 36_059)
  assert train.num_ids == train.num_tokens
  assert train.num_bytes + valid.num_bytes == os.path.getsize(path)


@pytest.mark.parametrize("frac, kept", [(0.1, 9), (0.9, 1), (0.3, 7), (0.7, 3)])
def test_a_tail_is_not_lost_to_rounding(corpus, monkeypatch, frac, kept):
  monkeypatch.setattr(document, "BLOCK", 3)
  data = corpus(["0123456789"] * 2, split="tail", valid_frac=frac)
  prepared = prepare_data(data, say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  decode = prepared.tokenizer.decode
  assert decode(stream(train)) == "0123456789"[:kept] * 2
  assert decode(stream(valid)) == "0123456789"[kept:] * 2
  assert train.document_starts.tolist() == [0, kept]


def test_both_sides_hold_a_document_where_there_are_two(corpus):
  for count in (2, 3):
    for frac in (0.01, 0.99):
      data = corpus(TEXTS[:count], valid_frac=frac)
      prepared = prepare_data(data, say=quiet)
      sizes = [prepared.train[0][1], prepared.valid["valid"]]
      assert sum(s.num_documents for s in sizes) == count
      assert min(s.num_documents for s in sizes) >= 1


def test_one_document_is_divided_by_its_tail_and_said(corpus):
  lines = []
  one = prepare_data(corpus(["only one"]), say=lines.append)
  assert len(lines) == 2 and "is one document: the last 0.1 of it" in lines[1]
  decode = one.tokenizer.decode
  assert decode(stream(one.valid["valid"])) == "e"
  tail = prepare_data(corpus([], split="tail"), say=quiet)
  assert one.fingerprint == tail.fingerprint
  equal = prepare_data(corpus(["x" * 20] * 3), say=quiet)
  assert equal.valid["valid"].num_tokens == 6


def test_equal_texts_are_never_on_both_sides(corpus):
  lines = []
  texts = [t for text in TEXTS for t in (text, text, text)]
  data = corpus(texts, valid_frac=0.5)
  prepared = prepare_data(data, say=lines.append)
  sides = prepared.train[0][1], prepared.valid["valid"]
  assert overlap.count([sides[0]], [sides[1]])[0] == 0
  assert sum(side.num_documents for side in sides) == 120
  assert min(side.num_documents for side in sides) > 20
  assert "documents repeat a text of the other side" in lines[1]
  assert prepared.folders[0].endswith("-apart")
  lines.clear()
  again = prepare_data(data, say=lines.append)
  assert again.folders == prepared.folders and not lines
  assert all(n % 3 == 0 for n in (side.num_documents for side in sides))


def test_a_split_of_different_texts_is_as_it_was(corpus):
  prepared = prepare_data(corpus(TEXTS, valid_frac=0.3), say=quiet)
  names = [f"{i:03d}.txt" for i in range(40)]
  # The default corpus is divided by name alone, whatever repeats.
  assert not InterpreterSource.is_divided_by_text
  held = [n for n in names if splitting.unit_hash(n) < 0.3]
  assert prepared.valid["valid"].num_documents == len(held)
  assert not prepared.folders[0].endswith("-apart")


def disguise(text: str) -> str:
  """Returns a text with other spaces and capitals."""
  return " \n" + text.upper().replace(" ", "\t  ")


def sides_of(prepared) -> tuple[set[str], set[str]]:
  """Returns the documents of both sides, without spaces and capitals."""
  found = []
  for token_set in (*(s for _, s in prepared.train), *prepared.valid.values()):
    starts = [*token_set.document_starts, token_set.num_ids]
    texts = set()
    for a, b in zip(starts, starts[1:], strict=False):
      text = prepared.tokenizer.decode(token_set.read(a, b)[1:])
      texts.add("".join(text.split()).casefold())
    found.append((token_set.name.endswith("train"), texts))
  train = set().union(*(texts for is_train, texts in found if is_train))
  valid = set().union(*(texts for is_train, texts in found if not is_train))
  return train, valid


def test_a_copy_is_on_its_side_whatever_its_name_spaces_and_case(corpus):
  once = prepare_data(corpus(TEXTS, split="content", valid_frac=0.3), quiet)
  train, valid = sides_of(once)
  assert len(train) + len(valid) == 40 and len(valid) > 4
  copies = [*map(disguise, TEXTS), *TEXTS]  # TEXTS[i] is at i and at 40 + i
  data = corpus(copies, split="content", valid_frac=0.3)
  assert sides_of(prepare_data(data, quiet)) == (train, valid)
  # By name, capitals and spaces are other texts, and copies get apart.
  named = sides_of(prepare_data(corpus(copies, valid_frac=0.3), quiet))
  assert named[0] & named[1]


def test_copies_in_two_sources_are_on_one_side_by_content(corpus, tmp_path):
  other = tmp_path / "other.jsonl"
  rows = [json.dumps({"text": disguise(text)}) for text in TEXTS]
  other.write_text("\n".join(rows))
  text = corpus(TEXTS).source
  found = {}
  for split in ("content", "document"):
    mixed = f"0.5*{text},0.5*jsonl:{other}"
    data = corpus([], source=mixed, split=split, valid_frac=0.3)
    train, valid = sides_of(prepare_data(data, quiet))
    found[split] = len(train & valid)
  assert found["content"] == 0 and found["document"] > 0


def test_content_is_cut_into_pieces_anywhere():
  text = "Straße \u3000ΣΑΣ σας\r\nİi " * 3
  whole = splitting.TextHash("content")
  whole.update(text)
  for size in (1, 2, 5):
    pieces = splitting.TextHash("content")
    for i in range(0, len(text), size):
      pieces.update(text[i : i + size])
    assert pieces.value() == whole.value()
  other = splitting.TextHash("content")
  other.update(text.replace("Straße", "STRASSE\n"))
  assert other.value() == whole.value()


def test_chunks_are_divided_by_content_as_whole_texts_are(
  corpus, monkeypatch, tmp_path
):
  texts = [*TEXTS, *map(disguise, TEXTS)]
  found = []
  for size, folder in ((1 << 26, "whole"), (1, "chunks")):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
    data = corpus(
      texts, split="content", valid_frac=0.3, dir=str(tmp_path / folder)
    )
    made = prepare_data(data, quiet, num_workers=1)
    found.append([made.fingerprint, *map(sorted, sides_of(made))])
  assert found[0] == found[1]
