"""One process prepares a folder, others wait, and nothing half-written counts.

A folder is written under a temporary name and renamed when it is complete. The
lock of its name only spares other processes the same work; where the file
system has no locks, the rename still decides which process was first.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Callable, Generator

from gpt_jax.exits import InputError


@contextlib.contextmanager
def lock(
  path: str, name: str, say: Callable[[str], None]
) -> Generator[bool, None, None]:
  """Holds a lock that the operating system releases if the process dies.

  Args:
    path: the lock's file.
    name: the folder that it protects, for messages.
    say: receives a line when it waits.

  Yields:
    Whether the lock is held; False where the file system has none.
  """
  file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
  try:
    is_held = True
    try:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        say(f"waiting for another process that prepares {name}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      is_held = False
      say(
        f"{os.path.dirname(path)} has no locks ({error.strerror}): other "
        f"processes that prepare {name} now will do so too, and one is kept"
      )
    yield is_held
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)
  finally:
    os.close(file)


def temporary_path(dir: str, name: str) -> str:
  """Returns where this process writes the folder `name` of `dir`."""
  return os.path.join(dir, f".tmp-{name}.{socket.gethostname()}.{os.getpid()}")


def remove_stale(dir: str, name: str, is_locked: bool) -> None:
  """Removes temporary folders that killed processes of this machine left.

  Args:
    name: the folder to be prepared.
    is_locked: whether its lock is held, so that no process is writing it.
  """
  host = socket.gethostname()
  for entry in os.listdir(dir):
    match = re.fullmatch(r"\.tmp-(.+?)\.(.+)\.(\d+)", entry)
    if not match or match[2] != host:
      continue
    is_ours = is_locked and match[1] == name
    if is_ours or not _is_alive(match[3]):
      shutil.rmtree(os.path.join(dir, entry), ignore_errors=True)


def publish(temporary: str, path: str) -> None:
  """Renames a complete temporary folder to its final path.

  If another process was first, its folder has the same content and stays.
  """
  try:
    os.rename(temporary, path)
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
    shutil.rmtree(temporary)
  sync(os.path.dirname(path))


def sync(folder: str) -> None:
  """Flushes the entries of a folder to disk."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _is_alive(digits: str) -> bool:
  pid = int(digits[:20])
  try:
    if pid:
      os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass
  return True


def explain(error: OSError, dir: str) -> InputError:
  """Returns an error of the disk as a sentence that says what to change."""
  if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return InputError(
      f"no space is left in {dir} for the prepared text; free some, or set "
      "data.dir to another disk"
    )
  inside = os.path.abspath(dir)
  path = error.filename
  if isinstance(path, str) and not os.path.abspath(path).startswith(inside):
    return InputError(f"cannot read {path}: {error.strerror}")
  return InputError(
    f"cannot write in {dir}: {error.strerror}; set data.dir to a folder "
    "that can be written"
  )
