"""Prompts that are read together by the engine, and the places they hold."""

import concurrent.futures
import time
from types import SimpleNamespace

import jax
import pytest

from gpt_jax.deploy.serve.engine import Engine
from gpt_jax.deploy.serve.jobs import Reading
from gpt_jax.inference.prefill import CHUNK

GREEDY = dict(model="tiny", temperature=0)


def test_no_program_is_compiled_while_texts_are_written(running, client):
  ask = lambda length, **more: client.completions.create(
    **(GREEDY | dict(prompt=[65] * length, max_tokens=3) | more)
  )
  ask(3)
  compiled, is_on = [], True

  def listen(name: str, seconds: float, **_) -> None:
    if is_on and name == "/jax/core/compile/backend_compile_duration":
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for length in (1, CHUNK, CHUNK + 1, CHUNK + 2, 130, 250, 250):
      ask(length)
    for count in (1, 2, 3):
      ask(2, logit_bias={str(i): 1 for i in range(count)})
    ask(2, n=3, temperature=1, top_p=0.5, logprobs=2, presence_penalty=1)
    ask(2, prompt=["a", "b" * 40, "c" * 80])
    assert not compiled
    jax.jit(lambda x: x * 3 + len(compiled))(2.0)  # the control
    assert compiled
  finally:
    is_on = False


def test_prompts_that_come_together_are_read_together(running, monkeypatch):
  """The number of passes is that of the longest, places permitting."""
  rows, passes = running.engine.rows, []
  read = rows.read

  def counted(prompts):
    passes.append(len(prompts))
    time.sleep(0.05)  # until all have come
    read(prompts)

  monkeypatch.setattr(rows, "read", counted)
  texts = [[i] * (3 * CHUNK + 1) for i in range(60, 68)]
  with running.client() as client:
    client.completions.create(prompt=texts, max_tokens=2, **GREEDY)
  size = rows.prefill.num_places
  assert size == 2 and passes == [size] * (3 * 8 // size)


@pytest.mark.parametrize(
  "num_writing,num_unread,wanted",
  [(0, 2, True), (0, 3, False), (1, 4, True), (1, 5, False), (6, 24, True)],
)
def test_many_prompts_are_read_at_once_only_beside_few_texts(
  num_writing, num_unread, wanted
):
  """A text that waits for its next token waits for a short pass."""
  started = []

  def start(ids, is_narrow):
    started.append(is_narrow)
    return SimpleNamespace(is_read=False, num_read=0)

  num_begun = [5] * num_writing + [0] * num_unread
  engine = Engine(lambda: None, None, max_waiting=0)
  engine.rows = SimpleNamespace(
    is_held_R=[begun > 0 for begun in num_begun],
    narrow=SimpleNamespace(num_places=2, num_free=2),
    prefill=SimpleNamespace(num_places=8, num_free=8),
    start=start,
    read=lambda prompts: None,
  )
  for row, begun in enumerate(num_begun):
    job = SimpleNamespace(row=row, num_begun=begun, reading=Reading([row]))
    engine._active.append(job)
  engine._read()
  assert started == [wanted] * num_unread


def num_taken(rows) -> int:
  """Returns places that hold a prompt."""
  return sum(home.num_places - home.num_free for home in rows.homes)


def test_choices_that_wait_for_a_row_hold_one_place(running, client):
  rows = running.engine.rows
  num_rows = running.engine.num_rows
  ask = lambda prompt, count: client.completions.create(
    prompt=prompt, n=count, max_tokens=9, **GREEDY
  )
  alone = {prompt: ask(prompt, 1).choices[0].text for prompt in "ab"}
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    many = pool.submit(ask, "a", 3 * num_rows)
    others = [pool.submit(ask, "b", 1) for _ in range(2)]
  assert {c.text for c in many.result().choices} == {alone["a"]}
  assert [other.result().choices[0].text for other in others] == 2 * [
    alone["b"]
  ]
  assert num_taken(rows) == 0


def test_a_place_is_free_once_its_choices_have_gone(running):
  engine = running.engine
  num_rows, rows = engine.num_rows, engine.rows
  with running.client() as hasty:
    stream = hasty.completions.create(
      prompt="x" * 70, n=2 * num_rows, max_tokens=180, stream=True, **GREEDY
    )
    next(iter(stream))
    assert num_taken(rows) == 1  # the control
    stream.close()
  end = time.monotonic() + 10
  while num_taken(rows):
    assert time.monotonic() < end
    time.sleep(0.01)
  assert not engine.num_active and not engine.num_waiting
