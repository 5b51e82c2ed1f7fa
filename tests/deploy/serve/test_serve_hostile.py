"""Requests of strangers: none of them is a fault, and none holds a row."""

import asyncio
import gc
import http.client
import json
import os
import pathlib
import random
import socket
import string
import threading
import time

import pytest

from gpt_jax.deploy.serve.pace import Pace

FINE = {
  "prompt": "abc",
  "max_tokens": 2,
  "temperature": 0.5,
  "top_p": 0.9,
  "n": 1,
  "stream": False,
  "logprobs": 1,
  "stop": ["x"],
  "seed": 3,
  "presence_penalty": 0.1,
  "frequency_penalty": 0.1,
  "logit_bias": {"5": 1},
  "echo": False,
  "user": "me",
}
CHAT = {
  "messages": [{"role": "user", "content": "hi"}],
  "max_tokens": 2,
  "logprobs": True,
  "top_logprobs": 2,
  "stream_options": {"include_usage": True},
  "response_format": {"type": "text"},
}
EMBED = {"input": ["a", "b"], "encoding_format": "float"}
ROUTES = {
  "/v1/completions": FINE,
  "/v1/chat/completions": CHAT,
  "/v1/embeddings": EMBED,
}


def strange(rng: random.Random, depth: int = 0):
  """Returns a value of JSON that a stranger might send."""
  kinds = [
    lambda: None,
    lambda: rng.choice([True, False]),
    lambda: rng.choice([0, -1, 1, 2**31, 2**63, -(2**63), 10**30]),
    lambda: rng.choice([0.5, -0.0, 1e308, -1e-320, 3.7]),
    lambda: rng.choice(["", "\0", "\ud800", "a" * 3000, "é漢😀", "<|im_end|>"]),
    lambda: "".join(rng.choices(string.printable, k=rng.randint(1, 40))),
    lambda: [strange(rng, depth + 1) for _ in range(rng.randint(0, 3))],
    lambda: {
      str(strange(rng, 3))[:20]: strange(rng, depth + 1)
      for _ in range(rng.randint(0, 3))
    },
  ]
  return rng.choice(kinds[: 6 if depth > 2 else 8])()


def spoiled(rng: random.Random, body: dict) -> bytes:
  """Returns the body with some of its fields, or its bytes, changed."""
  body = json.loads(json.dumps(body))
  for _ in range(rng.randint(1, 3)):
    name = rng.choice([*body, "".join(rng.choices(string.ascii_letters, k=5))])
    inner = body.get(name)
    if isinstance(inner, list) and inner and rng.random() < 0.5:
      one = rng.randrange(len(inner))
      if isinstance(inner[one], dict) and rng.random() < 0.7:
        inner[one][rng.choice([*inner[one]])] = strange(rng)
      else:
        inner[one] = strange(rng)
    else:
      body[name] = strange(rng)
  data = json.dumps(body).encode()
  if rng.random() < 0.1:
    at = rng.randrange(len(data))
    data = data[:at] + rng.randbytes(rng.randint(0, 3)) + data[at + 1 :]
  return data


def test_no_body_is_a_fault(running):
  rng, found = random.Random(7), {}
  link = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
  for _ in range(400):
    path = rng.choice(list(ROUTES))
    data = spoiled(rng, ROUTES[path])
    link.request("POST", path, data)
    answer = link.getresponse()
    text = answer.read()
    found[answer.status] = found.get(answer.status, 0) + 1
    assert answer.status in (200, 400, 404, 429), (path, data, text)
    if answer.status != 200:
      error = json.loads(text)["error"]
      assert error["message"] and "\n" not in error["message"], data
      assert set(error) == {"message", "type", "param", "code"}
  link.close()
  # Both ways are tried: the control for what the bodies are.
  assert found[200] > 20 and found[400] > 100, found


@pytest.mark.parametrize(
  "data,said",
  [
    (b"[" * 60_000, "nested"),
    (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "nested"),
    (b"", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"prompt": NaN}', "NaN"),
    (b'{"prompt": 1' + b"0" * 9_000 + b"}", "digits"),
    (b"[]", "it must be an object"),
    (b'"text"', "it must be an object"),
  ],
)
def test_a_body_that_is_no_object_is_told_so(running, data, said):
  status, text = ask(running, data)
  assert status == 400 and said in json.loads(text)["error"]["message"]


