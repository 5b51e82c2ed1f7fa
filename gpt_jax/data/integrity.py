"""Are the files of a prepared set what was written? Their hashes, in threads.

A small set is hashed each time it is opened. A large one is hashed in threads
while the program compiles, and nobody reads an id before the verdict; that
its files were right is remembered by size and times of change, in the cache
folder of this machine. Design choice: the time of the last change of the
inode counts too, which no program can set back, so an edit that restores
size and date is found as well. Not found is a bit that the disk itself loses
in a large file; data.verify=open hashes all, each time.
"""

import contextlib
import hashlib
import json
import os
import queue
import threading

from gpt_jax import files
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.exits import InputError
from gpt_jax.machine import runtime

# Bytes below which a set is hashed at each opening.
SMALL_BYTES = 64 << 20
# Threads that hash; more would wait for the disk.
MAX_THREADS = 8


class Check:
  """The verdict on the files of one split, awaited before they are read.

  Args:
    folder: the prepared folder.
    hashes: sha256 hex of each file, by its name.
    verify: word of data.verify.

  Attributes:
    is_over: whether the verdict is known; under "never" there is none.
  """

  def __init__(self, folder: str, hashes: dict[str, str], verify: str):
    self._folder = folder
    self._hashes = hashes
    self._is_remembering = False
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
    self._is_remembering = True
    self.is_over = self._is_remembered()

  def start(self) -> bool:
    """Begins to hash where that is still to be done, and returns at once.

    Returns:
      Whether it has begun now.
    """
    if self.is_over or self._threads:
      return False
    waiting = queue.SimpleQueue()
    for item in self._hashes.items():
      waiting.put(item)
    count = min(MAX_THREADS, os.cpu_count() or 1, len(self._hashes))
    self._before = self._stamps()
    # Daemons: a run that is stopped does not wait for them.
    self._threads = [
      threading.Thread(target=self._hash, args=(waiting,), daemon=True)
      for _ in range(count)
    ]
    for thread in self._threads:
      thread.start()
    return True

  def wait(self) -> None:
    """Returns once the files are known to be right.

    Raises:
      InputError: one is not; it is named.
    """
    if not self.is_over:
      self.start()
      for thread in self._threads:
        thread.join()
      self.is_over = True
      if self._error is None and self._is_remembering:
        self._remember()
    if self._error is not None:
      raise InputError(self._error)

  def __getstate__(self):
    # Another process reads what this one has found right.
    self.wait()
    return self.__dict__ | {"_threads": []}

  def _hash(self, waiting: queue.SimpleQueue) -> None:
    try:
      while self._error is None:
        name, expected = waiting.get_nowait()
        check_file(os.path.join(self._folder, name), expected)
    except queue.Empty:
      pass
    except Exception as error:  # anything else would leave no verdict
      self._error = str(error)

  def _stamps(self) -> dict[str, list[int]]:
    stamps = {}
    for name, digest in self._hashes.items():
      with contextlib.suppress(OSError):
        s = os.stat(os.path.join(self._folder, name))
        times = [s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        stamps[name] = [digest, s.st_size, *times]
    return stamps

  def _memory(self) -> str:
    names = [os.path.realpath(self._folder), sorted(self._hashes)]
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
    return os.path.join(runtime.cache_dir(), "verified", f"{key}.json")

  def _is_remembered(self) -> bool:
    try:
      content = files.read_json(self._memory())
    except files.Damage:
      return False
    # Sealed by being written whole: a changed entry matches no file.
    stamps = self._stamps()
    return len(stamps) == len(self._hashes) and content == _sealed(stamps)

  def _remember(self) -> None:
    stamps = self._stamps()
    if stamps == self._before and len(stamps) == len(self._hashes):
      with contextlib.suppress(OSError):
        files.write_text(self._memory(), json.dumps(_sealed(stamps)))


def check_file(path: str, expected: str) -> None:
  """Raises InputError unless a file has the sha256 that is expected."""
  try:
    with files.open_bytes(path) as stream:
      found = hashlib.file_digest(stream, "sha256").hexdigest()
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
  """Raises InputError unless a regular file has the size that is expected."""
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
  text = json.dumps(stamps, sort_keys=True)
  return {
    "files": stamps,
    "seal": hashlib.sha256(text.encode()).hexdigest(),
  }
