"""The chat template of a run, as Jinja, for tokenizer_config.json."""

import json
from typing import Any

from gpt_jax.config import Template
from gpt_jax.data import templates
from gpt_jax.data.tokenizers import Tokenizer


def describe(template: Template | None, tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns keys of tokenizer_config.json: chat_template and what it refers to.

  Args:
    template: the template of the run's training; None is the tokenizer's own,
      if it has one.
  """
  if template is not None and template.name != "tokenizer":
    return {"chat_template": write(templates.FORMS[template.name])}
  own = getattr(tokenizer, "chat_template", None)
  if own is None:
    return {}
  return {**own.names, "chat_template": own.text}


def end_id(template: Template | None, tokenizer: Tokenizer) -> int | None:
  """Returns the id that ends a turn; None where no token does."""
  if template is None:
    return None
  return templates.build_encoder(template, tokenizer).end_id


def write(form: templates.Form) -> str:
  """Returns a Jinja template that writes what form.render does."""
  quote = lambda text: json.dumps(text, ensure_ascii=False)
  trim = " | trim" if form.is_trimmed else ""
  role = "message['role']"
  for name, own in form.roles.items():
    role = f"({quote(own)} if message['role'] == {quote(name)} else {role})"
  header = lambda role: (
    f"{quote(form.start)} + {role} + {quote(form.after_role + form.gap)}"
  )
  content = f"(message['content']{trim})"
  before = ""
  if not form.has_system:
    before = (
      "{%- if messages[0]['role'] == 'system' -%}"
      f"{{%- set system = (messages[0]['content']{trim}) + '\\n\\n' -%}}"
      "{%- set messages = messages[1:] -%}"
      "{%- else -%}{%- set system = '' -%}{%- endif -%}"
    )
    content = f"(system if loop.first else '') + {content}"
  end = quote(form.end + form.between)
  prompt = header(quote(form.roles.get("assistant", "assistant")))
  return (
    f"{before}{{{{- {quote(form.begin)} -}}}}"
    "{%- for message in messages -%}"
    f"{{{{- {header(role)} + {content} + {end} -}}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- {prompt} -}}}}{{%- endif -%}}"
  )
