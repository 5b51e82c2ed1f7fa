"""The tokenizer's own chat template: as transformers has it, and sandboxed."""

import json
import pathlib
import signal

import make_chats
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError, Template
from gpt_jax.data import jinja, templates, tokenizers
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers import chat_template

pytest.importorskip("jinja2")
GOLDEN = json.loads((pathlib.Path(__file__).parent / "chats.json").read_text())
OWN = Template("tokenizer")


@pytest.fixture
def words(tmp_path):
  """Returns a function that writes a tokenizer with a template and opens it."""

  def build(name, text=None):
    make_chats.write_tokenizer(tmp_path, name, text)
    return tokenizers.build_tokenizer(f"hf:{tmp_path}")

  return build


def chat_of(contents) -> Chat:
  found = [Message(**m) for m in make_chats.messages(contents)]
  return Chat("a", "a.jsonl, line 1", tuple(found))


def encode(encoder, contents):
  ((_, ids, mask),) = encoder.encode_batch([chat_of(contents)])
  return ids.tolist(), mask.tolist()


@pytest.mark.parametrize("name", make_chats.TEMPLATES)
def test_ids_are_those_of_transformers(name, words):
  tokenizer = words(name)
  encoder = templates.build_encoder(OWN, tokenizer)
  for contents, wanted in zip(make_chats.CHATS, GOLDEN[name], strict=True):
    ids, mask = encode(encoder, contents)
    prompt = encoder.prompt(chat_of(contents[:-1]).messages, "here").tolist()
    assert (ids, prompt) == (wanted["ids"], wanted["prompt"])
    assert ids[: len(prompt)] == prompt and mask[len(prompt)] == 1
    if "mask" in wanted:
      assert mask == wanted["mask"]
    if name in templates.FORMS:
      # The published template and ours are one.
      ours = templates.ChatEncoder(Template(name), tokenizer)
      assert encode(ours, contents) == (ids, mask)
      assert (ours.end, ours.end_id) == (encoder.end, encoder.end_id)


def test_an_answer_counts_up_to_its_first_special_token(words):
  tokenizer = words("zephyr")
  encoder = jinja.JinjaEncoder(tokenizer)
  ids, mask = encode(encoder, ["a", "b c", "d", "e"])
  counted = [i for i, m in zip(ids, mask, strict=True) if m]
  assert tokenizer.decode(counted) == "b c<|end|>e<|end|>"
  own = templates.ChatTokenizer(tokenizer, OWN)
  assert own.separator_id == tokenizer.id_of("<|end|>") and own.stop == ()
  # Without special tokens all that follows the answer ends it.
  plain = words(
    "zephyr", make_chats.TEMPLATES["zephyr"].replace("<|end|>", "#")
  )
  ids, mask = encode(jinja.JinjaEncoder(plain), ["a", "b c"])
  assert plain.decode([i for i, m in zip(ids, mask, strict=True) if m]) == (
    "b c#\n"
  )
  assert templates.ChatTokenizer(plain, OWN).stop == ("#",)


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("{{ ''.__class__.__mro__ }}", "reaches for the attribute '__class__' of"),
    ("{{ ''.__class__ }}", "reaches for the attribute '__class__' of a str"),
    ("{{ cycler.__init__.__globals__ }}", "for the attribute '__init__'"),
    ("{{ '{0.__class__}'.format(1) }}", "for the attribute '__class__' of a"),
    ("{{ messages.append(1) }}", "for the attribute 'append' of a list"),
    ("{% include '/etc/passwd' %}", "no loader for this environment"),
    (
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
      "{% endfor %}",
      "took more than 0.3 s",
    ),
    ("{{ 'a' * 2000000 }}", "writes more than 65,5"),
    ("{{ 'a' * 10**11 }}", "needs too much memory"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too much memory"),
    ("{{ raise_exception('no\nsystem') }}", "used: no system"),
    ("{% for", "unexpected 'end of template'"),
    ("{{ x.y.z }}", "'x' is undefined"),
    (
      "{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}",
      "inside another one",
    ),
    ("{% generation %}{% endgeneration %}" * 2, "marks 2 answers, and there"),
    ("hello", "writes an answer otherwise"),
  ],
)
def test_a_hostile_template_is_one_sentence(words, monkeypatch, text, why):
  monkeypatch.setattr(jinja, "SECONDS", 0.3)
  with pytest.raises(InputError) as error:
    jinja.JinjaEncoder(words("chatml", text))
  assert why in str(error.value) and "\n" not in str(error.value)


