"""A run whose parameters another reads and never changes: is it the same?

A run of adapters saves these alone, and a loss of preferences compares a model
with the one that it began as: such a run names the workdir of its base in
train.init_from. A student names that of its teacher in distill.teacher. The
run's own record has the other's step and a fingerprint of the checksums of that
step's parameters, which reading them verifies.
"""

from typing import NamedTuple

from gpt_jax import digest, tree
from gpt_jax.config import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes
from gpt_jax.runs import integrity, restore

PREFIX = "params/"


class Role(NamedTuple):
  """What the other run is for.

  Attributes:
    key: the config's key that names its workdir.
    name: of it in the run's record.
    use: a clause, what it is for.
  """

  key: str
  name: str
  use: str


BASE = Role("train.init_from", "base", "this one begins from")
TEACHER = Role("distill.teacher", "teacher", "this one learns from")


class Base(NamedTuple):
  """A step of a base, and 16 hex digits of its parameters' checksums."""

  step: int
  fingerprint: str


def find_base(
  workdir: str,
  shapes: dict[str, str],
  step: int | None = None,
  role: Role = BASE,
) -> Base:
  """Returns the Base of a workdir.

  Args:
    shapes: tree.describe_shapes of its parameters.
    step: None for the newest.
    role: what it is for.

  Raises:
    InputError: the step is not there or damaged, or its parameters have other
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
  """Returns the base of a run's record, if it is as when the run was begun.

  Args:
    workdir: of the base.
    shapes, role: as in find_base.
    wanted: from the run's record.

  Raises:
    InputError: as find_base, or its parameters are others, or there is none.
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
