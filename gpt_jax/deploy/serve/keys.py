"""API keys of clients, and the number of requests that each may make."""

import collections
import hashlib
import time
from typing import NamedTuple

from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.deploy.serve.fields import Refusal

WINDOW_SECONDS = 60


class Key(NamedTuple):
  """A client's key.

  Attributes:
    name: of the client.
    per_minute: most requests with it in a minute; 0 for any number.
  """

  name: str
  per_minute: int


class Keys:
  """The API keys of a file, and when each was used in the last minute.

  Args:
    path: a file of lines KEY NAME PER_MINUTE; None: no key is needed.

  Raises:
    InputError: the file cannot be read, a line has another form, or there is no
      key.
  """

  def __init__(self, path: str | None):
    self._keys: dict[bytes, Key] = {}
    self._times: dict[str, collections.deque] = {}
    self.is_open = path is None
    if path is None:
      return
    try:
      text = files.read_text(path)
    except files.Damage as damage:
      raise InputError(f"--keys: {path} {damage}") from None
    for number, line in enumerate(text.splitlines(), 1):
      if not line.strip() or line.startswith("#"):
        continue
      words = line.split()
      if len(words) != 3 or not words[2].isdecimal() or len(words[0]) < 16:
        raise InputError(
          f"{path}, line {number} has {len(words)} words; it must be KEY NAME "
          "PER_MINUTE: a key of 16 characters or more, who has it, and how "
          "many requests a minute it may make (0: any number)"
        )
      self._keys[_digest(words[0])] = Key(words[1], int(words[2]))
    if not self._keys:
      raise InputError(f"{path} holds no key; it must hold one or more")

  def count(self, header: str | None) -> str | None:
    """Counts a request; returns its client's name, or None without keys.

    Args:
      header: the request's Authorization header.

    Raises:
      Refusal: the request has no valid key, or its key has made too many.
    """
    if self.is_open:
      return None
    scheme, _, word = (header or "").partition(" ")
    key = self._keys.get(_digest(word.strip()))
    if scheme.lower() != "bearer" or key is None:
      raise Refusal(
        401,
        "the header Authorization must be 'Bearer KEY', with a key of this "
        "server",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
      )
    if not key.per_minute:
      return key.name
    now = time.monotonic()
    times = self._times.setdefault(key.name, collections.deque())
    while times and now - times[0] > WINDOW_SECONDS:
      times.popleft()
    if len(times) >= key.per_minute:
      wait = int(WINDOW_SECONDS - (now - times[0])) + 1
      raise Refusal(
        429,
        f"the key of {key.name} may make {key.per_minute} requests a minute",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(wait)},
      )
    times.append(now)
    return key.name


def _digest(key: str) -> bytes:
  """Returns a key's hash. Looking up hashes leaks nothing by its timing."""
  return hashlib.sha256(key.encode()).digest()