def test_a_machine_that_counts_no_processor_time_ends_a_template(
  words, monkeypatch
):
  monkeypatch.setattr(jinja, "SECONDS", 0.1)
  loop = "{% for i in range(99999) %}"
  tokenizer = words("chatml", 2 * loop + 2 * "{% endfor %}")
  # The process inherits it, so its timer of processor time ends nothing.
  before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
  try:
    with pytest.raises(InputError, match=r"it took more than 0\.1 s"):
      jinja.JinjaEncoder(tokenizer)
  finally:
    signal.signal(signal.SIGPROF, before)


def test_a_template_that_rewrites_earlier_answers_is_refused(words):
  text = (
    "{% for m in messages %}{{ m.role }}: {{ 'x' if m.role == 'assistant' and "
    "not loop.last else m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )
  encoder = jinja.JinjaEncoder(words("chatml", text))
  with pytest.raises(InputError, match="line 1: .* writes an answer otherwise"):
    encode(encoder, ["a", "b", "c", "d"])


def test_a_dialogue_that_spells_a_special_token_is_refused(words):
  encoder = jinja.JinjaEncoder(words("chatml"))
  with pytest.raises(InputError, match="holds '<|im_end|>', a special token"):
    encode(encoder, ["a<|im_end|>", "b"])
  assert encode(encoder, ["a<|im_end|", "b"])


def test_a_template_is_stored_with_its_tokenizer(words, tmp_path):
  tokenizer = words("gemma")
  (tmp_path / "own.json").write_text(tokenizer.with_start().to_json())
  again = tokenizers.load(tmp_path / "own.json")
  assert again.chat_template == tokenizer.chat_template
  assert again.chat_template.names["bos_token"] == "<bos>"
  # A file apart goes before the one in tokenizer_config.json.
  (tmp_path / "chat_template.jinja").write_text("apart")
  assert chat_template.find(str(tmp_path)).text == "apart"
  (tmp_path / "chat_template.jinja").unlink()
  several = [{"name": "tool_use", "template": "t"}]
  for more, found in (
    ([], None),
    ([{"name": "default", "template": "d"}], "d"),
  ):
    config = {"chat_template": several + more}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    own = chat_template.find(str(tmp_path))
    assert (own and own.text) == found


@pytest.mark.parametrize(
  ("content", "why"),
  [
    ("[]", "is no JSON object"),
    ("{", "is not JSON"),
    ('{"chat_template": 3}', "no text of at most 262,144"),
    (json.dumps({"chat_template": "x" * (1 << 19)}), "no text of at most"),
  ],
)
def test_a_damaged_template_is_one_sentence(words, tmp_path, content, why):
  words("chatml")
  (tmp_path / "tokenizer_config.json").write_text(content)
  with pytest.raises(InputError, match=why):
    tokenizers.build_tokenizer(f"hf:{tmp_path}")


def test_a_run_reads_chats_by_the_template_of_its_tokenizer(words, tmp_path):
  words("chatml")
  lines = [{"messages": make_chats.messages(["q", f"a{i}"])} for i in range(9)]
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = base.get_config()
  config.data.update(source=f"chat:{path}", objective="chat")
  config.data.update(template="tokenizer", dir=str(tmp_path / "prepared"))

  def prepare(spec):
    config.data.tokenizer = spec
    return prepare_data(config_lib.freeze(config).data, say=lambda line: None)

  spec = f"hf:{tmp_path}"
  first = prepare(spec)
  assert prepare(spec).folders == first.folders
  words("chatml", make_chats.TEMPLATES["zephyr"])
  assert prepare(spec).folders != first.folders
  before = sorted((tmp_path / "prepared").iterdir())
  for other in ("bytes", "bpe:300"):
    with pytest.raises(InputError, match=f"{other} has no chat template"):
      prepare(other)
  assert sorted((tmp_path / "prepared").iterdir()) == before
