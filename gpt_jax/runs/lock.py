"""A workdir's lock: one process trains there at a time; its death releases it.

W/lock.json names the holder and is locked by flock, which ends with the
process. Network disks and mounted buckets may have no flock, or one that only
one machine sees. So the holder also touches the file every few seconds, which
shows other machines that it is alive; on the same machine its process id and
start time show that.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable

from gpt_jax import files
from gpt_jax.exits import InputError

NAME = "lock.json"
TOUCH_SECONDS = 3.0
# How long a start waits for a holder that may be about to end.
WAIT_SECONDS = 10.0
# How many times a start makes a folder again after a holder has removed it.
MAX_TRIES = 20
# Without flock, a holder on another machine counts as dead after this time
# without a touch.
STALE_SECONDS = 300.0

# What the folder of a run that has not begun may contain: a scheduler's logs, a
# sweep's notes, leftovers of a mounted disk or an interrupted start.
_OWN = set(
  "config.json metrics.jsonl tokenizer.json checkpoints samples plots "
  "tensorboard profile prepared wandb cell.json running.json ended.json "
  "log.txt lost+found".split()
) | {NAME}
_OWN_ENDINGS = (".log", ".out", ".err", ".tmp")


class Lock:
  """The right to train in a workdir, until `release` or the process's end."""

  def __init__(self, path: str, made: list[str]):
    self.path, self.made = path, made
    self.handle, self.is_released = None, threading.Event()

  def release(self) -> None:
    """Releases the lock, and removes the folders that it made if empty."""
    if self.is_released.is_set():
      return
    self.is_released.set()
    with contextlib.suppress(OSError):
      os.unlink(self.path)
    if self.handle is not None:
      os.close(self.handle)
      self.handle = None
    with contextlib.suppress(OSError):
      for folder in self.made:
        os.rmdir(folder)

  def _touch(self) -> None:
    while not self.is_released.wait(TOUCH_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(self.path)

  def _start(self) -> None:
    threading.Thread(target=self._touch, daemon=True, name="lock").start()


def hold(workdir: str, say: Callable[[str], None] = print) -> Lock:
  """Returns the lock of a workdir, which is created if absent.

  Raises:
    InputError: another process holds the lock, the folder holds other files
      than a run's, or it cannot be written.
  """
  path = os.path.join(workdir, NAME)
  _require_place(workdir)
  made = []
  try:
    handle = _make_and_take(workdir, path, made, say)
  except BaseException as error:
    with contextlib.suppress(OSError):
      for folder in made:
        os.rmdir(folder)
    if isinstance(error, OSError):
      why = os.strerror(error.errno or errno.EIO)
      raise InputError(
        f"--workdir {workdir} cannot be written: {why}; give a folder that can"
      ) from None
    raise
  lock = Lock(path, made)
  lock.handle = handle
  if handle is not None:
    # A forked child must not keep the lock alive.
    os.register_at_fork(after_in_child=lambda: _forget(lock))
  lock._start()
  return lock


def _make_and_take(workdir: str, path: str, made: list[str], say) -> int | None:
  """Makes the folder, takes its lock, and returns what _take returns.

  A holder that ends before its run begins removes the folder that it made. If
  this process waits in that folder, it makes the folder again.
  """
  for _ in range(MAX_TRIES):
    with contextlib.suppress(FileNotFoundError):
      _make_folders(os.path.abspath(workdir), made)
      return _take(workdir, path, say)
  _make_folders(os.path.abspath(workdir), made)
  return _take(workdir, path, say)


def _forget(lock: Lock) -> None:
  if lock.handle is not None:
    os.close(lock.handle)
  lock.handle = None
  lock.is_released.set()


def _take(workdir: str, path: str, say) -> int | None:
  """Returns the locked file, or None on a disk without flock."""
  deadline, is_told, touched = time.monotonic() + WAIT_SECONDS, False, None
  knows_flock = _knows_flock(workdir)
  while True:
    handle, has_flock = _open(path) if knows_flock else (None, False)
    if not knows_flock and _create(path):
      return None
    if handle is not None and has_flock and not _is_at(handle, path):
      os.close(handle)
      continue
    holder, changed = _read(path)
    if (handle is not None and has_flock) and (
      not holder
      or holder.get("host") == socket.gethostname()
      or (changed == touched and time.monotonic() >= deadline)
    ):
      # A holder on another machine is alive if it has touched the file since.
      _write(handle, workdir, say, holder)
      return handle
    is_free = not has_flock and handle is None and _is_dead(holder, changed)
    if handle is not None:
      os.close(handle)
    if is_free:
      _take_over(path, changed)
      say(
        f"{workdir} was held by {describe(holder)}, which is gone: taken over"
      )
      continue
    if touched is None:
      touched = changed
    if time.monotonic() >= deadline and not (has_flock and changed == touched):
      raise InputError(
        f"{workdir} is in use by {describe(holder)}; end it, wait for it to "
        "end, or give another --workdir"
      )
    if not is_told:
      is_told = True
      say(f"{workdir} is held by {describe(holder)}; waiting for it to end")
    time.sleep(0.2)


def _knows_flock(workdir: str) -> bool:
  """Returns whether this disk has flock, by trying it on a temporary file."""
  path = os.path.join(workdir, f"{NAME}.{socket.gethostname()}.{os.getpid()}")
  handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except OSError:
    return False
  finally:
    os.close(handle)
    with contextlib.suppress(OSError):
      os.unlink(path)


def _open(path: str) -> tuple[int, bool]:
  """Returns (file, whether it is locked now)."""
  flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
  handle = os.open(path, flags, 0o644)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle, True
  except OSError:
    return handle, False


def _is_at(handle: int, path: str) -> bool:
  """Returns whether an open file is still the one at this path."""
  try:
    return os.path.samestat(os.fstat(handle), os.stat(path))
  except FileNotFoundError:
    return False


def _create(path: str) -> bool:
  """Creates the file with its content, atomically; False if it exists."""
  temporary = f"{path}.{socket.gethostname()}.{os.getpid()}.tmp"
  try:
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(json.dumps(facts()))
    try:
      os.link(temporary, path)
    except FileExistsError:
      return False
    except OSError as error:  # no links here, as in a bucket
      if error.errno == errno.ENOSPC:
        raise
      try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
      except FileExistsError:
        return False
      with open(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(facts()))
    return True
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)


