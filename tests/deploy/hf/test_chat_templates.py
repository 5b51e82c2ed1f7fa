"""Chat templates of exported runs: what a dialogue becomes is the same."""

import json
import pathlib
import runpy

import pytest
from forms import draw_model

from gpt_jax.config import Template
from gpt_jax.data import templates, tokenizers
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers import chat_template
from gpt_jax.deploy.hf import chat_templates, exporting

pytest.importorskip("jinja2")
DATA = pathlib.Path(__file__).parents[2] / "data"
make_chats = runpy.run_path(str(DATA / "make_chats.py"))
GOLDEN = json.loads((DATA / "chats.json").read_text())
OWN = Template("tokenizer")


def open_words(folder, name: str, text: str | None = None):
  make_chats["write_tokenizer"](folder, name, text)
  return tokenizers.build_tokenizer(f"hf:{folder}")


def encode(encoder, messages):
  chat = Chat("a", "a.jsonl, line 1", tuple(messages))
  ((_, ids, mask),) = encoder.encode_batch([chat])
  return ids.tolist(), mask.tolist()


@pytest.mark.parametrize("name", templates.FORMS)
def test_a_template_of_ours_is_written_as_transformers_would_read_it(
  name, tmp_path
):
  words = open_words(
    tmp_path, name, chat_templates.write(templates.FORMS[name])
  )
  theirs = templates.build_encoder(OWN, words)
  ours = templates.ChatEncoder(Template(name), words)
  for contents, wanted in zip(make_chats["CHATS"], GOLDEN[name], strict=True):
    messages = [Message(**m) for m in make_chats["messages"](contents)]
    ids, mask = encode(theirs, messages)
    assert ids == wanted["ids"]
    assert (ids, mask) == encode(ours, messages)
    prompt = theirs.prompt(messages[:-1], "here").tolist()
    assert prompt == wanted["prompt"]
    messages = [Message("system", " Be {{ brief }}. "), *messages]
    assert encode(theirs, messages) == encode(ours, messages)
  assert (theirs.end, theirs.end_id) == (ours.end, ours.end_id)


def write_out(words, template, folder) -> dict[str, dict]:
  """Writes the JSON files of an export, and returns their contents."""
  model, _ = draw_model(
    0, vocab_size=words.vocab_size, norm="rmsnorm", position="rope"
  )
  library = exporting.describe_tokenizer(words)
  texts = exporting._describe("llama", model, words, library, template)
  folder.mkdir()
  for name, content in texts.items():
    (folder / name).write_text(json.dumps(content))
  return texts


@pytest.mark.parametrize("template", [None, OWN])
@pytest.mark.parametrize("name", ["zephyr", "marked", "llama3"])
def test_a_tokenizers_own_template_goes_in_and_out(name, template, tmp_path):
  words = open_words(tmp_path, name).with_start()
  (tmp_path / "run.json").write_text(words.to_json())
  stored = tokenizers.load(tmp_path / "run.json")
  texts = write_out(stored, template, tmp_path / "out")
  again = chat_template.find(str(tmp_path / "out"))
  assert again.text == make_chats["TEMPLATES"][name]
  names = words.chat_template.names
  assert names.items() <= again.names.items() and names["eos_token"] == "<eos>"
  end = texts["generation_config.json"]["eos_token_id"]
  eos = words.id_of("<eos>")
  if template is None or name == "marked":
    assert end == eos
  else:
    mark = {"zephyr": "<|end|>", "llama3": "<|eot_id|>"}[name]
    assert end == [words.id_of(mark), eos]


def test_the_template_of_the_tuning_goes_before_the_tokenizers_own(tmp_path):
  words = open_words(tmp_path, "zephyr")
  texts = write_out(words, Template("chatml"), tmp_path / "out")
  text = texts["tokenizer_config.json"]["chat_template"]
  assert text == chat_templates.write(templates.FORMS["chatml"])
  end = texts["generation_config.json"]["eos_token_id"]
  assert end == [words.id_of("<|im_end|>"), words.id_of("<eos>")]
  plain = tokenizers.build_tokenizer("bytes")
  texts = write_out(plain, None, tmp_path / "plain")
  assert "chat_template" not in texts["tokenizer_config.json"]
