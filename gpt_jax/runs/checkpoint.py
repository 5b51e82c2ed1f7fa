"""Checkpoints: what a run saves, keeps, and goes on from.

  checkpoints/500/state           the arrays, as Orbax writes them
  checkpoints/500/meta/metadata   JSON: step, facts of the run, shapes, checksum

Orbax commits a step by renaming its folder, so that a folder named by a number
is a whole save. It is not believed before it has been opened: no older step is
deleted until the newer one has been. Arrays are stored by path name, so that
an optimizer may change its classes and keep its files.
"""

import contextlib
import errno
import os
import threading

import jax
import numpy as np

from gpt_jax import files, tree
from gpt_jax.config import CheckpointConfig, InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes
from gpt_jax.runs import integrity, storage

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Steps are int32.
MAX_STEP = 2**31 - 1


class Checkpointer:
  """Saves the state of one run, and reads it back on any mesh."""

  def __init__(
    self, directory: str, checkpoint: CheckpointConfig, meta: dict, say=print
  ):
    """Touches nothing on disk.

    Args:
      directory: workdir/checkpoints, made by the first save.
      checkpoint: the section.
      meta: facts of the run, of JSON's types, stored with every step; those
        in integrity.FACTS are compared when a step is restored.
      say: takes the line about a step that could not be read.
    """
    self.directory = os.path.abspath(directory)
    self.checkpoint = checkpoint
    self.meta = meta
    self.say = say
    self._manager = None
    self._saving = None
    # The step that was saved and has not been opened yet.
    self._unopened: int | None = None
    self._superseded: list[int] = []
    self._checksum = integrity.Checksum()
    # {step: whether its state is good}, of what this process has looked at.
    self._good: dict[int, bool] = {}

  def should_save(self, step: int) -> bool:
    """Returns whether it is the turn of this step."""
    every = self.checkpoint.every_steps
    return every > 0 and step % every == 0

  def steps(self) -> list[int]:
    """Returns the steps that are committed on disk, oldest first."""
    return list_steps(self.directory)

  def latest_step(self) -> int | None:
    """Returns the newest committed step."""
    return max(self.steps(), default=None)

  def save(self, step: int, state, force: bool = False) -> None:
    """Starts to save; the state may be donated as soon as this returns.

    Args:
      step: what the state is named by.
      state: any tree of jax.Arrays.
      force: also where it is not the turn of this step.

    Raises:
      InputError: an earlier save failed, or this one could not begin: the
        disk is full, or the step is there already.
    """
    if not force and not self.should_save(step):
      return
    self.wait()
    flat = tree.flatten_with_names(state)
    rows, finite = self._checksum(state)
    if self._manager is None:
      self._set_aside()
    if step in processes.share(self.steps):
      raise InputError(
        f"{self.directory} already holds step {step}; give another workdir"
      )
    nonfinite = [name for name, ok in zip(flat, finite, strict=True) if not ok]
    skipped = flat.get("skipped_in_row")
    meta = files.seal(
      self.meta
      | {
        "step": step,
        "shapes": tree.describe_shapes(state),
        "checksum": "".join(rows),
        "nonfinite": nonfinite,
        "is_skipping": skipped is not None and bool(skipped > 0),
      }
    )
    self._saving = step
    try:
      if self._manager is None:
        self._manager = storage.open_manager(self.directory)
      storage.start_save(self._manager, step, flat, meta)
      self._unopened = step
    except Exception as error:
      self._fail(error)

  def prepare(self, abstract_state) -> None:
    """Compiles what `save` needs, so that the first save is as short."""
    self._checksum.compile(abstract_state)

  def wait(self) -> None:
    """Returns once the last save is committed and has been opened.

    Only then are the steps deleted that it supersedes.

    Raises:
      InputError: it failed; the sentence says which step is safe.
    """
    if self._manager is None:
      return
    try:
      self._manager.wait_until_finished()
      step, self._unopened = self._unopened, None
      if step is not None:
        processes.share(lambda: self._open(step))
        for old in processes.share(self._list_superseded):
          self._manager.delete(old)
          self._good.pop(old, None)
    except Exception as error:
      self._fail(error)

  def _open(self, step: int) -> None:
    try:
      integrity.check_opens(self.directory, step)
    except Damage as damage:
      raise InputError(
        f"step {step} was saved in {self.directory} and cannot be read back: "
        f"{damage}; no older step was deleted; give a --workdir on another "
        "disk, or see who else writes there"
      ) from None

  def _list_superseded(self) -> list[int]:
    """Returns the steps that checkpoint.keep_last no longer keeps.

    The newest good one always stays, however many of a run that has gone bad
    have followed it.
    """
    steps, checkpoint = self.steps(), self.checkpoint
    kept = steps[-checkpoint.keep_last :]
    every = checkpoint.keep_every_steps
    old = steps[: -checkpoint.keep_last]
    if not any(map(self._is_good, kept)):
      good = next(filter(self._is_good, reversed(old)), None)
      old = [step for step in old if step != good]
    return [step for step in old if not every or step % every]

  def _is_good(self, step: int) -> bool:
    if step not in self._good:
      try:
        meta = integrity.read_meta(self.directory, step)
        self._good[step] = integrity.is_good(meta)
      except Damage:
        self._good[step] = False
    return self._good[step]

  def good_steps(self) -> list[int]:
    """Returns the good steps of the course taken, oldest first."""
    gone = set(self._superseded)
    return [s for s in self.steps() if s not in gone and self._is_good(s)]

  def close(self) -> None:
    """Waits and ends the threads; raises what `wait` raises."""
    try:
      self.wait()
    finally:
      self._drop()

  def restore(
    self,
    abstract_state,
    step: int | None = None,
    before: int = MAX_STEP + 1,
  ):
    """Returns (state, meta) of the newest step that can be read.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings on any mesh.
      step: read this one and no other.
      before: only steps below this one.

    Raises:
      InputError: no step can be read, or it is of another model or run.
    """
    self.close()
    flat = tree.flatten_with_names(abstract_state)
    wanted = [step]
    if step is None:
      wanted = [s for s in processes.share(self.steps) if s < before]
    if not wanted:
      raise InputError(f"{self.directory} holds no checkpoint")
    with self._checksum.compiled_beside(abstract_state):
      found, leaves, meta = next(
        _read_newest(
          self.directory, wanted, flat, "", self._checksum, self.say, self.meta
        )
      )
    there = processes.share(self.steps)
    self._superseded = [s for s in there if s > found]
    structure = jax.tree.structure(abstract_state)
    return jax.tree.unflatten(structure, leaves), meta

  def _set_aside(self) -> None:
    """Renames what is newer than the restored step.

    Such a step is damaged or of a course not taken. Left in place it would
    count as newest, and what is saved from now on would be deleted as older.
    """
    superseded, self._superseded = self._superseded, []

    def rename() -> None:
      for step in superseded:
        path = os.path.join(self.directory, str(step))
        aside, number = f"{path}.aside", 1
        while os.path.lexists(aside):
          number += 1
          aside = f"{path}.aside{number}"
        os.rename(path, aside)

    processes.share(rename)

  def _fail(self, error: Exception) -> None:
    self._drop()
    is_files = isinstance(error, (OSError, ValueError, RuntimeError))
    is_devices = isinstance(error, jax.errors.JaxRuntimeError)
    if isinstance(error, InputError) or is_devices or not is_files:
      raise error
    safe = self.latest_step()
    kept = "no step is saved" if safe is None else f"step {safe} is safe"
    if _is_disk_full(error):
      raise InputError(
        f"the disk of {self.directory} is full: step {self._saving} was not "
        f"saved, {kept}; make room and go on with the same command"
      ) from None
    raise InputError(
      f"step {self._saving} could not be saved in {self.directory}: "
      f"{storage.short(error)}; {kept}; see that the disk is well and that no "
      "other process writes there, and go on with the same command"
    ) from None

  def _drop(self) -> None:
    """Lets the manager go; after a failed save it cannot be used again."""
    manager, self._manager, self._unopened = self._manager, None, None
    if manager is not None:
      with contextlib.suppress(Exception):
        manager.close()


