"""Steps that begin before the one before is told: what they leave."""

GREEDY = dict(model="tiny", temperature=0)


def test_a_text_takes_a_step_for_each_token_and_ends_once(running, client):
  counts = running.engine.counts
  ask = lambda **more: client.completions.create(
    prompt="abc", max_tokens=7, **GREEDY, **more
  )
  ask()  # with what a text before it has left to be thrown away
  before = counts.copy()
  text = ask().choices[0].text
  ask()
  assert counts["steps"] - before["steps"] == 2 * 7
  stopped = ask(stop=[text[2]])
  ask(), ask()
  assert stopped.choices[0].finish_reason == "stop"
  assert counts["jobs_stop"] - before["jobs_stop"] == 1
  assert counts["jobs_length"] - before["jobs_length"] == 4
  made = 4 * 7 + stopped.usage.completion_tokens
  assert counts["tokens"] - before["tokens"] == made