def ask(running, data: bytes, path="/v1/completions", method="POST", **headers):
  link = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
  link.request(method, path, data, headers)
  answer = link.getresponse()
  found = answer.status, answer.read()
  link.close()
  return found


def test_a_body_beyond_the_limit_is_not_read(running):
  status, text = ask(running, b"x" * (1 << 16) + b"y")
  assert status == 413 and b"65,536 bytes" in text
  chunks = (b"x" * 5_000 for _ in range(100))
  link = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
  try:
    link.request("POST", "/v1/completions", chunks, encode_chunked=True)
  except (BrokenPipeError, ConnectionResetError):
    pass  # it has stopped reading
  else:
    assert link.getresponse().status == 413
  link.close()
  assert ask(running, json.dumps(FINE).encode())[0] == 200  # the control


def test_other_paths_and_methods_are_told(running):
  assert ask(running, b"", "/v1/nothing")[0] == 404
  assert ask(running, b"", "/v1/../etc/passwd", "GET")[0] == 404
  assert ask(running, b"", "/v1/completions", "GET")[0] == 405
  assert ask(running, b"", "/v1/completions", "BREW")[0] in (400, 405)
  for path in ("/", "/health", "/metrics", "/v1/models"):
    assert ask(running, b"", path, "GET")[0] == 200


def test_a_slow_body_is_given_up(running):
  with socket.create_connection(("127.0.0.1", running.port)) as link:
    link.sendall(
      b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    )
    link.settimeout(20)
    begun = time.monotonic()
    assert b" 408 " in link.recv(100)
    assert 1.5 < time.monotonic() - begun < 15


@pytest.mark.wide
@pytest.mark.parametrize(
  "pieces",
  [
    [b"POST /v1/comple", *[b"t"] * 99],
    [b"GET /health HTTP/1.1\r\nhost: x\r\n", *[b"a: b\r\n"] * 99],
    [],
    [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"", *[b"G"] * 99],
  ],
  ids=["line", "headers", "nothing", "second request"],
)
def test_a_slow_head_is_given_up(running, pieces):
  begun = time.monotonic()
  with socket.create_connection(("127.0.0.1", running.port)) as link:
    link.settimeout(0.1)
    for i in range(100):
      try:
        if i < len(pieces):
          link.sendall(pieces[i])
        if not link.recv(1_000):
          break
      except TimeoutError:
        continue
      except (BrokenPipeError, ConnectionResetError):
        break
    assert 1.5 < time.monotonic() - begun < 9
  assert not running.server.heads._answered


@pytest.mark.parametrize("headers", [{}, {"x-forwarded-for": "10.0.0.9"}])
def test_a_long_answer_is_not_given_up(running, client, monkeypatch, headers):
  """The control: the bound is on a request's head alone."""
  read = running.engine.rows.read
  slow = lambda prompts: (time.sleep(2.3), read(prompts))
  monkeypatch.setattr(running.engine.rows, "read", slow)
  done = client.completions.create(
    model="tiny", prompt="abc", max_tokens=3, extra_headers=headers
  )
  assert done.usage.completion_tokens == 3
  health = client.models.list()  # on the same connection
  assert health.data[0].id == "tiny"


def test_half_open_connections_keep_nobody_out(running):
  links = [
    socket.create_connection(("127.0.0.1", running.port)) for _ in range(200)
  ]
  for link in links[::2]:
    link.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
  for link in links[1::20]:
    link.sendall(b"\x16\x03\x01\x02\x00garbage\r\n\r\n")
  assert ask(running, json.dumps(FINE).encode())[0] == 200
  for link in links:
    link.close()
  assert ask(running, json.dumps(FINE).encode())[0] == 200


def test_a_wrong_key_is_refused_and_a_key_has_its_rate(tmp_path):
  from gpt_jax.deploy.serve.fields import Refusal
  from gpt_jax.deploy.serve.keys import Keys

  path = tmp_path / "keys.txt"
  path.write_text("# who\n0123456789abcdef anna 2\nfedcba9876543210 bob 0\n")
  keys = Keys(str(path))
  for header in (None, "", "Bearer", "Bearer x", "Basic 0123456789abcdef"):
    with pytest.raises(Refusal) as refused:
      keys.count(header)
    assert refused.value.status == 401
  for _ in range(2):
    assert keys.count("Bearer 0123456789abcdef") == "anna"
  with pytest.raises(Refusal) as refused:
    keys.count("Bearer 0123456789abcdef")
  assert refused.value.status == 429
  assert 0 < int(refused.value.headers["retry-after"]) <= 61
  for _ in range(9):
    assert keys.count("bearer fedcba9876543210") == "bob"


