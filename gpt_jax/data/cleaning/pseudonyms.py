"""Makes the replacements of values that identify a person.

Without a key, a value is replaced by its type: [EMAIL]. With a key, by its type
and a pseudonym: [EMAIL-1f8a09c2b3d4e5f6], where the digits are 64 bits of
HMAC-SHA256 of the type and the value. The same value has the same pseudonym in
all texts and on all machines that have the key. Without the key, it cannot be
computed from a guess of the value. A plain hash would allow that, as there are
few telephone numbers.
"""

import hashlib
import hmac
import re
import unicodedata

from gpt_jax import files
from gpt_jax.data.cleaning import phones
from gpt_jax.exits import InputError

MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096


def read_key(path: str) -> bytes:
  """Returns the key in a file; a newline at its end is not part of it.

  Raises:
    InputError: the file cannot be read, or its key is too short, too long or
      of zero bytes.
  """
  try:
    key = files.read_bytes(path, MAX_KEY_BYTES).rstrip(b"\r\n")
  except files.Damage as damage:
    raise InputError(f"the key file {path} {damage}") from None
  if len(key) < MIN_KEY_BYTES:
    raise InputError(
      f"the key file {path} holds {len(key)} bytes; it must hold "
      f"{MIN_KEY_BYTES} or more, drawn at random"
    )
  if not any(key):
    raise InputError(
      f"the key file {path} holds zero bytes alone, as a file does that was "
      "not written to its end; draw a key at random"
    )
  return key


def replacement(mark: str, value: str, key: bytes | None) -> str:
  """Returns the replacement of a value of the type `mark`."""
  if key is None:
    return f"[{mark}]"
  message = f"{mark}\0{normal_form(mark, value)}".encode()
  return f"[{mark}-{hmac.new(key, message, hashlib.sha256).hexdigest()[:16]}]"


def normal_form(mark: str, value: str) -> str:
  """Returns the normal form of a value, the same for all its spellings."""
  if mark == "PHONE":
    return phones.normal_form(value)
  value = unicodedata.normalize("NFKC", value)
  if mark in ("CARD", "IBAN", "ID", "MAC"):
    return re.sub(r"[^0-9A-Z]", "", value.upper())
  if mark == "SECRET":
    return value
  return " ".join(value.casefold().split())
