"""Rollback: resume from a good step, and skip the batches that failed.

As in the training of PaLM (Chowdhery et al. 2022, 5.1): a run whose loss does
not recover resumes from an earlier checkpoint and skips the batches on which it
failed. If it fails again before the next save, it resumes from the checkpoint
before that one.

Design choice: the list of rollbacks is stored in each later checkpoint, and no
file is written at the rollback itself. A run that is killed right after a
rollback reads the same batches and rolls back again; it ends as if it had not
been killed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from gpt_jax.files import Damage
from gpt_jax.runs import integrity

KEY = "rollbacks"


class Diverged(Exception):
  """Too many updates in a row were skipped, or a final loss is not finite.

  Args:
    step: number of steps done.
  """

  def __init__(self, step: int, message: str):
    super().__init__(message)
    self.step = step


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The rollbacks of a run so far.

  Attributes:
    entries: for each rollback (the step resumed from, the step that failed, the
      sequences of the data order that it and earlier rollbacks skip).
  """

  entries: tuple[tuple[int, int, int], ...] = ()

  @classmethod
  def of(cls, meta: dict) -> "Ledger":
    """Returns the ledger stored in the metadata of a checkpoint."""
    return cls(tuple(tuple(entry) for entry in meta.get(KEY, ())))

  @property
  def num_passed(self) -> int:
    """Number of sequences of the data order that are skipped."""
    return self.entries[-1][2] if self.entries else 0

  def meta(self) -> dict:
    """Returns the metadata for a checkpoint; {} without a rollback."""
    return {KEY: [list(e) for e in self.entries]} if self.entries else {}

  def add(
    self, target: int, failed: int, count: Callable[[int], int]
  ) -> "Ledger":
    """Returns the ledger after one more rollback.

    Args:
      target: the step resumed from.
      failed: steps done at the failure; their batches from target on are
        skipped.
      count: returns the number of sequences in the first N steps.
    """
    passed = self.num_passed + count(failed) - count(target)
    return Ledger((*self.entries, (target, failed, passed)))

  def choose(self, good: list[int]) -> int | None:
    """Returns the step to resume from, None where there is none.

    Args:
      good: saved steps whose state is good, without those that an earlier
        rollback superseded, oldest first.
    """
    if self.entries and good and good[-1] == self.entries[-1][0]:
      good = good[-2:-1] or good  # nothing was saved since
    return good[-1] if good else None


def passed_at(keeper: Any, step: int) -> int:
  """Returns how many sequences rollbacks had skipped when a run did this step.

  Args:
    keeper: the run's Checkpointer.
  """
  later = [s for s in keeper.steps() if s >= step]
  earlier = [s for s in reversed(keeper.steps()) if s < step]
  for stored in later + earlier:
    try:
      return Ledger.of(integrity.read_meta(keeper.directory, stored)).num_passed
    except Damage:
      continue
  return 0
