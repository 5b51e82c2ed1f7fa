"""Paths from users, and files that others may have written.

Every file that this process has not just written is opened here. It must be a
regular file, of bounded size, in UTF-8; JSON must have bounded depth and
numbers. Otherwise a pipe could block forever, a link to /dev/zero fill the
memory, deep lists overflow the stack and long numbers overflow integers.

Faults are raised as Damage, whose message is a clause ("is a named pipe, not
a regular file") for the caller's own sentence.
"""

import collections
import contextlib
import errno
import glob
import json
import math
import os
import re
import stat
import sys
from typing import Any

from gpt_jax import digest
from gpt_jax.exits import InputError, to_line

# Default limit, in bytes, of a file that is read whole.
MAX_BYTES = 64 << 20
# Limit of the nesting of JSON.
MAX_DEPTH = 64
# Limit of the magnitude of integers in JSON, exclusive.
MAX_INT = 1 << 63

_KINDS = {
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a named pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The system's error codes for a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Damage(ValueError):
  """A file is not what it must be; the message is a clause that says why.

  Attributes:
    is_missing: the file does not exist, or is a dangling link.
  """

  def __init__(self, clause: str, is_missing: bool = False):
    super().__init__(clause)
    self.is_missing = is_missing


class Doubled(Damage):
  """An object of JSON has a key twice."""


def to_sentence(error: OSError) -> str:
  """Returns the system's error about a path, a disk or a network."""
  what = error.strerror or str(error) or type(error).__name__
  if error.filename is None:
    return to_line(f"cannot read or write: {what}")
  path = error.filename
  path = os.fsdecode(path) if isinstance(path, bytes) else path
  return to_line(f"cannot read or write {path}: {what}")


def is_address(path: str) -> bool:
  """Returns whether a path is an address in a bucket, such as gs://runs/a."""
  return _SCHEME.match(path) is not None


def user_path(name: str, path: str, may_be_address: bool = False) -> str:
  """Returns a path that the user gave, with ~ expanded.

  Args:
    name: the flag or key that it came from, for the error.
    path: as given.
    may_be_address: whether it may lie in a bucket (machine/places.py).

  Raises:
    InputError: it is empty, not UTF-8 text, or an address where a path is
      needed.
  """
  if not path.strip():
    raise InputError(f"{name} is empty; it must be a path")
  if is_address(path) and not may_be_address:
    raise InputError(
      f"{name} is {path!r}; it must be a path of this machine, not an address: "
      "give a folder here, and copy from or to the bucket"
    )
  if "\0" in path:
    raise InputError(f"{name} is {path!r}; a path cannot hold a NUL character")
  if readable(path) != path:
    raise InputError(
      f"{name} is {path.encode(errors='surrogateescape')!r}, which is not "
      "UTF-8; rename that path"
    )
  if is_address(path):
    if not path.partition("://")[2].strip("/"):
      raise InputError(f"{name} is {path!r}, which names no bucket")
    scheme, _, rest = path.partition("://")
    lead = "/" if rest.startswith("/") else ""
    words = [word for word in rest.split("/") if word]
    return f"{scheme}://{lead}{'/'.join(words)}"
  if path.startswith("~"):
    expanded = os.path.expanduser(path)
    if expanded == path:
      raise InputError(
        f"{name} is {path!r}, and there is no such home folder here; give the "
        "full path"
      )
    return expanded
  if not os.path.isabs(path):
    try:
      here = os.getcwd()
    except OSError:
      raise InputError(
        f"{name} is {path!r}, and the current folder has been removed; change "
        "to another, or give the full path"
      ) from None
    if readable(here) != here:
      raise InputError(
        f"{name} is {path!r}, and the current folder is {os.fsencode(here)!r}, "
        "which is not UTF-8; rename that folder"
      )
  return path


def output_path(name: str, path: str) -> str:
  """Returns the path of a file that a command is to write, as user_path does.

  Raises:
    InputError: as user_path, or its folder does not exist or is read-only, or
      it is a folder, a device or a pipe.
  """
  path = user_path(name, path)
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder) or os.path.isdir(path):
    raise InputError(
      f"{name} is {path!r}; it must be a file, in a folder that exists"
    )
  require_folder(name, folder)
  _require_replaceable(path)
  return path


