"""The port where processes meet: a greeting of this run, and nothing else.

Process 0 waits in a thread of this process; no jax.
"""

import contextlib
import dataclasses
import json
import socket
import threading
import time

import pytest

from gpt_jax.config import InputError
from gpt_jax.machine import meeting, runtime

FACTS = {"seed": 7, "--workdir": "runs/x"}


class Hub:
  """Process 0 of `count`, waiting; what it came to is in `lines` or `said`."""

  def __init__(self, count=2, seconds=20.0, secret=""):
    with socket.create_server(("127.0.0.1", 0)) as server:
      self.port = server.getsockname()[1]
    address = f"127.0.0.1:{self.port}"
    self.place = runtime.Place(
      address, count, 0, None, None, seconds, 600.0, secret
    )
    self.lines = self.said = None
    self.thread = threading.Thread(target=self._wait, daemon=True)
    self.thread.start()

  def _wait(self):
    try:
      self.lines = meeting.meet(self.place, FACTS)
    except InputError as error:
      self.said = str(error)

  def connect(self) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
      try:
        return socket.create_connection(("127.0.0.1", self.port), 10)
      except ConnectionRefusedError:
        assert time.monotonic() < deadline
        time.sleep(0.01)

  def send(self, data: bytes) -> socket.socket:
    link = self.connect()
    with contextlib.suppress(OSError):  # it may have been closed already
      link.sendall(data)
    return link

  def greet(self, index=1, facts=FACTS, **changed):
    """Comes as process `index`; returns what a real process would get."""
    place = dataclasses.replace(self.place, index=index, **changed)
    return meeting.meet(place, facts)

  def end(self, seconds=10.0) -> str | None:
    self.thread.join(seconds)
    assert not self.thread.is_alive()
    return self.said


def greeting(place, index=1, count=2, facts=FACTS, **changed) -> bytes:
  hello = {
    "magic": meeting.MAGIC,
    "index": index,
    "count": count,
    "facts": facts,
    "proof": meeting._sign(place, index, count, facts),
  }
  return json.dumps(hello | changed).encode() + b"\n"


MAGIC = json.dumps({"magic": meeting.MAGIC}).encode()
OTHERS = {
  "list": b"[]\n",
  "number": b"5\n",
  "null": b"null\n",
  "object": b"{}\n",
  "magic alone": MAGIC + b"\n",
  "deep": b"[" * 200_000 + b"\n",
  "deep inside": b'{"a":' * 100_000 + b"\n",
  "long number": b'{"magic": ' + b"9" * 9999 + b"}\n",
  "binary": bytes(range(256)) * 40,
  "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
  "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
  "gRPC": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  "nothing": b"",
  "newline": b"\n",
  "half": MAGIC[:9],
  "half of a pair": b'{"magic": "\\ud800"}\n',
  "endless": b"{" + b" " * (3 << 20),
}
# Signed as this run's, and wrong.
WRONG = {
  "index -1": {"index": -1},
  "index 0": {"index": 0},
  "index count": {"index": 2},
  "index text": {"index": "1"},
  "index true": {"index": True},
  "index float": {"index": 1.0},
  "index list": {"index": [1]},
  "count text": {"count": "2"},
  "facts list": {"facts": []},
  "facts null": {"facts": None},
  "other facts": {"facts": {"seed": 8}, "proof": "0" * 64},
  "no proof": {"proof": None},
  "proof not ASCII": {"proof": "é"},
}


def test_whatever_comes_is_passed_over_and_holds_nobody_up():
  hub, started = Hub(), time.monotonic()
  links = [hub.send(data) for data in OTHERS.values()]
  for changed in WRONG.values():
    if "proof" not in changed:
      links.append(hub.send(greeting(hub.place, **changed)))
    links.append(
      hub.send(
        greeting(hub.place)[:-2]
        + b", "
        + json.dumps(changed).encode()[1:]
        + b"\n"
      )
    )
  assert hub.greet()[0].link
  assert hub.end() is None and list(hub.lines) == [1]
  assert time.monotonic() - started < meeting.SOON
  for link in links:
    link.close()


