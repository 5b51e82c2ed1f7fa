"""Dialogues: stored whole with their masks, put into rows without leaks."""

import json

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import batches, chats, objectives
from gpt_jax.data.prepare import prepare_data, prepare_text, verify_text

PACKINGS = ["stream", "documents"]


def freeze(folder, **data):
  config = base.get_config()
  config.data.update(
    source=f"chat:{folder / 'a.jsonl'}",
    objective="chat",
    template="chatml:text",
    seq_len=160,
    dir=str(folder / "prepared"),
  )
  config.data.update(**data)
  return config_lib.freeze(config)


@pytest.fixture
def make(tmp_path):
  """Returns a function that prepares dialogues: (prepared, config)."""

  def build(count=40, **data):
    lines = [
      {
        "messages": [
          {"role": "user", "content": f"q{i}" * (1 + i % 5)},
          {"role": "assistant", "content": f"a{i}."},
        ]
      }
      for i in range(count)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text)
    config = freeze(tmp_path, **data)
    return prepare_data(config.data, say=lambda line: None), config

  return build


def rows_of(prepared, config, seed=0):
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  return chats.chat_rows(prepared.train[0][1], task.pairs, seed)


def answers(row) -> list[str]:
  """Returns what counts in a row, by document."""
  parts = row.get("segments", np.zeros(len(row["mask"])))
  found = []
  for part in np.unique(parts):
    ids = row["targets"][(parts == part) & (row["mask"] > 0)]
    found.append(bytes(ids.astype(np.uint8)).decode())
  return found


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_answer_is_predicted_once_and_nothing_else(make, packing):
  prepared, config = make(packing=packing)
  rows = rows_of(prepared, config)
  batch = rows.read(np.arange(rows.num_rows))
  found = []
  for at in range(rows.num_rows):
    found += answers({name: x[at] for name, x in batch.items()})
  held = prepared.valid["valid"].num_documents
  assert held and len(found) == len(set(found)) == 40 - held
  assert set(found) <= {f"a{i}.<|im_end|>" for i in range(40)}
  assert (rows.num_rows < 40 - held) == (packing == "documents")


def test_a_packed_dialogue_is_the_same_as_alone(make):
  prepared, config = make(packing="documents")
  rows = rows_of(prepared, config)
  batch = rows.read(np.arange(rows.num_rows))
  alone = chats.ChatRows(
    prepared.train[0][1], chats.Layout(160, False), None
  ).read(np.arange(len(rows.chats)))
  wanted = {
    tuple(t[: n.argmin()]) for t, n in zip(*_filled(alone), strict=True)
  }
  found = set()
  for at in range(rows.num_rows):
    segments, places = batch["segments"][at], batch["positions"][at]
    for part in np.unique(segments):
      own = segments == part
      assert np.array_equal(places[own], np.arange(own.sum()))
      ids = batch["tokens"][at][own]
      found.add(tuple(ids[: np.append(ids, 0).argmin()]))
  assert found == wanted


def _filled(batch):
  ids = np.pad(batch["tokens"], ((0, 0), (0, 1)))
  return ids, ids


def test_what_does_not_fit_is_left_out_and_counted(make):
  # Marks and roles take 60 letters, an answer 3 or 4, a question 2 to 15, and
  # the last newline is read by none.
  limit = 71
  sizes = [60 + len(f"a{i}." + f"q{i}" * (1 + i % 5)) for i in range(40)]
  prepared, config = make(seq_len=limit, valid_frac=0.0)
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  remark = batches.check_set(prepared.train[0][1], limit, task.pairs)
  wanted = sum(size > limit for size in sizes)
  assert 0 < wanted < 40
  assert remark.startswith(f"{wanted} of 40 chats of")
  rows = rows_of(prepared, config)
  assert len(rows.chats) == 40 - wanted
  with pytest.raises(InputError, match="fits a row: the shortest takes"):
    batches.check_set(prepared.train[0][1], 20, task.pairs._replace(seq_len=20))


def test_another_template_is_another_folder_and_text_is_verified(
  make, tmp_path
):
  prepared, config = make()
  asked = freeze(tmp_path, template="llama3:text")
  other = prepare_data(asked.data, say=lambda line: None)
  assert prepared.folders != other.folders
  assert prepared.fingerprint != other.fingerprint
  verify_text(config.data, prepared)


def test_a_damaged_mask_is_found(make, tmp_path):
  prepared, config = make()
  path = f"{prepared.folders[0]}/train.mask.bin"
  data = bytearray(open(path, "rb").read())
  data[7] ^= 1
  open(path, "wb").write(data)
  with pytest.raises(InputError, match=r"train\.mask\.bin"):
    again = prepare_data(config.data, say=lambda line: None)
    rows_of(again, config).read(np.arange(2))


def test_texts_without_a_mask_are_refused(make, tmp_path):
  prepared, config = make()
  (tmp_path / "b.txt").write_text("some text")
  plain = prepare_text(
    str(tmp_path / "b.txt"), prepared.tokenizer, str(tmp_path / "prepared")
  )
  with pytest.raises(InputError, match="holds no chats"):
    batches.check_set(plain, 16, chats.Layout(16, False))
  with pytest.raises(InputError, match="needs chats"):
    objectives.check_sources(freeze(tmp_path, source="interpreter").data)
  with pytest.raises(InputError, match="did you mean 'gemma'"):
    freeze(tmp_path, template="gema")
