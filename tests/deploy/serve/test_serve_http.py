"""The API, as OpenAI's own client uses it."""

import concurrent.futures
import json
import random
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest

from gpt_jax.inference import rows, texts
from gpt_jax.inference.generation import Sampling

GREEDY = dict(model="tiny", temperature=0)


def written(running, prompt: str, num_tokens: int, **sampling):
  """Returns what generate writes in as many rows."""
  (text,) = texts.generate_text(
    running.model,
    running.params,
    running.tokenizer,
    [prompt],
    num_tokens,
    Sampling(**({"temperature": 0.0} | sampling)),
    num_rows=running.engine.num_rows,
  )
  return text


@pytest.mark.wide
def test_texts_of_random_arrivals_are_those_of_generate(running, client):
  rng = random.Random(0)
  prompts = [
    "".join(rng.choices("abcdefgh \n", k=rng.randint(1, 150)))
    for _ in range(64)
  ]
  lengths = [rng.randint(1, 40) for _ in prompts]

  def ask(i: int) -> str:
    time.sleep(rng.random() * 0.5)
    done = client.completions.create(
      prompt=prompts[i], max_tokens=lengths[i], **GREEDY
    )
    return done.choices[0].text

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    found = list(pool.map(ask, range(64)))
  # A row alone gives what it gives in any company (test_decoded_rows.py).
  ids = [running.tokenizer.encode(p) for p in prompts]
  loop = [
    rows.generate(
      running.model,
      running.params,
      ids[first : first + 8],
      max(lengths[first : first + 8]),
      Sampling(0.0),
      0,
      257,
      8,
    )
    for first in range(0, 64, 8)
  ]
  drawn = [row for group in loop for row in np.concatenate(list(group), axis=1)]
  wanted = [
    texts.cut_text(p, row[:n].tolist(), running.tokenizer)[0]
    for p, row, n in zip(ids, drawn, lengths, strict=True)
  ]
  assert found == wanted and len(set(found)) > 48


def test_a_completion_says_why_it_ended_and_what_it_took(running, client):
  done = client.completions.create(prompt="abc", max_tokens=7, **GREEDY)
  assert done.object == "text_completion" and done.model == "tiny"
  (choice,) = done.choices
  assert choice.text == written(running, "abc", 7)
  assert choice.finish_reason == "length" and choice.logprobs is None
  counts = done.usage
  assert counts.prompt_tokens == 3 and counts.completion_tokens == 7
  assert counts.total_tokens == 10
  done = client.completions.create(prompt="abc", **GREEDY)
  assert done.usage.completion_tokens == 16  # as OpenAI's


def test_several_prompts_and_choices_come_in_order(running, client):
  prompts = ["one", [116, 119, 111], "three"]
  with pytest.raises(openai.BadRequestError, match="of either"):
    client.completions.create(prompt=prompts, **GREEDY)
  prompts[1] = "two"
  done = client.completions.create(
    model="tiny", prompt=prompts, n=2, max_tokens=9, temperature=0.8, seed=4
  )
  assert [c.index for c in done.choices] == list(range(6))
  for i, prompt in enumerate(prompts):
    wanted = texts.generate_text(
      running.model,
      running.params,
      running.tokenizer,
      [prompt, prompt],
      9,
      Sampling(0.8),
      seed=4,
      num_rows=running.engine.num_rows,
    )
    assert [c.text for c in done.choices[2 * i : 2 * i + 2]] == wanted
    assert wanted[0] != wanted[1]
  ids = client.completions.create(prompt=[[116, 119, 111]], **GREEDY)
  text = client.completions.create(prompt="two", **GREEDY)
  assert ids.choices[0].text == text.choices[0].text


def test_a_seed_repeats_and_none_draws_anew(client):
  ask = lambda **more: (
    client.completions.create(
      model="tiny", prompt="abc", max_tokens=20, temperature=1, **more
    )
    .choices[0]
    .text
  )
  assert ask(seed=1) == ask(seed=1) != ask(seed=2)
  assert ask() != ask()


