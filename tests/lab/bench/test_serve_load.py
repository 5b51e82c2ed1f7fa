"""Clients and a peer are given the same texts, of lengths that differ."""

import collections
import contextlib
import http.server
import json
import threading
import time
import types

import pytest
from workload import load

from gpt_jax.lab.bench import peers, serve


class Answering(http.server.BaseHTTPRequestHandler):
  """Answers a request for texts with as many events as tokens."""

  def do_POST(self):
    size = int(self.headers["content-length"])
    num_tokens = json.loads(self.rfile.read(size))["max_tokens"]
    self.server.asked.append(num_tokens)
    self.send_response(200)
    self.end_headers()
    for reason in [None] * num_tokens + ["length"]:
      line = json.dumps({"choices": [{"finish_reason": reason}]})
      self.wfile.write(f"data: {line}\n\n".encode())

  def log_message(self, *_):
    pass


@pytest.fixture
def asked(monkeypatch):
  """Returns (tokens that the server was asked for, commands to the peer)."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
  server.asked, commands = [], []
  threading.Thread(target=server.serve_forever).start()

  def ask_rival(**command):
    commands.append(command)
    return {"total": 2.0}

  @contextlib.contextmanager
  def make_duel(*_, **options):
    assert options["num_tokens"] == 9  # the most, for which a peer has room
    both = types.SimpleNamespace(failed={}, idle_share=0.0, waiting={})
    both.ours = types.SimpleNamespace(
      ask=lambda **_: {"port": server.server_port}, built={}
    )
    both.rivals = {"transformers": types.SimpleNamespace(ask=ask_rival)}
    both.ask = lambda name, **command: ask_rival(**command)
    yield both

  monkeypatch.setattr(serve.duel, "Duel", make_duel)
  yield server.asked, commands
  server.shutdown()
  server.server_close()


@pytest.mark.parametrize("count", [1, 3])
def test_clients_and_a_peer_are_given_the_same_texts(asked, count):
  sent, commands = asked
  begun = time.perf_counter()
  found = serve.measure(
    load(), (count,), (2, 9), peer="transformers", repeats=2
  )
  seconds = time.perf_counter() - begun
  lengths = serve.draw_lengths(count, 2, 9)
  assert len(lengths) == count * serve.MIXED_TEXTS
  assert min(lengths) >= 2 and max(lengths) <= 9 and len(set(lengths)) > 3
  # What warms up is the first text of each client.
  assert [one["lengths"] for one in commands] == [
    lengths[:count],
    *2 * [lengths],
  ]
  assert all(one["batch_size"] == count for one in commands)
  if count == 1:
    assert sent == lengths[:1] + 2 * lengths
  wanted = collections.Counter(lengths[:count] + 2 * lengths)
  assert collections.Counter(sent) == wanted
  # Tokens that were asked for count, on both sides.
  (pairs,), rows = found.pairs, {row.name: row for row in found.rows}
  assert pairs.peers["transformers"] == [2e3 / sum(lengths)] * 2
  rate = next(row for name, row in rows.items() if "tokens/s" in name)
  assert sum(sum(lengths) / each for each in rate.values) < seconds
  assert pairs.ours == pytest.approx([1e3 / each for each in rate.values])


def test_a_load_of_one_length_is_two_texts_for_each_client(asked):
  sent, commands = asked
  serve.measure(load(), (3,), 9, peer="transformers", repeats=1)
  assert sent == [9] * (3 + 6)
  assert [one["lengths"] for one in commands] == [[9] * 3, [9] * 6]


def test_a_batch_of_the_peer_is_as_long_as_its_longest_text():
  peer, made = peers.Decode.__new__(peers.Decode), []
  peer._draw_prompts = lambda size: size
  peer._generate = lambda size, count: made.append((size, count)) or 0.5
  assert peer.write(2, [3, 9, 4, 1, 7]) == {"total": 1.5}
  assert made == [(2, 9), (2, 4), (1, 7)]
