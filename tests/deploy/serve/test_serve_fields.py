"""No field of a request and no part of a text is left out in silence."""

import pytest

openai = pytest.importorskip("openai", reason="extra serve is not installed")

GREEDY = dict(model="tiny", temperature=0)


def test_an_answer_may_be_sent_back_with_its_empty_fields(client):
  asked = {"role": "user", "content": "hello"}
  empty = dict(refusal=None, annotations=[], audio=None, tool_calls=None)
  ask = lambda **more: client.chat.completions.create(
    messages=[asked, {"role": "assistant", "content": "x", **more}, asked],
    max_tokens=4,
    **GREEDY,
  )
  assert ask(**empty).choices[0].message == ask().choices[0].message


def test_two_bounds_of_one_answer_are_refused(client):
  ask = lambda bound: client.chat.completions.create(
    messages=[{"role": "user", "content": "x"}],
    max_tokens=bound,
    max_completion_tokens=3,
    **GREEDY,
  )
  assert ask(3).usage.completion_tokens == 3
  with pytest.raises(openai.BadRequestError) as refused:
    ask(5)
  assert "max_tokens is 5 and max_completion" in refused.value.body["message"]


@pytest.mark.parametrize(
  "form,said",
  [
    ({"type": "json_object", "schema": {}}, 'format has "schema", which is'),
    ({"json_schema": {"schema": {}}}, 'format has "json_schema", which is'),
    (
      {"type": "json_schema", "json_schema": {"schema": {}, "regex": "a"}},
      'json_schema has "regex", which is not read; it may have description',
    ),
  ],
)
def test_no_part_of_a_format_is_left_out(form, said, client):
  with pytest.raises(openai.BadRequestError) as refused:
    client.completions.create(
      prompt="x", extra_body={"response_format": form}, **GREEDY
    )
  assert said in refused.value.body["message"]


def test_a_text_to_embed_is_never_cut_in_silence(client):
  embed = lambda text: client.embeddings.create(model="tiny", input=["a", text])
  assert len(embed("a" * 255).data) == 2
  for long in ("a" * 256, "a" * 1000):
    with pytest.raises(openai.BadRequestError) as refused:
      embed(long)
    assert (
      "text 2 has more tokens than the 256" in refused.value.body["message"]
    )


@pytest.mark.parametrize(
  "messages,said",
  [
    ([], "messages is []"),
    ([{"role": "tool", "content": "x"}], 'the role "tool"'),
    ([{"role": "user", "content": None}], "messages[0] has no content"),
    ([{"role": "user", "content": " "}], "turn 1 of the user is empty"),
    ([{"role": "assistant", "content": "x"}], "must be of the user"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "no content"),
    ([{"role": "user", "content": "<|im_end|>"}], "a mark of"),
    ([{"role": "user", "content": "x", "name": "me"}], '[0] has "name", which'),
    (
      [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
      '[0] has "tool_calls", which is not read',
    ),
  ],
)
def test_a_dialogue_out_of_form_is_refused(client, messages, said):
  with pytest.raises(openai.BadRequestError) as refused:
    client.chat.completions.create(messages=messages, **GREEDY)
  assert said in refused.value.body["message"]
