"""Requests and answers of HTTP, above ASGI: what a framework would be.

Bodies are counted as they arrive, since nothing below bounds them, and each
answer is written against the watch: a client that reads nothing is left. ASGI
is two functions, so that no package is imported for it; the door alone imports
the web server.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from gpt_jax.deploy.serve.fields import Refusal

# After its client has gone, nobody reads the answer.
GONE = 499


class Bounds(NamedTuple):
  """What a request may cost.

  Attributes:
    body_bytes, body_seconds: of a body, and until it has arrived.
    send_seconds: that a client may take to read what is sent at once.
    head_seconds: until its first line and headers have arrived.
    refusals: that all clients together are told in a second.
  """

  body_bytes: int
  body_seconds: float
  send_seconds: float
  head_seconds: float
  refusals: float


class Request:
  """A request.

  Attributes:
    method, path: of its first line.
    client: the address that it came from, or the name of its key.
    headers: by lower-case name; of several of a name the last.
    read_at: time.monotonic() once its body has been read; before, once it has
      come.
  """

  def __init__(self, scope: dict, receive: Callable, bounds: Bounds):
    self.method, self.path = scope["method"], scope["path"]
    self.client: str = scope["client"][0] if scope["client"] else ""
    text = lambda data: data.decode("latin-1")
    self.headers = {text(k).lower(): text(v) for k, v in scope["headers"]}
    self._receive, self._bounds = receive, bounds
    self.read_at = time.monotonic()

  async def body(self) -> bytes:
    """Returns its body; raises Refusal where it is long, or late."""
    limit, seconds = self._bounds.body_bytes, self._bounds.body_seconds
    too_long = Refusal(
      413,
      f"the body has more than {limit:,} bytes, the most that is read here",
      headers={"connection": "close"},
    )
    size = self.headers.get("content-length", "0")
    if size.isdecimal() and int(size[:18]) > limit:
      raise too_long
    found = bytearray()
    try:
      async with asyncio.timeout(seconds):
        while True:
          message = await self._receive()
          if message["type"] == "http.disconnect":
            raise Refusal(GONE, "the client has gone")
          found += message.get("body", b"")
          if len(found) > limit:
            raise too_long
          if not message.get("more_body", False):
            self.read_at = time.monotonic()
            return bytes(found)
    except TimeoutError:
      raise Refusal(
        408,
        f"the body has not arrived in {seconds:g} seconds",
        headers={"connection": "close"},
      ) from None

  async def wait_until_gone(self) -> None:
    """Returns once the client has gone; the body must have been read."""
    while (await self._receive())["type"] != "http.disconnect":
      pass


class Answer(NamedTuple):
  """What is sent.

  Attributes:
    content: bytes, or pieces as they are made.
    kind: its media type.
    status: of HTTP.
    headers: more of them.
  """

  content: bytes | AsyncIterator[bytes]
  kind: str = "application/json"
  status: int = 200
  headers: dict[str, str] = {}


def json_answer(value: Any, status: int = 200, headers=None) -> Answer:
  data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
  return Answer(data, status=status, headers=headers or {})


def refusal_answer(refusal: Refusal) -> Answer:
  return json_answer(refusal.to_json(), refusal.status, refusal.headers)


async def send_answer(answer: Answer, send: Callable, bounds: Bounds) -> None:
  """Sends an answer; raises TimeoutError where its client does not read."""
  whole = answer.content if isinstance(answer.content, bytes) else None
  headers = {"content-type": answer.kind, **answer.headers}
  if whole is not None:
    headers["content-length"] = str(len(whole))
  await _send(
    send,
    bounds,
    type="http.response.start",
    status=answer.status,
    headers=[(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
  )
  if not isinstance(answer.content, bytes):
    async for piece in answer.content:
      await _send(
        send, bounds, type="http.response.body", body=piece, more_body=True
      )
  await _send(send, bounds, type="http.response.body", body=whole or b"")


async def _send(send: Callable, bounds: Bounds, **message) -> None:
  async with asyncio.timeout(bounds.send_seconds):
    await send(message)


async def unless_gone(request: Request, work: Awaitable) -> Any:
  """Returns what the work does; cancels it where the client goes.

  Raises:
    Refusal: the client has gone.
  """
  working = asyncio.ensure_future(work)
  leaving = asyncio.ensure_future(request.wait_until_gone())
  try:
    await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
      raise Refusal(GONE, "the client has gone")
    return working.result()
  finally:
    for task in (working, leaving):
      task.cancel()
      with contextlib.suppress(BaseException):
        await task
