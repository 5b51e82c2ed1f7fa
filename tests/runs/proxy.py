"""A TCP proxy before a server: it counts requests, and fails as it is told."""

import contextlib
import re
import socket
import threading
import time

_REQUEST = re.compile(rb"^(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP/1.1", re.M)
# As S3 says it. GCS sends JSON, of which its client needs none.
_BODY = (
  b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)
_DENIED = (
  b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\n"
  b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)
_NAME = re.compile(rb'^{"name": "([^"\n]+)"', re.M)


class Proxy:
  """Attributes:
  port: where it listens.
  requests: (time, method, path) of each request.
  fault: what becomes of a request: None, or a function of (method, path)
    that returns "drop" to close the connection, "hang" to fall silent,
    "deny" to answer that it is forbidden, or None to pass it on. An upload to
    GCS names its object in its body: the function is then called with that
    name too.
  """

  def __init__(self, target: int):
    self.target, self.fault = target, None
    self.requests: list[tuple[float, str, str]] = []
    self.server = socket.create_server(("127.0.0.1", 0))
    self.port = self.server.getsockname()[1]
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self) -> None:
    self.server.close()

  def most_listings_a_minute(self) -> int:
    """Returns the largest number of listings within 60 seconds."""
    times = [t for t, method, path in self.requests if is_listing(method, path)]
    return max((sum(t <= u < t + 60 for u in times) for t in times), default=0)

  def _accept(self) -> None:
    while True:
      try:
        client, _ = self.server.accept()
      except OSError:
        return
      threading.Thread(target=self._serve, args=(client,), daemon=True).start()

  def _serve(self, client) -> None:
    try:
      # A server of one thread would wait for a client that says nothing.
      if not client.recv(1, socket.MSG_PEEK):
        client.close()
        return
      server = socket.create_connection(("127.0.0.1", self.target))
    except OSError:  # the client is gone, or the server at the end of a test
      client.close()
      return
    args = server, client, False
    threading.Thread(target=self._pass, args=args, daemon=True).start()
    self._pass(client, server, True)

  def _pass(self, one, other, sees: bool) -> None:
    with contextlib.suppress(OSError):
      while data := one.recv(1 << 16):
        fault = self._fault_of(data) if sees else None
        if fault is not None:
          if fault == "deny":
            one.sendall(_DENIED)
          one.close()
          other.close()
          return
        other.sendall(data)
    for end in (one, other):
      with contextlib.suppress(OSError):
        end.close()

  def _fault_of(self, data: bytes) -> str | None:
    """Counts the requests in some bytes; returns what becomes of them."""
    found = [tuple(map(bytes.decode, m)) for m in _REQUEST.findall(data)]
    self.requests += [(time.monotonic(), *one) for one in found]
    found += [("POST", name.decode()) for name in _NAME.findall(data)]
    whats = {self.fault(*one) for one in found} if self.fault else set()
    if "hang" in whats:
      time.sleep(600)
    return next((what for what in ("deny", "drop") if what in whats), None)


def is_listing(method: str, path: str) -> bool:
  """Returns whether a request lists objects: of S3, or of GCS."""
  place, _, query = path.partition("?")
  is_s3 = "list-type=" in query or "prefix=" in query
  return method == "GET" and (is_s3 or place.endswith("/o"))
