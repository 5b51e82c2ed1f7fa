"""preference: prompts with two answers; what is none is named."""

import json

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources.chat import Message
from gpt_jax.data.sources.preference import read_record

PLAIN = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
USER = {"role": "user", "content": "Hi"}
ANSWERS = {
  side: [{"role": "assistant", "content": side}]
  for side in ("chosen", "rejected")
}
SINGLE = {"prompt": "2 + 2 =", "completion": " 4", "label": True}
READ = (
  (Message("user", "Hi"),),
  tuple((Message("assistant", side),) for side in ANSWERS),
)


def write(tmp_path, *records):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in records))
  return path


def read(record):
  return read_record(record, "a.jsonl:1", "a.jsonl, line 1")


def test_strings_are_a_prompt_and_two_answers(tmp_path):
  path = write(tmp_path, PLAIN)
  (one,) = sources.open_source(f"preference:{path}").examples()
  assert one.prompt == (Message("user", "2 + 2 ="),) and one.is_plain
  assert [answer[0].content for answer in one.answers] == [" 4", " 5"]
  assert (one.name, one.where) == ("a.jsonl:1", f"{path}, line 1")
  documents = sources.open_source(f"preference:{path}").documents()
  found = [("".join(d.pieces), d.is_target) for d in documents]
  # A vocabulary is learned from answers too.
  assert found == [("2 + 2 =", False), (" 4", True), (" 5", True)]


@pytest.mark.parametrize(
  "record",
  [
    {"prompt": [USER], **ANSWERS},
    {"prompt": "Hi", **ANSWERS},
    {side: [USER, *answer] for side, answer in ANSWERS.items()},
    {"prompt": "Hi"} | {s: [USER, *answer] for s, answer in ANSWERS.items()},
  ],
  ids=["explicit", "string", "implicit", "both"],
)
def test_layouts_of_messages_say_the_same(record):
  one = read(record)
  assert (one.prompt, one.answers, one.is_plain) == (*READ, False)


def test_a_prompt_ends_where_the_answers_part_or_the_user_has_spoken():
  first = {"role": "assistant", "content": "Yes?"}
  turns = [USER, first, USER | {"content": "Go"}]
  one = read({side: turns + answer for side, answer in ANSWERS.items()})
  assert [m.content for m in one.prompt] == ["Hi", "Yes?", "Go"]
  assert one.answers == READ[1]
  # The first answers are equal, so they are part of both sides.
  longer = {s: [USER, first, USER, *answer] for s, answer in ANSWERS.items()}
  longer["rejected"][2] = USER | {"content": "Stop"}
  one = read(longer)
  assert [m.content for m in one.prompt] == ["Hi"]
  assert [len(answer) for answer in one.answers] == [3, 3]


SAID = [
  (7, "line 1 is a JSON int; it must be an object"),
  ({"prompt": "a", "chosen": "b"}, "has a chosen answer only, with"),
  (
    {"prompt": "a", "chosen": "b", "rejectd": "c"},
    "'rejectd' (is 'rejectd' meant to be 'rejected'?); it must have",
  ),
  ({"prompt": "a", "rejected": "b"}, "has a rejected answer only"),
  ({"text": "a"}, "has neither answer, with the fields 'text'"),
  ({}, "with the fields none"),
  ({k: v for k, v in PLAIN.items() if k != "prompt"}, "no field 'prompt'"),
  (PLAIN | {"prompt": ""}, "has an empty prompt"),
  (PLAIN | {"rejected": ""}, "has an empty rejected"),
  (PLAIN | {"rejected": " 4"}, "chosen answer that is equal to the rejected"),
  (PLAIN | {"rejected": ANSWERS["rejected"]}, "the chosen answer is a str;"),
  (PLAIN | {"rejected": 5}, "the chosen answer is a str; where one is"),
  (ANSWERS, "has no prompt, and no two answers that begin with the same"),
  ({"prompt": "a", "completion": "b"}, "line 1 has no label; it must have a"),
  ({"prompt": "a", "label": True}, "line 1 has no completion; it must have"),
  (SINGLE | {"label": "yes"}, "has the label 'yes'; it must be true or false"),
  (SINGLE | {"label": 1}, "has the label 1; it must be true or false"),
  (SINGLE | {"prompt": ""}, "has an empty prompt"),
  (SINGLE | {"completion": ANSWERS["chosen"], "prompt": 3}, "has no prompt"),
  (ANSWERS | {"chosen": [USER], "prompt": [USER]}, "do not end with a turn of"),
  (ANSWERS | {"chosen": [], "prompt": [USER]}, "list of turns with role"),
  (
    {"prompt": [USER, *ANSWERS["chosen"]], **ANSWERS},
    "turn 3 is of the assistant; it must be of the user",
  ),
  (
    {"prompt": [USER, *ANSWERS["chosen"]]}
    | {s: [USER, *answer] for s, answer in ANSWERS.items()},
    "has a prompt that ends with a turn of the assistant",
  ),
]


@pytest.mark.parametrize("record, said", SAID)
def test_what_is_no_preference_is_one_sentence(record, said):
  with pytest.raises(InputError) as refused:
    read(record)
  assert said in str(refused.value) and "\n" not in str(refused.value)


def test_single_answers_have_a_label():
  one = read(SINGLE)
  assert one.label is True and one.is_plain
  assert one.answers == ((Message("assistant", " 4"),),)
  for prompt in ([USER], "Hi"):
    own = {"prompt": prompt, "completion": ANSWERS["chosen"], "label": False}
    one = read(own)
    assert (one.prompt, one.answers) == (READ[0], READ[1][:1])
    assert one.label is False


def test_pairs_and_single_answers_do_not_mix(tmp_path):
  path = write(tmp_path, PLAIN, SINGLE)
  with pytest.raises(InputError, match="line 2 has a single answer, and .* tw"):
    list(sources.open_source(f"preference:{path}").examples())


def test_a_source_of_preferences_names_no_fields_and_no_columns(tmp_path):
  path = write(tmp_path, PLAIN)
  for spec, said in (
    (f"preference:{path}#a#b", "names 'a#b' after its path"),
    (f"preference:{tmp_path / 'b.tsv'}", "has columns, and preference: reads"),
    (
      f"preference:{tmp_path / 'c.txt'}",
      "not known to hold what preference: reads",
    ),
  ):
    for name in ("b.tsv", "c.txt"):
      (tmp_path / name).write_text("a\tb\n")
    with pytest.raises(InputError, match=said):
      sources.open_source(spec)
