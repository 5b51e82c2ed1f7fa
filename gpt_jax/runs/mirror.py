"""Mirrors a run's local folder, the scratch, to an address in a bucket.

The run writes its workdir as on any disk. What it writes is uploaded in the
background: each step once it can be opened, new rows of metrics every few
seconds as one more part, all other files with each step.

Design choice: Orbax's own writing to gs:// and s3:// is not used. Metrics,
locks, retention and damaged steps would need a second implementation, for
stores without rename and append; docs/places.md has the cost of mirroring.
"""

import contextlib
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable

from gpt_jax import files
from gpt_jax.exits import InputError
from gpt_jax.machine import cache, places, processes
from gpt_jax.runs import bucket, contents, integrity, lease, lock, restore
from gpt_jax.runs.bucket import Kept
from gpt_jax.runs.scratch import ROWS, Scratch, place_of

# A file with the nonce of the lease under which this scratch was written.
OWNER = ".owner"
# After this many parts, all rows are sent again as one.
MAX_PARTS = 100
# Files of the scratch that are not sent as files.
NOT_SENT = ROWS, lock.NAME
# Seconds that process 0 waits for the others' parts of a step, in addition to
# 3 times its own upload and the retries of a request.
OTHERS_SECONDS = 60.0


def hold(address: str, say: Callable[[str], None] = print) -> "Mirror":
  """Returns the mirror of the run at an address, in every process of a run.

  Raises:
    InputError: another run holds it, or it cannot be reached.
  """
  count = processes.count()
  taken: list[lease.Lease] = []

  def take() -> list:
    own = lease.take(address, say)
    taken.append(own)
    steps, torn = bucket.list_steps(address)
    bucket.sweep(address, steps, torn)
    rows = [(k.step, k.tag, k.count) for k in steps.values()]
    return [own.number, own.previous, own.nonce, rows]

  try:
    number, previous, nonce, rows = processes.share(take)
    folder = place_of(address)
    owner = os.path.join(folder, OWNER)
    # With several processes, each scratch has only its own part of a step.
    is_ours = count == 1 and previous is not None and _read(owner) == previous
    if not is_ours:
      shutil.rmtree(folder)
      os.makedirs(folder)
    steps = {row[0]: Kept(*row) for row in rows}
    scratch = Scratch(address, folder, steps, is_written=True)
    if not is_ours:
      scratch.fetch_records()
    files.write_text(owner, nonce)
    mirror = Mirror(scratch, number, taken[0] if taken else None, say)
    if is_ours:
      mirror.send_late()
    return mirror
  except BaseException:
    for own in taken:
      with contextlib.suppress(InputError):
        own.release()
    raise


