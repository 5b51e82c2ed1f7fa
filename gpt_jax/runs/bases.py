"""Checks that a run's base or teacher, which is only read, has not changed.

A run with adapters saves only the adapters, and a preference loss compares a
model with the one that it began as. Such a run names the workdir of its base in
train.init_from. A student names the workdir of its teacher in distill.teacher.
The run's record has the other run's step and a fingerprint of that step's
parameter checksums, which are verified when the parameters are read.
"""

from typing import NamedTuple

from gpt_jax import digest, tree
from gpt_jax.config import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes
from gpt_jax.runs import integrity, restore

PREFIX = "params/"


class Role(NamedTuple):
  """The role of the other run.

  Attributes:
    key: the config's key that names its workdir.
    name: the name of the role in the run's record.
    use: a clause on what it is for, for errors.
  """

  key: str
  name: str
  use: str


BASE = Role("train.init_from", "base", "this one begins from")
TEACHER = Role("distill.teacher", "teacher", "this one learns from")


class Base(NamedTuple):
  """A step of a base, and a 16-digit hex digest of its parameter checksums."""

  step: int
  fingerprint: str


def find_base(
  workdir: str,
  shapes: dict[str, str],
  step: int | None = None,
  role: Role = BASE,
) -> Base:
  """Returns the Base of the run in a workdir.

  Args:
    shapes: tree.describe_shapes of its parameters.
    step: None for the newest.
    role: the role of that run.

  Raises:
    InputError: the step is missing or damaged, or its parameters have other
      shapes.
  """
  return Base(*processes.share(lambda: _find(workdir, shapes, step, role)))


def _find(workdir: str, shapes: dict[str, str], step, role: Role) -> Base:
  asked = f"{role.key} is {workdir!r}"
  directory = restore.checkpoints_of(workdir)
  steps = restore.list_steps(directory)
  step = max(steps, default=None) if step is None else step
  if step not in steps:
    what = "no checkpoint" if step is None else f"step {step} no longer"
    raise InputError(
      f"{asked}, which holds {what}; it must be the workdir of the run that "
      f"{role.use}"
    )
  try:
    meta = integrity.read_meta(directory, step)
  except Damage as damage:
    raise InputError(
      f"{asked}, whose step {step} cannot be read: {damage}; restore it"
    ) from None
  own = lambda named: {
    name.removeprefix(PREFIX): value
    for name, value in named.items()
    if name.startswith(PREFIX)
  }
  differing = tree.diff_shapes(own(meta["shapes"]), shapes)
  if differing:
    raise InputError(
      f"{asked}, a {role.name} of other parameters: "
      f"{'; '.join(differing[:3])}; take its model section and its param_dtype"
    )
  rows = own(integrity.rows_by_name(meta))
  return Base(step, digest.of_json(rows)[:16])


def check_base(
  workdir: str,
  shapes: dict[str, str],
  wanted: Base | None,
  role: Role = BASE,
) -> Base:
  """Returns the base in a run's record, if it is unchanged since the start.

  Args:
    workdir: of the base.
    shapes, role: as in find_base.
    wanted: the Base in the run's record, or None.

  Raises:
    InputError: as find_base; or its parameters have changed, or the record
      names none.
  """
  if wanted is None:
    raise InputError(
      f"{role.key} is {workdir!r} and the run's config.json does not say which "
      "step of it the run was begun with; restore the file that it wrote"
    )
  found = find_base(workdir, shapes, wanted.step, role)
  if found != wanted:
    raise InputError(
      f"{role.key} is {workdir!r}, whose step {found.step} has changed since "
      f"the run was begun (parameters {wanted.fingerprint} then, "
      f"{found.fingerprint} now); put that {role.name} back"
    )
  return found
