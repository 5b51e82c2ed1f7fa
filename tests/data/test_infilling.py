"""Fill-in-the-middle: what moves, how often, and that no text is lost."""

import pickle

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import infilling, objectives
from gpt_jax.data.batches import batch_at
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

SEPARATOR, T = 256, 120
BYTES = ByteTokenizer("bytes")
MARKS = infilling.find_marks(BYTES.vocab_size)
PRE, SUF, MID = MARKS


def batch_of(rows: int, text=lambda i: f"déjà vu {i}, " * 2) -> dict:
  """Returns windows of documents of random lengths."""
  ids = []
  for i in range(rows * T // 10):
    ids += [SEPARATOR, *BYTES.encode(text(i)).tolist()]
  ids = np.array(ids[: rows * T + 1], np.int32)
  cut = lambda a: a.reshape(rows, T)
  mask = np.ones((rows, T), np.float32)
  return {"tokens": cut(ids[:-1]), "targets": cut(ids[1:]), "mask": mask}


def fill(batch, seed=0, g=None, rate=1.0, spm_rate=0.5, unit="token"):
  g = np.arange(len(batch["tokens"])) if g is None else g
  return infilling.fill_in_the_middle(
    batch, seed, g, tokenizer=BYTES, rate=rate, spm_rate=spm_rate, unit=unit
  )


def ids_of(batch, row) -> np.ndarray:
  return np.append(batch["tokens"][row, :1], batch["targets"][row])


def pieces(ids) -> list[list[int]]:
  """Returns documents without their separators."""
  parts = np.split(ids, np.flatnonzero(ids == SEPARATOR))
  return [p[p != SEPARATOR].tolist() for p in parts if p.size]


def unmove(piece: list[int]) -> tuple[str, list[int]]:
  """Returns (form, ids in the order of the text)."""
  if PRE not in piece:
    return "plain", piece
  suf, mid = piece.index(SUF), piece.index(MID)
  before, after = piece[suf + 1 : mid], piece[mid + 1 :]
  if suf == 1:
    return "spm", after + before
  return "psm", piece[1:suf] + after + before


@pytest.mark.parametrize("unit", ["token", "character"])
def test_the_text_of_every_document_comes_back_in_order(unit):
  batch = batch_of(200)
  found, forms = fill(batch, unit=unit, rate=0.7), {}
  for row in range(200):
    old, new = pieces(ids_of(batch, row)), pieces(ids_of(found, row))
    assert found["mask"][row].all() and len(ids_of(found, row)) == T + 1
    for a, b in zip(old, new[:-1], strict=False):  # the last is cut off
      form, back = unmove(b)
      assert back == a
      forms[form] = forms.get(form, 0) + 1
  total = sum(forms.values())
  assert forms["plain"] / total == pytest.approx(0.3, abs=0.05)
  moved = total - forms["plain"]
  # Without a prefix, which 7 % have, both forms are the same.
  assert forms["spm"] / moved == pytest.approx(0.53, abs=0.06)
  assert fill(batch, spm_rate=0.0)["tokens"].max() == MID
  nothing = fill(batch, rate=0.0)
  for name, array in batch.items():
    np.testing.assert_array_equal(nothing[name], array)


def test_characters_are_never_cut_in_two_and_tokens_may_be():
  batch = batch_of(100, lambda i: "é" * 15)
  broken = {}
  for unit in ("token", "character"):
    found = fill(batch, unit=unit)
    texts = [
      BYTES.decode(part)
      for row in range(100)
      for piece in pieces(ids_of(found, row))[1:-1]
      for part in np.split(
        np.array(piece), np.flatnonzero(np.array(piece) >= PRE)
      )
      for part in [part[part < PRE]]
    ]
    broken[unit] = sum("\ufffd" in text for text in texts)
  assert broken["character"] == 0 < broken["token"]  # bytes are its tokens


def test_a_window_is_changed_alike_in_any_batch():
  batch = batch_of(50)
  part = {name: array[20:30] for name, array in batch.items()}
  whole, again = fill(batch, 3), fill(part, 3, np.arange(20, 30))
  other = fill(part, 4, np.arange(20, 30))
  for name in ("tokens", "targets"):
    np.testing.assert_array_equal(whole[name][20:30], again[name])
    assert not np.array_equal(other[name], again[name])  # the control


def test_padding_stays_padding():
  batch = batch_of(3)
  batch["mask"][1, 50:] = 0
  batch["mask"][2] = 0
  found = fill(batch)
  assert found["mask"].sum(1).tolist() == [T, 50, 0]
  assert not found["tokens"][1, 51:].any()
  np.testing.assert_array_equal(found["tokens"][2], batch["tokens"][2])


def test_packed_documents_keep_to_themselves():
  batch = batch_of(20)
  batch |= dict.fromkeys(("segments", "positions"), batch["tokens"])
  found = fill(batch)
  for row in range(20):
    segment, begin = 0, 0
    for t, i in enumerate(found["tokens"][row]):
      if i == SEPARATOR:
        segment, begin = segment + 1, t
      assert found["segments"][row, t] == segment
      assert found["positions"][row, t] == t - begin


def config_with(**data):
  config = base.get_config()
  config.data.update(objective="fill_in_the_middle", **data)
  return config_lib.freeze(config)


def test_the_objective_is_made_from_a_config_and_travels_to_workers():
  class Windows:
    num_ids = 5000
    separator_id = SEPARATOR

    def read_windows(self, first, length):
      text = np.resize(batch_of(4)["tokens"], self.num_ids)
      return np.stack([text[i : i + length] for i in first])

  task = objectives.build_task(config_with(), lambda: BYTES)
  task = task._replace(make=pickle.loads(pickle.dumps(task.make)))
  rows = np.arange(8)
  made = batch_at([Windows()], [1.0], 0, 0, rows, T, "stream", 8, task=task)
  assert made["tokens"].max() == MID and made["mask"].all()


def test_packed_documents_without_a_separator_are_refused():
  config, letters = config_with(packing="documents"), CharTokenizer("ab")
  with pytest.raises(InputError, match="no separator"):
    objectives.build_task(config, lambda: letters)
  objectives.build_task(config_with(), lambda: letters)  # the control


def test_a_gap_is_asked_for_by_its_suffix():
  asking = infilling.GapTokenizer(BYTES, "cd")
  assert asking.encode("ab").tolist() == [PRE, 97, 98, SUF, 99, 100, MID]
  assert asking.decode([*asking.encode("ab"), 101]) == "abcde"
  assert (asking.vocab_size, asking.separator_id) == (257, SEPARATOR)
