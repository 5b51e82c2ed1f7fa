"""Preferences: stored with their masks, put into rows, two answers in each."""

import json

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import batches, objectives, preferences
from gpt_jax.data.prepare import prepare_data, verify_text
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers.plain import ByteTokenizer

SEPARATOR = 256


def freeze(folder, **data):
  config = base.get_config()
  config.data.update(
    source=f"preference:{folder / 'a.jsonl'}",
    objective="dpo",
    template="chatml:text",
    tokenizer="bytes",
    seq_len=48,
    dir=str(folder / "prepared"),
  )
  config.data.update(**data)
  config.model.max_len = 512
  config.train.init_from = "/nowhere"
  return config_lib.freeze(config)


def plain(i: int) -> dict:
  prompt = f"{i} is" * (1 + i % 3)
  return {"prompt": prompt, "chosen": f" c{i}", "rejected": f" r{i}!"}


def say(role: str, text: str) -> dict:
  return {"role": role, "content": text}


def chat(i: int) -> dict:
  prompt = [say("user", f"q{i}"), say("assistant", "Yes?"), say("user", "Go")]
  answers = {
    "chosen": [say("assistant", f"c{i}")],
    "rejected": [say("assistant", f"r{i}"), say("user", "So?")]
    + [say("assistant", "No.")],
  }
  return {"prompt": prompt, **answers}


