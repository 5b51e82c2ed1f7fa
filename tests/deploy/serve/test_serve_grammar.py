"""Texts that are JSON, and of a schema, whatever the model would write."""

import json

import openai
import pytest

pytest.importorskip("llguidance", reason="extra grammar is not installed")

SCHEMA = {
  "type": "object",
  "properties": {
    "kind": {"enum": ["cat", "dog"]},
    "ages": {
      "type": "array",
      "items": {"type": "integer", "minimum": 0, "maximum": 30},
      "minItems": 1,
      "maxItems": 3,
    },
    "name": {"type": "string", "pattern": "^[a-z]{2,5}$"},
  },
  "required": ["kind", "ages", "name"],
  "additionalProperties": False,
}

# A text of it would begin with {"a": and never go on.
DEAD_END = {
  "type": "object",
  "properties": {"a": {"$ref": "#/properties/a"}},
  "required": ["a"],
}


def form(schema) -> dict:
  return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_text_is_json_of_its_schema(client, temperature):
  done = client.chat.completions.create(
    model="tiny",
    messages=[{"role": "user", "content": "a pet"}],
    response_format=form(SCHEMA),
    temperature=temperature,
    max_tokens=120,
    n=4,
    seed=1,
  )
  for choice in done.choices:
    assert choice.finish_reason == "stop"
    found = json.loads(choice.message.content)
    assert set(found) == {"kind", "ages", "name"}
    assert found["kind"] in ("cat", "dog") and 1 <= len(found["ages"]) <= 3
    assert all(type(a) is int and 0 <= a <= 30 for a in found["ages"])
    assert found["name"].isalpha() and 2 <= len(found["name"]) <= 5
  texts = {choice.message.content for choice in done.choices}
  assert len(texts) == (1 if temperature == 0 else 4)


def test_other_texts_are_left_as_they_are(client):
  ask = lambda: (
    client.completions.create(
      model="tiny", prompt="abc", max_tokens=30, temperature=0
    )
    .choices[0]
    .text
  )
  before = ask()
  done = client.completions.create(
    model="tiny",
    prompt="abc",
    max_tokens=30,
    extra_body={"response_format": {"type": "json_object"}},
  )
  assert done.choices[0].text.startswith("{") and ask() == before


@pytest.mark.parametrize(
  "wrong,said",
  [
    ({"type": "xml"}, 'the type "xml"; it must be text'),
    ({"type": "json_schema"}, "has no schema"),
    ({"type": "json_schema", "json_schema": {"schema": 5}}, "has no schema"),
    (form({"type": "nonsense"}), "Invalid type: nonsense"),
    (form({"$ref": "#/definitions/x"}), "cannot be followed"),
    (form({"enum": ["a" * 70_000]}), "more than"),
    (form({"type": "string", "pattern": "("}), "unclosed group"),
    (form({"anyOf": [{"$ref": "#"}]}), "as it asks for itself alone"),
    (form(DEAD_END), r'no text that begins with "{\"a\":" is of it'),
  ],
)
def test_a_schema_that_cannot_be_followed_is_refused(client, wrong, said):
  with pytest.raises(openai.APIStatusError) as refused:
    client.completions.create(
      model="tiny", prompt="a", extra_body={"response_format": wrong}
    )
  assert refused.value.status_code in (400, 413)
  if refused.value.status_code == 400:
    assert said in refused.value.body["message"]
    assert refused.value.param == "response_format"
