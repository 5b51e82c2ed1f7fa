"""Checkpoints: saves the state of a run, and restores it.

  checkpoints/500/state           the arrays, as Orbax writes them
  checkpoints/500/meta/metadata   JSON: step, facts of the run, shapes, checksum

Orbax commits a step by renaming its folder, so a folder named by a number is a
complete save. It is trusted only after it has been opened: until then no older
step is deleted. Arrays are stored by path name, so that an optimizer can
change its classes and still read its files.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import jax

from gpt_jax import encryption, files, tree
from gpt_jax.config import CheckpointConfig, InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes
from gpt_jax.runs import integrity, restore, storage


class Checkpointer:
  """Saves the state of one run, and reads it back on any mesh."""

  def __init__(
    self,
    directory: str,
    checkpoint: CheckpointConfig,
    meta: dict,
    say: Callable[[str], None] = print,
    mirror: Any = None,
    key: encryption.Key | None = None,
  ):
    """Initializes without touching the disk.

    Args:
      directory: workdir/checkpoints, created by the first save.
      checkpoint: the section.
      meta: facts of the run (JSON values), stored with every step; those in
        integrity.FACTS are compared when a step is restored.
      say: prints the line about a step that could not be read.
      mirror: the mirror.Mirror that sends the steps of a run at an address.
        Each process then has a directory of its own.
      key: encrypts what is saved, unless it is None.
    """
    self._key = key
    self.mirror = mirror
    self.directory = os.path.abspath(directory)
    self.checkpoint = checkpoint
    self.meta = meta
    self.say = say
    self._manager = None
    self._saving = None
    # The step that was saved but not yet checked by opening it.
    self._unopened: int | None = None
    self._superseded: list[int] = []
    self._checksum = integrity.Checksum()
    # A cache: {step: whether its state is good}.
    self._good: dict[int, bool] = {}

  def should_save(self, step: int) -> bool:
    """Returns whether this step is due by checkpoint.every_steps."""
    every = self.checkpoint.every_steps
    return every > 0 and step % every == 0

  def steps(self) -> list[int]:
    """Returns the steps that are committed on disk, oldest first."""
    return restore.list_steps(self.directory)

  def latest_step(self) -> int | None:
    """Returns the newest committed step."""
    return max(self.steps(), default=None)

  def save(self, step: int, state: Any, force: bool = False) -> None:
    """Starts an asynchronous save; the state may be donated on return.

    Args:
      step: names the folder.
      state: any tree of jax.Arrays.
      force: saves even if the step is not due.

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
        **({} if self._key is None else {"encryption": self._key.note()}),
      }
    )
    self._saving = step
    try:
      if self._manager is None:
        is_shared = self.mirror is None
        self._manager = storage.open_manager(self.directory, flat, is_shared)
      storage.start_save(self._manager, step, flat, meta, self._key)
      self._unopened = step
      if self.mirror is not None:
        self.mirror.send(step)
    except Exception as error:
      self._fail(error)

  def prepare(self, abstract_state: Any) -> None:
    """Compiles what `save` needs, so that the first save is not slower."""
    self._checksum.compile(abstract_state)

  def wait(self) -> None:
    """Returns once the last save is committed and has been opened.

    Only then are the steps that it supersedes deleted.

    Raises:
      InputError: the save failed; the sentence says which step is safe.
    """
    if self._manager is None:
      return
    try:
      self._manager.wait_until_finished()
      step, self._unopened = self._unopened, None
      if step is not None:
        processes.share(lambda: self._open(step))
        superseded = processes.share(self._list_superseded)
        if self.mirror is not None and superseded:
          self.mirror.await_sent()
        for old in superseded:
          self._manager.delete(old)
          self._good.pop(old, None)
          if self.mirror is not None:
            self.mirror.drop(old)
    except Exception as error:
      self._fail(error)

  def _open(self, step: int) -> None:
    try:
      integrity.check_opens(self.directory, step)
    except Damage as damage:
      raise InputError(
        f"step {step} was saved in {self.directory} and cannot be read back: "
        f"{damage}; no older step was deleted; give a --workdir on another "
        "disk, or check whether another process writes there"
      ) from None

  def _list_superseded(self) -> list[int]:
    """Returns the steps that checkpoint.keep_last and keep_every_steps drop.

    The newest good step is never among them, however many bad ones a diverged
    run has saved since.
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
    """Returns the good steps that are not superseded, oldest first."""
    gone = set(self._superseded)
    return [s for s in self.steps() if s not in gone and self._is_good(s)]

  def close(self) -> None:
    """Calls `wait` and ends the threads; raises what `wait` raises."""
    try:
      self.wait()
    finally:
      self._drop()

  def restore(
    self,
    abstract_state: Any,
    step: int | None = None,
    before: int = restore.MAX_STEP + 1,
  ):
    """Returns (state, meta) of the newest step that can be read.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings on any mesh.
      step: read this one only.
      before: read only steps below this one.

    Raises:
      InputError: no step can be read, or it is of another model or run.
    """
    self.close()
    if self.mirror is not None:
      self.mirror.await_sent()
      processes.share(lambda: None)  # process 0 waits for the parts of others
    flat = tree.flatten_with_names(abstract_state)
    if step is not None:
      wanted = [step]
    else:
      wanted = [s for s in processes.share(self.steps) if s < before]
    if not wanted:
      raise InputError(f"{self.directory} holds no checkpoint")
    with self._checksum.compiled_beside(abstract_state):
      found, leaves, meta = next(
        restore.read_newest(
          self.directory, wanted, flat, "", self._checksum, self.say, self.meta
        )
      )
    there = processes.share(self.steps)
    self._superseded = [s for s in there if s > found]
    structure = jax.tree.structure(abstract_state)
    return jax.tree.unflatten(structure, leaves), meta

  def _set_aside(self) -> None:
    """Renames the steps that are newer than the restored one.

    They are damaged, or abandoned because the run went back. Left in place
    they would count as newest, and later saves would be deleted as older.
    """
    superseded, self._superseded = self._superseded, []

    def rename() -> None:
      for step in superseded:
        path = os.path.join(self.directory, str(step))
        aside, number = f"{path}.aside", 1
        while os.path.lexists(aside):
          number += 1
          aside = f"{path}.aside{number}"
        if os.path.lexists(path):
          os.rename(path, aside)

    if self.mirror is None:
      processes.share(rename)
    else:
      rename()
      self.mirror.go_back(superseded)

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
      f"{storage.short(error)}; {kept}; check the disk and that no other "
      "process writes there, and go on with the same command"
    ) from None

  def _drop(self) -> None:
    """Closes the manager, which is unusable after a failed save."""
    manager, self._manager, self._unopened = self._manager, None, None
    if manager is not None:
      with contextlib.suppress(Exception):
        manager.close()


def choose_resume(directory: str, resume: str) -> str:
  """Returns "restore" or "fresh" for a run that saves to `directory`.

  A step folder counts even if it cannot be read: a run never starts afresh
  over one. Leftovers of an interrupted first save do not count.

  Args:
    resume: checkpoint.resume, "auto", "must" or "never".

  Raises:
    InputError: resume is "must" and there is no step, or "never" and there is.
  """
  steps = restore.list_steps(directory)
  if resume == "must" and not steps:
    raise InputError(
      f"checkpoint.resume is must and {directory} holds no checkpoint; give "
      "the workdir of the run to resume, or checkpoint.resume=auto"
    )
  if resume == "never" and steps:
    raise InputError(
      f"checkpoint.resume is never and {directory} holds step {steps[-1]}; "
      "two runs would be mixed up: give another workdir, or remove that folder"
    )
  return "restore" if steps else "fresh"


def preload() -> None:
  """Starts to import Orbax in the background."""
  threading.Thread(target=storage.import_orbax, daemon=True).start()


def _is_disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if getattr(error, "errno", None) in files.DISK_FULL:
      return True
    # TensorStore raises ValueErrors that spell it out.
    if any(os.strerror(number) in str(error) for number in files.DISK_FULL):
      return True
    error = error.__cause__ or error.__context__
  return False
