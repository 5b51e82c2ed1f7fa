"""Runs a sweep's cells, or writes them as jobs for SLURM.

jax is not imported here unless there are branches to check, so that a sweep
that is finished says so at once.
"""

import dataclasses
import os

from gpt_jax import exits, files
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import branches, folder
from gpt_jax.lab.sweep.cells import Cell, Sweep, command
from gpt_jax.lab.sweep.pool import Pool
from gpt_jax.machine import console


def say(line: str) -> None:
  """Prints a line; a closed terminal does not stop the cells."""
  console.tell(line, is_error=False)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call of `run` ended.

  Attributes:
    code: exit code; 0 if all chosen cells are done.
    done: cells that were done before.
    finished, failed, stopped: cells that ended in this call.
    skipped: cells that failed before, passed over without is_retried.
    elsewhere: cells that another process runs.
    lost: cells whose trunk failed.
  """

  code: int
  done: list[Cell]
  finished: list[Cell]
  failed: list[Cell]
  stopped: list[Cell]
  skipped: list[Cell]
  elsewhere: list[Cell]
  lost: list[Cell]


def run(
  sweep: Sweep,
  root: str,
  num_workers: int = 1,
  only: list[str] | None = None,
  is_retried: bool = False,
  memory: float | None = None,
  say=say,
) -> Outcome:
  """Runs the cells that are not done, each in a process of its own.

  Args:
    root: the folder of the sweep.
    num_workers: cells at a time.
    only: beginnings of the ids to run; None runs all.
    is_retried: run cells that failed before, too.
    memory: GiB that one cell may use; None: all that the machine has.
    say: called with lines about what is being done.

  Raises:
    InputError: `only` names no cell of the sweep, or a branch's learning rates
      differ from its trunk's.
  """
  states = {c.id: folder.read(root, c.id) for c in sweep.cells}
  chosen = choose(sweep, only)
  todo = [c for c in chosen if states[c.id].word != folder.DONE]
  skipped = []
  if not is_retried:
    skipped = [c for c in todo if states[c.id].is_passed_over]
  todo = [c for c in todo if c not in skipped]
  if todo:
    branches.check_rates(sweep.cells)
  done = [c for c in chosen if states[c.id].word == folder.DONE]
  say(f"{len(chosen)} cells: {len(done)} done, {len(todo)} to run")
  refused = [] if only else sweep.refused
  for one in refused:
    say(f"refused: {one.title}: {one.reason}")
  pool = Pool(root, todo, num_workers, memory, say)
  code = pool.run()
  if code is None and pool.stopped:
    code = exits.PREEMPTED  # a cell was signalled by another process
  failed = [*pool.failed, *skipped]
  _say_end(root, states, skipped, failed, pool.elsewhere, say)
  if code is not None:
    left = len(pool.waiting) + len(pool.stopped)
    say(f"stopped, {left} cells are left; go on with the same command")
  else:
    code = exits.FAILED if failed or refused or pool.lost else 0
  return Outcome(
    code=code,
    done=done,
    finished=pool.finished,
    failed=pool.failed,
    stopped=pool.stopped,
    skipped=skipped,
    elsewhere=pool.elsewhere,
    lost=pool.lost,
  )


def _say_end(root, states, skipped, failed, elsewhere, say) -> None:
  """Prints which cells have failed and how to run them again."""
  for cell in skipped:
    reason = states[cell.id].reason
    say(f"failed before: {cell.id} {cell.title}: {reason}")
  if failed:
    ids = ",".join(c.id for c in failed)
    say(f"to run these again: the same command with --retry --only={ids}")
  words = {c.id: folder.read(root, c.id).word for c in failed}
  if folder.DIVERGED in words.values():
    say("what diverged will diverge again: a run is the same each time")
  for cell in elsewhere:
    where = folder.read(root, cell.id).reason
    say(f"run elsewhere: {cell.id} {cell.title}: {where}")


def choose(sweep: Sweep, only: list[str] | None) -> list[Cell]:
  """Returns the cells whose ids begin with one of `only`; all if it is None.

  Raises:
    InputError: one of `only` matches no id, or several.
  """
  if only is None:
    return sweep.cells
  for word in only:
    found = [c for c in sweep.cells if c.id.startswith(word)]
    if len(found) != 1 or not word:
      have = f"{len(found)} cells" if found else "no cell"
      raise InputError(
        f"--only names {word!r}, which is the id of {have} of this sweep; "
        "list shows them"
      )
  return [c for c in sweep.cells if c.id.startswith(tuple(only))]


def emit(
  sweep: Sweep,
  root: str,
  file: str,
  only: list[str] | None = None,
  is_retried: bool = False,
) -> tuple[list[str], list[Cell]]:
  """Writes the arguments of gpt_jax.train of cells that can run now, for SLURM.

  Args:
    file: one line is written to it for each cell.
    only, is_retried: as in run.

  Returns:
    The lines, and the cells that must wait for their trunks.

  Raises:
    InputError: no cell can be run now, or one of the causes that `run` lists.
  """
  ready, later = [], []
  branches.check_rates(sweep.cells)
  for cell in choose(sweep, only):
    state, path = folder.read(root, cell.id), folder.path_of(root, cell.id)
    if state.word in (folder.DONE, folder.RUNNING):
      continue
    if state.is_passed_over and not is_retried:
      continue
    is_startable = cell.trunk is None or (
      folder.list_steps(path)
      or branches.is_ready(root, cell)
      or folder.is_done(root, cell.trunk[0])
    )
    if is_startable:
      ready.append((cell, command(cell, path)))
    else:
      command(cell, path)  # refuses a line break now, not next time
      later.append(cell)
  lines = []
  for cell, line in ready:
    path = folder.path_of(root, cell.id)
    if not folder.claim(root, cell):
      continue
    try:
      if cell.trunk is not None:
        branches.start(root, cell)
    finally:
      folder.release(path, None)
    folder.forget_end(path)
    lines.append(line)
  if not lines:
    raise InputError(f"no cell of {root} can be run now; list shows why")
  text = "".join(line + "\n" for line in lines)
  files.write_text(os.path.abspath(file), text)
  return lines, later
