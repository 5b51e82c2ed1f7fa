"""Reads the fields of a request's body; raises Refusal for a bad one."""

import json
import math
from collections.abc import Callable
from typing import Any

from gpt_jax import files
from gpt_jax.config import nearest

# Fields that are accepted but ignored: they do not change an answer.
NOTES = ("user", "metadata", "store", "safety_identifier", "service_tier")
# Fields of OpenAI's API for which only one value is accepted.
FIXED = {
  "tools": [],
  "tool_choice": "none",
  "functions": [],
  "function_call": "none",
  "parallel_tool_calls": True,
  "modalities": ["text"],
  "audio": None,
  "prediction": None,
  "suffix": None,
  "dimensions": None,
}


class Refusal(Exception):
  """An error that is sent to the client.

  Attributes:
    status: HTTP status.
    message: a sentence.
    kind, param, code: fields `type`, `param` and `code` of OpenAI's errors.
    headers: additional headers of the answer.
  """

  def __init__(
    self,
    status: int,
    message: object,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
  ):
    super().__init__(str(message))
    self.status, self.message, self.kind = status, str(message), kind
    self.param, self.code, self.headers = param, code, headers or {}

  def to_json(self) -> dict:
    return {
      "error": {
        "message": self.message,
        "type": self.kind,
        "param": self.param,
        "code": self.code,
      }
    }


def read_body(data: bytes) -> dict:
  """Returns a body's JSON object; raises Refusal if it is none."""
  try:
    body = files.parse_json(data.decode("utf-8"))
  except (UnicodeDecodeError, ValueError, RecursionError) as error:
    raise Refusal(400, f"the body is not JSON: {error}") from None
  if not isinstance(body, dict):
    raise Refusal(400, f"the body is {show(body)}; it must be an object")
  return body


class Fields:
  """The fields of a body. `finish` refuses those that were not taken."""

  def __init__(self, body: dict):
    self._body, self._known = body, list(NOTES)

  def take(self, name: str, check: Callable, wanted: str, default: Any) -> Any:
    """Returns a field, or the default where it is missing or null.

    Args:
      check: returns whether a value is valid.
      wanted: what a value must be, for the error.
    """
    self._known.append(name)
    value = self._body.get(name)
    if value is None:
      return default
    if not check(value):
      raise Refusal(
        400, f"{name} is {show(value)}; it must be {wanted}", param=name
      )
    return value

  def number(self, name, low: float, high: float, default):
    is_fine = lambda x: is_number(x) and low <= x <= high
    wanted = f"a number from {low:g} to {high:g}"
    return self.take(name, is_fine, wanted, default)

  def whole(self, name: str, low: int, high: int, default):
    is_fine = lambda x: type(x) is int and low <= x <= high
    return self.take(
      name, is_fine, f"a whole number from {low} to {high}", default
    )

  def switch(self, name: str, default: bool = False) -> bool:
    is_fine = lambda x: type(x) is bool
    return self.take(name, is_fine, "true or false", default)

  def finish(self) -> None:
    """Refuses fields that cannot be honoured, and unknown ones."""
    for name, only in FIXED.items():
      if name not in self._known:
        self.take(name, lambda x, only=only: x == only, show(only), None)
    for name in self._body:
      if name not in self._known:
        raise Refusal(
          400,
          f"unknown field {show(name)}; {nearest(name, self._known)}",
          param=name[:64],
          code="unknown_parameter",
        )


def is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def is_unicode(text: str) -> bool:
  """Returns whether UTF-8 can encode a text: it has no lone surrogates."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def show(value: Any) -> str:
  """Returns a value as JSON, truncated to 60 characters."""
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