def _take_over(path: str, changed: float) -> None:
  """Removes a dead holder's file; of several processes, one succeeds."""
  guard = f"{path}.guard.tmp"
  try:
    os.mkdir(guard)
  except FileExistsError:
    with contextlib.suppress(OSError):
      if time.time() - os.stat(guard).st_mtime > STALE_SECONDS:
        os.rmdir(guard)
    time.sleep(0.05)
    return
  try:
    if _read(path)[1] == changed:
      os.unlink(path)
  finally:
    os.rmdir(guard)


def _write(handle: int, workdir: str, say, holder: dict | None) -> None:
  # On a full disk the lock is valid although the file stays empty.
  with contextlib.suppress(OSError):
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(facts()).encode(), 0)
  if holder and not _is_me(holder):
    say(f"{workdir} was held by {describe(holder)}, which is gone: taken over")


def _read(path: str) -> tuple[dict | None, float]:
  """Returns (the holder, or None if unreadable; when the file was touched)."""
  holder, changed = None, 0.0
  # Read before stat: opening the file makes a network disk refresh its mtime.
  with contextlib.suppress(OSError, files.Damage):
    holder = files.read_json(path, 1 << 16)
  with contextlib.suppress(OSError):
    changed = os.stat(path).st_mtime
  is_right = (
    isinstance(holder, dict)
    and isinstance(holder.get("host"), str)
    and type(holder.get("pid")) is int
    and 0 < holder["pid"] < 1 << 31
  )
  return (holder if is_right else None), changed


def _is_dead(holder: dict | None, changed: float) -> bool:
  """Returns whether a holder is gone, judged without flock."""
  if holder and holder["host"] == socket.gethostname():
    return has_ended(holder)
  return bool(changed) and time.time() - changed > STALE_SECONDS


def has_ended(holder: dict) -> bool:
  """Returns whether a holder on this machine is gone."""
  is_same = holder.get("boot") == _boot()
  return not is_same or holder.get("start") != _start_of(holder["pid"])


def _is_me(holder: dict) -> bool:
  own = facts()
  return all(holder.get(k) == own[k] for k in ("host", "pid", "start"))


def describe(holder: dict | None) -> str:
  """Returns who holds a lock, for a sentence."""
  if not holder:
    return "another process"
  since = holder.get("since")
  when = f" since {since}" if isinstance(since, str) else ""
  return f"process {holder['pid']} on {holder['host']}{when}"


def facts() -> dict:
  """Returns the facts by which a lock identifies its holder, this process."""
  now = datetime.datetime.now().astimezone()
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "boot": _boot(),
    "start": _start_of(os.getpid()),
    "since": now.strftime("%Y-%m-%d %H:%M:%S %z"),
  }


def _boot() -> str | None:
  """Returns the id of the machine's current boot, None if unknown."""
  try:
    with open("/proc/sys/kernel/random/boot_id") as file:
      return file.read().strip()
  except OSError:
    return None


def _start_of(pid: int) -> str | None:
  """Returns when a process started, in clock ticks; None if it is gone."""
  try:
    with open(f"/proc/{pid}/stat") as file:
      fields = file.read().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
  except OSError:
    pass
  try:
    os.kill(pid, 0)  # a machine without /proc
  except ProcessLookupError:
    return None
  except OSError:
    return "alive"
  return "alive"


def _make_folders(path: str, made: list[str]) -> None:
  """Makes a folder and its parents; adds them to `made`, deepest first."""
  if os.path.isdir(path):
    return
  if os.path.lexists(path):
    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
  _make_folders(os.path.dirname(path), made)
  with contextlib.suppress(FileExistsError):
    os.mkdir(path)
    made.insert(0, path)


def _require_place(workdir: str) -> None:
  """Raises InputError if a folder holds other files but no run."""
  try:
    names = os.listdir(workdir)
  except OSError:
    return  # absent, or unreadable: writing to it will say so
  if "config.json" in names or "checkpoints" in names:
    return
  foreign = sorted(
    name
    for name in names
    if not name.startswith(".")
    and name not in _OWN
    and not name.startswith((f"{NAME}.", "metrics.jsonl."))
    and not name.endswith(_OWN_ENDINGS)
  )
  if foreign:
    more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
    raise InputError(
      f"--workdir {workdir} holds {foreign[0]!r}{more} and no run; give a new "
      "or empty folder, so that a run's files are not mixed with those"
    )
