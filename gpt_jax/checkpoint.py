"""Checkpoints: Orbax behind one door, each step verified by checksums.

  checkpoints/500/state           the arrays, as Orbax writes them
  checkpoints/500/meta/metadata   JSON: step, facts of the run, shapes, checksum

Orbax commits a step by renaming its folder, so that a folder named by a number
is a whole save. It restores flipped bits and other dtypes without a word,
though; the shapes and checksums of every leaf are therefore kept beside the
arrays, compared before and recomputed after reading. Arrays are stored by
path name, so that an optimizer may change its classes and keep its files.
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
import threading
import traceback

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import processes, tree
from gpt_jax.config import CheckpointConfig, InputError

STATE, META = "state", "meta"
# Hexadecimal digits that tree.checksum gives to a leaf.
DIGITS = 16
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Damage(Exception):
  """A step cannot be read; the message is a clause that says why."""


class Checkpointer:
  """Saves the state of one run, and reads it back on any mesh."""

  def __init__(
    self, directory: str, checkpoint: CheckpointConfig, meta: dict, say=print
  ):
    """Touches nothing on disk.

    Args:
      directory: workdir/checkpoints, made by the first save.
      checkpoint: the section.
      meta: facts of the run, of JSON's types, kept with every step.
      say: takes the line about a step that could not be read.
    """
    self.directory = os.path.abspath(directory)
    self.checkpoint = checkpoint
    self.meta = meta
    self.say = say
    self._manager = None
    self._saving = None
    self._superseded: list[int] = []
    self._checksum = _Checksum()

  def should_save(self, step: int) -> bool:
    """Returns whether it is the turn of this step."""
    return step % self.checkpoint.every_steps == 0

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
    rows = self._checksum(state)
    if self._manager is None:
      self._set_aside()
    if step in processes.share(self.steps):
      raise InputError(
        f"{self.directory} already holds step {step}; give another workdir"
      )
    meta = _seal(
      self.meta
      | {
        "step": step,
        "shapes": tree.describe_shapes(state),
        "checksum": "".join(rows),
      }
    )
    ocp = _import_orbax()
    self._saving = step
    try:
      if self._manager is None:
        self._manager = _open_manager(self.directory, self.checkpoint)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{
            STATE: ocp.args.PyTreeSave(_nest(flat)),
            META: ocp.args.JsonSave(meta),
          }
        ),
        force=True,
      )
    except Exception as error:
      self._fail(error)

  def prepare(self, abstract_state) -> None:
    """Compiles what `save` needs, so that the first save is as short."""
    self._checksum.compile(abstract_state)

  def wait(self) -> None:
    """Returns once the last save is committed.

    Raises:
      InputError: the disk is full; the sentence says which step is safe.
    """
    if self._manager is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._fail(error)

  def close(self) -> None:
    """Waits and ends the threads; raises what `wait` raises."""
    try:
      self.wait()
    finally:
      self._drop()

  def restore(self, abstract_state, step: int | None = None):
    """Returns (state, meta) of the newest step that can be read.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings on any mesh.
      step: read this one and no other.

    Raises:
      InputError: no step can be read, or the arrays are of another model.
    """
    self.close()
    flat = tree.flatten_with_names(abstract_state)
    wanted = processes.share(self.steps) if step is None else [step]
    if not wanted:
      raise InputError(f"{self.directory} holds no checkpoint")
    with self._checksum.compiled_beside(abstract_state):
      found, leaves, meta = _read_newest(
        self.directory, wanted, flat, "", self._checksum, self.say
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
    if not _is_disk_full(error):
      raise error
    safe = self.latest_step()
    kept = "no step is saved" if safe is None else f"step {safe} is safe"
    raise InputError(
      f"the disk of {self.directory} is full: step {self._saving} was not "
      f"saved, {kept}; make room and go on with the same command"
    ) from None

  def _drop(self) -> None:
    """Lets the manager go; after a failed save it cannot be used again."""
    manager, self._manager = self._manager, None
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
  workdir: str, abstract_params, say=print, average: str | None = None
):
  """Returns the parameters of another run; its optimizer state stays unread.

  Args:
    workdir: the other run's.
    abstract_params: tree of ShapeDtypeStructs with shardings on any mesh.
    say: takes the line about a step that could not be read.
    average: "ema" reads the moving average instead, "last:N" the mean of the N
      newest steps; None neither.

  Raises:
    InputError: no step can be read, there are no N, or the parameters have
      other shapes.
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
  if word == "ema" and not any(
    name.startswith("ema/") for name in load_meta(workdir)["shapes"]
  ):
    raise InputError(
      f"{workdir} holds no moving average; train with train.ema_decay"
    )
  if number > len(steps):
    raise InputError(
      f"--average is {average} and {workdir} holds {len(steps)} checkpoints "
      "(checkpoint.keep_last)"
    )
  checksum = _Checksum()
  read = lambda steps: _read_newest(
    directory, steps, flat, f"{folder}/", checksum, say
  )[1]
  with checksum.compiled_beside(wanted):
    leaves = read(steps if number == 1 else steps[-1:])
  for count, step in enumerate(reversed(steps[-number:-1]), start=2):
    leaves = _moved(leaves, read([step]), 1 / count)
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
  if word == "last" and number.isdecimal() and int(number) > 0:
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
    return _read_meta(directory, step)
  except _Damage as damage:
    raise InputError(
      f"step {step} in {directory} cannot be read: {damage}"
    ) from None


