"""Connects the processes of a run, and compares how they were started.

Process 0 listens at the coordinator's port, where anyone may connect. A
greeting counts if it is complete and signed with the key of this run,
GPT_JAX_SECRET or else the coordinator's address as the processes were given
it. Anything else is dropped, at once or after SOON seconds, and delays no one.
Without a secret this keeps out mistakes, but not an attacker.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import pathlib
import selectors
import socket
import threading
import time

from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.machine import runtime

MAGIC = "gpt_jax processes 2"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Timeout, in seconds, of exchanges that take a healthy peer milliseconds.
SOON = 5.0
# TCP keepalive: a machine that vanishes is noticed after 90 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
# Limit, in bytes, of a greeting, which contains a config.
MAX_GREETING = 1 << 20
# The most connections that have not sent a greeting yet, in addition to the
# number of processes.
MAX_GUESTS = 64


def meet(place: runtime.Place, facts: dict) -> dict[int, "Line"]:
  """Returns {index: connection}: of process 0 to all others, of these to it.

  Raises:
    InputError: a process did not connect in time, or was started differently.
  """
  deadline = time.monotonic() + place.join_seconds
  if place.index == 0:
    return _gather(place, facts, deadline)
  return {0: _call(place, facts, deadline)}


def own_facts() -> dict:
  """Returns versions that must be the same in all processes."""
  import importlib.metadata  # slow to import, and no --help needs it
  import platform

  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
  return {
    "the code of gpt_jax": digest.hexdigest()[:12],
    "Python": ".".join(platform.python_version_tuple()[:2]),
    **{name: importlib.metadata.version(name) for name in PACKAGES},
  }


def _differences(index: int, theirs: dict, ours: dict) -> list[str]:
  """Returns a clause for each difference of process `index` from process 0."""
  names = [*ours, *(name for name in theirs if name not in ours)]
  absent = "absent"
  return [
    f"{name} ({theirs.get(name, absent)!r} in process {index}, "
    f"{ours.get(name, absent)!r} in process 0)"
    for name in names
    if theirs.get(name, absent) != ours.get(name, absent)
  ]


def refusal_of(everyone: dict[int, dict]) -> str | None:
  """Returns a sentence if processes differ from process 0, else None."""
  for index in sorted(everyone):
    clauses = _differences(index, everyone[index], everyone[0])
    if clauses:
      more = len(clauses) - 5
      return (
        "the processes were started differently: "
        + "; ".join(clauses[:5])
        + (f"; and {more} more" if more > 0 else "")
        + "; start all of them with the same command and code"
      )
  return None


def _sign(place: runtime.Place, index: int, count: int, facts: dict) -> str:
  """Returns the HMAC of a greeting under the key of this run."""
  body = json.dumps([MAGIC, index, count, facts], sort_keys=True)
  key = place.secret or place.address
  return hmac.new(key.encode(), body.encode(), hashlib.sha256).hexdigest()


def _read_greeting(place: runtime.Place, text: bytes) -> tuple | None:
  """Returns (index, count, facts) of a greeting; None if it is not valid."""
  try:
    hello = files.parse_json(text, is_bounded=False)
  except files.Damage:
    return None
  if not isinstance(hello, dict) or hello.get("magic") != MAGIC:
    return None
  index, count = hello.get("index"), hello.get("count")
  facts, proof = hello.get("facts"), hello.get("proof")
  if type(index) is not int or type(count) is not int:
    return None
  if not isinstance(facts, dict) or not isinstance(proof, str):
    return None
  wanted = _sign(place, index, count, facts)
  if not hmac.compare_digest(proof.encode(errors="replace"), wanted.encode()):
    return None
  return (index, count, facts) if 0 < index < count else None


class _Guest:
  """A connection that has not sent its greeting yet.

  Attributes:
    until: when it is dropped, on the monotonic clock.
  """

  def __init__(self, link: socket.socket):
    link.setblocking(False)
    self.link, self.text = link, b""
    self.until = time.monotonic() + SOON

  def read(self) -> bytes | None:
    """Returns the greeting, None if incomplete, b"" if none can follow."""
    try:
      data = self.link.recv(1 << 16)
    except BlockingIOError:
      return None
    except OSError:
      return b""
    self.text += data
    if b"\n" in data:
      return self.text.partition(b"\n")[0]
    is_hopeless = self.text[:1] != b"{" or len(self.text) > MAX_GREETING
    return b"" if not data or is_hopeless else None


def _gather(place, facts: dict, deadline: float) -> dict[int, "Line"]:
  """Process 0's side: waits for the others and compares their facts."""
  lines, everyone = {}, {0: facts}
  refusal, num_dropped = None, 0
  with _listen(place) as server, selectors.DefaultSelector() as selector:
    server.setblocking(False)
    selector.register(server, selectors.EVENT_READ)
    guests: dict[socket.socket, _Guest] = {}

    def dismiss(guest: _Guest) -> None:
      selector.unregister(guest.link)
      del guests[guest.link]
      guest.link.close()

    while len(lines) < place.count - 1 and refusal is None:
      now = time.monotonic()
      if now >= deadline:
        refusal = _missing_sentence(place, lines, num_dropped)
        break
      for guest in [g for g in guests.values() if now > g.until]:
        num_dropped += 1
        dismiss(guest)
      for key, _ in selector.select(min(0.2, deadline - now)):
        if key.fileobj is server:
          with contextlib.suppress(OSError):
            link = server.accept()[0]
            guests[link] = _Guest(link)
            selector.register(link, selectors.EVENT_READ)
          if len(guests) > place.count + MAX_GUESTS:
            num_dropped += 1
            dismiss(next(iter(guests.values())))  # a flood: drop the oldest
          continue
        guest = guests.get(key.fileobj)
        if guest is None or (text := guest.read()) is None:
          continue
        hello = _read_greeting(place, text)
        if hello is None:
          num_dropped += 1
          dismiss(guest)
          continue
        selector.unregister(guest.link)
        line = Line(guests.pop(guest.link).link)
        k, count, theirs = hello
        if count != place.count:
          refusal = (
            f"process {k} was started as one of {count} processes and process "
            f"0 as one of {place.count}; the number must be the same"
          )
        elif k in lines:
          refusal = (
            f"two processes were started as process {k} of {place.count}; each "
            "needs its own index"
          )
        else:
          lines[k], everyone[k] = line, theirs
          continue
        with contextlib.suppress(OSError):
          line.write({"refusal": refusal})
    for guest in list(guests.values()):
      dismiss(guest)
  refusal = refusal or refusal_of(everyone)
  for line in lines.values():
    with contextlib.suppress(OSError):
      line.write({"refusal": refusal})
  if refusal:
    raise InputError(refusal)
  return lines