def choose_resume(directory: str, resume: str) -> str:
  """Returns "restore" or "fresh" for a run whose checkpoints are kept here.

  A step folder counts whether or not it can be read: a run is never started
  afresh over one. What an interrupted first save left behind does not count.

  Raises:
    InputError: resume is "must" and nothing is there, or "never" and
      something is.
  """
  steps = list_steps(directory)
  if resume == "must" and not steps:
    raise InputError(
      f"checkpoint.resume is must and {directory} holds no checkpoint; give "
      "the workdir of the run to go on with, or checkpoint.resume=auto"
    )
  if resume == "never" and steps:
    raise InputError(
      f"checkpoint.resume is never and {directory} holds step {steps[-1]}; "
      "two runs would be mixed: give another workdir, or remove that folder"
    )
  return "restore" if steps else "fresh"


def restore_params(
  workdir: str,
  abstract_params,
  say=print,
  average: str | None = None,
  facts: dict | None = None,
  step: int | None = None,
):
  """Returns the parameters of another run; its optimizer state stays unread.

  Args:
    workdir: the other run's.
    abstract_params: tree of ShapeDtypeStructs with shardings on any mesh.
    say: takes the line about a step that could not be read.
    average: "ema" reads the moving average instead, "last:N" the mean of the N
      newest steps that can be read; None neither.
    facts: of integrity.FACTS, what the other run's config.json says of it.
    step: the one to read; None for the newest that can be read.

  Raises:
    InputError: no step can be read, there are no N, or the parameters have
      other shapes or are of another run.
  """
  directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
  word, number = read_average(average)
  folder, wanted = "params", abstract_params
  if word == "ema":
    folder = "ema"
    wanted = jax.tree.map(
      lambda p: jax.ShapeDtypeStruct(p.shape, np.float32, sharding=p.sharding),
      abstract_params,
    )
  flat = {
    f"{folder}/{name}": leaf
    for name, leaf in tree.flatten_with_names(wanted).items()
  }
  steps = processes.share(lambda: _committed(workdir, directory))
  if step is not None:
    if step not in steps:
      there = ", ".join(map(str, steps))
      raise InputError(
        f"--step is {step} and {workdir} holds the steps {there}; name one"
      )
    if number > 1:
      raise InputError(
        f"--step names one checkpoint and --average={average} several; give "
        "one of the two"
      )
    steps = [step]
  if number > len(steps):
    raise InputError(
      f"--average is {average} and {workdir} holds {len(steps)} checkpoints "
      "(checkpoint.keep_last)"
    )
  checksum = integrity.Checksum()
  found = _read_newest(
    directory, steps, flat, f"{folder}/", checksum, say, facts or {}
  )
  with checksum.compiled_beside(wanted):
    _, leaves, _ = next(found)
  for count in range(2, number + 1):
    _, others, _ = next(found, (None, None, None))
    if others is None:
      raise InputError(
        f"--average is {average} and only {count - 1} of the checkpoints in "
        f"{workdir} can be read"
      )
    leaves = _moved(leaves, others, 1 / count)
  cast = lambda leaf, like: leaf.astype(like.dtype)
  whole = jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)
  return jax.tree.map(cast, whole, abstract_params)


