"""chat: dialogues of three layouts are read alike, and faults are named."""

import json

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources

TURNS = [("user", "Hi\nyou"), ("assistant", "Yes."), ("user", "And?")]
TURNS += [("assistant", "No.")]
AS_MESSAGES = {"messages": [{"role": r, "content": c} for r, c in TURNS]}
AS_SHAREGPT = {
  "conversations": [
    {"from": {"user": "human", "assistant": "gpt"}[r], "value": c}
    for r, c in TURNS
  ]
}


def read(folder, *records):
  path = folder / "a.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return list(sources.open_source(f"chat:{path}").examples())


@pytest.mark.parametrize("record", [AS_MESSAGES, AS_SHAREGPT])
def test_layouts_of_turns_give_the_same_messages(tmp_path, record):
  (chat,) = read(tmp_path, record)
  assert list(chat.messages) == TURNS
  assert chat.where == f"{tmp_path / 'a.jsonl'}, line 1"


def test_alpaca_joins_instruction_and_input(tmp_path):
  one = {"instruction": "Add.", "input": "1 2", "output": "3"}
  first, second = read(tmp_path, one, one | {"input": ""})
  assert first.messages == (("user", "Add.\n\n1 2"), ("assistant", "3"))
  assert second.messages == (("user", "Add."), ("assistant", "3"))


def test_what_stands_beside_the_turns_is_part_of_the_dialogue(tmp_path):
  alpaca = {"instruction": "Add.", "input": "", "output": "3"}
  earlier = {"history": [["Hi", "Yes."], ["1", "2"]], "system": "Be brief."}
  (chat,) = read(tmp_path, alpaca | earlier)
  assert [content for _, content in chat.messages] == [
    *("Be brief.", "Hi", "Yes.", "1", "2", "Add.", "3")
  ]
  assert [role for role, _ in chat.messages] == [
    "system",
    *["user", "assistant"] * 3,
  ]
  (chat,) = read(tmp_path, AS_SHAREGPT | {"system": "Be brief.", "tools": []})
  assert list(chat.messages) == [("system", "Be brief."), *TURNS]
  (chat,) = read(tmp_path, AS_MESSAGES | {"system": ""})
  assert list(chat.messages) == TURNS


def test_a_content_may_be_a_list_of_texts(tmp_path):
  parts = lambda *texts: [{"type": "text", "text": text} for text in texts]
  (chat,) = read(
    tmp_path, turns(("user", parts("Hi", "you")), ("assistant", parts("Yes.")))
  )
  assert list(chat.messages) == TURNS[:2]


def turns(*pairs):
  return {"messages": [{"role": r, "content": c} for r, c in pairs]}


@pytest.mark.parametrize(
  ("records", "words"),
  [
    ([turns(("user", "a"))], "line 1 has no turn of the assistant"),
    ([turns(("user", "a"), ("tool", "b"))], "turn 2 has the role 'tool'"),
    ([turns(("assistant", "b"))], "turn 1 is of the assistant; it must be"),
    (
      [turns(("user", "a"), ("assistant", "b"), ("assistant", "c"))],
      "turn 3 is of the assistant; it must be of the user",
    ),
    (
      [turns(("user", "a"), ("system", "b"), ("assistant", "c"))],
      "turn 2 is of the system; it must be of the assistant",
    ),
    ([turns(("user", "a"), ("assistant", " "))], "turn 2 of the assistant is"),
    ([AS_MESSAGES, AS_SHAREGPT], "line 2 has the layout ShareGPT"),
    ([{"text": "a"}], "is no chat, with the fields 'text'"),
    ([{"mesages": []}], "is 'mesages' meant to be 'messages'"),
    ([["a"]], "line 1 is not JSON|is a JSON list|is a JSON str"),
    ([{"messages": []}], "and is empty"),
    ([{"messages": [{"role": "user"}]}], "turn 1 has no field 'content'"),
    ([{"instruction": "a", "output": 3}], "'output' is an int"),
    (
      [{"instruction": "a", "output": "b", "history": ["c"]}],
      "'history' must be a list of",
    ),
    ([AS_MESSAGES | {"tools": [{"name": "f"}]}], "line 1 has tools, and"),
    (
      [{"messages": [{"role": "user", "content": "", "tool_calls": [1]}]}],
      "turn 1 has tool_calls, and dialogues",
    ),
    (
      [{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}],
      "turn 1 has the weight 0; every turn",
    ),
    ([turns(("user", [{"type": "image"}]))], "'content' is a list"),
    (
      [turns(("user", [{"type": "text", "text": "a", "cite": 1}]))],
      "'content' is a list",
    ),
    (
      [turns(("system", "a"), ("user", "b")) | {"system": "c"}],
      "turn 2 is of the system; it must be of the user",
    ),
  ],
)
def test_a_fault_is_one_sentence_with_its_line(tmp_path, records, words):
  with pytest.raises(InputError, match=words) as error:
    read(tmp_path, *records)
  assert str(error.value).startswith(str(tmp_path / "a.jsonl"))
  assert "\n" not in str(error.value)


def test_columns_and_names_of_fields_are_refused(tmp_path):
  (tmp_path / "a.tsv").write_text("a\tb\n")
  with pytest.raises(InputError, match="has columns, and chat: reads fields"):
    sources.open_source(f"chat:{tmp_path / 'a.tsv'}")
  (tmp_path / "a.jsonl").write_text("{}\n")
  with pytest.raises(InputError, match="leave it out"):
    sources.open_source(f"chat:{tmp_path / 'a.jsonl'}#x")
