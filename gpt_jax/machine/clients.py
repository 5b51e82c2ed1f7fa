"""The client libraries of object stores: fsspec, gcsfs and s3fs.

Their own retries are switched off, since these have no time limit; places.py
retries requests.
"""

import functools
import importlib
import logging
from typing import Any

from gpt_jax import files
from gpt_jax.exits import InputError, to_line

# {scheme: (module that fsspec needs, extra of this package that installs it)}
EXTRAS = {
  "gs": ("gcsfs", "gcs"),
  "gcs": ("gcsfs", "gcs"),
  "s3": ("s3fs", "s3"),
  "s3a": ("s3fs", "s3"),
}
# Timeouts of s3fs, in seconds: for a connection, and for an answer.
CONNECT_SECONDS, READ_SECONDS = 10, 30


@functools.lru_cache(64)
def file_system(scheme: str):
  """Returns the fsspec file system for a scheme.

  Raises:
    InputError: the scheme is unknown, or its package is not installed.
  """
  import fsspec

  if scheme in EXTRAS:
    module, extra = EXTRAS[scheme]
    try:
      importlib.import_module(module)
    except ImportError:
      raise InputError(
        f"{scheme}:// is read by {module}, which is not installed; in the "
        f"folder of this project, {files.pip(extra)}"
      ) from None
  options: dict[str, Any] = {}
  if scheme in ("s3", "s3a"):
    options["config_kwargs"] = {
      "connect_timeout": CONNECT_SECONDS,
      "read_timeout": READ_SECONDS,
      "retries": {"max_attempts": 1},
    }
  if scheme in ("gs", "gcs"):
    # gcsfs also logs the tracebacks of the errors that it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    _try_once()
  try:
    return fsspec.filesystem(scheme, **options)
  except (ValueError, ImportError) as error:
    known = ", ".join(f"{s}://" for s in ("gs", "s3", "memory", "file"))
    raise InputError(
      f"{scheme}:// is no address that can be opened here "
      f"({to_line(str(error))[:80]}); {known} are"
    ) from None


def status_of(error: Exception) -> int | None:
  """Returns the HTTP status that an error of gcsfs or botocore names."""
  if isinstance(error, OSError) and str(error).startswith("Forbidden: "):
    return 403  # gcsfs gives no other sign of this status
  code = str(getattr(error, "code", ""))
  return int(code) if code.isdecimal() else None


def _try_once() -> None:
  """Switches off the six tries of gcsfs, which take half a minute.

  Their number is fixed when its classes are defined, but is_retriable is called
  at each failure. A request whose token has expired is still retried.
  """
  retry: Any = importlib.import_module("gcsfs.retry")
  is_retriable = getattr(retry, "is_retriable", None)
  if is_retriable is not None:
    retry.is_retriable = lambda error: (
      status_of(error) == 401 and is_retriable(error)
    )