def require_new(named: dict[str, str]) -> None:
  """Refuses files, {flag: path}, that cannot be made with their folders.

  Raises:
    InputError: a name is taken or given twice, or a folder is read-only.
  """
  owners: dict[str, str] = {}
  for name, path in named.items():
    if os.path.lexists(path):
      raise InputError(
        f"{name}={path} exists; give the name of a new file, or remove it"
      )
    require_folder(name, os.path.dirname(os.path.abspath(path)))
    owner = owners.setdefault(os.path.realpath(path), name)
    if owner != name:
      raise InputError(
        f"{owner} and {name} are both {path}; give each its own file"
      )


def require_folder(name: str, folder: str) -> None:
  """Raises InputError where a folder cannot be made, or not be written in."""
  import tempfile  # slow, and no --help needs it

  at = os.path.abspath(folder)
  while not os.path.lexists(at):
    at = os.path.dirname(at)
  try:
    tempfile.TemporaryFile(dir=at).close()
  except OSError as error:
    told = f"{name}: {at} is no folder to write in: {error.strerror}"
    raise InputError(told) from None


def _require_replaceable(path: str) -> None:
  """Refuses a device or a pipe, in whose place a file would be moved."""
  kind = os.path.lexists(path) and stat.S_IFMT(os.lstat(path).st_mode)
  if kind in _KINDS and kind != stat.S_IFDIR:
    raise InputError(f"{path} is {_KINDS[kind]}; name a regular file to write")


def pip(extra: str = "") -> str:
  """Returns the command that installs this project with one of its extras.

  It installs from the project's folder, never by name from a package index,
  where the name may belong to another project.
  """
  relative = os.path.join(".venv", "bin", "python")
  python = relative if sys.executable.endswith(relative) else "python"
  return f"{python} -m pip install -e " + (f"'.[{extra}]'" if extra else ".")


def expand_glob(pattern: str) -> list[str]:
  """Returns the sorted paths that a pattern of * ? [ ] and ** matches.

  A component that exists literally is not treated as a pattern:
  runs/lr[3e-4]/* lists the contents of that folder.
  """
  root = "/" if pattern.startswith("/") else ""
  return sorted(set(_expand(root, [p for p in pattern.split("/") if p])))


def user_text(name: str, text: str) -> str:
  """Returns a text from the command line as UTF-8, in any locale.

  Python turns each byte that its locale cannot decode into a lone surrogate;
  here those bytes are decoded as UTF-8.

  Args:
    name: the flag or key that it came from, for the error.

  Raises:
    InputError: its bytes are not UTF-8.
  """
  if not any("\udc80" <= char <= "\udcff" for char in text):
    return text
  try:
    return decode(os.fsencode(text))
  except Damage as damage:
    raise InputError(f"{name} {damage}; type it in UTF-8") from None


def readable(name: str) -> str:
  r"""Returns the name of a file as text; bytes that are not UTF-8 as \udcff."""
  return name.encode("utf-8", "backslashreplace").decode()


