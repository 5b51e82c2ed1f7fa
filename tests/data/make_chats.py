"""Writes chats.json: ids and masks of chat templates, by transformers.

python tests/data/make_chats.py   (needs transformers and jinja2)
"""

import json
import pathlib
import tempfile

FOLDER = pathlib.Path(__file__).parent
SPECIAL = ("<bos>", "<eos>", "<|begin_of_text|>", "<|im_start|>")
SPECIAL += ("<|im_end|>", "<|start_header_id|>", "<|end_header_id|>")
SPECIAL += ("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>")
# As published with Qwen, Llama 3 and Gemma 2; one of Zephyr's form, of which
# the end of a turn swallows the newline after it; and one that says itself what
# the assistant has written.
TEMPLATES = {
  "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role']"
  " + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
  "llama3": "{% set loop_messages = messages %}{% for message in loop_messages"
  " %}{% set content = '<|start_header_id|>' + message['role'] + "
  "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
  "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
  "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
  "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
  "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  "{% for message in messages %}{% if (message['role'] == 'user') != "
  "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
  "alternate user/assistant/user/assistant/...') }}{% endif %}"
  "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
  "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + "
  "'\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
  "zephyr": "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n"
  "{{ '<|user|>\n' + m.content + '<|end|>\n' }}\n    {%- else %}\n"
  "{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}\n    {%- endif %}\n"
  "{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
  "{% endif %}",
  "marked": "{% for m in messages %}{% if m.role == 'assistant' %}A: "
  "{% generation %}{{ m.content | tojson }}{{ eos_token }}{% endgeneration %}"
  "{% else %}Q: {{ m.content }} {% endif %}{% endfor %}"
  "{% if add_generation_prompt %}A: {% endif %}",
}
BOS = {"llama3": "<|begin_of_text|>"}
CHATS = [
  ["Hi\n", " Yes \u00e9. ", 'And "this"?', "No\n\nno"],
  ["\u4f60\u597d <b>", "\U0001f642"],
]


def library() -> dict:
  """Returns a tokenizer.json of bytes and special tokens."""
  from tokenizers import pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  split = {"type": "ByteLevel", "add_prefix_space": False}
  split |= {"trim_offsets": True, "use_regex": True}
  vocab = {letter: i for i, letter in enumerate(letters)}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      flags
      | {"id": 256 + i, "content": mark, "special": True}
      | {"rstrip": mark == "<|end|>"}
      for i, mark in enumerate(SPECIAL)
    ],
    "normalizer": None,
    "pre_tokenizer": split,
    "post_processor": None,
    "decoder": split,
    "model": {"type": "BPE", "vocab": vocab, "merges": []},
  }


def write_tokenizer(folder: pathlib.Path, name: str, template=None) -> None:
  """Writes the files of a tokenizer whose chat template has this name."""
  (folder / "tokenizer.json").write_text(json.dumps(library()))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS.get(name, "<bos>"),
    "eos_token": "<eos>",
    "chat_template": template or TEMPLATES[name],
  }
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps(config, ensure_ascii=False))


def messages(chat: list[str]) -> list[dict]:
  roles = ("user", "assistant") * len(chat)
  return [{"role": r, "content": c} for r, c in zip(roles, chat, strict=False)]


def main() -> None:
  from transformers import AutoTokenizer

  found = {}
  for name in TEMPLATES:
    with tempfile.TemporaryDirectory() as folder:
      write_tokenizer(pathlib.Path(folder), name)
      words = AutoTokenizer.from_pretrained(folder)
    rows = []
    for chat in CHATS:
      made = words.apply_chat_template(
        messages(chat),
        return_dict=True,
        return_assistant_tokens_mask=name == "marked",
      )
      prompt = words.apply_chat_template(
        messages(chat[:-1]), add_generation_prompt=True, return_dict=True
      )
      row = {"ids": made["input_ids"], "prompt": prompt["input_ids"]}
      if name == "marked":
        row["mask"] = made["assistant_masks"]
      rows.append(row)
    found[name] = rows
  text = json.dumps(found, indent=None, separators=(",", ":"))
  (FOLDER / "chats.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
