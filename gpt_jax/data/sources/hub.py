"""hf:NAME[@REVISION][:[CONFIG:]SPLIT][#FIELD]: sets of the Hugging Face hub.

A set is read shard by shard. Each shard is downloaded into the hub's own cache
just before it is read, unless it is there already. NAME may also be a folder
with the files of a set.
"""

import contextlib
import difflib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpt_jax import digest, files
from gpt_jax.data.sources import card, paths
from gpt_jax.data.sources.document import (
  Document,
  Unit,
  Unreachable,
  file_units,
  first_line,
  read_units,
  slice_text,
)
from gpt_jax.exits import InputError
from gpt_jax.machine import runtime

# Seconds to wait before each retry to reach the hub.
WAITS = (1.0, 2.0, 4.0, 8.0)
# The number of names to request, to suggest one for a misspelt name.
NUM_NAMES = 200
# Timeout of a listing in seconds; that of files is HF_HUB_DOWNLOAD_TIMEOUT.
TIMEOUT = 30.0
_SPEC = re.compile(
  r"(?P<name>[^@#:\[\]]+)(?:@(?P<revision>[^:#]+))?"
  r"(?::(?P<config>[^:#\[\]]+))??"
  r"(?::(?P<split>[^:#\[\]]*)(?:\[(?P<low>\d*):(?P<high>\d*)\])?)?"
  r"(?:#(?P<field>.+))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")


class Listing(NamedTuple):
  """The files of a set at one commit.

  Attributes:
    commit: 40 hexadecimal digits; empty for a folder.
    paths: of all its files, sorted.
  """

  commit: str
  paths: list[str]


class HubSource:
  """A field of the records of a set, `text` unless the spec names it.

  The spec identifies it: a set that changes upstream under the same name is not
  prepared again. A local folder is identified by its files, as other sources.
  """

  is_divided_by_text = True
  files = ()

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    argument = files.user_path("data.source", argument)
    found = _SPEC.fullmatch(argument)
    if found is None:
      raise InputError(
        f"{spec!r} is not hf:NAME[@REVISION][:[CONFIG:]SPLIT][#FIELD]; a slice "
        "of a split counts its files, as in train[:8]"
      )
    self._name = found["name"]
    self._revision = found["revision"]
    self._config = found["config"]
    self._split = found["split"] or "train"
    self._field = found["field"] or "text"
    self._slice = found["low"], found["high"]
    self._listing: Listing | None = None

  def fingerprint(self) -> str:
    low, high = self._slice
    split = self._split + (f"[{low}:{high}]" if low is not None else "")
    # Defaults add nothing, so that fingerprints of older versions stay valid.
    rest = (self._revision, self._config, self._field)
    more: list[str | None] = [*rest] if rest != (None, None, "text") else []
    if self._is_folder():
      more.append(paths.identify("hf", self._local_files()))
    return digest.of_json(["hf", self._name, split, *more])

  def num_bytes(self) -> int | None:
    return None

  def documents(self) -> Iterator[Document]:
    yield from read_units(self)

  def units(self) -> list[Unit]:
    if self._is_folder():
      return file_units(self._local_files())
    return [Unit(path, 0, None, self._list().commit) for path in self._shards()]

  def read_unit(self, unit: Unit) -> Iterator[Document]:
    yield from self._read_shard(unit.name, unit.version)

  def _shards(self) -> list[str]:
    """Returns the paths of the files that are read, in order.

    Raises:
      InputError: there is no such set, config or split, or it has no file that
        can be read.
    """
    listing = self._list()
    facts = self._read_card(listing)
    found = card.choose(
      listing.paths, facts, self._config, self._split, self.spec
    )
    if not found:
      kinds = sorted({os.path.splitext(p)[1] or p for p in listing.paths})
      hint = "; try @refs/convert/parquet" if listing.commit else ""
      raise InputError(
        f"{self.spec} has no file that is read "
        f"({', '.join(card.READERS)}); it has "
        f"{', '.join(kinds[:20]) or 'none'}{hint}"
      )
    low, high = (int(n) if n else None for n in self._slice)
    if low is not None or high is not None:
      count, found = len(found), found[low:high]
      if not found:
        raise InputError(
          f"{self.spec} takes none of the {count} files of its split"
        )
    return found

  def _read_shard(self, path: str, commit: str) -> Iterator[Document]:
    local = self._fetch(path, commit)
    try:
      for number, text in card.read(local, self._field):
        if text:
          yield Document(f"{path}:{number}", slice_text(text))
    except InputError as error:
      # The user does not know the path in the cache.
      raise InputError(
        str(error).replace(local, f"{self.spec}, {path}")
      ) from None

  def _is_folder(self) -> bool:
    return os.path.isdir(self._name)

  def _local_files(self) -> list[tuple[str, str]]:
    return [(path, self._fetch(path, "")) for path in self._shards()]

  def _list(self) -> Listing:
    if self._listing is None:
      if self._is_folder():
        self._listing = Listing("", _walk(self._name))
      elif self._name[0] in "/.~":
        raise InputError(f"{self._name} of {self.spec} is not a folder")
      else:
        self._listing = self._list_hub()
    return self._listing

  def _list_hub(self) -> Listing:
    """Returns the listing of the hub; offline, the one of an earlier run."""
    hub = _import_hub()
    constants = hub.constants
    host = constants.ENDPOINT
    name = digest.of_json([host, self._name, self._revision])[:32]
    noted = os.path.join(runtime.cache_dir(), "hub", f"{name}.json")
    # A commit never changes.
    is_fixed = self._revision and _COMMIT.fullmatch(self._revision)
    if constants.HF_HUB_OFFLINE or (is_fixed and os.path.isfile(noted)):
      try:
        content = files.read_json(noted, 1 << 30)
        return Listing(content["commit"], list(map(str, content["paths"])))
      except (files.Damage, KeyError, TypeError):
        if constants.HF_HUB_OFFLINE:
          raise InputError(
            f"{self.spec} was not listed before, and HF_HUB_OFFLINE is set; "
            "unset it once, with a network"
          ) from None
    api = hub.HfApi(endpoint=host)
    info = self._ask(
      lambda: api.dataset_info(
        self._name, revision=self._revision, timeout=TIMEOUT
      )
    )
    names = sorted(file.rfilename for file in info.siblings or ())
    listing = Listing(info.sha or "", names)
    try:
      files.write_text(noted, json.dumps(listing._asdict()))
    except OSError:
      pass  # only offline runs need the file
    return listing

  def _read_card(self, listing: Listing) -> dict[str, Any]:
    if "README.md" not in listing.paths:
      return {}
    from huggingface_hub import repocard

    path = self._fetch("README.md", listing.commit)
    try:
      found = repocard.metadata_load(path)
    except Exception as error:  # of yaml, or of a card that is no UTF-8
      raise InputError(
        f"the card of {self.spec}, README.md, cannot be read: "
        f"{first_line(error)}"
      ) from None
    return found if isinstance(found, dict) else {}

  def _fetch(self, path: str, commit: str) -> str:
    """Returns the local path of a file of the set, which may be downloaded."""
    if self._is_folder():
      return os.path.join(self._name, *path.split("/"))
    hub = _import_hub()
    return self._ask(
      lambda: hub.hf_hub_download(
        self._name,
        path,
        repo_type="dataset",
        revision=commit or self._revision,
        local_files_only=hub.constants.HF_HUB_OFFLINE,
      )
    )

  def _ask(self, call: Callable[[], Any]) -> Any:
    """Returns call(), with retries if the hub cannot be reached."""
    from huggingface_hub import constants

    for wait in (*WAITS, None):
      try:
        return call()
      except Exception as error:  # of httpx, the hub's client and the disk
        refused = _refusal(error, self.spec, self._name, self._revision)
        if refused is not None:
          raise refused from None
        if constants.HF_HUB_OFFLINE:
          raise InputError(
            f"{self.spec}: a file is not in the cache, and HF_HUB_OFFLINE is "
            "set; unset it once, with a network"
          ) from None
        if wait is None:
          raise Unreachable(
            f"{self.spec}: {constants.ENDPOINT} could not be reached in "
            f"{len(WAITS) + 1} tries ({_why(error)}); try again later, or set "
            "HF_HUB_OFFLINE=1 to read only what was fetched before"
          ) from None
      time.sleep(wait)


