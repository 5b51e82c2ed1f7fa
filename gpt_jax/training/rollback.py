"""Going back to a good step, and past the batches that led astray.

As PaLM was trained (Chowdhery et al. 2022, 5.1): where the loss does not
recover, the run goes back to a checkpoint from before, and on with the batches
that follow the ones it failed on. Where it fails again before the next save,
it goes back to the checkpoint before that one.

Design choice: the list of rollbacks is stored in each later checkpoint, and no
file is written at the rollback itself. A run that is killed right after one
meets the same batches and rolls back again; it ends as if it had not been
killed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from gpt_jax.files import Damage
from gpt_jax.runs import integrity

KEY = "rollbacks"


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The rollbacks of a run so far.

  Attributes:
    entries: of each, in turn, the step gone back to, the step that failed, and
      the sequences of the order of data that all rollbacks so far pass over.
  """

  entries: tuple[tuple[int, int, int], ...] = ()

  @classmethod
  def of(cls, meta: dict) -> "Ledger":
    """Returns the ledger that is stored in a checkpoint."""
    return cls(tuple(tuple(entry) for entry in meta.get(KEY, ())))

  @property
  def num_passed(self) -> int:
    """Sequences that are passed over."""
    return self.entries[-1][2] if self.entries else 0

  def meta(self) -> dict:
    """Returns what a checkpoint stores: nothing where nothing was done."""
    return {KEY: [list(e) for e in self.entries]} if self.entries else {}

  def add(
    self, target: int, failed: int, count: Callable[[int], int]
  ) -> "Ledger":
    """Returns the ledger after one more rollback.

    Args:
      target: the step gone back to.
      failed: steps that were done; the batches from target on are passed over.
      count: steps -> sequences of that many steps.
    """
    passed = self.num_passed + count(failed) - count(target)
    return Ledger((*self.entries, (target, failed, passed)))

  def choose(self, good: list[int]) -> int | None:
    """Returns the step to go back to, None where there is none.

    Args:
      good: steps of this course whose state is good, oldest first.
    """
    if self.entries and good and good[-1] == self.entries[-1][0]:
      good = good[-2:-1] or good  # nothing was saved since
    return good[-1] if good else None


def passed_at(keeper: Any, step: int) -> int:
  """Returns the sequences passed over when a stored run did this step.

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
