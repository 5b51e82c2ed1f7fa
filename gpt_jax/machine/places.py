"""Reads and writes at addresses (gs://, s3://, ...), with bounded retries.

Any scheme that fsspec supports will do. An object store has objects under keys:
it can list them, read one, write a whole one, and create one only if it does
not exist. It cannot rename or append, and no write of several objects is
atomic; docs/places.md says how runs cope with that.

A failed request is retried for NETWORK_SECONDS, and each try has a time limit,
since clients wait for minutes, and some forever, on a silent connection. A
request that fails for good raises Unreached, whose message is one sentence.
"""

import base64
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import posixpath
import threading
import time
from collections.abc import Callable
from typing import Any

from gpt_jax import files
from gpt_jax.exits import InputError, to_line
from gpt_jax.machine import clients

# Seconds for which a failed request is retried, unless GPT_JAX_NETWORK_SECONDS
# is set.
NETWORK_SECONDS = 60.0
# The fewest tries: one that gets no answer may take half of those seconds.
MIN_TRIES = 2
# Seconds before the second try; each later pause is twice as long.
PAUSE, MAX_PAUSE = 0.5, 16.0
VARIABLE = "GPT_JAX_NETWORK_SECONDS"
# Time limit of a try in seconds, which grows by 1 for each SLOWEST bytes. With
# few NETWORK_SECONDS it is their share per try, but at least LEAST_PATIENCE.
PATIENCE, LEAST_PATIENCE, SLOWEST = 30.0, 5.0, 200_000
# Objects that are uploaded or downloaded in parallel.
MANY = 8

_NAMES: dict[str, str] = {}
_HURRY = threading.Event()


class Unreached(InputError):
  """A request failed for good.

  Attributes:
    is_missing: the object, or its bucket, does not exist.
  """

  def __init__(self, message: str, is_missing: bool = False):
    super().__init__(message)
    self.is_missing = is_missing


@dataclasses.dataclass(frozen=True)
class Found:
  """The metadata of an object in a listing.

  Attributes:
    time_ns: when it was written.
    tag: the store's tag, which changes with the content; "" if it has none.
    md5: of the content, in base64, if the store lists it, as GCS does. S3
      clients verify checksums themselves.
  """

  size: int
  time_ns: int
  tag: str
  md5: str | None


def call_by(path: str, address: str) -> None:
  """Makes `rename` show an address in place of a folder of the cache."""
  _NAMES[path] = address


def rename(text: str) -> str:
  """Returns a text with folders of the cache replaced by their addresses."""
  for path in sorted(_NAMES, key=len, reverse=True):
    text = text.replace(path, _NAMES[path])
  return text


def join(address: str, *names: str) -> str:
  return posixpath.join(address, *names)


def stat(address: str) -> Found:
  """Returns the metadata of one object; raises Unreached."""
  info = _request(address, "read", lambda fs, path: fs.info(path))
  if info["type"] != "file":
    raise Unreached(f"{address} is a folder; name an object in it", True)
  return _read_info(info)


def find(address: str) -> dict[str, Found]:
  """Returns {key below the address: its metadata} of all objects there.

  The result is {} if there are none.
  """

  def call(fs, path: str) -> dict:
    # fsspec caches listings, but other processes write there too.
    fs.invalidate_cache()
    try:
      return fs.find(path, detail=True)
    except FileNotFoundError:
      _require_bucket(fs, path)
      return {}

  return _below(address, _request(address, "listed", call))


def glob(root: str, pattern: str) -> dict[str, Found]:
  """Returns {key below root: its metadata} of objects that match a pattern."""

  def call(fs, path: str) -> dict:
    fs.invalidate_cache()
    found = fs.glob(path, detail=True)
    if not found:
      _require_bucket(fs, path)
    return found

  return _below(root, _request(join(root, pattern), "listed", call))


def read(address: str) -> bytes:
  """Returns the content of a small object."""
  return _request(address, "read", lambda fs, path: fs.cat_file(path))


def read_if_there(address: str) -> bytes | None:
  """Returns the content of a small object, or None if there is none.

  It takes one request. `stat` would also list, if the object is missing.
  """

  def call(fs, path: str) -> bytes | None:
    try:
      return fs.cat_file(path)
    except FileNotFoundError:
      return None

  return _request(address, "read", call)