def _missing_sentence(place, lines: dict, num_dropped: int) -> str:
  missing = [k for k in range(1, place.count) if k not in lines]
  named = ", ".join(map(str, missing[:8]))
  more = ", ..." if len(missing) > 8 else ""
  dropped = (
    f"; {num_dropped:,} other connections were dropped: not of this run, or "
    "with another GPT_JAX_SECRET or JAX_COORDINATOR_ADDRESS"
    if num_dropped
    else ""
  )
  return (
    f"{len(missing)} of {place.count} processes did not connect to "
    f"{place.address} within {place.join_seconds:g} s (missing: "
    f"{named}{more}){dropped}; check whether they run, or wait longer with "
    "GPT_JAX_JOIN_SECONDS"
  )


def bind_host(place: runtime.Place) -> str:
  """Returns the address that process 0 listens at; "" for all interfaces.

  It is the coordinator's address, if that belongs to this machine. A host name
  that resolves to loopback (127.0.1.1 in /etc/hosts) does not count: other
  machines resolve it differently.
  """
  if place.bind is not None:
    return place.bind.rpartition(":")[0].strip("[]")
  try:
    found = socket.getaddrinfo(place.host, 0, type=socket.SOCK_STREAM)
    family, host = found[0][0], str(found[0][4][0])
    is_named = place.host not in ("localhost", host)
    if is_named and ipaddress.ip_address(host).is_loopback:
      return ""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
      probe.bind((host, 0))
  except (OSError, ValueError):
    return ""
  return host


def _listen(place) -> socket.socket:
  host = bind_host(place)
  port = (place.bind or place.address).rpartition(":")[2]
  try:
    if host in ("", "::") and socket.has_dualstack_ipv6():
      return socket.create_server(
        ("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True
      )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family)
  except (OSError, ValueError, OverflowError) as error:
    raise InputError(
      f"process 0 cannot open port {port} for the other processes: "
      f"{getattr(error, 'strerror', None) or error}; choose a free one in "
      "JAX_COORDINATOR_ADDRESS"
    ) from None


def _call(place, facts: dict, deadline: float) -> "Line":
  """The other processes' side: greets process 0 and waits for its answer."""
  hello = {
    "magic": MAGIC,
    "index": place.index,
    "count": place.count,
    "facts": facts,
    "proof": _sign(place, place.index, place.count, facts),
  }
  reason = "nothing answers"
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      raise InputError(
        f"process {place.index} of {place.count} got no answer from process 0 "
        f"at {place.address} within {place.join_seconds:g} s ({reason}); check "
        "that it runs and can be reached, or wait longer with "
        "GPT_JAX_JOIN_SECONDS"
      )
    try:
      link = socket.create_connection((place.host, place.port), min(left, SOON))
      line = Line(link)
      line.write(hello)
      # 2 s longer than process 0 itself, whose refusal names who is missing.
      refusal = line.read(max(0.01, left) + 2)["refusal"]
      if not isinstance(refusal, str | None):
        raise TypeError
    except TimeoutError:
      reason = "it does not answer"
    except (ConnectionAbortedError, ConnectionResetError):
      reason = (
        "it closes the connection: GPT_JAX_SECRET and "
        "JAX_COORDINATOR_ADDRESS must be the same in all processes"
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      reason = (
        getattr(error, "strerror", None) or "something else answers there"
      )
    else:
      if refusal:
        raise InputError(refusal)
      return line
    time.sleep(min(0.2, max(0.0, left)))


class Line:
  """A connection on which each message is a line of JSON."""

  def __init__(self, link: socket.socket):
    self.link = link
    self.left = b""
    self._writing = threading.Lock()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
      if hasattr(socket, name):
        link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def write(self, message: dict) -> None:
    with self._writing:
      self.link.settimeout(SOON)
      self.link.sendall(json.dumps(message).encode() + b"\n")

  def read(self, seconds: float) -> dict:
    """Returns the next message.

    Raises:
      ConnectionError: the other side has closed the connection.
    """
    deadline = time.monotonic() + seconds
    while True:
      messages = self.receive(max(0.01, deadline - time.monotonic()), 1)
      if messages:
        return messages[0]

  def receive(self, seconds: float, limit: int | None = None) -> list[dict]:
    """Returns the messages that are complete after at most one read."""
    self.link.settimeout(seconds)
    if b"\n" not in self.left:
      data = self.link.recv(1 << 16)
      if not data or len(self.left) > 1 << 24:
        raise ConnectionResetError("closed")
      self.left += data
    *whole, self.left = self.left.split(b"\n")
    if limit is not None and len(whole) > limit:
      self.left = b"\n".join([*whole[limit:], self.left])
      whole = whole[:limit]
    return [files.parse_json(text, is_bounded=False) for text in whole]