def preload() -> None:
  """Starts to import Orbax in the background."""
  threading.Thread(target=_import_orbax, daemon=True).start()


_IMPORTING = threading.Lock()


def _import_orbax():
  with _IMPORTING:
    _hush_orbax()
    import orbax.checkpoint as ocp
  return ocp


# One of these is in the traceback or the text of whatever Orbax leaves behind.
_SIGNS = (f"{os.sep}orbax{os.sep}", "TensorStore", "OCDBT", "loop is closed")


@functools.cache
def _hush_orbax() -> None:
  """Keeps off the terminal what Orbax prints about errors that it raises.

  It logs them with tracebacks through absl. And after one read or write has
  failed, it leaves the others to asyncio's log, or to end in a loop that is
  closed, in threads of TensorStore, where Python can but print them.
  """

  def is_not_from_orbax(record) -> bool:
    stack = traceback.walk_stack(sys._getframe())
    files = (frame.f_code.co_filename for frame, _ in stack)
    return not any(_SIGNS[0] in file for file in files)

  def is_not_about_orbax(record) -> bool:
    text = record.getMessage()
    if record.exc_info:
      text += "".join(traceback.format_exception(*record.exc_info))
    return not any(sign in text for sign in _SIGNS)

  hook = sys.unraisablehook

  def unraisable(event) -> None:
    error = traceback.format_exception(event.exc_value)
    if not any(sign in "".join(error) for sign in _SIGNS):
      hook(event)

  logging.getLogger("absl").addFilter(is_not_from_orbax)
  logging.getLogger("asyncio").addFilter(is_not_about_orbax)
  sys.unraisablehook = unraisable


def _open_manager(directory: str, checkpoint: CheckpointConfig):
  ocp = _import_orbax()
  policies = ocp.checkpoint_managers
  preserved = [policies.LatestN(checkpoint.keep_last)]
  if checkpoint.keep_every_steps is not None:
    preserved.append(policies.EveryNSteps(checkpoint.keep_every_steps))
  return ocp.CheckpointManager(
    directory,
    item_handlers={STATE: _state_handler(), META: ocp.JsonCheckpointHandler()},
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      cleanup_tmp_directories=True,
      save_root_metadata=False,
      lightweight_initialize=True,
    ),
  )


def _state_handler():
  # Weights shrink by 7 % and take three times as long to write compressed.
  return _import_orbax().PyTreeCheckpointHandler(use_compression=False)