def fetch(address: str, path: str, found: Found | None = None) -> None:
  """Writes the content of an object to a file, atomically.

  Args:
    found: what `stat` returns, if known: the size, and the MD5 if there is one,
      are then verified.
  """
  size = 0 if found is None else found.size
  temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
  os.makedirs(os.path.dirname(path), exist_ok=True)

  def call(fs, key: str) -> None:
    try:
      fs.get_file(key, temporary)
    except OSError as error:
      if error.errno in files.DISK_FULL:
        error.filename = os.path.dirname(path)  # not the object's key
      raise
    if found is not None:
      _check(temporary, found)

  try:
    _request(address, "read", call, size)
    if found is not None:
      os.utime(temporary, ns=(found.time_ns, found.time_ns))
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)


def put(path: str, address: str) -> None:
  """Writes a file as an object, which appears whole or not at all."""
  size = os.path.getsize(path)
  call = lambda fs, key: (_make_parent(fs, key), fs.put_file(path, key))
  _request(address, "written", call, size)


def write(address: str, data: bytes) -> None:
  """Writes a small object."""
  call = lambda fs, key: (_make_parent(fs, key), fs.pipe_file(key, data))
  _request(address, "written", call, len(data))


def create(address: str, data: bytes) -> bool:
  """Creates an object unless it exists; returns whether it now has this data.

  The object is read back, because a store may ignore the condition, and because
  a request whose answer was lost is retried and then finds its own object. So
  `data` must differ from what any other writer would write.
  """

  def call(fs, key: str) -> None:
    _make_parent(fs, key)
    with contextlib.suppress(FileExistsError):
      fs.pipe_file(key, data, mode="create")

  _request(address, "written", call, len(data))
  return read(address) == data


