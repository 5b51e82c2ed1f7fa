"""The local folder (scratch) that stands for a run in a bucket.

It is filled from the address: config.json, tokenizer, rows, the metadata of
each step, and the arrays of a step when they are first read. Code that reads a
workdir calls `local`, and then reads that folder like any workdir.
"""

import atexit
import contextlib
import os
import shutil
from collections.abc import Callable

from gpt_jax import files
from gpt_jax.files import Damage
from gpt_jax.machine import cache, places, processes
from gpt_jax.runs import bucket, contents
from gpt_jax.runs.bucket import Kept

# Files of a run that are fetched in addition to its steps and rows.
RECORDS = "config.json", "tokenizer.json"
ROWS = "metrics.jsonl"

# {folder of checkpoints: the Scratch that fetches its arrays}
_OPENED: dict[str, "Scratch"] = {}
# {address: the local folder from which it is read}
_READ: dict[str, str] = {}


class Scratch:
  """The folder that stands for the run at an address.

  Attributes:
    folder: its path.
    steps: {number: the step at the address}.
    is_written: whether a run trains in it.
  """

  def __init__(
    self,
    address: str,
    folder: str,
    steps: dict[int, Kept],
    is_written: bool = False,
  ):
    self.is_written = is_written
    self.address, self.folder, self.steps = address, folder, steps
    self.checkpoints = os.path.join(folder, "checkpoints")
    _OPENED[self.checkpoints] = self
    places.call_by(folder, address)

  def fetch_records(self) -> None:
    """Fetches all that a run wrote, but for the arrays of its steps."""
    for name in RECORDS:
      data = places.read_if_there(places.join(self.address, name))
      if data is not None:
        files.write_bytes(os.path.join(self.folder, name), data)
    bucket.fetch_rows(self.address, os.path.join(self.folder, ROWS))

    for kept in self.steps.values():
      with contextlib.suppress(Damage):
        self._fetch(kept, lambda key: key.startswith(bucket.META))

  def complete(self, step: int) -> None:
    """Fetches the arrays of a step, unless they are in the folder.

    Raises:
      Damage: the arrays are not what was sent, or no longer exist.
    """
    path = os.path.join(self.checkpoints, str(step))
    kept = self.steps.get(step)
    if kept is None or os.path.islink(path):
      return
    parts = [""]
    if kept.count > 1:  # the parts of all processes, not only this one's
      parts = [f"ocdbt.process_{index}" for index in range(kept.count)]
    if all(os.path.isdir(os.path.join(path, contents.STATE, p)) for p in parts):
      return
    try:
      size = bucket.count_bytes(self.address, kept)
      if self.is_written:
        cache.make_room(size)
        self._fetch(kept, None)
      else:  # in the cache, where the next process finds it too
        name = cache.name_of(self.address, kept.step, kept.tag)
        make = lambda folder: bucket.fetch_step(self.address, kept, folder)
        unit = cache.fill(name, size, make)
        shutil.rmtree(path, ignore_errors=True)
        os.symlink(unit, path)
    except places.Unreached as error:
      if not error.is_missing:
        raise
      raise Damage(f"it is no longer at {self.address}") from None

  def _fetch(self, kept: Kept, is_wanted: Callable | None) -> None:
    temporary = os.path.join(self.folder, f".fetch-{kept.step}")
    path = os.path.join(self.checkpoints, str(kept.step))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
      os.makedirs(temporary)
      bucket.fetch_step(self.address, kept, temporary, is_wanted)
      shutil.rmtree(path, ignore_errors=True)
      os.makedirs(self.checkpoints, exist_ok=True)
      os.rename(temporary, path)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def complete(directory: str, step: int) -> None:
  """Fetches the arrays of a step, if `directory` stands for an address."""
  scratch = _OPENED.get(os.path.abspath(directory))
  if scratch is not None:
    scratch.complete(step)


def local(workdir: str) -> str:
  """Returns a path unchanged, or the local folder to read an address from."""
  if not files.is_address(workdir):
    return workdir
  if workdir not in _READ:
    name = cache.name_of(workdir, "read", os.getpid(), processes.index())
    folder = cache.hold(name)
    shutil.rmtree(folder, ignore_errors=True)  # of a process with this number
    os.makedirs(folder)
    atexit.register(cache.remove, name)
    steps, _ = bucket.list_steps(workdir)
    Scratch(workdir, folder, steps).fetch_records()
    _READ[workdir] = folder
  return _READ[workdir]


def place_of(workdir: str) -> str:
  """Returns a path unchanged, or the local folder to train an address in."""
  if not files.is_address(workdir):
    return workdir
  index, count = processes.index(), processes.count()
  return cache.hold(cache.name_of(workdir, "train", index, count))
