"""The right to write a run in a bucket: a numbered lease, renewed regularly.

lock/000003.json names the holder. Object stores have no lock that ends with its
process, but they can create an object only if it does not exist. So the next
holder creates 000004.json; of several that try, one succeeds. All keys that a
holder writes contain the number of its lease. So a holder that was wrongly
presumed dead cannot overwrite what its successor writes; it finds the next
lease and ends.

A holder rewrites its object every BEAT_SECONDS. Another machine presumes it
dead if the object does not change for STALE_SECONDS by that machine's own
clock; on the same machine, process id and start time show at once whether the
holder is alive.
"""

import json
import secrets
import socket
import time
from collections.abc import Callable

from gpt_jax import files
from gpt_jax.exits import InputError
from gpt_jax.machine import places
from gpt_jax.runs import lock

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
POLL_SECONDS = 2.0


class Lost(InputError):
  """Another process has taken over the run."""


class Lease:
  """A lease of this process.

  Attributes:
    address: of the run.
    number: of this lease, larger than that of any earlier lease.
    previous: the `nonce` of the previous lease; None if there was none.
    nonce: random and unique to this lease.
  """

  def __init__(self, address: str, number: int, previous: str | None):
    self.address, self.number, self.previous = address, number, previous
    self.nonce = secrets.token_hex(8)
    self._beats, self._facts = 0, lock.facts()

  def take(self) -> bool:
    """Tries to create the lease; returns whether this process now holds it."""
    return places.create(_at(self.address, self.number), self._record())

  def renew(self) -> None:
    """Shows that the holder is alive.

    Raises:
      Lost: another process has taken over.
    """
    own = _parse(places.read_if_there(_at(self.address, self.number)))
    after = places.read_if_there(_at(self.address, self.number + 1))
    if own.get("nonce") != self.nonce or after is not None:
      raise Lost(
        f"{self.address} was taken over by another process, as this one gave "
        f"no sign of life for {STALE_SECONDS:.0f} s; what it wrote since does "
        "not count"
      )
    self._beats += 1
    places.write(_at(self.address, self.number), self._record())

  def release(self) -> None:
    """Lets the next process in at once."""
    record = self._record(is_released=True)
    places.write(_at(self.address, self.number), record)

  def _record(self, is_released: bool = False) -> bytes:
    own = {"nonce": self.nonce, "beats": self._beats, "released": is_released}
    return json.dumps(self._facts | own).encode()


def take(address: str, say: Callable[[str], None] = print) -> Lease:
  """Takes and returns the lease of a run, once no other process holds it.

  Raises:
    InputError: another process holds it and is alive.
  """
  while True:
    found = places.find(places.join(address, "lock"))
    numbers = sorted(int(k[:6]) for k in found if k[:6].isdecimal())
    last = numbers[-1] if numbers else 0
    previous = _await_end(address, last, say) if last else None
    lease = Lease(address, last + 1, previous)
    if lease.take():
      for old in numbers:
        places.remove(_at(address, old))
      return lease


def _await_end(address: str, number: int, say) -> str | None:
  """Waits until a holder has ended or is presumed dead; returns its nonce."""
  first, began, is_told = None, time.monotonic(), False
  while True:
    text = places.read_if_there(_at(address, number))
    holder = _parse(text)
    nonce = holder.get("nonce")
    is_over = text is None or holder.get("released") is True
    if is_over or (_is_here(holder) and lock.has_ended(holder)):
      return nonce
    if first is None:
      first = text
    who = lock.describe(holder if "pid" in holder else None)
    if text != first:
      raise InputError(
        f"{address} is in use by {who}; end it, wait for it to end, or give "
        "another --workdir"
      )
    if time.monotonic() - began > STALE_SECONDS:
      say(f"{address} was held by {who}, which is gone: taken over")
      return nonce
    if not is_told:
      is_told = True
      say(f"{address} is held by {who}; waiting for a sign of life from it")
    time.sleep(POLL_SECONDS)


def _is_here(holder: dict) -> bool:
  return type(holder.get("pid")) is int and (
    holder.get("host") == socket.gethostname()
  )


def _parse(text: bytes | None) -> dict:
  try:
    holder = files.parse_json(text or b"{}")
  except files.Damage:
    return {}
  return holder if isinstance(holder, dict) else {}


def _at(address: str, number: int) -> str:
  return places.join(address, "lock", f"{number:06d}.json")