def remove(address: str) -> None:
  """Removes an object, if it exists."""

  def call(fs, key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
      fs.rm_file(key)

  _request(address, "removed", call)


def each(work: Callable, items: list) -> list:
  """Returns [work(item), ...], computed in parallel; raises the first error."""
  import concurrent.futures

  with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
    try:
      return list(pool.map(work, items))
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _request(
  address: str, verb: str, call: Callable[[Any, str], Any], size: int = 0
):
  """Returns call(file system, path of the address), with retries.

  Args:
    verb: what the request does, for errors, such as "read".
    size: bytes that the request transfers.
  """
  fs, path = _open(address)
  allowed = network_seconds()
  started, tries, pause = time.monotonic(), 0, PAUSE
  while True:
    share = 0.0 if _HURRY.is_set() else allowed / MIN_TRIES
    limit = min(PATIENCE, max(LEAST_PATIENCE, share)) + size / SLOWEST
    try:
      return _call_within(limit, functools.partial(call, fs, path))
    except InputError:
      raise
    except Exception as error:
      tries += 1
      seconds = time.monotonic() - started
      is_late = _HURRY.is_set() or seconds + pause > allowed
      is_over = tries >= MIN_TRIES and is_late
      if is_over or _is_lasting(error):
        how = f"tried {tries} times within {seconds:.0f} s"
        raise _explain(address, verb, error, how) from None
    time.sleep(pause)
    pause = min(2 * pause, MAX_PAUSE)


def hurry(is_on: bool) -> None:
  """Limits each request to MIN_TRIES tries while it is on.

  For a run that ends without a network, where each of the remaining requests
  would be retried for network_seconds.
  """
  (_HURRY.set if is_on else _HURRY.clear)()


def network_seconds() -> float:
  """Returns for how many seconds a failed request is retried."""
  text = os.environ.get(VARIABLE, "")
  try:
    return max(0.0, float(text or NETWORK_SECONDS))
  except ValueError:
    raise InputError(
      f"{VARIABLE} is {text!r}; it must be a number of seconds"
    ) from None


def _call_within(seconds: float, call: Callable[[], Any]):
  """Returns call(), run in a thread that is abandoned after `seconds`."""
  done, result = threading.Event(), []

  def work() -> None:
    try:
      result.append((True, call()))
    except BaseException as error:
      result.append((False, error))
    done.set()

  threading.Thread(target=work, daemon=True, name="place").start()
  if not done.wait(seconds):
    raise TimeoutError(f"no answer within {seconds:.0f} s")
  is_right, value = result[0]
  if is_right:
    return value
  raise value


def _is_lasting(error: Exception) -> bool:
  """Returns whether a retry would fail likewise."""
  if isinstance(error, (FileNotFoundError, PermissionError)):
    return True
  if isinstance(error, OSError) and error.errno in files.DISK_FULL:
    return True
  is_refused = clients.status_of(error) in (400, 401, 403)
  return is_refused or type(error).__name__ in _NO_CREDENTIALS


# Names of error classes whose libraries may not be installed.
_NO_CREDENTIALS = "NoCredentialsError", "DefaultCredentialsError"


def _explain(address: str, verb: str, error: Exception, how: str) -> Unreached:
  scheme, _, rest = address.partition("://")
  bucket = f"{scheme}://{rest.lstrip('/').split('/')[0]}"
  here = f"{address} cannot be {verb}"
  if isinstance(error, FileNotFoundError):
    fs, path = _open(address)
    with contextlib.suppress(Exception):
      _call_within(PATIENCE, functools.partial(_require_bucket, fs, path))
      return Unreached(f"{address} does not exist; check its name", True)
    return Unreached(
      f"{here}: there is no bucket {bucket}; create it, or check its name", True
    )
  if isinstance(error, OSError) and error.errno in files.DISK_FULL:
    return Unreached(
      f"{here}: the disk of {error.filename or 'the cache'} is full; make room "
      "there and go on with the same command"
    )
  is_denied = clients.status_of(error) in (401, 403)
  is_denied |= isinstance(error, PermissionError)
  if is_denied or type(error).__name__ in _NO_CREDENTIALS:
    return Unreached(
      f"{here}: permission denied; give this account the right to it, or check "
      f"the credentials for {bucket}"
    )
  why = to_line(f"{type(error).__name__}: {error}")
  why = why if len(why) <= 120 else f"{why[:117]}..."
  return Unreached(
    f"{here}: {why}, {how}; check the network and go on with the same command"
  )


def _require_bucket(fs, path: str) -> None:
  """Raises FileNotFoundError if the bucket of a path does not exist."""
  if path.startswith("/") or fs.protocol in ("memory", ("memory",)):
    return  # these have no buckets
  bucket = path.split("/")[0]
  fs.invalidate_cache()
  if not fs.exists(bucket):
    raise FileNotFoundError(bucket)


def _make_parent(fs, path: str) -> None:
  """Makes the parent folder of a path, if the file system has folders.

  It never creates a bucket, which is left to its owner.
  """
  if path.startswith("/"):
    fs.makedirs(posixpath.dirname(path), exist_ok=True)


def _open(address: str) -> tuple[Any, str]:
  """Returns (file system, path) of an address."""
  fs = clients.file_system(address.partition("://")[0].lower())
  return fs, fs._strip_protocol(address)


def _below(address: str, found: dict[str, dict]) -> dict[str, Found]:
  root = _open(address)[1].rstrip("/") + "/"
  return {
    name.removeprefix(root): _read_info(info)
    for name, info in sorted(found.items())
    if name.startswith(root) and info["type"] == "file"
  }


def _read_info(info: dict) -> Found:
  keys = "LastModified", "updated", "mtime", "created"
  when = next((info[key] for key in keys if key in info), 0)
  if isinstance(when, str):
    when = datetime.datetime.fromisoformat(when.replace("Z", "+00:00"))
  if isinstance(when, datetime.datetime):
    when = when.timestamp()
  tag = info.get("ETag") or info.get("etag") or info.get("generation") or ""
  return Found(
    int(info["size"]), int(when * 1e6) * 1000, str(tag), info.get("md5Hash")
  )


def _check(path: str, found: Found) -> None:
  size = os.path.getsize(path)
  if size != found.size:
    raise OSError(f"{size:,} of {found.size:,} bytes came")
  if found.md5 is not None:
    with open(path, "rb") as file:
      own = hashlib.file_digest(file, "md5").digest()
    if base64.b64encode(own).decode() != found.md5:
      raise OSError("what came has another checksum than what was stored")
