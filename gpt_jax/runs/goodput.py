"""Where a run's time goes: each second counts under exactly one kind.

The seconds of earlier processes come from the rows that they wrote. Work after
the step that a run resumes from is repeated, so all the time spent on it counts
as lost, of whatever kind it was. Time without a process is not counted.
"""

import contextlib
import time

from gpt_jax.machine import console

KINDS = ("step", "compile", "data", "save", "evaluation", "restart", "lost")
RUN_SECONDS = "time/run_seconds"
UNIX = "time/unix"


def carry(kept: dict, seen: dict) -> dict:
  """Returns row `kept` with the seconds spent after it added as lost.

  Args:
    kept: the last row up to the step that the run resumes from, {} if none.
    seen: the last row of the file before it was rewound.
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
  """Assigns each second to one kind, beginning with `restart`.

  `restart` is all that happens before the first step except for data and
  compiling: loading libraries, and initializing or reading the state.
  """

  def __init__(self):
    self.seconds = dict.fromkeys(KINDS, 0.0)
    self.kind, self.since = "restart", time.perf_counter()

  def switch(self, kind: str) -> str:
    """Starts to count for `kind`; returns the previous kind."""
    now = time.perf_counter()
    self.seconds[self.kind] += now - self.since
    before, self.kind, self.since = self.kind, kind, now
    return before

  @contextlib.contextmanager
  def spend(self, kind: str):
    """Counts the time inside this context as `kind`."""
    before = self.switch(kind)
    try:
      yield
    finally:
      self.switch(before)

  def go_on(self, row: dict) -> None:
    """Adds the seconds of earlier processes, from the row of `carry`."""
    for kind in KINDS:
      self.seconds[kind] += row.get(_name(kind), 0.0)

  def forget(self) -> None:
    """Resets all seconds to zero, for a caller that then calls `go_on`."""
    self.switch(self.kind)
    self.seconds = dict.fromkeys(KINDS, 0.0)

  def row(self) -> dict[str, float]:
    """Returns time/unix, time/run_seconds (the sum), time/<kind>_seconds."""
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
