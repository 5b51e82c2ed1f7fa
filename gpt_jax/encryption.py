"""Encrypted files and arrays: AES-256-GCM in blocks.

A file is MAGIC, a salt of 16 bytes, a check of the key of 16 bytes, and blocks
of BLOCK bytes, each with a tag of 16 bytes. The key of a file is
HMAC-SHA256(key, salt and name), so that no nonce is used twice and a file does
not pass for one of another name. The nonce of a block is its index, and its
additional data says whether it is the last: a block that is changed, moved or
missing is noticed (Hoang et al. 2015, STREAM). Design choice: blocks are read
where they are needed, so that a set may be larger than memory.
"""

import collections
import contextlib
import hashlib
import hmac
import io
import os
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import digest, files
from gpt_jax.exits import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import key_command

MAGIC = b"gptjaxE1"
BLOCK = 1 << 16
TAG = SALT = 16
HEADER = len(MAGIC) + SALT + TAG
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096
# The value of data.key for a key that the user's command prints.
COMMAND = "command"
# Number of decrypted blocks of a file that stay in memory.
_CACHED = 8


class Key(NamedTuple):
  """A key, and where it came from.

  Attributes:
    secret: 32 bytes.
    origin: the path of its file, or COMMAND.
  """

  secret: bytes
  origin: str

  @property
  def id(self) -> str:
    """Identifies the key without revealing it."""
    return self.mac(b"id").hex()[:16]

  def mac(self, data: bytes) -> bytes:
    """Returns HMAC-SHA256 of some bytes."""
    return hmac.new(self.secret, data, hashlib.sha256).digest()

  def mark(self, digest: str) -> str:
    """Returns a keyed form of a digest, in hexadecimal.

    The plain digest would tell whether a guessed text is the right one.
    """
    return self.mac(b"digest\0" + digest.encode()).hex()

  def note(self) -> dict[str, str]:
    """Returns the record to store beside encrypted data; `find` reads it."""
    return {"id": self.id, "origin": self.origin}


def read_key(origin: str) -> Key:
  """Returns the key in a file, or with COMMAND the key that the command prints.

  Raises:
    InputError: there is none, or it is too short, too long or of zero bytes.
  """
  if origin == COMMAND:
    data = key_command.run()
    what = f"the command of {key_command.VARIABLE} prints"
  else:
    origin = os.path.abspath(files.user_path("data.key", origin))
    what = f"the key file {origin} holds"
    try:
      data = files.read_bytes(origin, MAX_KEY_BYTES)
    except Damage as damage:
      raise InputError(f"the key file {origin} {damage}") from None
  data = data.rstrip(b"\r\n")
  if not MIN_KEY_BYTES <= len(data) <= MAX_KEY_BYTES:
    raise InputError(
      f"{what} {len(data):,} bytes; a key has {MIN_KEY_BYTES} to "
      f"{MAX_KEY_BYTES:,}, drawn at random: head -c 32 /dev/urandom > KEY"
    )
  if not any(data):
    raise InputError(
      f"{what} zero bytes alone, as a file does that was not written to its "
      "end; draw a key at random: head -c 32 /dev/urandom > KEY"
    )
  secret = hmac.new(b"gpt_jax key", data, hashlib.sha256).digest()
  return Key(secret, origin)


def find(note: Any, what: str) -> Key:
  """Returns the key that encrypted something.

  Args:
    note: as Key.note returned it.
    what: what is encrypted, for the error.

  Raises:
    InputError: the key cannot be read, or is another.
  """
  origin = note["origin"]
  if key_command.is_set() and not os.path.exists(origin):
    origin = COMMAND
  try:
    key = read_key(origin)
  except InputError as error:
    raise InputError(
      f"{what} is encrypted, and {error}; put the key back there, or set "
      f"{key_command.VARIABLE} to a command that prints it"
    ) from None
  if key.id != note["id"]:
    raise InputError(
      f"{what} was encrypted with key {note['id']}, and {origin} gives key "
      f"{key.id}; give the key that it was written with"
    )
  return key


