"""The last answers of held-out dialogues, written and compared."""

import json

import orders
import pytest

from gpt_jax.config import Template
from gpt_jax.data import chats
from gpt_jax.data.prepare import prepare_text
from gpt_jax.data.tokenizers.plain import ByteTokenizer

FLAGS = (
  "--config.data.objective=chat",
  "--config.data.template=chatml:text",
  "--config.data.split=document",
  "--config.data.packing=documents",
  "--config.data.valid_frac=0.0",
  "--config.data.seq_len=72",
  "--config.model.max_len=72",
  "--config.train.num_steps=150",
  "--config.checkpoint.every_steps=150",
)


def write(path, answers):
  lines = [
    {
      "messages": [
        {"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": answer},
      ]
    }
    for i, answer in enumerate(answers)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


@pytest.mark.wide
def test_answers_are_written_and_compared(tmp_path, small_flags, call_verb):
  own = write(tmp_path / "a.jsonl", ["ab"] * 4)
  run = f"--workdir={tmp_path / 'run'}"
  flags = [*small_flags(tmp_path), f"--config.data.source=chat:{own}", *FLAGS]
  done = call_verb("train", *flags, run)
  assert done.returncode == 0, done.stderr

  def evaluate(path, *words):
    done = call_verb("evaluate", run, f"--data={path}", "--json", *words)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr

  found = evaluate(own, "--generate=9")
  assert (found["exact_match"], found["num_chats"]) == (1.0, 4)
  other = write(tmp_path / "b.jsonl", ["ab", "abc", "ab", "b"])
  assert evaluate(other, "--generate=9")["exact_match"] == 0.5
  assert evaluate(other, "--generate=1")["num_chats"] == 1
  assert "answers chats, greedily" in evaluate(
    other, "--generate=1", "--beams=2"
  )
  plain = tmp_path / "c.txt"
  plain.write_text("text")
  assert "holds no chats" in evaluate(f"text:{plain}")


def test_the_last_turn_is_cut_where_the_answer_begins(tmp_path):
  turns = [
    ("user", "a"),
    ("assistant", "b"),
    ("user", "c"),
    ("assistant", "de"),
  ]
  record = {"messages": [{"role": r, "content": c} for r, c in turns]}
  (tmp_path / "a.jsonl").write_text(json.dumps(record))
  tokenizer = ByteTokenizer()
  tokens = prepare_text(
    str(tmp_path / "a.jsonl"),
    tokenizer,
    str(tmp_path / "prepared"),
    say=lambda line: None,
    template=Template("chatml:text"),
  )
  rows = chats.ChatRows(tokens, chats.Layout(200, False), None)
  before, answer = map(tokenizer.decode, rows.last_turn(0))
  assert before.endswith("c<|im_end|>\n<|im_start|>assistant\n")
  assert answer == "de<|im_end|>" and "b<|im_end|>" in before


def test_the_recipes_dialogues_are_apart_and_follow_their_rule(tmp_path):
  orders.write(str(tmp_path / "orders"))
  read = lambda name: (tmp_path / "orders" / name).read_text().splitlines()
  train, valid = read("train.jsonl"), read("valid.jsonl")
  assert (len(set(train)), len(set(valid))) == (200, 100)
  assert not set(train) & set(valid)
  for line in train + valid:
    *_, asked, answer = json.loads(line)["messages"]
    count, thing = (
      answer["content"].removeprefix("order: ").split(", ")[-1].split()
    )
    word = orders.NUMBERS[int(count) - 1]
    assert f"{word} {thing}" in asked["content"]