def test_a_key_is_asked_for_on_all_routes_of_the_api(running, tmp_path):
  from gpt_jax.deploy.serve.keys import Keys

  path, before = tmp_path / "keys.txt", running.server.keys
  path.write_text("0123456789abcdef anna 0\n")
  running.server.keys = Keys(str(path))
  try:
    for route in ROUTES:
      assert ask(running, b"{}", route)[0] == 401
    assert ask(running, b"", "/v1/models", "GET")[0] == 401
    assert ask(running, b"", "/health", "GET")[0] == 200
    key = {"authorization": "Bearer 0123456789abcdef"}
    assert ask(running, json.dumps(FINE).encode(), **key)[0] == 200
  finally:
    running.server.keys = before


def test_a_flood_of_bad_requests_is_answered_slowly_and_good_ones_are_not(
  running,
):
  before, running.server.pace = running.server.pace, Pace(per_second=4)
  try:
    end, statuses = time.monotonic() + 2, []

    def flood_by_one():
      while time.monotonic() < end:
        statuses.append(ask(running, b"{", "/v1/completions")[0])

    threads = [threading.Thread(target=flood_by_one) for _ in range(8)]
    for thread in threads:
      thread.start()
    time.sleep(1)
    begun = time.monotonic()
    assert ask(running, json.dumps(FINE).encode())[0] == 200
    assert time.monotonic() - begun < 0.5
    for thread in threads:
      thread.join()
    # A second's worth is saved up, and each thread has one on its way.
    assert set(statuses) == {400} and 8 < len(statuses) <= 4 * (1 + 2) + 8
  finally:
    running.server.pace = before


def test_what_was_long_in_reading_holds_the_next_refusals_back():
  async def told_after(seconds: float) -> float:
    pace, loop = Pace(per_second=1e9), asyncio.get_running_loop()
    await pace.wait(0.0)
    begun = loop.time()
    await pace.wait(seconds)
    await pace.wait(0.0)
    return loop.time() - begun

  assert asyncio.run(told_after(0.0)) < 0.05
  # A second is saved up.
  assert 0.15 < asyncio.run(told_after(0.12)) < 0.4


async def visit(port: int, rng: random.Random) -> None:
  """Asks for a text, and often leaves before it has come."""
  reader, writer = await asyncio.open_connection("127.0.0.1", port)
  body = json.dumps(
    {
      "prompt": "abc" * rng.randint(1, 40),
      "max_tokens": rng.randint(1, 30),
      "stream": rng.random() < 0.5,
      "n": rng.choice([1, 1, 1, 2]),
    }
  ).encode()
  head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
  writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
  try:
    stay = rng.choice([None, None, 0.001, 0.02, 0.05])
    first = await asyncio.wait_for(reader.read(12), stay)
    assert first.split()[1] in (b"200", b"429"), first
    await asyncio.wait_for(reader.read(), stay)
  except TimeoutError:
    pass
  finally:
    writer.close()


def flood(port: int, count: int, seed: int) -> None:
  async def run():
    rng, gate = random.Random(seed), asyncio.Semaphore(24)

    async def one():
      async with gate:
        await visit(port, rng)

    await asyncio.gather(*(one() for _ in range(count)))

  asyncio.run(run())


@pytest.mark.wide
@pytest.mark.parametrize(
  "count", [150, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_clients_that_leave_leave_nothing_behind(running, count):
  engine = running.engine
  flood(running.port, min(count, 1_000), 1)
  settle(engine)
  gc.collect()
  before = resident_bytes()
  flood(running.port, count, 2)
  settle(engine)
  gc.collect()
  assert not engine.rows.is_held_R.any() and not engine.rows.lengths_R.any()
  assert 0 < engine.num_pages <= 16  # num_held checks that no page is lost
  assert all(home.num_free == home.num_places for home in engine.rows.homes)
  assert engine.counts["jobs_cancelled"] > count // 20
  grown = resident_bytes() - before
  assert grown < 30e6, f"{grown / 1e6:.1f} MB"


def resident_bytes() -> int:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def settle(engine) -> None:
  end = time.monotonic() + 30
  while engine.num_active or engine.num_waiting:
    assert time.monotonic() < end
    time.sleep(0.01)