def _cipher(secret: bytes):
  """Returns AES-GCM with a key of 32 bytes."""
  try:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
  except ImportError:
    raise InputError(
      "encryption needs the package cryptography; install it with "
      f"{files.pip('encrypt')}"
    ) from None
  return AESGCM(secret)


def _file_secret(key: Key, salt: bytes, name: str) -> bytes:
  return key.mac(b"file\0" + salt + name.encode())


def _check_of(secret: bytes) -> bytes:
  return hmac.new(secret, b"check", hashlib.sha256).digest()[:TAG]


def stored_size(size: int) -> int:
  """Returns the bytes of an encrypted file of `size` bytes."""
  return HEADER + size + TAG * max(1, -(-size // BLOCK))


class Writer:
  """Encrypts data written to a binary file; `finish` completes it.

  Args:
    name: the file's name, which a Reader must be given too.
  """

  def __init__(self, file, key: Key, name: str):
    salt = os.urandom(SALT)
    secret = _file_secret(key, salt, name)
    self._file, self._cipher = file, _cipher(secret)
    self._held, self._index = bytearray(), 0
    file.write(MAGIC + salt + _check_of(secret))

  def write(self, data) -> None:
    self._held += data
    while len(self._held) > BLOCK:  # the last block is known at the end
      self._put(bytes(self._held[:BLOCK]), b"more")
      del self._held[:BLOCK]

  def finish(self) -> None:
    """Writes the last block, which may be empty."""
    self._put(bytes(self._held), b"last")

  def _put(self, data: bytes, place: bytes) -> None:
    nonce = self._index.to_bytes(12, "big")
    self._file.write(self._cipher.encrypt(nonce, data, place))
    self._index += 1


class Reader:
  """The bytes of an encrypted file, decrypted as they are read.

  Args:
    file: opened to read bytes; its position may move.
    size: bytes of the encrypted file.
    name: the name that it was written under.

  Attributes:
    size: bytes when decrypted.

  Raises:
    Damage: the file is not encrypted, was encrypted with another key, or its
      end is missing.
  """

  def __init__(self, file, size: int, key: Key, name: str):
    head = file.read(HEADER)
    if len(head) < HEADER or not head.startswith(MAGIC):
      raise Damage("is not encrypted, or its first bytes are damaged")
    salt, check = head[len(MAGIC) : -TAG], head[-TAG:]
    secret = _file_secret(key, salt, name)
    if not hmac.compare_digest(check, _check_of(secret)):
      raise Damage(
        "was encrypted with another key or under another name, or its first "
        "bytes are damaged"
      )
    self._file, self._cipher = file, _cipher(secret)
    self._cache: collections.OrderedDict[int, bytes] = collections.OrderedDict()
    self._count = max(1, -(-(size - HEADER) // (BLOCK + TAG)))
    self.size = size - HEADER - TAG * self._count
    self._block(self._count - 1)  # which says that it is the last

  def read(self, start: int, stop: int) -> bytes:
    """Returns bytes [start, stop), cut where the file ends."""
    stop = min(stop, self.size)
    if start >= stop:
      return b""
    first = start // BLOCK
    blocks = range(first, -(-stop // BLOCK))
    data = b"".join(map(self._block, blocks))
    return data[start - first * BLOCK : stop - first * BLOCK]

  def digest(self) -> str:
    """Returns the SHA-256 hex digest of all bytes, by reading them."""
    hashed = hashlib.sha256()
    for start in range(0, self.size, BLOCK):
      hashed.update(self.read(start, start + BLOCK))
    return hashed.hexdigest()

  def close(self) -> None:
    self._file.close()

  def _block(self, index: int) -> bytes:
    if index in self._cache:
      self._cache.move_to_end(index)
      return self._cache[index]
    from cryptography.exceptions import InvalidTag

    self._file.seek(HEADER + index * (BLOCK + TAG))
    data = self._file.read(BLOCK + TAG)
    place = b"last" if index == self._count - 1 else b"more"
    try:
      found = self._cipher.decrypt(index.to_bytes(12, "big"), data, place)
    except (InvalidTag, ValueError):
      raise Damage(
        f"is damaged or cut: block {index} of {self._count} is not what was "
        "encrypted there"
      ) from None
    self._cache[index] = found
    if len(self._cache) > _CACHED:
      self._cache.popitem(last=False)
    return found


def open_file(path: str, key: Key) -> Reader:
  """Returns the reader of a file; raises Damage as Reader and open_bytes."""
  file = files.open_bytes(path)
  size = os.fstat(file.fileno()).st_size
  try:
    return Reader(file, size, key, os.path.basename(path))
  except Damage:
    file.close()
    raise


class Array:
  """An encrypted file as a one-dimensional array; slices are read on demand.

  Args:
    path: of the file, also named in errors.
  """

  def __init__(self, path: str, key: Key, dtype: np.dtype):
    self._path, self._dtype = path, dtype
    try:
      self._reader = open_file(path, key)
    except Damage as damage:
      raise InputError(f"{path} {damage}") from None

  def __len__(self) -> int:
    return self._reader.size // self._dtype.itemsize

  def __getitem__(self, part: slice) -> np.ndarray:
    start, stop, _ = part.indices(len(self))
    size = self._dtype.itemsize
    try:
      data = self._reader.read(start * size, stop * size)
    except Damage as damage:
      raise InputError(f"{self._path} {damage}") from None
    return np.frombuffer(data, self._dtype)


class Output:
  """A file that is written in order, encrypted if there is a key.

  Args:
    name: the name to encrypt under; None for the file name of `path`.
  """

  def __init__(self, path: str, key: Key | None, name: str | None = None):
    self._file = open(path, "wb", buffering=1 << 20)
    self._key, self._digest = key, hashlib.sha256()
    self._writer = None
    if key is not None:
      self._writer = Writer(self._file, key, name or os.path.basename(path))

  def write(self, data: bytes) -> None:
    (self._writer or self._file).write(data)
    self._digest.update(data)

  def finish(self) -> str:
    """Completes the file on the disk; returns its digest, as file_digest."""
    with self._file as file:
      if self._writer is not None:
        self._writer.finish()
      file.flush()
      os.fsync(file.fileno())
    found = self._digest.hexdigest()
    return found if self._key is None else self._key.mark(found)

  def close(self) -> None:
    """Closes the file, which only `finish` completes."""
    self._file.close()


class Stream:
  """A file that is read in order, decrypted if there is a key.

  Raises:
    Damage: as Reader and open_bytes.
  """

  def __init__(self, path: str, key: Key | None):
    self._source: Any = (
      files.open_bytes(path) if key is None else open_file(path, key)
    )
    self._at = 0

  def read(self, size: int) -> bytes:
    if not isinstance(self._source, Reader):
      return self._source.read(size)
    data = self._source.read(self._at, self._at + size)
    self._at += len(data)
    return data

  def close(self) -> None:
    self._source.close()


def encrypt(data: bytes, key: Key, name: str) -> bytes:
  """Returns the content of an encrypted file."""
  file = io.BytesIO()
  writer = Writer(file, key, name)
  writer.write(data)
  writer.finish()
  return file.getvalue()


def decrypt(data: bytes, key: Key, name: str) -> bytes:
  """Returns what `encrypt` encrypted; raises Damage as Reader."""
  reader = Reader(io.BytesIO(data), len(data), key, name)
  return reader.read(0, reader.size)


def file_digest(path: str, key: Key | None) -> str:
  """Returns the digest that a manifest has of a file.

  SHA-256 in hexadecimal; for an encrypted file, Key.mark of the SHA-256 of its
  content, so that it does not depend on the salt.

  Raises:
    Damage: the file cannot be read, or not with this key.
    OSError: the disk fails.
  """
  if key is None:
    with files.open_bytes(path) as stream:
      return digest.of_file(stream)
  with contextlib.closing(open_file(path, key)) as reader:
    return key.mark(reader.digest())
