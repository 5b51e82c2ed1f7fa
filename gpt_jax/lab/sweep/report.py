"""A sweep's report: report.html, which opens from disk, and CSV tables.

Everything is read from the folders of the cells. Runs that differ only in the
seed form a group; groups are compared with one of them by paired.py, in the
unit that losses.py finds for the two. A run that diverged has no loss.
"""

import dataclasses
import os
import statistics

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import figures, folder, listing, page, paired, tables
from gpt_jax.lab.sweep.cells import Refusal, Sweep
from gpt_jax.lab.sweep.groups import (
  Group,
  axes_of,
  compare,
  find_unit,
  group,
  numeric,
)
from gpt_jax.machine import console


@dataclasses.dataclass(frozen=True)
class Report:
  """A sweep's report, before it is written.

  Attributes:
    groups: runs that differ only in the seed, in the order of the cells.
    comparisons: comparisons of the other groups with the baseline.
    html: the page, whose links are relative to `folder`.
    csv: the table of finished runs, as lab.scaling reads it.
    folder: the folder that the page is for.
  """

  groups: list[Group]
  comparisons: list[paired.Comparison]
  html: str
  csv: str
  folder: str


def make(
  sweep: Sweep | None,
  root: str,
  baseline: str | None = None,
  out_folder: str | None = None,
) -> Report:
  """Returns the report of a sweep; writes nothing.

  Args:
    sweep: None takes all cells that are in ROOT.
    root: the folder of the sweep.
    baseline: name of the group that the others are compared with; None takes
      the first that ended without diverging.
    out_folder: the folder that the page will be written to; None is ROOT.

  Raises:
    InputError: ROOT holds no cell, or no group has the baseline's name.
  """
  out_folder = root if out_folder is None else out_folder
  states, titles = listing.states_of(sweep, root)
  refused = sweep.refused if sweep else []
  if not states and not refused:
    raise InputError(f"{root} holds no cell; give the --workdir of a sweep")
  names = {c.id: c.name for c in sweep.cells} if sweep else {}
  groups = group(states, names)
  comparisons = compare(groups, baseline)
  axes = axes_of(states)
  unit, why = find_unit(states)
  swept = numeric(axes, states) if unit else []
  drawn = {axis: figures.draw_axis(axis, states, unit) for axis in swept}
  link = lambda cell_id: os.path.relpath(
    folder.path_of(root, cell_id), out_folder
  ).replace(os.sep, "/")
  columns, rows = tables.page_table(states, titles, names, axes, link)
  html = page.write(
    title=os.path.basename(os.path.abspath(root)),
    facts=facts(states, refused, groups, unit),
    curves=figures.draw_curves(groups),
    telemetry=figures.draw_telemetry(groups),
    comparisons=comparisons,
    sensitivity=[svg for svg in drawn.values() if svg],
    confounded=[axis for axis, svg in drawn.items() if not svg],
    why=why,
    columns=columns,
    rows=rows,
    troubles=troubles(states, titles, refused),
    branches=branch_lines(states, titles),
    common=common(states, axes),
  )
  csv = tables.csv_text(states, names, axes)
  return Report(groups, comparisons, html, csv, out_folder)


def write(report: Report, path: str) -> list[str]:
  """Writes the page to `path` and its CSV tables beside it.

  Returns:
    The paths of the tables.
  """
  stem = os.path.splitext(path)[0]
  written = {f"{stem}.csv": report.csv}
  if report.comparisons:
    text = tables.comparisons_text(report.comparisons)
    written[f"{stem}-comparisons.csv"] = text
  files.write_text(os.path.abspath(path), report.html)
  for name, text in written.items():
    files.write_text(os.path.abspath(name), text)
  return list(written)


def facts(states, refused, groups, unit) -> list[tuple[str, str]]:
  """Returns (name, value) pairs for the head of the page."""
  words = [s.word for s in states] + ["refused"] * len(refused)
  counts = {w: words.count(w) for w in dict.fromkeys(words)}
  rows = [
    ("cells", ", ".join(f"{n} {w}" for w, n in counts.items())),
  ]
  sound = [g for g in groups if g.is_sound] if unit else []
  means = [(statistics.fmean(g.losses(unit).values()), g) for g in sound]
  if means:
    loss, best = min(means, key=lambda pair: pair[0])
    count = len(best.losses())
    of = "one run" if count == 1 else f"the mean of {count} seeds"
    rows.append(("lowest loss", f"{loss:.4f} {unit}, {best.name}, {of}"))
  if any(s.final is not None for s in states):
    kinds = sorted({s.final[0] for s in states if s.final is not None})
    rows.append(("loss is", ", ".join(kinds)))
  seconds = sum(s.seconds or 0 for s in states)
  if seconds:
    rows.append(("time of workers", console.format_seconds(seconds)))
  return rows


def troubles(states, titles, refused: list[Refusal]) -> list[tuple[str, ...]]:
  """Returns (cell id, title, state, reason) of cells that did not work."""
  rows = [
    (s.id, titles[s.id], s.word, s.reason)
    for s in states
    if s.word in (folder.FAILED, folder.DIVERGED, folder.UNREADABLE)
  ]
  return rows + [("", r.title, "refused", r.reason) for r in refused]


def branch_lines(states, titles) -> list[str]:
  """Returns a line for each branch: its trunk, and the share of steps saved."""
  lines = []
  for state in states:
    trunk = state.record.get("trunk")
    if trunk and state.config is not None:
      share = 100 * trunk[1] / state.config.train.num_steps
      lines.append(
        f"{titles[state.id]} from step {trunk[1]:,} of "
        f"{titles.get(trunk[0], trunk[0])}: {share:.0f} % of its "
        f"{state.config.train.num_steps:,} steps are its trunk's"
      )
  return lines


def common(states, axes) -> list[tuple[str, str]]:
  """Returns the keys and values that all cells share."""
  config = next((s.config for s in states if s.config is not None), None)
  if config is None:
    return []
  flat = config_lib.flatten(config)
  return [(k, str(v)) for k, v in flat.items() if k not in (*axes, "seed")]
