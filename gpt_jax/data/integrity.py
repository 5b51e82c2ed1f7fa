"""Checks that the files of a prepared set are what was written, by hash.

A small set is hashed whenever it is opened. A large set is hashed in threads
while the program compiles, and no id is read before the result. A good result
is cached on this machine, with the size and times of each file, and is valid
until one of these changes.

Design choice: the inode's change time is compared too. No program can set it
back, so an edit that restores size and date is detected as well. What goes
unnoticed is a bit of a large file that flips on the disk itself; with
data.verify=open every file is hashed each time.
"""

import contextlib
import json
import os
import queue
import threading

from gpt_jax import digest, encryption, files
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.exits import InputError
from gpt_jax.machine import runtime

# Bytes of a split below which its files are hashed whenever it is opened.
SMALL_BYTES = 64 << 20
# Threads that hash; more than this would only wait for the disk.
MAX_THREADS = 8
# Hexadecimal digits in the name of a cached result.
_NAME_DIGITS = 32


class Check:
  """The check of the files of one split, which readers wait for.

  Args:
    folder: the prepared folder.
    hashes: {file name: its SHA-256 hex digest}.
    verify: as data.verify.
    key: the key that encrypted the files, or None.

  Attributes:
    is_over: whether the result is known; under "never" there is no check.
    num_bytes: total size of the files, unless verify is "never".
  """

  def __init__(
    self, folder: str, hashes: dict[str, str], verify: str, key=None
  ):
    self._folder, self._key = folder, key
    self._hashes = hashes
    self._is_cached = False
    self._error = None
    self._threads = []
    self.is_over = verify == "never"
    if self.is_over:
      return
    sizes = [os.path.getsize(os.path.join(folder, name)) for name in hashes]
    self.num_bytes = sum(sizes)
    if verify == "open" or self.num_bytes < SMALL_BYTES:
      self.start()
      self.wait()
      return
    self._is_cached = True
    self.is_over = self._is_in_cache()

  def start(self) -> bool:
    """Starts hashing in threads if that is still to be done.

    Returns:
      Whether this call has started it.
    """
    if self.is_over or self._threads:
      return False
    waiting = queue.SimpleQueue()
    for item in self._hashes.items():
      waiting.put(item)
    count = min(MAX_THREADS, os.cpu_count() or 1, len(self._hashes))
    self._before = self._stamps()
    # Daemon threads, so that a run that ends does not wait for them.
    self._threads = [
      threading.Thread(target=self._hash, args=(waiting,), daemon=True)
      for _ in range(count)
    ]
    for thread in self._threads:
      thread.start()
    return True

  def wait(self) -> None:
    """Waits until the files are known to be intact.

    Raises:
      InputError: one is not; it is named.
    """
    if not self.is_over:
      self.start()
      for thread in self._threads:
        thread.join()
      self.is_over = True
      if self._error is None and self._is_cached:
        self._store()
    if self._error is not None:
      raise InputError(self._error)

  def __getstate__(self):
    # The process that unpickles this relies on the result of this process.
    self.wait()
    return self.__dict__ | {"_threads": []}

  def _hash(self, waiting: queue.SimpleQueue) -> None:
    try:
      while self._error is None:
        name, expected = waiting.get_nowait()
        check_file(os.path.join(self._folder, name), expected, self._key)
    except queue.Empty:
      pass
    except Exception as error:  # a thread that dies must leave a result
      self._error = str(error)

  def _stamps(self) -> dict[str, list]:
    """Returns {file name: [expected hash, size, times, inode]}."""
    stamps = {}
    for name, expected in self._hashes.items():
      with contextlib.suppress(OSError):
        s = os.stat(os.path.join(self._folder, name))
        times = [s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        stamps[name] = [expected, s.st_size, *times]
    return stamps

  def _cache_path(self) -> str:
    names = [os.path.realpath(self._folder), sorted(self._hashes)]
    name = digest.of_json(names)[:_NAME_DIGITS]
    return os.path.join(runtime.cache_dir(), "verified", f"{name}.json")

  def _is_in_cache(self) -> bool:
    try:
      content = files.read_json(self._cache_path())
    except files.Damage:
      return False
    stamps = self._stamps()
    return len(stamps) == len(self._hashes) and content == _sealed(stamps)

  def _store(self) -> None:
    stamps = self._stamps()
    # A file that changed while it was hashed has no result.
    if stamps == self._before and len(stamps) == len(self._hashes):
      with contextlib.suppress(OSError):
        files.write_text(self._cache_path(), json.dumps(_sealed(stamps)))


def check_file(path: str, expected: str, key=None) -> None:
  """Raises InputError unless a file has the expected SHA-256."""
  try:
    found = encryption.file_digest(path, key)
  except files.Damage as damage:
    raise InputError(f"{path} {damage}; {manifest_lib.REMEDY}") from None
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None
  if found != expected:
    raise InputError(
      f"{path} has sha256 {found[:12]} where the manifest says "
      f"{expected[:12]}: it is damaged; {manifest_lib.REMEDY}"
    )


def check_size(path: str, expected: int) -> None:
  """Raises InputError unless a path is a regular file of the expected size."""
  try:
    with files.open_bytes(path) as stream:
      found = os.fstat(stream.fileno()).st_size
  except files.Damage as damage:
    what = "is missing" if damage.is_missing else str(damage)
  else:
    if found == expected:
      return
    what = f"has {found} bytes"
  raise InputError(
    f"{path} {what} where its manifest says {expected} bytes; "
    f"{manifest_lib.REMEDY}"
  )


def _sealed(stamps: dict) -> dict:
  return {"files": stamps, "seal": digest.of_json(stamps)}
