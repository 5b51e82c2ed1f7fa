"""Trunks and branches: which cell starts from which, and at what step.

A branch starts from a checkpoint of another cell, its trunk. The two configs
may differ only in the schedule (and in keys that change no result).
"""

import dataclasses

from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.sweep.cells import Cell, Refusal, Sweep, diff, flat

# Keys in which a branch may differ from its trunk, as long as the learning
# rates are equal up to the step where the branch starts.
SCHEDULE = (
  "train.num_steps",
  "optim.schedule",
  "optim.learning_rate",
  "optim.warmup_steps",
  "optim.final_rate_frac",
  "optim.decay_frac",
)
# Other free keys that a branch may change. The rest change rounding or random
# draws (batch parts, kernels, meshes), so that a branch must keep them.
_PACING = (
  "data.dir",
  "data.num_workers",
  "train.log_every_steps",
  "train.profile_steps",
  "train.wandb_project",
)
_PACING_SECTIONS = ("checkpoint.", "eval.", "sample.")
# Largest number of checkpoints that a trunk keeps per step branched from.
KEPT_PER_STEP = 4


def join(
  sweep: Sweep,
  branches: dict[int, tuple[str, int]],
  names: set[str],
  file: str,
) -> Sweep:
  """Returns the sweep with each cell's trunk, trunks before their branches.

  A cell whose trunk was refused is refused too.

  Args:
    branches: {place of a cell: (name of its trunk, step)}.
    names: of all cells, those that were refused included.
    file: the config file, for error sentences.

  Raises:
    InputError: a trunk is missing, branches form a cycle, or a branch differs
      from its trunk in more than the schedule.
  """
  by_place = {cell.place: cell for cell in sweep.cells}
  trunks = _trunk_places(sweep.cells, branches, names, file)
  refused = list(sweep.refused)
  done: dict[int, Cell | None] = {}

  def visit(place: int, above: tuple[int, ...]) -> Cell | None:
    cell = by_place[place]
    if place in above:
      titles = [by_place[p].title for p in (*above, place)]
      raise InputError(
        f"sweep(add) of {file}: branches go round: {' from '.join(titles)}"
      )
    if place not in done:
      if place in trunks:
        name, step = branches[place]
        trunk = None
        above_it = trunks[place]
        if above_it is not None:
          trunk = visit(above_it, (*above, place))
        if trunk is None:
          refused.append(Refusal(cell.title, f"its trunk {name!r} is refused"))
          cell = None
        else:
          _check_parting(cell, trunk, step)
          cell = dataclasses.replace(cell, trunk=(trunk.id, step))
      done[place] = cell
    return done[place]

  for place in by_place:
    visit(place, ())
  cells = _with_kept_steps([cell for cell in done.values() if cell])
  return Sweep(cells, refused)


def _trunk_places(cells, branches, names, file) -> dict[int, int | None]:
  """Returns {place of a branch: place of its trunk, None if refused}."""
  found = {}
  for cell in cells:
    if cell.place not in branches:
      continue
    name = branches[cell.place][0]
    if name not in names:
      raise InputError(
        f"sweep(add) of {file}: {cell.title!r} branches from {name!r}, which "
        f"is no cell; {config_lib.nearest(name, names)}"
      )
    named = [c for c in cells if c.name == name]
    same = [c.place for c in named if c.config.seed == cell.config.seed]
    found[cell.place] = same[0] if same else None
    if named and not same:
      raise InputError(
        f"sweep(add) of {file}: {cell.title!r} branches from {name!r}, which "
        f"has no cell of seed {cell.config.seed}"
      )
  return found


def _check_parting(cell: Cell, trunk: Cell, step: int) -> None:
  """Raises InputError unless a branch can equal a run from step 0."""
  for one in (cell, trunk):
    if step > one.config.train.num_steps:
      raise InputError(
        f"{cell.title!r} branches from step {step} of {trunk.title!r}, and "
        f"{one.title!r} has {one.config.train.num_steps} steps"
      )
  a, b = flat(trunk), flat(cell)
  wrong = [
    f"{key} ({x!r} there, {y!r} here)"
    for key, (x, y) in diff(a, b, is_all=True).items()
    if key not in (*SCHEDULE, *_PACING) and not key.startswith(_PACING_SECTIONS)
  ]
  if wrong:
    raise InputError(
      f"{cell.title!r} branches from {trunk.title!r} and differs from it in "
      f"{'; '.join(wrong)}; a branch has another schedule alone"
    )


def _with_kept_steps(cells: list[Cell]) -> list[Cell]:
  """Returns the cells; a trunk's arguments make it keep its branches' starts.

  A branch starts from the last checkpoint that its trunk keeps at or before
  the step that was asked for. Starting earlier changes no result.
  """
  steps: dict[str, set[int]] = {}
  for cell in cells:
    if cell.trunk is not None:
      steps.setdefault(cell.trunk[0], set()).add(cell.trunk[1])
  pace = {
    c.id: pace_saves(steps[c.id], c.config.checkpoint.every_steps)
    for c in cells
    if c.id in steps
  }
  out = []
  for cell in cells:
    if cell.id in pace:
      every, keep = pace[cell.id]
      more = (
        f"--config.checkpoint.every_steps={every}",
        f"--config.checkpoint.keep_every_steps={keep}",
      )
      cell = dataclasses.replace(cell, argv=(*cell.argv, *more))
    if cell.trunk is not None:
      trunk, step = cell.trunk
      step -= step % pace[trunk][1]
      cell = dataclasses.replace(cell, trunk=(trunk, step) if step else None)
    out.append(cell)
  return out


def pace_saves(steps: set[int], asked: int) -> tuple[int, int]:
  """Returns (every, keep): steps between a trunk's saves, and kept saves.

  Chosen so that branches from `steps` repeat as few steps as possible. With the
  greatest common divisor of `steps` they would repeat none, but it may be 1,
  and then every step would be kept. So at most KEPT_PER_STEP checkpoints are
  kept for each of `steps`, and saves come at most twice as often as `asked`.

  Args:
    steps: the steps that are branched from.
    asked: the config's checkpoint.every_steps; 0 never saves.
  """
  last, most = max(steps), KEPT_PER_STEP * len(steps)
  asked = asked or last
  found = []
  for near in {s // n for s in steps for n in range(1, most + 1)} - {0}:
    if last // near > most:
      continue
    parts = -(-near // asked)
    for n in range(parts, min(2 * parts, parts + 1000) + 1):
      every = near // n
      if every:
        repeated = sum(s % (every * n) for s in steps)
        found.append((repeated, -every * n, -every))
  _, keep, every = min(found)
  return -every, -keep
