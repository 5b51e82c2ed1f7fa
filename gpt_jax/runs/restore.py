"""Reads checkpoints, and verifies every array by its checksum."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import encryption, tree
from gpt_jax.config import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes, runtime
from gpt_jax.runs import integrity, scratch, storage

# Steps are int32.
MAX_STEP = 2**31 - 1


def checkpoints_of(workdir: str) -> str:
  """Returns the checkpoint folder of a run at a path or an address."""
  return os.path.abspath(os.path.join(scratch.local(workdir), "checkpoints"))


def list_steps(directory: str) -> list[int]:
  """Returns the steps that are committed in a folder, oldest first.

  Ignores names that are not a step's, such as 007 or a number above int32's.
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
    is_there = os.path.isdir(scratch.local(workdir))
    what = "holds no checkpoint" if is_there else "does not exist"
    raise InputError(
      f"{workdir} {what}; give the workdir of a run that has saved one"
    )
  return steps


def read_newest(
  directory: str,
  steps: list[int],
  flat: dict[str, Any],
  prefix: str,
  checksum: integrity.Checksum,
  say: Callable[[str], None],
  facts: dict,
  ignored: tuple[str, ...] = (),
  convert: Callable[[str, Any], Any] = lambda name, leaf: leaf,
):
  """Yields (step, leaves, meta) of the steps that can be read, newest first.

  Args:
    flat: {"a/b": abstract leaf} to read.
    prefix: of those names in the record that must match `flat`.
    say: prints the line about a step that could not be read.
    facts: integrity.FACTS of the run.
    ignored: first parts, after the prefix, of names that need not match.
    convert: function of (name in `flat`, leaf) that returns what is yielded for
      that leaf, called as soon as the leaf is read.

  Raises:
    InputError: a step belongs to another run or model, or none can be read.
  """
  faults, is_none, unsaid = [], True, None
  for step in sorted(steps, reverse=True):
    if unsaid is not None:
      say(f"{unsaid}; trying step {step}")
      unsaid = None
    try:
      meta = _read_meta(directory, step, flat, prefix, facts, ignored)
      leaves = _read(directory, step, flat, meta, checksum, convert)
    except Damage as damage:
      unsaid = f"step {step} in {directory} cannot be read: {damage}"
      faults.append(unsaid)
      continue
    yield step, leaves, meta
    is_none = False
  if is_none:
    raise InputError(
      f"no checkpoint can be read: {'; '.join(faults)}; give another workdir, "
      "or move that folder away to start afresh"
    )


def _read_meta(directory, step, flat, prefix, facts, ignored) -> dict:
  """Returns the record of a step that holds `flat`; see read_newest."""
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
      f"{here} holds no moving average; it needs a run with train.ema_decay"
    )
  if ignored:
    first = lambda name: name.removeprefix(prefix).split("/")[0]
    there = {k: v for k, v in there.items() if first(k) not in ignored}
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
  return meta


def _read(directory, step, flat, meta, checksum, convert) -> list:
  """Returns leaves in the order of `flat`; see read_newest."""
  saved = integrity.rows_by_name(meta)
  found, wrong = {}, set()
  for group in storage.group_leaves(flat):
    read = functools.partial(_read_leaves, directory, step, group, meta)
    leaves = _agree(read)
    runtime.give_back_memory()  # Orbax's copies, as large as the arrays
    # Wait here for slower processes: gloo, in the checksum, waits only 30 s.
    processes.agree("the checkpoint to restore", step)
    for name, sums in zip(group, checksum(leaves)[0], strict=True):
      if sums != saved[name]:
        wrong.add(name)
      found[name] = convert(name, leaves.pop(0))
  if wrong:
    some = integrity.some([name for name in flat if name in wrong])
    raise Damage(f"the checksum of {some} does not match")
  return [found[name] for name in flat]


def _read_leaves(directory: str, step: int, flat: dict, meta: dict) -> list:
  scratch.complete(directory, step)
  if "encryption" not in meta:
    return storage.read_arrays(directory, step, flat)
  key = encryption.find(meta["encryption"], f"step {step} in {directory}")
  return storage.read_encrypted(directory, step, flat, key)


def _agree(read):
  """Returns read(); raises Damage in all processes if read() does in one.

  A process that went on without the others would hang in the next collective.
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


def restore_params(
  workdir: str,
  abstract_params: Any,
  say: Callable[[str], None] = print,
  average: str | None = None,
  facts: dict | None = None,
  step: int | None = None,
  ignored: tuple[str, ...] = (),
  convert: Callable[[str, Any], Any] | None = None,
):
  """Returns the parameters of a run, without reading its optimizer state.

  Args:
    workdir: of that run.
    abstract_params: tree of ShapeDtypeStructs with shardings on any mesh.
    say: prints the line about a step that could not be read.
    average: "ema" reads the moving average instead, "last:N" the mean of the N
      newest readable steps; None neither.
    facts: integrity.FACTS of that run, from its config.json.
    step: the step to read; None for the newest readable one.
    ignored: names in that run's tree that abstract_params may lack.
    convert: function of (name, leaf) that returns what replaces the leaf; it is
      called as soon as the leaf is read, and not with an average.

  Raises:
    InputError: no step can be read, or fewer than N; or the parameters have
      other shapes or belong to another run.
  """
  directory = checkpoints_of(workdir)
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
  steps = _choose_steps(workdir, directory, average, step)
  checksum = integrity.Checksum()
  make = lambda name, leaf: leaf
  if convert is not None:
    make = lambda name, leaf: convert(name.removeprefix(f"{folder}/"), leaf)
  found = read_newest(
    directory,
    steps,
    flat,
    f"{folder}/",
    checksum,
    say,
    facts or {},
    ignored,
    make,
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
  whole = jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)
  if convert is not None:
    return whole
  cast = lambda leaf, like: leaf.astype(like.dtype)
  return jax.tree.map(cast, whole, abstract_params)


def _choose_steps(
  workdir: str, directory: str, average: str | None, step: int | None
) -> list[int]:
  """Returns the steps that restore_params tries."""
  _, number = read_average(average)
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
  return steps


def read_average(average: str | None) -> tuple[str, int]:
  """Returns ("last", N) or ("ema", 1) from the value of --average."""
  if average is None:
    return "last", 1
  word, _, number = average.partition(":")
  if average == "ema":
    return "ema", 1
  is_number = number.isascii() and number.isdecimal() and len(number) <= 10
  if word == "last" and is_number and int(number) > 0:
    return "last", int(number)
  raise InputError(
    f"--average is {average!r}; it must be ema, or last:N for the N newest "
    "checkpoints"
  )


@jax.jit
def _moved(leaves, others, part):
  """Returns a + part * (b - a) for leaves a and others b, in float32."""
  wide = lambda x: x.astype(np.float32)
  return [
    wide(a) + part * (wide(b) - wide(a))
    for a, b in zip(leaves, others, strict=True)
  ]


def read_checksums(directory: str, step: int) -> dict[str, str] | None:
  """Returns {"a/b": checksum} of a step, or None if it cannot be read."""

  def read():
    try:
      return integrity.rows_by_name(integrity.read_meta(directory, step))
    except Damage:
      return None

  return processes.share(read)