def open_bytes(path: str):
  """Returns a regular file, opened to read bytes.

  Raises:
    Damage: it is missing, cannot be read, or is not a regular file.
  """
  try:
    # Checked before opening, as opening a pipe or a device may block or have
    # an effect, and again after, as the file may have been replaced.
    require_regular(os.stat(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError:
    if os.path.islink(path):
      raise Damage("is a link that leads nowhere", True) from None
    raise Damage("does not exist", True) from None
  except OSError as error:
    raise Damage(f"cannot be read: {error.strerror}") from None
  except Damage:
    raise
  except ValueError as error:  # a NUL or a lone surrogate
    raise Damage(f"is not a path: {error}", True) from None
  file = open(handle, "rb")
  try:
    require_regular(os.fstat(handle))
  except Damage:
    file.close()
    raise
  return file


def read_bytes(path: str, limit: int = MAX_BYTES) -> bytes:
  """Returns the content of a regular file of at most `limit` bytes.

  Raises:
    Damage: it is missing, not a regular file, or larger.
  """
  with open_bytes(path) as file:
    try:
      data = file.read(limit + 1)
    except OSError as error:
      raise Damage(f"cannot be read: {error.strerror}") from None
  if len(data) > limit:
    raise Damage(f"is larger than {limit:,} bytes")
  return data


def read_text(path: str, limit: int = MAX_BYTES) -> str:
  """Returns the text of a file; raises Damage as read_bytes, or not UTF-8."""
  return decode(read_bytes(path, limit))


def read_json(path: str, limit: int = MAX_BYTES):
  """Returns the JSON of a file; raises Damage as read_text and parse_json."""
  return parse_json(read_bytes(path, limit))


def decode(data: bytes) -> str:
  """Returns the text of UTF-8; raises Damage with the offset of a bad byte."""
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise Damage(
      f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start:,}"
    ) from None


def parse_json(
  data: bytes | str, is_bounded: bool = True, is_unique: bool = False
):
  """Returns the value of a JSON text.

  Args:
    data: UTF-8 bytes, or text.
    is_bounded: check the depth and each number. If false, NaN and Infinity are
      accepted as Python's json does.
    is_unique: refuse a key that an object has twice, whose last value would
      count.

  Raises:
    Damage: it is not JSON, or (if bounded) nested deeper than MAX_DEPTH, or
      contains a number that is not finite or beyond MAX_INT.
    Doubled: is_unique, and an object has a key twice.
  """
  text = decode(data) if isinstance(data, bytes) else data
  try:
    refuse = _refuse_constant if is_bounded else None
    hook = _refuse_doubles if is_unique else None
    value = json.loads(text, parse_constant=refuse, object_pairs_hook=hook)
  except json.JSONDecodeError as error:
    raise Damage(f"is not JSON: {error}") from None
  except RecursionError:
    raise Damage("is nested too deep") from None
  except Damage:
    raise
  except ValueError:  # an integer of more digits than Python converts
    raise Damage("holds a number of too many digits") from None
  if is_bounded:
    _require_bounds(value)
  return value


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict:
  found = dict(pairs)
  if len(found) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    double = next(key for key, count in counts.items() if count > 1)
    raise Doubled(f"has the key {double!r:.80} twice")
  return found


def seal(record: dict) -> dict:
  """Returns a JSON record with a digest of its other entries added."""
  rest = {key: value for key, value in record.items() if key != "digest"}
  return rest | {"digest": digest.of_json(rest)[:16]}


def write_text(path: str, text: str) -> None:
  """Writes a file in UTF-8, as write_bytes does."""
  write_bytes(path, text.encode())


def write_bytes(path: str, data: bytes) -> None:
  """Writes a file atomically, and makes its folder.

  Raises:
    OSError: with `path` as its filename.
  """
  try:
    with new_file(path, "wb") as file:
      file.write(data)
  except OSError as error:
    error.filename, error.filename2 = path, None
    raise


@contextlib.contextmanager
def new_file(path: str, mode: str = "w"):
  """Opens a file to write; it appears under its name when it is whole.

  Its folder is made.

  Raises:
    InputError: the name is that of a device or a pipe.
    OSError: with `path` as its filename, unless another's is known.
  """
  temporary = f"{path}.{os.getpid()}.tmp"
  encoding = None if "b" in mode else "utf-8"
  _require_replaceable(path)
  try:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(temporary, mode, encoding=encoding) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException as error:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    # The error of a full disk names no file.
    if isinstance(error, OSError) and error.filename in (temporary, None):
      error.filename, error.filename2 = path, None
    raise


def _expand(base: str, parts: list[str]) -> list[str]:
  if not parts:
    return [base]
  path = os.path.join(base, parts[0])
  if os.path.lexists(path):
    return _expand(path, parts[1:])
  if "**" in parts[0]:
    path = os.path.join(glob.escape(base), *parts)
    return glob.glob(path, recursive=True)
  found = glob.glob(os.path.join(glob.escape(base), parts[0]))
  return [path for name in found for path in _expand(name, parts[1:])]


def require_regular(found: os.stat_result) -> None:
  """Raises Damage, naming the kind, if it is not a regular file."""
  if not stat.S_ISREG(found.st_mode):
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
    raise Damage(f"is {kind}, not a regular file")


def _refuse_constant(word: str):
  raise Damage(f"holds {word}, which is not a JSON number")


def _require_bounds(value: Any) -> None:
  level, depth = [value], 0
  while level:
    depth += 1
    inner = []
    for node in level:
      for item in (
        node.values()
        if type(node) is dict
        else node
        if type(node) is list
        else (node,)
      ):
        kind = type(item)
        if kind is dict or kind is list:
          inner.append(item)
        elif kind is int:
          if not -MAX_INT < item < MAX_INT:
            raise Damage("holds a whole number beyond 64 bits")
        elif kind is float and not math.isfinite(item):
          raise Damage("holds a number too large for a float")
    if depth > MAX_DEPTH:
      raise Damage(f"is nested deeper than {MAX_DEPTH} levels")
    level = inner
