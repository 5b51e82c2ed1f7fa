"""Where the seconds of a run went: each is of exactly one kind.

The seconds of earlier processes come from the rows that they left. What was
done after the step that a run resumes from is done again, so all the time
since then is lost, whatever it was spent on. Time in which no process ran is
no part of it.
"""

import contextlib
import time

from gpt_jax.machine import console

KINDS = ("step", "compile", "data", "save", "evaluation", "restart", "lost")
RUN_SECONDS = "time/run_seconds"
UNIX = "time/unix"


def carry(kept: dict, seen: dict) -> dict:
  """Returns a row whose lost seconds include what was spent after it.

  Args:
    kept: the last row up to the step that the run resumes from, {} if none.
    seen: the last row that was there.
  """
  spent = seen.get(RUN_SECONDS, 0.0) - kept.get(RUN_SECONDS, 0.0)
  if spent <= 0:
    return kept
  lost = kept.get(_name("lost"), 0.0) + spent
  return kept | {
    RUN_SECONDS: seen[RUN_SECONDS],
    _name("lost"): round(lost, 3),
  }


class Clock:
  """Gives each second to one kind; the first ones are of `restart`.

  `restart` is everything before the first step: data and compiling apart, the
  libraries that are loaded and the state that is made or read.
  """

  def __init__(self):
    self.seconds = dict.fromkeys(KINDS, 0.0)
    self.kind, self.since = "restart", time.perf_counter()

  def switch(self, kind: str) -> str:
    """Begins another kind; returns the one that ends."""
    now = time.perf_counter()
    self.seconds[self.kind] += now - self.since
    before, self.kind, self.since = self.kind, kind, now
    return before

  @contextlib.contextmanager
  def spend(self, kind: str):
    """Counts what is done inside as one kind."""
    before = self.switch(kind)
    try:
      yield
    finally:
      self.switch(before)

  def go_on(self, row: dict) -> None:
    """Adds what earlier processes spent, as `carry` gives it."""
    for kind in KINDS:
      self.seconds[kind] += row.get(_name(kind), 0.0)

  def forget(self) -> None:
    """Begins at zero, where rows hold what was spent and are gone on from."""
    self.switch(self.kind)
    self.seconds = dict.fromkeys(KINDS, 0.0)

  def row(self) -> dict[str, float]:
    """Returns {"time/unix": now, "time/run_seconds": all, a kind: its own}."""
    self.switch(self.kind)
    spent = {k: round(v, 3) for k, v in self.seconds.items() if v >= 0.001}
    return {
      UNIX: round(time.time(), 3),
      RUN_SECONDS: round(sum(spent.values()), 3),
    } | {_name(kind): v for kind, v in spent.items()}

  def describe(self) -> str:
    """Returns "step 91%, compile 5%, data 2% of 3 min 05 s"."""
    self.switch(self.kind)
    total = sum(self.seconds.values()) or 1.0
    parts = [
      f"{kind} {100 * self.seconds[kind] / total:.0f}%"
      for kind in KINDS
      if self.seconds[kind] >= 0.005 * total
    ]
    return f"{', '.join(parts)} of {console.format_seconds(total)}"


def _name(kind: str) -> str:
  return f"time/{kind}_seconds"