def test_a_stream_is_the_whole_text_in_pieces(running, client):
  whole = client.completions.create(prompt="stream", max_tokens=30, **GREEDY)
  parts = list(
    client.completions.create(
      prompt="stream",
      max_tokens=30,
      stream=True,
      stream_options={"include_usage": True},
      **GREEDY,
    )
  )
  pieces = [p.choices[0].text for p in parts if p.choices]
  assert "".join(pieces) == whole.choices[0].text and len(pieces) > 5
  assert parts[-1].usage == whole.usage and not parts[-1].choices
  ends = [p.choices[0].finish_reason for p in parts if p.choices]
  assert ends[-1] == "length" and set(ends[:-1]) == {None}
  plain = list(
    client.completions.create(prompt="s", max_tokens=3, stream=True, **GREEDY)
  )
  assert all(p.choices and p.usage is None for p in plain)


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(running, client):
  whole = written(running, "stop here", 40)
  at = next(i for i in range(4, 30) if whole.find(whole[i : i + 3]) == i)
  stop = whole[at : at + 3]
  for is_stream in (False, True):
    done = client.completions.create(
      prompt="stop here",
      max_tokens=40,
      stop=["never there", stop],
      stream=is_stream,
      **GREEDY,
    )
    parts = list(done) if is_stream else [done]
    assert "".join(p.choices[0].text for p in parts) == whole[:at]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_of_completions(running, client):
  done = client.completions.create(
    prompt="logs", max_tokens=5, logprobs=3, **GREEDY
  )
  found = done.choices[0].logprobs
  assert len(found.tokens) == 5 == len(found.token_logprobs)
  for token, value, likeliest in zip(
    found.tokens, found.token_logprobs, found.top_logprobs, strict=True
  ):
    assert len(likeliest) == 3 and max(likeliest.values()) == value
    assert likeliest[token] == value < 0
  assert found.text_offset[0] == 0 and sorted(found.text_offset)
  none = client.completions.create(
    prompt="logs", max_tokens=5, logprobs=0, **GREEDY
  )
  assert none.choices[0].logprobs.token_logprobs == found.token_logprobs
  assert none.choices[0].logprobs.top_logprobs is None


def test_a_penalty_and_a_bias_change_what_is_written(client):
  ask = lambda **more: (
    client.completions.create(prompt="pen", max_tokens=30, **more, **GREEDY)
    .choices[0]
    .text
  )
  plain = ask()
  assert ask(frequency_penalty=2) != plain != ask(presence_penalty=2)
  assert ask(logit_bias={"65": 100}) == "A" * 30
  assert ask(logit_bias={"256": 100}) == ""  # the separator


def test_echo_begins_with_the_prompt(client):
  done = client.completions.create(prompt="abc", max_tokens=3, **GREEDY)
  echo = client.completions.create(
    prompt="abc", max_tokens=3, echo=True, **GREEDY
  )
  assert echo.choices[0].text == "abc" + done.choices[0].text