class Mirror:
  """Uploads what a run writes in its scratch.

  If a step cannot be sent, this is reported and the run goes on. `close` fails
  if the newest step did not arrive.

  Args:
    number: of the lease.
    own: the lease in process 0, None in others.

  Attributes:
    folder: the scratch.
  """

  def __init__(
    self,
    scratch: Scratch,
    number: int,
    own: lease.Lease | None,
    say: Callable[[str], None],
  ):
    self.address, self.folder = scratch.address, scratch.folder
    self._scratch, self._number, self._own = scratch, number, own
    self._index, self._count = processes.index(), processes.count()
    self._say, self._fault = say, None
    self._generation, self._arrived = 0, set(scratch.steps)
    # Steps to remove: once a newer one has arrived; before the next is sent.
    self._late: list[Kept] = []
    self._abandoned: list[Kept] = []
    self._sent: dict[str, tuple[int, int]] = {}
    self._rows = Rows(self.address, os.path.join(self.folder, ROWS), number)
    self._guard = threading.Lock()
    self._is_ending, self._is_closed = threading.Event(), threading.Event()
    self._work: queue.Queue = queue.Queue()
    self._start(self._send_all)
    if own is not None:
      self._start(self._beat)

  def send_late(self) -> None:
    """Sends the steps of the scratch that an earlier process could not send."""
    for step in restore.list_steps(self._scratch.checkpoints):
      state = os.path.join(self._scratch.checkpoints, str(step), contents.STATE)
      if step not in self._scratch.steps and os.path.isdir(state):
        self.send(step)

  def send(self, step: int) -> None:
    """Sends a step in the background, once it is saved and can be opened.

    Raises:
      InputError: another process has taken over the run.
    """
    if isinstance(self._fault, lease.Lost):
      raise self._fault
    tag = f"{self._number:06d}.{self._generation:02d}"
    kept = Kept(step, tag, self._count)
    self._scratch.steps[step] = kept
    self._work.put(lambda: self._send_step(kept))

  def drop(self, step: int) -> None:
    """Removes a step at the address, once the newest one has arrived."""
    kept = self._scratch.steps.pop(step, None)
    if kept is not None and self._own is not None:
      self._late.append(kept)
      self._work.put(self._drop_late)

  def go_back(self, steps: list[int]) -> None:
    """Removes steps that the run went back from; later ones get another tag."""
    for step in steps:
      kept = self._scratch.steps.pop(step, None)
      if kept is not None and self._own is not None:
        self._abandoned.append(kept)
    self._generation += bool(steps)

  def await_sent(self) -> None:
    """Waits until all steps so far are sent, or have failed."""
    done = threading.Event()
    self._work.put(done.set)
    while not done.wait(1.0):
      processes.mark(is_result=False)

  def close(self) -> None:
    """Sends what is left, and lets the next process in.

    Raises:
      InputError: something did not arrive; the sentence says what did.
    """
    self._is_ending.set()
    try:
      self.await_sent()
      self._is_closed.set()
      if self._own is not None and not isinstance(self._fault, lease.Lost):
        self._end(self._own)
    finally:
      places.hurry(False)
    if self._fault is not None:
      raise InputError(self._describe(self._fault))
    cache.remove(os.path.basename(self.folder))

  def _end(self, own: lease.Lease) -> None:
    """Sends all remaining files besides steps, and releases the lease."""
    try:
      self._sync(is_whole=True)
      own.release()
      if max(self._scratch.steps, default=None) in (None, *self._arrived):
        self._fault = None  # an earlier fault, which did not last
    except InputError as error:
      self._fault = self._fault or error

  def _describe(self, fault: InputError) -> str:
    step = max(self._arrived, default=None)
    kept = "no step has" if step is None else f"step {step:,} has"
    more = ""
    if self._count == 1 and not isinstance(fault, lease.Lost):
      more = "; the rest is in the cache here, and the same command sends it"
    return f"{fault}; {kept} arrived at {self.address}{more}"

  # In threads

  def _start(self, work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="mirror").start()

  def _send_all(self) -> None:
    while True:
      self._try(self._work.get())

  def _beat(self) -> None:
    def beat() -> None:
      assert self._own is not None
      self._own.renew()
      self._sync()

    while not self._is_closed.wait(lease.BEAT_SECONDS):
      self._try(beat)

  def _try(self, task: Callable[[], None]) -> None:
    try:
      task()
    except Exception as error:
      if not isinstance(error, InputError):
        why = f"{type(error).__name__}: {error}"
        error = InputError(f"{self.address} cannot be written: {why}")
      if str(error) != str(self._fault):
        is_over = self._is_ending.is_set()
        more = "" if is_over else "; the run goes on, and it is tried again"
        self._tell(f"{error}{more}")
      if not isinstance(self._fault, lease.Lost):
        self._fault = error
      if self._is_ending.is_set() and isinstance(error, places.Unreached):
        places.hurry(True)  # do not wait network_seconds for each last request

  def _tell(self, line: str) -> None:
    if self._index:  # only process 0 prints the run's other lines
      line = f"gpt_jax: process {self._index}: {places.rename(line)}"
      print(line, file=sys.stderr, flush=True)
    else:
      self._say(line)

  def _send_step(self, kept: Kept) -> None:
    if isinstance(self._fault, lease.Lost):
      return
    while self._abandoned:
      bucket.drop_step(self.address, self._abandoned[-1])
      self._arrived.discard(self._abandoned.pop().step)
    folder = os.path.join(self._scratch.checkpoints, str(kept.step))
    while not os.path.isdir(folder):  # appears when it is committed
      if self._is_ending.wait(0.1) and not os.path.isdir(folder):
        raise InputError(f"step {kept.step:,} was not saved in {self.folder}")
    if self._own is not None:
      integrity.check_opens(self._scratch.checkpoints, kept.step)
    before = lambda: self._own and self._sync(is_whole=True)
    started = time.monotonic()
    bucket.send_step(self.address, folder, kept, self._index, before)
    if self._own is not None:
      self._await_others(kept, 3 * (time.monotonic() - started))
    self._arrived.add(kept.step)
    if not isinstance(self._fault, lease.Lost):
      self._fault = None

  def _await_others(self, kept: Kept, seconds: float) -> None:
    """Waits until all processes have sent their parts of a step."""
    missing = kept.notes()[1:]
    limit = time.monotonic() + seconds + places.network_seconds()
    limit += OTHERS_SECONDS
    while missing:
      if (
        places.read_if_there(places.join(self.address, missing[0])) is not None
      ):
        missing.pop(0)
      elif time.monotonic() > limit:
        raise InputError(
          f"process {bucket.index_of(missing[0])} has not sent its part of "
          f"step {kept.step:,} to {self.address}, and its log says why"
        )
      else:
        time.sleep(1.0)

  def _drop_late(self) -> None:
    while self._late and self._fault is None:
      bucket.drop_step(self.address, self._late[-1])
      self._arrived.discard(self._late.pop().step)

  def _sync(self, is_whole: bool = False) -> None:
    """Sends new rows, and all other files that have changed if `is_whole`."""
    with self._guard:
      self._rows.send()
      if not is_whole:
        return
      for folder, folders, names in os.walk(self.folder):
        if folder == self.folder and "checkpoints" in folders:
          folders.remove("checkpoints")
        for name in names:
          if name not in NOT_SENT and name[0] != "." and name[-4:] != ".tmp":
            self._send_file(os.path.join(folder, name))

  def _send_file(self, path: str) -> None:
    try:
      found = os.stat(path)
    except FileNotFoundError:
      return  # renamed since it was listed
    now = found.st_size, found.st_mtime_ns
    if self._sent.get(path) != now:
      key = os.path.relpath(path, self.folder)
      places.put(path, places.join(self.address, key))
      self._sent[path] = now


class Rows:
  """Sends the rows of a run: each call sends the new ones as one more part.

  If a run that went back has rewritten the file, or after MAX_PARTS parts, the
  whole file is sent under a new tag.
  """

  def __init__(self, address: str, path: str, number: int):
    self.address, self.path, self.number = address, path, number
    self._tags, self._inode, self._size, self._parts = 0, -1, 0, 0

  def send(self) -> None:
    try:
      with open(self.path, "rb") as file:
        found = os.fstat(file.fileno())
        is_new = found.st_ino != self._inode or found.st_size < self._size
        is_new |= self._parts >= MAX_PARTS
        start = 0 if is_new else self._size
        file.seek(start)
        data = file.read()
    except FileNotFoundError:
      return
    data = data[: data.rfind(b"\n") + 1]  # a line may be half-written
    if not data:
      return
    self._tags += is_new
    tag = f"{self.number:06d}.{self._tags:06d}"
    bucket.send_rows(self.address, tag, start, data)
    self._inode, self._size = found.st_ino, start + len(data)
    self._parts = 1 if is_new else self._parts + 1
    if is_new:
      bucket.drop_rows(self.address, tag)


def _read(path: str) -> str | None:
  try:
    return files.read_text(path)
  except files.Damage:
    return None