def test_many_that_say_nothing_hold_nobody_up():
  hub = Hub(3)
  links = [hub.connect() for _ in range(2 * meeting.MAX_GUESTS)]
  answers = []
  threads = [
    threading.Thread(target=lambda k=k: answers.append(hub.greet(k)))
    for k in (1, 2)
  ]
  for thread in threads:
    thread.start()
  assert hub.end(4) is None and sorted(hub.lines) == [1, 2]
  for thread in threads:
    thread.join()
  assert len(answers) == 2
  for link in links:
    link.close()


def test_who_says_nothing_is_dismissed_in_time(monkeypatch):
  monkeypatch.setattr(meeting, "SOON", 0.1)
  hub = Hub()
  for data in (b"", b'{"magic"'):
    link = hub.send(data)
    assert link.recv(1) == b""  # closed by process 0, not by a timeout
    link.close()
  monkeypatch.undo()
  assert hub.greet()[0].link and hub.end() is None


def test_a_greeting_that_comes_in_pieces_is_one():
  hub = Hub()
  link = hub.connect()
  for byte in greeting(hub.place):
    link.sendall(bytes([byte]))
  assert hub.end() is None and list(hub.lines) == [1]
  link.close()


def test_a_real_process_started_differently_is_still_refused_by_name():
  hub = Hub()
  with pytest.raises(InputError, match=r"seed \(8 in process 1, 7 in"):
    hub.greet(facts={"seed": 8, "--workdir": "runs/x"})
  assert "started differently: seed" in hub.end()
  hub = Hub()
  with pytest.raises(InputError, match="one of 3 processes and process 0 as"):
    hub.greet(count=3)
  assert "the number must be the same" in hub.end()


def test_the_same_index_twice_is_refused_by_name():
  hub = Hub(3)
  link = hub.send(greeting(hub.place, count=3))
  time.sleep(0.05)
  with pytest.raises(InputError, match="two processes were started as"):
    hub.greet()
  assert "process 1 of 3" in hub.end()
  link.close()


def test_another_secret_is_passed_over_and_said_at_the_end():
  hub = Hub(seconds=1.0, secret="ours")
  with pytest.raises(InputError, match="GPT_JAX_SECRET"):
    hub.greet(secret="theirs", join_seconds=0.5)
  assert "GPT_JAX_SECRET" in hub.end() and "missing: 1" in hub.said
  # The control: the right one.
  hub = Hub(secret="ours")
  assert hub.greet()[0].link and hub.end() is None


@pytest.mark.parametrize(
  "host, bound",
  [
    ("127.0.0.1", "127.0.0.1"),
    ("::1", "::1"),
    # Not this machine's, or a name that others take for another address.
    ("192.0.2.1", ""),
    ("nowhere.invalid", ""),
    ("me", ""),
  ],
)
def test_it_listens_at_the_coordinators_address(monkeypatch, host, bound):
  look = socket.getaddrinfo

  def find(name, *args, **more):
    if name == "nowhere.invalid":
      raise socket.gaierror
    return look("127.0.1.1" if name == "me" else name, *args, **more)

  monkeypatch.setattr(socket, "getaddrinfo", find)
  address = f"[{host}]:12" if ":" in host else f"{host}:12"
  place = runtime.Place(address, 2, 0, None, None, 1.0, 600.0, "")
  if ":" in host and not socket.has_ipv6:
    pytest.skip("no IPv6 here")
  assert meeting.bind_host(place) == bound
  asked = dataclasses.replace(place, bind="0.0.0.0:12")
  assert meeting.bind_host(asked) == "0.0.0.0"


def test_a_port_where_something_else_answers_is_not_joined(monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as server:
    thread = threading.Thread(target=_greet, args=[server], daemon=True)
    thread.start()
    place = a_place(1, 2, server.getsockname()[1])
    with pytest.raises(InputError, match="something else answers there"):
      meeting.meet(place, {})


def _greet(server) -> None:
  while True:
    try:
      server.accept()[0].sendall(b"220 mail ready\r\n")
    except OSError:
      return


def a_place(index: int, count: int, port: int, seconds: float = 1.0):
  address = f"127.0.0.1:{port}"
  return runtime.Place(address, count, index, None, address, seconds, 600.0, "")
