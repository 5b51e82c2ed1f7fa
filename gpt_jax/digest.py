"""SHA-256 digests of stored data, in hexadecimal.

Names, seals and fingerprints on disk come from here. A change of the hashed
bytes would orphan every prepared folder and run, so tests pin the digests.
"""

import hashlib
import json
from typing import Any


def of_bytes(data: bytes) -> str:
  """Returns the digest of bytes."""
  return hashlib.sha256(data).hexdigest()


def of_text(text: str) -> str:
  """Returns the digest of a text in UTF-8."""
  return of_bytes(text.encode())


def of_json(content: Any) -> str:
  """Returns the digest of a JSON value; the order of keys does not matter."""
  return of_text(json.dumps(content, sort_keys=True))


def of_file(file: Any) -> str:
  """Returns the digest of a file that is open to read bytes."""
  return hashlib.file_digest(file, "sha256").hexdigest()


def seal_of(record: dict, key: str) -> str:
  """Returns the digest of a record without its entry `key`, the seal itself."""
  return of_json({name: v for name, v in record.items() if name != key})
