"""How the cells of a sweep stand: one line each."""

import dataclasses
import json
import time

from gpt_jax.lab.sweep import cells as cells_lib
from gpt_jax.lab.sweep import folder
from gpt_jax.lab.sweep.cells import Sweep
from gpt_jax.machine import console

_ROW = "{:12}  {:10} {:>15}  {:>8}  {:>14}  {}"


def states_of(
  sweep: Sweep | None, root: str
) -> tuple[list[folder.State], dict[str, str]]:
  """Returns the states of a sweep, or of all that is in ROOT, and their titles.

  Args:
    sweep: None where no config file is given.
  """
  if sweep is None:
    states = [folder.read(root, cell_id) for cell_id in folder.list_ids(root)]
    return states, {s.id: title_of(s) for s in states}
  states = []
  for cell in sweep.cells:
    state = folder.read(root, cell.id)
    if not state.record and state.config is None:  # it has no folder yet
      state = dataclasses.replace(
        state,
        record=cell.record(),
        config=cell.config,
        total=cell.config.train.num_steps,
      )
    states.append(state)
  return states, {cell.id: cell.title for cell in sweep.cells}


def title_of(state: folder.State) -> str:
  """Returns name and seed."""
  if state.seed is None:
    return state.name
  return f"{state.name} seed {state.seed}"


def run(sweep: Sweep | None, root: str, args) -> int:
  """Prints the list; returns the exit code."""
  states, titles = states_of(sweep, root)
  refused = sweep.refused if sweep else []
  if args.json:
    rows = [_row(s, titles[s.id]) for s in states]
    rows += [
      {"id": None, "name": r.title, "state": "refused", "reason": r.reason}
      for r in refused
    ]
    print(json.dumps(rows, indent=1))
    return 0
  say = lambda line: print(console.plain(line))
  say(_ROW.format("cell", "state", "step", "loss", "age", "what"))
  today, other = cells_lib.code_version(), 0
  for state in states:
    notes = [state.reason] if state.reason else []
    if (
      state.word in (folder.RUNNING, folder.STOPPED) and state.loss is not None
    ):
      notes.append(f"training loss {state.loss:.4f}")
    code = state.record.get("code")
    if code not in (None, today):
      other += 1
      notes.append(f"code {code}")
    trunk = state.record.get("trunk")
    if trunk:
      notes.append(f"from step {trunk[1]:,} of {trunk[0]}")
    what = "; ".join([titles[state.id], *notes])
    say(
      _ROW.format(
        state.id,
        state.word,
        f"{state.step:,}/{state.total:,}" if state.total else "-",
        f"{state.final[1]:.4f}" if state.final else "-",
        age_of(state),
        what,
      )
    )
  for one in refused:
    say(
      _ROW.format("-", "refused", "-", "-", "-", f"{one.title}; {one.reason}")
    )
  words = [s.word for s in states] + ["refused"] * len(refused)
  order = [folder.DONE, folder.RUNNING, folder.STOPPED, folder.WAITING]
  order += [folder.DIVERGED, folder.FAILED, folder.UNREADABLE, "refused"]
  counts = [f"{words.count(w)} {w}" for w in order if w in words]
  say(f"{len(words)} cells: {', '.join(counts) or 'none'}")
  if other:
    say(f"{other} of other sources than today's, whose code is {today}")
  return 0


def age_of(state: folder.State) -> str:
  """Returns how long ago a cell gave its last sign."""
  if state.changed is None:
    return "-"
  return console.format_seconds(max(0, time.time() - state.changed))


def _row(state: folder.State, title: str) -> dict:
  return {
    "id": state.id,
    "name": title,
    "state": state.word,
    "step": state.step,
    "num_steps": state.total,
    "loss": state.final[1] if state.final else None,
    "metric": state.final[0] if state.final else None,
    "train_loss": state.loss,
    "changed": state.changed,
    "reason": state.reason,
    "code": state.record.get("code"),
    "trunk": state.record.get("trunk"),
  }
