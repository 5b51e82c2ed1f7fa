"""No client waits for all that another has asked for."""

import collections
import concurrent.futures
import http.client
import json
import time

import pytest

from gpt_jax.deploy.serve import answers
from gpt_jax.deploy.serve.engine import MAX_CLIENTS, Busy, Engine
from gpt_jax.deploy.serve.jobs import Job, Reading
from gpt_jax.deploy.serve.keys import Keys
from gpt_jax.deploy.serve.turns import Turns


def jobs_of(count: int, reading: Reading | None = None) -> list[Job]:
  """Returns jobs of as many prompts, or of one."""
  make = lambda: Job(reading or Reading([0]), None, 1, None, lambda event: None)
  return [make() for _ in range(count)]


def drawn(turns: Turns, held: collections.Counter, count: int) -> str:
  """Returns whose jobs come next, each of which then holds a row."""
  found = ""
  for _ in range(count):
    client = turns.pop(held).client
    held[client] += 1
    found += client
  return found


def test_the_next_text_is_of_the_client_with_the_fewest_rows():
  turns, held = Turns(), collections.Counter()
  turns.add(jobs_of(9), "a")
  assert drawn(turns, held, 4) == "aaaa"  # no other asks
  turns.add(jobs_of(3), "b")
  turns.add(jobs_of(2), "c")
  assert drawn(turns, held, 5) == "bcbcb"
  assert drawn(turns, collections.Counter(), 5) == "aaaaa"
  assert not turns and not list(turns)
  turns.add(jobs_of(2), "a")
  turns.add(jobs_of(2), "b")
  # As many rows each: the one whose turn was longest ago.
  assert [turns.pop(collections.Counter()).client for _ in "abab"] == [*"abab"]


def test_choices_of_a_prompt_have_rows_before_another_prompt_begins():
  turns, held = Turns(), collections.Counter()
  turns.add(jobs_of(3, Reading([0], 3)) + jobs_of(1), "a")
  assert drawn(turns, held, 1) == "a"
  turns.add(jobs_of(2, Reading([0], 2)), "b")
  assert drawn(turns, held, 5) == "aabba"


def test_a_job_that_no_longer_waits_is_not_drawn():
  turns = Turns()
  first, second, third = jobs = jobs_of(3)
  turns.add(jobs, "a")
  turns.remove(second)
  assert len(turns) == 2 == turns.count("a") and list(turns) == [first, third]
  assert drawn(turns, collections.Counter(), 1) == "a"
  turns.remove(third)
  assert not turns and turns.count("a") == 0


def test_one_client_does_not_keep_the_others_from_waiting():
  engine = Engine(lambda: None, None, max_waiting=3)
  engine.rows = type("Rows", (), {"num_rows": 0})
  for client in range(MAX_CLIENTS):
    engine.submit(jobs_of(3), client)
    with pytest.raises(Busy):
      engine.submit(jobs_of(1), client)
  with pytest.raises(Busy):  # all together
    engine.submit(jobs_of(1), "another")
  assert engine.num_waiting == 3 * MAX_CLIENTS


def test_free_rows_make_clients_equal():
  engine = Engine(lambda: None, None, max_waiting=9)
  engine.rows = type("Rows", (), {"num_rows": 4})
  rows_of = lambda: "".join(sorted(job.client for job in engine._active))
  engine.submit(jobs_of(9), "a")
  engine._admit()
  assert rows_of() == "aaaa"
  engine.submit(jobs_of(9), "b")
  del engine._active[0]
  engine._admit()
  assert rows_of() == "aaab"
  engine._active[:] = [job for job in engine._active if job.client == "a"][:1]
  engine._admit()
  assert rows_of() == "aabb"


def ask(running, body: dict, host: str, key: str | None = None) -> dict:
  """Returns the answer to a request for completions from an address."""
  link = http.client.HTTPConnection(
    "127.0.0.1", running.port, timeout=60, source_address=(host, 0)
  )
  headers = {} if key is None else {"authorization": f"Bearer {key}"}
  data = json.dumps(dict(model="tiny", temperature=0) | body).encode()
  link.request("POST", "/v1/completions", data, headers)
  answer = link.getresponse()
  found = json.loads(answer.read())
  link.close()
  assert answer.status == 200, found
  return found


@pytest.mark.parametrize("who", ["address", "key"])
def test_a_client_that_asks_for_much_makes_another_wait_for_one_text(
  running, monkeypatch, tmp_path, who
):
  engine, keys = running.engine, (None, None)
  if who == "key":
    keys = "0123456789abcdef", "fedcba9876543210"
    path = tmp_path / "keys.txt"
    path.write_text(f"{keys[0]} anna 0\n{keys[1]} bob 0\n")
    monkeypatch.setattr(running.server, "keys", Keys(str(path)))
  hosts = ("127.0.0.1", "127.0.0.2" if who == "address" else "127.0.0.1")
  much = dict(prompt=["ab"] * 40, max_tokens=40)
  before = engine.counts["jobs_length"]
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(ask, running, much, hosts[0], keys[0])
    end = time.monotonic() + 30
    while engine.num_active < engine.num_rows:
      assert time.monotonic() < end
      time.sleep(0.001)
    one = dict(prompt="ab", max_tokens=1)
    found = ask(running, one, hosts[1], keys[1])
    num_ended = engine.counts["jobs_length"] - before
    assert len(first.result()["choices"]) == 40
  assert found["choices"][0]["finish_reason"] == "length"
  # Its own, the one whose row it took, and those that ended with that one.
  assert 2 <= num_ended <= 1 + engine.num_rows


def test_many_choices_of_several_clients_all_end(running):
  """Prompts hold fewer places than there are rows."""
  hosts = [f"127.0.0.{i}" for i in range(1, 12)]
  count = lambda i: 24 if i < 2 else 1
  with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
    found = list(
      pool.map(
        lambda i: ask(
          running,
          dict(prompt=f"{i} {'x' * 40}", n=count(i), max_tokens=20),
          hosts[i],
        ),
        range(len(hosts)),
      )
    )
  assert [len(each["choices"]) for each in found] == [
    count(i) for i in range(len(hosts))
  ]


def test_a_text_that_is_far_too_long_is_not_encoded_to_its_end(
  running, client, monkeypatch
):
  import openai

  encoded, tokenizer = [], running.tokenizer
  encode = tokenizer.encode
  split = lambda texts: (
    text[i : i + 50] for text in texts for i in range(0, len(text), 50)
  )
  monkeypatch.setattr(tokenizer, "split", split, raising=False)
  monkeypatch.setattr(
    tokenizer,
    "encode",
    lambda text: encoded.append(len(text)) or encode(text),
  )
  long = "x" * (answers.PIECE_LEN + 1)
  with pytest.raises(openai.BadRequestError) as refused:
    client.completions.create(model="tiny", prompt=long, max_tokens=7)
  # 256 positions: 250 are too many beside 7 tokens.
  assert "prompt has at least 250 tokens and 7 are" in str(refused.value)
  assert encoded == [50] * 5
  encoded.clear()
  with pytest.raises(openai.BadRequestError) as refused:
    client.chat.completions.create(
      model="tiny", messages=[{"role": "user", "content": long}], max_tokens=7
    )
  assert refused.value.code == "context_length_exceeded"
  assert sum(encoded) == 250
  encoded.clear()
  with pytest.raises(openai.BadRequestError, match="has 300 tokens"):
    client.completions.create(model="tiny", prompt=long[:300], max_tokens=7)
  assert encoded == [300]