def read_average(average: str | None) -> tuple[str, int]:
  """Returns ("last", N) or ("ema", 1) of what --average says."""
  if average is None:
    return "last", 1
  word, _, number = average.partition(":")
  if average == "ema":
    return "ema", 1
  is_number = number.isascii() and number.isdecimal() and len(number) <= 10
  if word == "last" and is_number and int(number) > 0:
    return "last", int(number)
  raise InputError(
    f"--average is {average!r}; it must be ema or last:N, of the N newest "
    "checkpoints"
  )


@jax.jit
def _moved(leaves, others, part):
  """Returns leaves moved towards others by a part, in float32."""
  wide = lambda x: x.astype(np.float32)
  return [
    wide(a) + part * (wide(b) - wide(a))
    for a, b in zip(leaves, others, strict=True)
  ]


def load_meta(workdir: str) -> dict:
  """Returns what was saved beside the arrays of the newest committed step.

  Raises:
    InputError: there is no step, or its record cannot be read.
  """
  directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
  step = _committed(workdir, directory)[-1]
  try:
    return integrity.read_meta(directory, step)
  except Damage as damage:
    raise InputError(
      f"step {step} in {directory} cannot be read: {damage}"
    ) from None


def read_checksums(directory: str, step: int) -> dict[str, str] | None:
  """Returns {"a/b": checksum} of a step, or None where it cannot be read."""

  def read():
    try:
      return integrity.rows_by_name(integrity.read_meta(directory, step))
    except Damage:
      return None

  return processes.share(read)