@pytest.fixture
def make(tmp_path):
  """Returns a function that prepares records: (prepared, config)."""

  def build(record=plain, count=40, **data):
    lines = [json.dumps(record(i)) + "\n" for i in range(count)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    config = freeze(tmp_path, **data)
    return prepare_data(config.data, say=lambda line: None), config

  return build


def read_all(prepared, config, seed=0):
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  token_set = prepared.train[0][1]
  rows = preferences.preference_rows(token_set, task.pairs, seed)
  return rows, rows.read(np.arange(rows.num_rows + 1))


def text_of(ids) -> str:
  return "".join("|" if i == SEPARATOR else chr(i) for i in ids)


def sides(batch, row: int) -> list[tuple[str, str]]:
  """Returns (prompt and answer, what counts) of both answers of a row."""
  found = []
  for side in range(2):
    own = batch["segments"][row] == side
    mask = batch["mask"][row][own] > 0
    last = np.flatnonzero(mask)[-1]
    tokens = batch["tokens"][row][own][: last + 1]
    targets = batch["targets"][row][own]
    assert np.array_equal(tokens[1:], targets[:last])
    assert np.array_equal(batch["positions"][row][own], np.arange(own.sum()))
    whole = np.append(tokens, targets[last])
    found.append((text_of(whole), text_of(targets[mask])))
  return found


def test_each_row_has_both_answers_behind_their_prompt_and_these_count(make):
  prepared, config = make()
  rows, batch = read_all(prepared, config)
  held = prepared.valid["valid"].num_documents // 2
  assert held and rows.num_rows == 40 - held
  found = set()
  for row in range(rows.num_rows):
    (chosen, counted), (rejected, other) = sides(batch, row)
    i = int(counted[2:-1])
    one = plain(i)
    assert counted == one["chosen"] + "|" and other == one["rejected"] + "|"
    assert chosen == one["prompt"] + counted
    assert rejected == one["prompt"] + other
    found.add(i)
  assert len(found) == rows.num_rows
  wanted = [[1, -1]] * rows.num_rows + [[0, 0]]
  assert np.array_equal(batch["labels"], wanted)
  assert not batch["mask"][-1].any()


def test_of_messages_the_answers_after_the_prompt_count_alone(make):
  prepared, config = make(chat, seq_len=512)
  _, batch = read_all(prepared, config)
  (chosen, counted), (rejected, other) = sides(batch, 0)
  assert counted.startswith("c") and counted.endswith("<|im_end|>")
  assert other == f"r{counted[1:-10]}<|im_end|>No.<|im_end|>"
  for text in (chosen, rejected):
    assert "Yes?<|im_end|>" in text and text.startswith("<|im_start|>user\nq")


def test_equal_prompts_are_in_one_split(make):
  same = lambda i: plain(i) | {"prompt": f"p{i % 5}"}
  prepared, config = make(same, count=60, valid_frac=0.3)
  _, train = read_all(prepared, config)
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  held = preferences.preference_rows(prepared.valid["valid"], task.pairs, None)
  prompts = lambda batch, count: {
    sides(batch, row)[0][0][:2] for row in range(count)
  }
  there = prompts(held.read(np.arange(held.num_rows)), held.num_rows)
  count = int(train["labels"][:, 0].sum())
  assert there and not there & prompts(train, count)


def test_what_does_not_fit_is_left_out_and_counted(make):
  prepared, config = make(seq_len=24, valid_frac=0.0)
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  # The last id of either answer is read by none, and each ends with one more.
  size = lambda one: (
    2 * len(one["prompt"]) + len(one["chosen"] + one["rejected"])
  )
  wanted = sum(size(plain(i)) > 24 for i in range(40))
  assert 0 < wanted < 40
  remark = batches.check_set(prepared.train[0][1], 24, task.pairs)
  assert remark.startswith(f"{wanted} of 40 preferences of")
  rows, _ = read_all(prepared, config)
  assert rows.num_rows == 40 - wanted
  short = task.pairs._replace(seq_len=10)
  with pytest.raises(InputError, match="fits a row: the shortest takes 15"):
    batches.check_set(prepared.train[0][1], 10, short)


def test_a_reference_stands_with_its_pair_in_any_order(make):
  prepared, config = make()
  token_set = prepared.train[0][1]
  count = token_set.num_documents // 2
  token_set.reference = np.arange(2 * count, dtype=np.float32).reshape(-1, 2)
  for seed in (None, 0, 1):
    rows, batch = read_all(prepared, config, seed)
    wanted = 2 * rows.pairs[:, None] + np.arange(2)
    assert np.array_equal(batch["reference"][:-1], wanted)
  assert not np.array_equal(rows.pairs, np.arange(count))  # shuffled


def single(i: int) -> dict:
  good = i % 3 != 0
  text = f" {'good' if good else 'bad'}{i}"
  return {"prompt": f"{i} is", "completion": text, "label": good}


@pytest.mark.parametrize("is_paired", [False, True])
def test_of_kto_an_answer_stands_beside_one_to_another_prompt(make, is_paired):
  record = plain if is_paired else single
  prepared, config = make(record, objective="kto")
  rows, batch = read_all(prepared, config)
  held = prepared.valid["valid"].num_documents
  wanted = {f"{single(i)['completion']}|": single(i) for i in range(40)}
  if is_paired:
    wanted = {
      plain(i)[side] + "|": plain(i) | {"label": side == "chosen"}
      for i in range(40)
      for side in ("chosen", "rejected")
    }
  assert rows.num_rows == len(wanted) - held
  seen, others = set(), set()
  for row in range(rows.num_rows):
    (own, counted), (other, strange) = sides(batch, row)
    one = wanted[counted]
    assert own == one["prompt"] + counted and other == one["prompt"] + strange
    assert wanted[strange]["prompt"] != one["prompt"]
    assert tuple(batch["labels"][row]) == (1 if one["label"] else -1, 0)
    seen.add(counted)
    others.add(strange)
  # Each answer stands once with its own prompt, and once with another.
  assert seen == others and len(seen) == rows.num_rows


def test_single_answers_are_for_kto_alone(make):
  prepared, config = make(single)
  with pytest.raises(InputError, match="single answers with a label, and no"):
    read_all(prepared, config)


@pytest.mark.parametrize("label", [False, True])
def test_labels_of_one_class_are_refused(make, label, tmp_path):
  word = str(label).lower()
  with pytest.raises(InputError, match=f"whose labels are all {word}; it must"):
    make(lambda i: single(i) | {"label": label}, objective="kto")
  assert not list((tmp_path / "prepared").glob("preference*"))


def test_text_is_verified_and_another_template_is_another_folder(
  make, tmp_path
):
  prepared, config = make(chat)
  verify_text(config.data, prepared)
  other = prepare_data(
    freeze(tmp_path, template="llama3:text").data, say=lambda line: None
  )
  assert prepared.folders != other.folders


def test_strings_need_no_mark_of_a_template(make):
  make(template="chatml")
  with pytest.raises(InputError, match=r"'<\|im_start\|>' is no token"):
    make(chat, template="chatml")


class Spaced(ByteTokenizer):
  """Puts a space before a text, and "oo" is one token."""

  def encode_batch(self, texts):
    ids = [
      f" {text}".replace("oo", chr(255)).encode("latin1") for text in texts
    ]
    return [np.frombuffer(each, np.uint8).astype(np.uint32) for each in ids]


@pytest.mark.parametrize(
  "prompt, answer, wanted",
  [
    ("2 =", " 4", " 2 =| 4"),
    ("Li", "ly", " Li|ly"),
    # Where a token spans the border, the answer's own.
    ("to", "o", " to| o"),
    ("to", "ol", " to| ol"),
  ],
)
def test_an_answer_goes_on_with_its_prompt_as_one_text(prompt, answer, wanted):
  turns = Message("user", prompt), Message("assistant", answer)
  encoder = preferences.PlainEncoder(Spaced())
  ((_, ids, mask),) = encoder.encode_batch([Chat("a", "a.jsonl", turns)])
  parts = [text_of(ids[mask == side]) for side in range(2)]
  assert "|".join(parts) == wanted + "|"  # and the separator


def test_strings_and_messages_do_not_mix(make, tmp_path):
  with pytest.raises(InputError, match="line 8 has messages, and .* strings"):
    make(lambda i: chat(i) if i == 7 else plain(i))
  assert not list((tmp_path / "prepared").glob("preference*"))


def test_texts_of_another_kind_are_refused(make, tmp_path):
  config = freeze(tmp_path, source="text:a.txt")
  with pytest.raises(InputError, match="needs preferences, and 'text:a.txt'"):
    objectives.check_sources(config.data)