class _Checksum:
  """tree.checksum, compiled once for each kind of leaf.

  A state has hundreds of leaves and a dozen kinds: one program for the whole
  state takes longer to compile (0.6 s against 0.4 s at 61 leaves) and no less
  to run.
  """

  def __init__(self):
    self._compiled = {}

  def __call__(self, leaves) -> list[str]:
    """Returns the hexadecimal checksum of each leaf."""
    rows = [self._compile(leaf)(leaf) for leaf in jax.tree.leaves(leaves)]
    rows = np.concatenate(jax.device_get(rows)).astype("<u4")
    return [row.tobytes().hex() for row in rows]

  @contextlib.contextmanager
  def compiled_beside(self, abstract):
    """Compiles while the body, mostly waiting for the disk, runs."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      compiling = pool.submit(self.compile, abstract)
      yield
      compiling.result()

  def compile(self, abstract) -> None:
    """Compiles what leaves of these shapes and shardings need."""
    for leaf in jax.tree.leaves(abstract):
      self._compile(leaf)

  def _compile(self, leaf):
    key = leaf.shape, leaf.dtype, leaf.sharding
    if key not in self._compiled:
      place = None
      if isinstance(leaf.sharding, NamedSharding):
        # Every process reads the result.
        place = NamedSharding(leaf.sharding.mesh, P())
      function = jax.jit(lambda x: tree.checksum([x]), out_shardings=place)
      abstract = jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      )
      self._compiled[key] = function.lower(abstract).compile()
    return self._compiled[key]


def list_steps(directory: str) -> list[int]:
  try:
    names = os.listdir(directory)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(
      f"{directory} cannot be read as a folder of checkpoints: {error.strerror}"
    ) from None
  return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))


def _committed(workdir: str, directory: str) -> list[int]:
  steps = list_steps(directory)
  if not steps:
    what = "holds no checkpoint" if os.path.isdir(workdir) else "does not exist"
    raise InputError(
      f"{workdir} {what}; give the workdir of a run that has saved one"
    )
  return steps


def _read_newest(directory, steps, flat, prefix, checksum, say):
  """Returns (step, leaves, meta) of the newest step that can be read."""
  faults = []
  for step in sorted(steps, reverse=True):
    if faults:
      say(f"{faults[-1]}; trying step {step}")
    try:
      return step, *_read(directory, step, flat, prefix, checksum)
    except _Damage as damage:
      faults.append(f"step {step} in {directory} cannot be read: {damage}")
  raise InputError(
    f"no checkpoint can be read: {'; '.join(faults)}; give another workdir, "
    "or move that folder away to start afresh"
  )


def _read(directory, step, flat, prefix, checksum):
  """Returns (leaves in the order of `flat`, meta)."""
  meta = _agree(lambda: _read_meta(directory, step))
  there = {k: v for k, v in meta["shapes"].items() if k.startswith(prefix)}
  differing = tree.diff_shapes(there, tree.describe_shapes(flat))
  if differing:
    more = len(differing) - 3
    raise InputError(
      f"step {step} in {directory} is of another model: "
      + "; ".join(differing[:3])
      + (f"; and {more} more" if more > 0 else "")
    )
  leaves = _agree(lambda: _read_arrays(directory, step, flat))
  saved = _rows_by_name(meta)
  # Met first: gloo waits 30 seconds for a process that reads more slowly.
  processes.agree("the checkpoint to restore", step)
  found = dict(zip(flat, checksum(leaves), strict=True))
  wrong = [name for name in flat if found[name] != saved[name]]
  if wrong:
    raise _Damage(f"the checksum of {_some(wrong)} does not match")
  return leaves, meta


def _read_arrays(directory, step, flat):
  ocp = _import_orbax()
  item = _nest(flat)
  try:
    restored = _state_handler().restore(
      pathlib.Path(directory, str(step), STATE),
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
      ),
    )
    restored = tree.flatten_with_names(restored)
    return [restored[name] for name in flat]
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # the machine's fault, not the file's
  except Exception as error:
    raise _Damage(f"its arrays are unreadable ({_short(error)})") from None


def _read_meta(directory: str, step: int) -> dict:
  path = os.path.join(directory, str(step), META, "metadata")
  try:
    with open(path, encoding="utf-8") as file:
      meta = json.load(file)
    if meta != _seal(meta) or meta["step"] != step:
      raise _Damage(f"{META}/metadata does not match its own digest")
    _rows_by_name(meta)
  except OSError as error:
    raise _Damage(f"{META}/metadata: {error.strerror}") from None
  except (ValueError, KeyError, TypeError, AttributeError):
    raise _Damage(f"{META}/metadata is not the JSON of a step") from None
  return meta


def _seal(meta: dict) -> dict:
  """Returns meta with the digest of its other entries."""
  rest = {k: v for k, v in meta.items() if k != "digest"}
  digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
  return rest | {"digest": digest.hexdigest()[:16]}


def _rows_by_name(meta: dict) -> dict[str, str]:
  text, names = meta["checksum"], meta["shapes"]
  rows = [text[i : i + DIGITS] for i in range(0, len(text), DIGITS)]
  return dict(zip(names, rows, strict=True))


def _agree(read):
  """Returns read(), or raises _Damage on all processes if it does on one.

  A process that went on alone would wait for ever in the next collective.
  """
  damage = result = None
  try:
    result = read()
  except _Damage as error:
    damage = error
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    is_damaged = multihost_utils.process_allgather(np.array(damage is not None))
    if damage is None and is_damaged.any():
      damage = _Damage("another process cannot read it")
  if damage is not None:
    raise damage
  return result


def _nest(flat: dict) -> dict:
  """Returns {"a": {"b": leaf}} of {"a/b": leaf}."""
  nested: dict = {}
  for name, leaf in flat.items():
    *folders, last = name.split("/")
    node = nested
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return nested


def _is_disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if getattr(error, "errno", None) in DISK_FULL:
      return True
    # TensorStore raises ValueErrors that spell it out.
    if any(os.strerror(number) in str(error) for number in DISK_FULL):
      return True
    error = error.__cause__ or error.__context__
  return False


def _some(names: list[str]) -> str:
  more = len(names) - 3
  return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _short(error: BaseException) -> str:
  first = f"{type(error).__name__}: {error}".splitlines()[0]
  return first if len(first) <= 80 else f"{first[:77]}..."
