"""The run whose parameters are adapted, and whether it is still the same.

A run of adapters saves these alone, and a loss of preferences compares a model
with the one that it began as. Such a run names the workdir of its base in
train.init_from, and its own record the base's step and a fingerprint of the
checksums of that step's parameters, which reading them verifies.
"""

import os
from typing import NamedTuple

from gpt_jax import digest, tree
from gpt_jax.config import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import processes
from gpt_jax.runs import integrity, restore

PREFIX = "params/"


class Base(NamedTuple):
  """A step of a base, and 16 hex digits of its parameters' checksums."""

  step: int
  fingerprint: str


def find_base(
  workdir: str, shapes: dict[str, str], step: int | None = None
) -> Base:
  """Returns the Base of a workdir.

  Args:
    shapes: tree.describe_shapes of its parameters.
    step: None for the newest.

  Raises:
    InputError: the step is not there or damaged, or its parameters have other
      shapes.
  """
  return Base(*processes.share(lambda: _find(workdir, shapes, step)))


def _find(workdir: str, shapes: dict[str, str], step: int | None) -> Base:
  asked = f"train.init_from is {workdir!r}"
  directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
  steps = restore.list_steps(directory)
  step = max(steps, default=None) if step is None else step
  if step not in steps:
    what = "no checkpoint" if step is None else f"step {step} no longer"
    raise InputError(
      f"{asked}, which holds {what}; it must be the workdir of the run that "
      "this one begins from"
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
      f"{asked}, a base of other parameters: {'; '.join(differing[:3])}; take "
      "its model section and its param_dtype"
    )
  rows = own(integrity.rows_by_name(meta))
  return Base(step, digest.of_json(rows)[:16])


def check_base(
  workdir: str, shapes: dict[str, str], wanted: Base | None
) -> Base:
  """Returns the base of a run's record, if it is as when the run was begun.

  Args:
    workdir: of the base.
    shapes: as in find_base.
    wanted: from the run's record.

  Raises:
    InputError: as find_base, or its parameters are others, or there is none.
  """
  if wanted is None:
    raise InputError(
      f"train.init_from is {workdir!r} and the run's config.json does not say "
      "which step it was begun from; restore the file that it wrote"
    )
  found = find_base(workdir, shapes, wanted.step)
  if found != wanted:
    raise InputError(
      f"train.init_from is {workdir!r}, whose step {found.step} has changed "
      f"since this run was begun (parameters {wanted.fingerprint} then, "
      f"{found.fingerprint} now); put that base back"
    )
  return found
