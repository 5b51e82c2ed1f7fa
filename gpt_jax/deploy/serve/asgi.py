"""HTTP requests and answers on plain ASGI, in place of a web framework.

The size of a body is checked as it arrives, since the web server does not limit
it, and each write of an answer has a time limit, so that a client that does not
read is dropped. ASGI needs no package: it is two functions. Only the command
gpt_jax.serve and heads.py import the web server.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from gpt_jax.deploy.serve.fields import Refusal

# Status of a request whose client has gone (nginx's); nobody reads it.
GONE = 499


class Bounds(NamedTuple):
  """Limits of a request.

  Attributes:
    body_bytes: most bytes of a body.
    body_seconds: most time until a body has arrived.
    send_seconds: most time for one write to a client.
    head_seconds: most time until the first line and headers have arrived.
    refusals: most refusals per second, to all clients together.
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
    headers: {lower-case name: value}; of several with one name, the last.
    read_at: time.monotonic() at which its body had been read, or until then at
      which its head had.
  """

  def __init__(self, scope: dict, receive: Callable, bounds: Bounds):
    self.method, self.path = scope["method"], scope["path"]
    self.client: str = scope["client"][0] if scope["client"] else ""
    text = lambda data: data.decode("latin-1")
    self.headers = {text(k).lower(): text(v) for k, v in scope["headers"]}
    self._receive, self._bounds = receive, bounds
    self.read_at = time.monotonic()

  async def body(self) -> bytes:
    """Returns the body; raises Refusal if it is too long or too late."""
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
    """Waits until the client disconnects; the body must have been read."""
    while (await self._receive())["type"] != "http.disconnect":
      pass


class Answer(NamedTuple):
  """An HTTP answer.

  Attributes:
    content: bytes, or pieces of a streamed body.
    kind: its media type.
    status: HTTP status.
    headers: additional headers.
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
  """Sends an answer; raises TimeoutError if its client does not read it."""
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
  """Returns the result of `work`; cancels it if the client disconnects.

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
