"""A time limit for the head of a request, its first line and headers.

The web server waits for a head without a limit, so that a client could hold a
connection by sending a byte now and then (the Slowloris attack). Here a
connection is closed if the application is not called within the limit, which
starts when the connection is made or at the first byte of a later request.
Between requests, the web server's own keep-alive limit holds.
"""

import asyncio
from collections.abc import Callable
from typing import Any

# (host, port) of a client, as ASGI's scope has it.
Client = tuple[str, int]
# Client of a connection that was lost before its address was read.
UNKNOWN = ("", 0)


class Heads:
  """The connections whose request's head has not arrived yet.

  Args:
    seconds: the most time that a head may take.

  Attributes:
    protocol: makes the protocol of a connection; uvicorn's `http`, which is
      declared as a class, and only called.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._timers: dict[Client, asyncio.TimerHandle] = {}
    self._answered: set[Client] = set()
    self.protocol: Any = self._make_protocol

  def _make_protocol(self, **settings) -> asyncio.Protocol:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    return _Bounded(AutoHTTPProtocol(**settings), self)

  def expect(self, client: Client, close: Callable[[], None]) -> None:
    """Closes a connection unless a request arrives, or is being answered."""
    if client not in self._timers and client not in self._answered:
      loop = asyncio.get_running_loop()
      self._timers[client] = loop.call_later(self._seconds, close)

  def begin(self, client: Client) -> None:
    """Stops a client's timer: its request's head has arrived."""
    self._answered.add(client)
    self._cancel(client)

  def end(self, client: Client) -> None:
    """Notes that a client's request has been answered."""
    self._answered.discard(client)

  def forget(self, client: Client) -> None:
    """Stops a client's timer: its connection is lost."""
    self._cancel(client)

  def _cancel(self, client: Client) -> None:
    timer = self._timers.pop(client, None)
    if timer is not None:
      timer.cancel()


class _Bounded(asyncio.Protocol):
  """A connection that is closed if a request's head does not arrive in time."""

  def __init__(self, inner: asyncio.Protocol, heads: Heads):
    self._inner, self._heads = inner, heads
    self.pause_writing = inner.pause_writing
    self.resume_writing = inner.resume_writing
    self.eof_received = inner.eof_received

  def connection_made(self, transport) -> None:
    host, port = (transport.get_extra_info("peername") or UNKNOWN)[:2]
    self._client, self._close = (str(host), int(port)), transport.close
    self._inner.connection_made(transport)
    self._heads.expect(self._client, self._close)

  def data_received(self, data: bytes) -> None:
    self._heads.expect(self._client, self._close)
    self._inner.data_received(data)

  def connection_lost(self, exc: Exception | None) -> None:
    self._heads.forget(self._client)
    self._inner.connection_lost(exc)