def _walk(root: str) -> list[str]:
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in names:
      path = os.path.relpath(os.path.join(folder, name), root)
      found.append(path.replace(os.sep, "/"))
  return sorted(found)


def _refusal(
  error: Exception, spec: str, name: str, revision: str | None
) -> InputError | None:
  """Returns the InputError for a failure that retries cannot mend, or None."""
  from huggingface_hub import constants, errors

  host = constants.ENDPOINT
  if isinstance(error, errors.GatedRepoError):
    return InputError(
      f"{spec}: {name} asks for consent; give it on its page of {host}, and "
      "log in here with `hf auth login`"
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return InputError(f"{spec}: {name} has no revision {revision!r}")
  status = _status(error)
  is_absent = isinstance(error, errors.RepositoryNotFoundError)
  if is_absent or status in (401, 403):
    near = _near(name) if is_absent else []
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return InputError(
      f"{spec}: {host} has no data set {name!r} that this machine may read; "
      f"check the name{hint}, or log in with `hf auth login` if it is private"
    )
  if isinstance(error, errors.HFValidationError):
    return InputError(
      f"{spec}: {name!r} is not the name of a set, which is OWNER/NAME or the "
      "path of a folder"
    )
  if status == 404:
    return InputError(f"{spec}: a file of it is gone ({_why(error)})")
  if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
    return InputError(
      f"{spec}: no space is left in the cache {constants.HF_HUB_CACHE}; free "
      "some, or set HF_HUB_CACHE to a folder on another disk"
    )
  return None


def _near(name: str) -> list[str]:
  """Returns up to two similar names of sets.

  Candidates are the sets in the cache, those of the same owner, and those that
  the hub's search finds for the name without its owner.
  """
  hub = _import_hub()
  there = set()
  with contextlib.suppress(OSError):
    for entry in os.listdir(hub.constants.HF_HUB_CACHE):
      kind, *words = entry.split("--")
      if kind == "datasets":
        there.add("/".join(words))
  owner, _, last = name.rpartition("/")
  for question in ({"author": owner}, {"search": last}):
    # One request without retries, unlike list_datasets: it is only a hint.
    with contextlib.suppress(Exception):
      answer = hub.utils.get_session().get(
        f"{hub.constants.ENDPOINT}/api/datasets",
        params=question | {"limit": NUM_NAMES},
        headers=hub.utils.build_hf_headers(),
        timeout=TIMEOUT,
      )
      there |= {one["id"] for one in answer.json()}
  # A missing set may have an empty folder in the cache.
  return difflib.get_close_matches(name, there - {name}, 2)


def _status(error: BaseException | None) -> int | None:
  """Returns the HTTP status of an error or of one of its causes."""
  while error is not None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
      return status
    error = error.__cause__
  return None


def _import_hub():
  """Returns the hub's library, with progress bars and warnings turned off."""
  import huggingface_hub
  from huggingface_hub import utils

  utils.disable_progress_bars()
  utils.logging.set_verbosity_error()
  return huggingface_hub


def _why(error: BaseException) -> str:
  while error.__cause__ is not None:
    error = error.__cause__
  return f"{type(error).__name__}: {first_line(error)}"
