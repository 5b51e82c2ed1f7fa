"""A local cache, of bounded size, of objects fetched from a bucket.

The cache consists of units, folders below cache_dir()/places. A unit is in use
while a process holds its lock, which a process releases however it ends. If
room is needed, the least recently used units are removed.

An object is identified by its address, size, date and tag. A changed object is
therefore another unit, and a cached unit is never compared with the store.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable

from gpt_jax import digest, files
from gpt_jax.exits import InputError
from gpt_jax.machine import places, runtime

# Limit of all units together, in bytes, unless GPT_JAX_CACHE_BYTES is set.
MAX_BYTES = 100 << 30
VARIABLE = "GPT_JAX_CACHE_BYTES"
# Name of the file that marks a unit as complete.
WHOLE = ".whole"

# Locks that this process holds until it ends: {name of the unit: descriptor}.
_HELD: dict[str, int] = {}
_KNOWN: dict[str, places.Found] = {}


def top() -> str:
  """Returns the folder of all units."""
  return os.path.join(runtime.cache_dir(), "places")


def name_of(address: str, *facts) -> str:
  """Returns the name of a unit: the last word of its address, and a digest."""
  words = re.findall(r"[A-Za-z0-9]+", address)
  key = digest.of_json([address, *facts])[:16]
  return f"{words[-1][:24].lower()}-{key}"


def hold(name: str) -> str:
  """Locks a unit until this process ends; returns its folder."""
  path = os.path.join(top(), name)
  if name not in _HELD:
    _HELD[name] = _lock(name, fcntl.LOCK_SH)
    os.makedirs(path, exist_ok=True)
  return path


def fill(name: str, size: int, make: Callable[[str], object]) -> str:
  """Returns the folder of a unit, which one process fills if it is missing.

  Args:
    size: bytes that `make` will write.
    make: fills the folder; if the process is killed meanwhile, the unit does
      not count as complete.

  Raises:
    InputError: the disk is full, or the cache's limit leaves no room.
  """
  try:
    return _fill(name, size, make)
  except OSError as error:
    if error.errno not in files.DISK_FULL:
      raise
    raise InputError(
      f"the disk of the cache {top()} is full; make room there and go on with "
      "the same command, or set XDG_CACHE_HOME to a folder on another disk"
    ) from None


def _fill(name: str, size: int, make: Callable[[str], object]) -> str:
  path = os.path.join(top(), name)
  while True:
    hold(name)
    if os.path.lexists(os.path.join(path, WHOLE)):
      return path
    release(name)
    handle = _lock(name, fcntl.LOCK_EX)
    try:
      if not os.path.lexists(os.path.join(path, WHOLE)):
        shutil.rmtree(path, ignore_errors=True)
        make_room(size, name)
        os.makedirs(path)
        make(path)
        files.write_bytes(os.path.join(path, WHOLE), b"")
    except BaseException:
      shutil.rmtree(path, ignore_errors=True)
      raise
    finally:
      os.close(handle)


def release(name: str) -> None:
  """Lets other processes remove a unit."""
  handle = _HELD.pop(name, None)
  if handle is not None:
    os.close(handle)


def remove(name: str) -> None:
  """Removes a unit of this process, unless another process uses it."""
  release(name)
  with contextlib.suppress(OSError):
    _clear(name)


def _clear(name: str) -> None:
  """Removes a unit; raises BlockingIOError if a process uses it."""
  handle = _lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
  try:
    shutil.rmtree(os.path.join(top(), name), ignore_errors=True)
    os.unlink(os.path.join(top(), f"{name}.lock"))
  finally:
    os.close(handle)


def make_room(size: int, wanted: str = "") -> None:
  """Removes the least recently used units until `size` bytes fit.

  Units that are in use stay.

  Raises:
    InputError: the bytes cannot fit.
  """
  bound = max_bytes()
  sizes = {name: _size(name) for name in _units() if name != wanted}
  total = sum(sizes.values())
  for name in sorted(sizes, key=_used):
    if total + size <= bound:
      return
    with contextlib.suppress(BlockingIOError):
      _clear(name)
      total -= sizes[name]
  if total + size > bound:
    raise InputError(
      f"the cache {top()} may hold {bound:,} bytes, {total:,} are in use and "
      f"{size:,} more are needed; set {VARIABLE} to a larger number"
    )


def max_bytes() -> int:
  """Returns the limit of all units together, in bytes."""
  text = os.environ.get(VARIABLE) or str(MAX_BYTES)
  if not (text.isascii() and text.isdigit()):
    raise InputError(f"{VARIABLE} is {text!r}; it must be a number of bytes")
  return int(text)


def stat(path: str) -> tuple[int, int]:
  """Returns (size, modification time in ns) of a file or an object.

  Raises:
    OSError: there is no such file.
    Unreached: there is no such object.
  """
  if not files.is_address(path):
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
  if path not in _KNOWN:
    _KNOWN[path] = places.stat(path)
  return _KNOWN[path].size, _KNOWN[path].time_ns


def note(found: dict[str, places.Found]) -> None:
  """Remembers objects of a listing, {address: Found}, for `stat`."""
  _KNOWN.update(found)


def local(path: str) -> str:
  """Returns a path unchanged, or the local file of an object at an address."""
  if not files.is_address(path):
    return path
  size, _ = stat(path)
  found = _KNOWN[path]
  name = name_of(path, found.size, found.time_ns, found.tag)
  # The file keeps the object's name, whose suffix may tell its format.
  word = os.path.basename(path) or "object"

  def make(folder: str) -> None:
    places.fetch(path, os.path.join(folder, word), found)

  return os.path.join(fill(name, size, make), word)


def local_folder(
  address: str, is_wanted: Callable[[str], bool] = lambda key: True
) -> str:
  """Returns a path unchanged, or a local folder with the objects below it.

  If the address is a single object, the result is its local file.
  """
  if not files.is_address(address):
    return address
  found = {k: one for k, one in places.find(address).items() if is_wanted(k)}
  if not found:
    return local(address)
  rows = [(key, f.size, f.time_ns, f.tag) for key, f in found.items()]
  name = name_of(address, rows)
  fetch = lambda folder: (
    lambda key: places.fetch(
      places.join(address, key), os.path.join(folder, key), found[key]
    )
  )
  make = lambda folder: places.each(fetch(folder), list(found))
  return fill(name, sum(f.size for f in found.values()), make)


def _units() -> list[str]:
  try:
    entries = list(os.scandir(top()))
  except FileNotFoundError:
    return []
  return [entry.name for entry in entries if entry.is_dir()]


def _size(name: str) -> int:
  total = 0
  for folder, _, names in os.walk(os.path.join(top(), name)):
    for each in names:
      with contextlib.suppress(OSError):
        total += os.lstat(os.path.join(folder, each)).st_size
  return total


def _used(name: str) -> float:
  """Returns when a unit was last locked, in seconds since the epoch."""
  try:
    return os.stat(os.path.join(top(), f"{name}.lock")).st_mtime
  except OSError:
    return 0.0


def _lock(name: str, how: int) -> int:
  """Returns the descriptor of a unit's lock file, locked.

  Raises:
    BlockingIOError: another process holds the lock, and `how` has LOCK_NB.
  """
  os.makedirs(top(), mode=0o700, exist_ok=True)
  path = os.path.join(top(), f"{name}.lock")
  while True:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
      fcntl.flock(handle, how)
      # A process that removed the unit meanwhile has removed this file too.
      if os.path.samestat(os.fstat(handle), os.stat(path)):
        break
    except FileNotFoundError:
      pass
    except OSError:
      os.close(handle)
      raise
    os.close(handle)
  if not how & fcntl.LOCK_NB:
    now = time.time()
    os.utime(handle, (now, now))
  return handle
