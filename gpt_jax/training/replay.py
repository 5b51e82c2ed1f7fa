"""Recompute a step that a run has done, and compare it bit for bit.

A run is a function of its config, data and devices. A step that gives another
result when it is recomputed ran on a faulty device, or depends on something
that it should not.
"""

from collections.abc import Callable
from typing import Any

from gpt_jax import exits, tree
from gpt_jax.config import InputError
from gpt_jax.runs import integrity, restore


def replay(
  step: int,
  total: int,
  keeper: Any,
  recompute: Callable[[], tuple[int, Any]],
  say: Callable[[str], None],
) -> int:
  """Recomputes a step twice and reports whether the bits agree.

  Args:
    step: the step to recompute, counted from 1.
    total: number of steps of the run.
    keeper: the run's Checkpointer; if it holds the step, the saved state is
      compared too.
    recompute: returns (step that it started from, state after `step`).
    say: prints the line that states the result.

  Returns:
    0, or exits.CORRUPT where the bits differ.

  Raises:
    InputError: the run has no such step.
  """
  if not 1 <= step <= total:
    raise InputError(
      f"--replay is {step}; it must be a step of the run, from 1 to {total}"
    )
  checksum, found = integrity.Checksum(), []
  for _ in range(2):
    begun, state = recompute()
    names = tree.flatten_with_names(state)
    found.append(dict(zip(names, checksum(state)[0], strict=True)))
  compared = "twice"
  stored = restore.read_checksums(keeper.directory, step)
  if stored is not None:
    found.append(stored)
    compared = "twice, and compared with its checkpoint"
  line = f"step {step:,} recomputed from step {begun:,} {compared}: "
  odd = [name for name in found[0] if len({rows[name] for rows in found}) > 1]
  if not odd:
    say(f"{line}all {len(found[0])} arrays agree bit for bit")
    return 0
  where = (
    "the two differ from each other"
    if found[0] != found[1]
    else "both differ from the checkpoint"
  )
  say(
    f"{line}{where} in {integrity.some(odd)}; a device is faulty, or the run "
    "was made on other devices or by another version"
  )
  return exits.CORRUPT
