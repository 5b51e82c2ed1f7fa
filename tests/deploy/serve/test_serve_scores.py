"""Log-probabilities of prompts, as harnesses of evaluation ask for them."""

import jax
import numpy as np
import pytest

GREEDY = dict(model="tiny", temperature=0)


def test_prompts_are_scored_where_echo_and_logprobs_are_asked(running, client):
  prompts = ["a text of some length", "ab", "x"]
  ask = lambda prompt, num_tokens=0, **more: client.completions.create(
    prompt=prompt,
    max_tokens=num_tokens,
    logprobs=2,
    echo=True,
    **more,
    **GREEDY,
  )
  done = ask(prompts)
  for prompt, choice in zip(prompts, done.choices, strict=True):
    found, ids = choice.logprobs, np.frombuffer(prompt.encode(), np.uint8)
    logits = running.model.apply(running.params, ids[None].astype(np.int32))[0]
    log_p = np.asarray(jax.nn.log_softmax(logits))[:-1]
    assert choice.text == prompt == "".join(found.tokens)
    assert choice.finish_reason == "length"
    assert found.text_offset == list(range(len(prompt)))
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    own = log_p[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found.token_logprobs[1:], own, atol=1e-5)
    for of_one, row, i in zip(
      found.top_logprobs[1:], log_p, ids[1:], strict=True
    ):
      assert of_one[chr(i)] == pytest.approx(row[i], abs=1e-5)
      largest = sorted(of_one.values())[-2:]
      np.testing.assert_allclose(largest, np.sort(row)[-2:], atol=1e-5)
  assert done.usage.completion_tokens == 0
  assert done.usage.total_tokens == sum(map(len, prompts))


def test_scores_of_a_prompt_come_before_those_of_what_is_written(client):
  ask = lambda prompt, **more: client.completions.create(
    prompt=prompt, max_tokens=4, logprobs=1, **more, **GREEDY
  )
  plain, whole = ask("abc"), ask("abc", echo=True).choices[0]
  parts = list(ask([97, 98, 99], echo=True, n=2, stream=True))
  for i in range(2):
    own = [p.choices[0] for p in parts if p.choices[0].index == i]
    scored = [c.logprobs for c in own if c.logprobs]
    assert "".join(c.text for c in own) == whole.text
    assert sum((c.tokens for c in scored), []) == whole.logprobs.tokens
    joined = sum((c.token_logprobs for c in scored), [])
    np.testing.assert_allclose(joined[1:], whole.logprobs.token_logprobs[1:])
    assert (
      sum((c.text_offset for c in scored), []) == whole.logprobs.text_offset
    )
    assert own[-1].finish_reason == "length"
  drawn = plain.choices[0].logprobs.token_logprobs
  assert whole.logprobs.token_logprobs[3:] == drawn
  empty = client.completions.create(prompt="abc", max_tokens=0, **GREEDY)
  assert empty.choices[0].text == ""
  assert empty.choices[0].finish_reason == "length"