def test_a_chat_is_answered_by_its_template(running, client):
  messages = [
    {"role": "developer", "content": "be kind"},
    {"role": "user", "content": [{"type": "text", "text": "hello"}]},
  ]
  ask = lambda **more: client.chat.completions.create(
    messages=messages, max_completion_tokens=12, **more, **GREEDY
  )
  done = ask()
  prompt = (
    "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  assert done.object == "chat.completion"
  message = done.choices[0].message
  assert message.role == "assistant"
  assert message.content == written(running, prompt, 12)
  parts = list(ask(stream=True))
  assert parts[0].choices[0].delta.role == "assistant"
  pieces = [p.choices[0].delta.content or "" for p in parts]
  assert "".join(pieces) == message.content
  logs = ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
  assert len(logs) == 12 and len(logs[0].top_logprobs) == 2
  assert logs[0].top_logprobs[0].logprob == logs[0].logprob
  assert bytes(logs[0].bytes or []) != b""


def test_embeddings_are_those_of_the_run(running, client):
  inputs = ["one text", "another"]
  found = client.embeddings.create(model="tiny", input=inputs)
  wanted, num_tokens = running.server.tasks.embed(inputs)
  assert found.usage.prompt_tokens == num_tokens
  for i, each in enumerate(found.data):
    np.testing.assert_allclose(each.embedding, wanted[i], atol=2e-6)
  plain = client.embeddings.create(
    model="tiny", input=inputs, encoding_format="float"
  )
  np.testing.assert_allclose(plain.data[1].embedding, wanted[1], atol=2e-6)


def test_models_are_listed(client):
  (model,) = client.models.list().data
  assert model.id == "tiny" and client.models.retrieve("tiny") == model
  with pytest.raises(openai.NotFoundError, match="has 'tiny'"):
    client.models.retrieve("other/one")


@pytest.mark.parametrize(
  "changes,said,param",
  [
    (dict(model="gpt-5"), "no model 'gpt-5'", "model"),
    (dict(temperature=3), "temperature is 3; it must be a number", None),
    (dict(temperature=True), "temperature is true", "temperature"),
    (dict(max_tokens=-1), "max_tokens is -1; it must be a whole", None),
    (dict(max_tokens=255), "together they must be at most 256", "prompt"),
    (dict(max_tokens=2.5), "max_tokens is 2.5", "max_tokens"),
    (dict(prompt=""), "prompt is ", "prompt"),
    (dict(prompt=[]), "prompt is []", "prompt"),
    (dict(prompt=[999]), "a list of ids below 257", "prompt"),
    (dict(prompt=None), "prompt is missing", "prompt"),
    (dict(prompt="a" * 300), "300 tokens", "prompt"),
    (dict(n=0), "n is 0", "n"),
    (dict(n=500), "n is 500", "n"),
    (dict(stop=["a"] * 20), "stop is ", "stop"),
    (dict(stop=""), "stop is ", "stop"),
    (dict(logprobs=6), "logprobs is 6", "logprobs"),
    (dict(logit_bias={"x": 1}), "logit_bias is ", "logit_bias"),
    (dict(logit_bias={"257": 1}), "ids below 257", "logit_bias"),
    (dict(seed="x"), 'seed is "x"', "seed"),
    (dict(best_of=3), "best_of is 3", "best_of"),
    (dict(suffix="x"), 'suffix is "x"; it must be null', "suffix"),
    (
      dict(extra_body={"temprature": 1}),
      "did you mean temperature",
      "temprature",
    ),
  ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
  client, changes, said, param
):
  with pytest.raises(openai.APIStatusError) as refused:
    client.completions.create(**(GREEDY | dict(prompt="abc") | changes))
  error = refused.value
  assert error.status_code in (400, 404) and said in error.body["message"]
  assert error.type == "invalid_request_error"
  assert param is None or error.param == param


@pytest.mark.wide
def test_more_than_can_wait_is_refused_with_429(running, client):
  long = dict(prompt="busy", max_tokens=200, n=64, **GREEDY)
  stream = client.completions.create(stream=True, **long)
  next(iter(stream))
  with pytest.raises(openai.RateLimitError) as refused:
    client.completions.create(**long)
  assert refused.value.response.headers["retry-after"] == "1"
  stream.close()
  wait_until_idle(running)


def test_more_than_can_ever_wait_is_no_matter_of_later(client):
  with pytest.raises(openai.BadRequestError) as refused:
    client.completions.create(model="tiny", prompt=["a", "b"], n=37)
  said = refused.value.body["message"]
  assert "74 texts are asked for" in said and "at most 72 at once" in said
  assert refused.value.param == "n"


def wait_until_idle(running, seconds: float = 10) -> None:
  end = time.monotonic() + seconds
  while running.engine.num_active or running.engine.num_waiting:
    assert time.monotonic() < end, "jobs are left"
    time.sleep(0.01)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_frees_its_rows(running, is_stream):
  before = running.engine.counts["jobs_cancelled"]
  body = dict(prompt="gone", max_tokens=250, n=8, stream=is_stream, **GREEDY)
  with running.client(timeout=0.15) as hasty:
    if is_stream:
      stream = hasty.completions.create(**body)
      next(iter(stream))
      stream.close()
    else:
      with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(**body)
  wait_until_idle(running)
  assert running.engine.counts["jobs_cancelled"] > before


def test_a_text_ends_at_its_time(running, client):
  before = running.server.run
  running.limit(seconds=0.1)
  try:
    done = client.completions.create(
      prompt="late", max_tokens=250, n=8, **GREEDY
    )
  finally:
    running.server.run = before
  assert done.usage.completion_tokens < 8 * 250
  assert {c.finish_reason for c in done.choices} == {"length"}


@pytest.mark.parametrize("part", ["begin", "end", "read"])
def test_a_fault_ends_what_was_being_written_and_nothing_more(
  running, client, monkeypatch, capfd, part
):
  with monkeypatch.context() as broken:
    broken.setattr(type(running.engine.rows), part, lambda *_: 1 / 0)
    with pytest.raises(openai.InternalServerError, match="fault"):
      client.completions.create(prompt="abc", **GREEDY)
  done = client.completions.create(prompt="abc", max_tokens=7, **GREEDY)
  assert done.choices[0].text == written(running, "abc", 7)
  assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.fixture
def tasked(running, monkeypatch):
  """Posts to a server whose run labels and translates."""
  classify = lambda inputs: [{"label": str(len(one))} for one in inputs]
  translate = lambda inputs, count: [one[::-1][:count] for one in inputs]
  own = running.server.tasks._replace(classify=classify, translate=translate)
  monkeypatch.setattr(running.server, "tasks", own)

  def post(path: str, body):
    request = urllib.request.Request(
      f"{running.url}{path}", json.dumps(body).encode()
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
      return error.code, json.load(error)

  return post


def test_texts_are_labelled_and_translated(tasked):
  status, found = tasked("/classify", {"input": ["one", ["a", "b"]]})
  assert status == 200 and found["data"] == [
    {"index": 0, "label": "3"},
    {"index": 1, "label": "2"},
  ]
  _, found = tasked("/translate", {"input": "abc", "max_tokens": 2})
  assert found["data"] == [{"index": 0, "text": "cb"}]
  for path, body in (
    ("/classify", {}),
    ("/classify", {"input": [["a"]]}),
    ("/classify", {"input": " "}),
    ("/translate", {"input": [1]}),
    ("/translate", {"input": "a", "max_tokens": 0}),
    ("/translate", {"input": "a", "maxtokens": 1}),
  ):
    status, found = tasked(path, body)
    assert status == 400 and found["error"]["message"]


def test_a_task_that_the_run_has_not_is_refused(running, client):
  with pytest.raises(openai.BadRequestError, match="not trained for this"):
    client.post("/classify", body={"input": "a"}, cast_to=dict)


def test_metrics_say_what_was_done(running, client):
  def read() -> dict[str, float]:
    with urllib.request.urlopen(running.url[:-3] + "/metrics") as answer:
      lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line[0] != "#"]
    return {name: float(value) for name, value in pairs}

  before = read()
  client.completions.create(prompt="abc", max_tokens=7, **GREEDY)
  with pytest.raises(openai.BadRequestError):
    client.completions.create(prompt="abc", max_tokens=-1, **GREEDY)
  after = read()
  grown = {name: after[name] - before.get(name, 0) for name in after}
  assert grown["gpt_jax_tokens_total"] == 7
  assert grown["gpt_jax_steps_total"] == 7
  assert grown["gpt_jax_prompt_tokens_total"] == 3
  path = 'gpt_jax_requests_total{path="/v1/completions",status='
  assert grown[path + '"200"}'] == 1 == grown[path + '"400"}']
  assert grown['gpt_jax_texts_total{end="length"}'] == 1
  assert grown["gpt_jax_first_token_seconds_count"] == 1
  assert grown['gpt_jax_request_seconds_bucket{le="+Inf"}'] == 2
  assert after["gpt_jax_rows"] == 8 and after["gpt_jax_waiting"] == 0


def test_the_page_loads_nothing_from_elsewhere(running):
  with urllib.request.urlopen(running.url[:-2]) as answer:
    text, rules = answer.read().decode(), answer.headers
  assert rules["content-security-policy"].startswith("default-src 'none'")
  assert (
    "http:" not in text and "https:" not in text and "innerHTML" not in text
  )
