"""generate answers chats: prompts and dialogues in a chat template."""

import json

import pytest

from gpt_jax.inference import generation, texts

ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TURNS = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Yes?"},
  {"role": "user", "content": "Go"},
]


@pytest.fixture
def answer(call_verb, trained, monkeypatch):
  """Calls generate, of which the answers are made up; returns what it saw."""

  def call(*words):
    asked = []

    def write(model, params, tokenizer, prompts, *rest, show=None, **kwargs):
      asked.extend(tokenizer.decode(tokenizer.encode(p)) for p in prompts)
      if show is not None:
        show("Sure.")
      return ["Sure."] * len(prompts)

    monkeypatch.setattr(texts, "generate_text", write)
    # The run reads 32 tokens.
    monkeypatch.setattr(generation, "check_prompts", lambda ids, model: None)
    result = call_verb("generate", f"--workdir={trained}", *words)
    return result, asked

  return call


def write(folder, *dialogues):
  path = folder / "asked.jsonl"
  lines = [json.dumps({"messages": one}) + "\n" for one in dialogues]
  path.write_text("".join(lines))
  return f"--messages={path}"


def test_a_prompt_is_a_users_turn_and_the_answer_alone_is_shown(answer):
  chat = "--template=chatml:text"
  result, asked = answer(chat, "--prompt=Hi")
  assert (result.stdout, asked) == ("Sure.\n", [ASKED.format("Hi")])
  result, asked = answer(chat, "--prompt=Hi", "--prompt=Go")
  assert result.stdout == "--- 'Hi'\nSure.\n--- 'Go'\nSure.\n"
  assert asked == [ASKED.format("Hi"), ASKED.format("Go")]
  # The control: without a template a prompt is continued.
  result, asked = answer("--prompt=Hi")
  assert (result.stdout, asked) == ("HiSure.\n", ["Hi"])


def test_dialogues_are_answered_after_their_last_turn(answer, tmp_path):
  flag = write(tmp_path, TURNS, TURNS[1:2])
  result, asked = answer("--template=chatml:text", flag)
  assert result.stdout == "--- 'Go'\nSure.\n--- 'Hi'\nSure.\n"
  assert asked == [
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    + ASKED.format("Hi")
    + "Yes?<|im_end|>\n"
    + ASKED.format("Go"),
    ASKED.format("Hi"),
  ]


@pytest.mark.parametrize(
  ("words", "wanted"),
  [
    (["--template=chatlm"], "--template is 'chatlm'; did you mean 'chatml'"),
    (["--template=gemma"], "whose mark '<bos>' is no token of bytes"),
    (["--template=chatml:text", "--suffix=x"], "does nothing with --suffix"),
    ([], "was not tuned on chats; name the chat template"),
    (["--template=chatml:text", "--prompt=x"], "are both given"),
    (["--template=chatml:text"], "line 1 ends with a turn of the assistant"),
  ],
)
def test_what_cannot_be_answered_is_one_sentence(
  answer, tmp_path, words, wanted
):
  flag = write(tmp_path, TURNS[:3]) if "--suffix=x" not in words else "--seed=1"
  result, asked = answer(*words, flag)
  assert (result.returncode, result.stdout, asked) == (2, "", [])
  assert wanted in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.wide
def test_files_without_a_dialogue_are_refused(answer, tmp_path):
  chat = "--template=chatml:text"
  for text, wanted in (
    ("", "holds no chat"),
    (json.dumps(TURNS), "line 1 is no chat, with the fields 'role', 'content'"),
    ('{"messages": [{"role": "tool", "content": "x"}]}', "the role 'tool'"),
  ):
    (tmp_path / "a.jsonl").write_text(text)
    result, _ = answer(chat, f"--messages={tmp_path / 'a.jsonl'}")
    assert result.returncode == 2 and wanted in result.stderr
  result, _ = answer(chat, f"--messages={tmp_path / 'b.jsonl'}")
  assert result.returncode == 2 and "b.jsonl" in result.stderr