def preload() -> None:
  """Starts to import Orbax in the background."""
  threading.Thread(target=storage.import_orbax, daemon=True).start()


def list_steps(directory: str) -> list[int]:
  """Returns the steps that are committed in a folder, oldest first.

  Folders named by other numbers than a run can count to are none.
  """
  try:
    names = os.listdir(directory)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(
      f"{directory} cannot be read as a folder of checkpoints: {error.strerror}"
    ) from None
  is_number = lambda n: n.isascii() and n.isdecimal() and len(n) <= 10
  steps = (int(n) for n in names if is_number(n) and n == str(int(n)))
  return sorted(step for step in steps if step <= MAX_STEP)


def _committed(workdir: str, directory: str) -> list[int]:
  steps = list_steps(directory)
  if not steps:
    what = "holds no checkpoint" if os.path.isdir(workdir) else "does not exist"
    raise InputError(
      f"{workdir} {what}; give the workdir of a run that has saved one"
    )
  return steps


def _read_newest(directory, steps, flat, prefix, checksum, say, facts):
  """Yields (step, leaves, meta) of the steps that can be read, newest first.

  Raises InputError at the end where there were none.
  """
  faults, is_none, unsaid = [], True, None
  for step in sorted(steps, reverse=True):
    if unsaid is not None:
      say(f"{unsaid}; trying step {step}")
      unsaid = None
    try:
      found = _read(directory, step, flat, prefix, checksum, facts)
    except Damage as damage:
      unsaid = f"step {step} in {directory} cannot be read: {damage}"
      faults.append(unsaid)
      continue
    yield step, *found
    is_none = False
  if is_none:
    raise InputError(
      f"no checkpoint can be read: {'; '.join(faults)}; give another workdir, "
      "or move that folder away to start afresh"
    )


def _read(directory, step, flat, prefix, checksum, facts):
  """Returns (leaves in the order of `flat`, meta)."""
  meta = _agree(lambda: integrity.read_meta(directory, step))
  here = f"step {step} in {directory}"
  clause = integrity.find_stranger(meta, facts)
  if clause is not None:
    raise InputError(
      f"{here} is of another run: {clause}; put the run's own step back, or "
      "move that folder away"
    )
  there = {k: v for k, v in meta["shapes"].items() if k.startswith(prefix)}
  if not there and prefix == "ema/":
    raise InputError(
      f"{here} holds no moving average; train with train.ema_decay"
    )
  differing = tree.diff_shapes(there, tree.describe_shapes(flat))
  if differing:
    more = len(differing) - 3
    raise InputError(
      f"{here} is of another model: "
      + "; ".join(differing[:3])
      + (f"; and {more} more" if more > 0 else "")
    )
  wrong = [name for name in meta.get("nonfinite", ()) if name in flat]
  if wrong:
    raise Damage(f"{integrity.some(wrong)} is not finite")
  leaves = _agree(lambda: storage.read_arrays(directory, step, flat))
  saved = integrity.rows_by_name(meta)
  # Met first: gloo waits 30 seconds for a process that reads more slowly.
  processes.agree("the checkpoint to restore", step)
  found = dict(zip(flat, checksum(leaves)[0], strict=True))
  wrong = [name for name in flat if found[name] != saved[name]]
  if wrong:
    raise Damage(f"the checksum of {integrity.some(wrong)} does not match")
  return leaves, meta


def _agree(read):
  """Returns read(), or raises Damage on all processes if it does on one.

  A process that went on alone would wait for ever in the next collective.
  """
  damage = result = None
  try:
    result = read()
  except Damage as error:
    damage = error
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    is_damaged = multihost_utils.process_allgather(np.array(damage is not None))
    if damage is None and is_damaged.any():
      damage = Damage("another process cannot read it")
  if damage is not None:
    raise damage
  return result


def _is_disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if getattr(error, "errno", None) in DISK_FULL:
      return True
    # TensorStore raises ValueErrors that spell it out.
    if any(os.strerror(number) in str(error) for number in DISK_FULL):
      return True
    error = error.__cause__ or error.__context__
  return False
