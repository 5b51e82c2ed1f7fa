"""Lists the state of each cell of a sweep."""

import dataclasses
import time

from gpt_jax.lab.sweep import folder, identity
from gpt_jax.lab.sweep.cells import Refusal, Sweep
from gpt_jax.machine import console

_ROW = "{:12}  {:10} {:>15}  {:>8}  {:>14}  {}"


def states_of(
  sweep: Sweep | None, root: str
) -> tuple[list[folder.State], dict[str, str]]:
  """Returns the states of a sweep's cells, and {cell id: title}.

  Args:
    sweep: None takes all cells that are in ROOT.
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


@dataclasses.dataclass(frozen=True)
class Listing:
  """The cells of a sweep and their states, read from their folders.

  Attributes:
    states: of the cells.
    titles: {cell id: name and seed}.
    refused: cells whose values cannot be used.
  """

  states: list[folder.State]
  titles: dict[str, str]
  refused: list[Refusal]


def read(sweep: Sweep | None, root: str) -> Listing:
  """Returns the Listing of a sweep, or of all cells in ROOT if it is None."""
  states, titles = states_of(sweep, root)
  return Listing(states, titles, sweep.refused if sweep else [])


def rows(found: Listing) -> list[dict]:
  """Returns a flat dict for each cell, in JSON's types."""
  listed = [_row(s, found.titles[s.id]) for s in found.states]
  return listed + [
    {"id": None, "name": r.title, "state": "refused", "reason": r.reason}
    for r in found.refused
  ]


def lines(found: Listing) -> list[str]:
  """Returns the listing as text: a line for each cell, and the counts."""
  text = [_ROW.format("cell", "state", "step", "loss", "age", "what")]
  today, num_other = identity.code_version(), 0
  for state in found.states:
    code = state.record.get("code")
    is_other = code not in (None, today)
    num_other += is_other
    text.append(
      _ROW.format(
        state.id,
        state.word,
        f"{state.step:,}/{state.total:,}" if state.total else "-",
        f"{state.final[1]:.4f}" if state.final else "-",
        age_of(state),
        "; ".join([found.titles[state.id], *_notes(state, is_other)]),
      )
    )
  for one in found.refused:
    what = f"{one.title}; {one.reason}"
    text.append(_ROW.format("-", "refused", "-", "-", "-", what))
  words = [s.word for s in found.states] + ["refused"] * len(found.refused)
  order = [folder.DONE, folder.RUNNING, folder.STOPPED, folder.WAITING]
  order += [folder.DIVERGED, folder.FAILED, folder.UNREADABLE, "refused"]
  counts = [f"{words.count(w)} {w}" for w in order if w in words]
  text.append(f"{len(words)} cells: {', '.join(counts) or 'none'}")
  if num_other:
    text.append(f"{num_other} of other code than today's, which is {today}")
  return text


def lines_of_others(sweep: Sweep | None, root: str | None) -> list[str]:
  """Returns a line for each code version of cells in ROOT outside the sweep.

  After a change of the code or of the config file, a cell has a new id: its old
  results are still there, but the sweep would run it again.
  """
  if sweep is None or root is None:
    return []
  known = {cell.id for cell in sweep.cells}
  today = {cell.code for cell in sweep.cells} or {identity.code_version()}
  others = [i for i in folder.list_ids(root) if i not in known]
  codes = [folder.read(root, i).record.get("code") for i in others]
  text = []
  for code in dict.fromkeys(codes):
    count = codes.count(code)
    line = f"{count} cell{'s are' if count > 1 else ' is'} in {root} beside "
    if code is None or code in today:
      text.append(f"{line}these, which this config does not ask for")
    else:
      text.append(f"{line}these, of other code: --code={code} continues them")
  return text


def _notes(state: folder.State, is_other_code: bool) -> list[str]:
  notes = [state.reason] if state.reason else []
  is_midway = state.word in (folder.RUNNING, folder.STOPPED)
  if is_midway and state.loss is not None:
    notes.append(f"training loss {state.loss:.4f}")
  if is_other_code:
    notes.append(f"code {state.record['code']}")
  trunk = state.record.get("trunk")
  if trunk:
    notes.append(f"from step {trunk[1]:,} of {trunk[0]}")
  return notes


def age_of(state: folder.State) -> str:
  """Returns the time since a cell's files last changed, as text."""
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
