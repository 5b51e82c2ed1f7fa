"""Two runs, or two sets of seeds: python -m gpt_jax.lab.sweep.compare A B.

Shows where their configs differ, their losses side by side and, over the seeds
that both sides have, the verdict of lab/sweep/paired.py, in the unit that
lab/sweep/losses.py chooses. Writes nothing but a figure that is asked for, and
imports no jax. From a notebook: compare(a, b).
"""

import dataclasses
import math
import os
import statistics
import sys

from gpt_jax import cli, files, metric_names
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import folder, losses, paired
from gpt_jax.lab.sweep.cells import diff
from gpt_jax.machine import console
from gpt_jax.runs import plot, workdir

# Lines of the table of losses.
LINES = 12
COLORS = ("#3b82c4", "#d1602f")


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.sweep.compare",
    "Config, curves and final losses of two runs; over seeds that both have,\n"
    "whether one is better.",
    needs_config=False,
  )
  add = parser.add_argument
  add("a", nargs="?", metavar="A", help="workdir, or a glob of several seeds")
  add("b", nargs="?", metavar="B", help="the same")
  add("--out", metavar="FILE.svg", help="write the curves here")
  args = cli.parse_flags(parser, argv)
  if args.a is None or args.b is None:
    raise InputError("lab.sweep.compare takes two workdirs, or two globs: A B")
  found = compare(args.a, args.b)
  text = lines(found)
  if args.out:
    files.write_text(os.path.abspath(args.out), draw(found))
    text.append(f"written to {args.out}")
  print("\n".join(map(console.plain, text)))
  return 0


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two sets of runs, compared.

  Attributes:
    names: the workdirs or globs of A and B.
    sets: the runs of A and of B.
    changed: {config key: (value in A, value in B)}, free keys included.
    is_same_data: whether all runs have the same prepared set.
    unit: of losses, see losses.find_unit; "" where they cannot be compared.
    verdict: of B against A, paired by seed; None where `unit` is "".
    why: why there is no verdict.
  """

  names: tuple[str, str]
  sets: tuple[list[folder.State], list[folder.State]]
  changed: dict[str, tuple]
  is_same_data: bool
  unit: str
  verdict: paired.Comparison | None
  why: str


def compare(a: str, b: str) -> Pair:
  """Compares two sets of runs; writes nothing.

  Args:
    a, b: a workdir, or a glob of runs that differ only in the seed.

  Raises:
    InputError: a side has no run, one that cannot be read, or runs that differ
      in more than the seed.
  """
  sets = _read(a), _read(b)
  runs = [*sets[0], *sets[1]]
  data = {workdir.read_record(run.path)["data_fingerprint"] for run in runs}
  ended = [run for run in runs if run.final]
  unit, why = losses.find_unit(ended) if ended else (losses.NATS, "")
  return Pair(
    names=(a, b),
    sets=sets,
    changed=_changed(sets),
    is_same_data=len(data) == 1,
    unit=unit,
    verdict=_verdict(sets, unit) if unit else None,
    why=why,
  )


def lines(found: Pair) -> list[str]:
  """Returns a comparison as text."""
  sets, unit = found.sets, found.unit
  end = found.verdict.sentence if found.verdict else f"no verdict: {found.why}"
  return [
    f"A is {found.names[0]}",
    f"B is {found.names[1]}",
    "",
    *_config_lines(found.changed),
    *([] if found.is_same_data else ["data: not the same prepared set", ""]),
    *_batch_lines(sets),
    *_curve_lines(sets, unit == losses.NATS),
    *_final_lines(sets, unit),
    end,
  ]


def _read(pattern: str) -> list[folder.State]:
  """Returns the runs of a workdir or a glob.

  Raises:
    InputError: none is there, one cannot be read, or they differ in more than
      the seed.
  """
  pattern = files.user_path("a workdir", pattern)
  found = [path for path in files.expand_glob(pattern) if os.path.isdir(path)]
  if not found:
    raise InputError(f"{pattern} matches no folder; give a workdir or a glob")
  runs = []
  for path in found:
    workdir.read_config(path)  # says what is wrong with it
    runs.append(folder.read_path(path))
  flats = [config_lib.flatten(run.the_config()) for run in runs]
  for path, flat in zip(found, flats, strict=True):
    changed = [key for key in diff(flats[0], flat) if key != "seed"]
    if changed:
      raise InputError(
        f"{path} differs from {found[0]} in {', '.join(changed)}; the runs of "
        "one side may differ in the seed alone"
      )
  seeds = [run.seed for run in runs]
  for seed in seeds:
    if seeds.count(seed) > 1:
      twice = [p for p, s in zip(found, seeds, strict=True) if s == seed]
      raise InputError(
        f"{' and '.join(twice[:2])} have both seed {seed}; leave one out"
      )
  return runs


def _changed(sets) -> dict[str, tuple]:
  flats = [config_lib.flatten(runs[0].config) for runs in sets]
  changed = diff(*flats, is_all=True)
  if min(len(runs) for runs in sets) > 1 or len(sets[0]) != len(sets[1]):
    changed.pop("seed", None)
  return changed


def _config_lines(changed: dict[str, tuple]) -> list[str]:
  if not changed:
    return ["config: the same", ""]
  rows = [("config", "A", "B")]
  for key, values in changed.items():
    note = "  (changes no result)" if config_lib.is_free(key) else ""
    rows.append((key, str(values[0]), str(values[1]) + note))
  return [*_columns(rows), ""]


def _batch_lines(sets) -> list[str]:
  """Returns lines that say whether runs of one seed saw the same batches."""
  hashes = [
    {
      run.seed: {
        r["step"]: r[metric_names.BATCH_HASH]
        for r in run.rows
        if metric_names.BATCH_HASH in r
      }
      for run in runs
    }
    for runs in sets
  ]
  lines = []
  for seed in sorted(hashes[0].keys() & hashes[1].keys()):
    a, b = hashes[0][seed], hashes[1][seed]
    shared = sorted(a.keys() & b.keys())
    away = next((step for step in shared if a[step] != b[step]), None)
    if away is not None:
      lines.append(f"seed {seed}: other batches from step {away:,} on")
    elif shared:
      lines.append(f"seed {seed}: the same batches at {len(shared):,} steps")
  return [*lines, ""] if lines else []


def _curve_lines(sets, is_comparable: bool) -> list[str]:
  curves = [_mean_curve(runs) for runs in sets]
  shared = sorted(set(curves[0]) & set(curves[1]))
  if not shared:
    return ["their logs have no step in common", ""]
  count = min(LINES, len(shared))
  last = len(shared) - 1
  at = [shared[round(i * last / max(count - 1, 1))] for i in range(count)]
  rows = [("step", "A", "B", "B - A")]
  for step in at:
    a, b = curves[0][step], curves[1][step]
    rows.append((f"{step:,}", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"))
  if not is_comparable:  # losses per token, of different tokens
    rows = [row[:3] for row in rows]
  return [*_columns(rows, is_right=True), ""]


def _mean_curve(runs) -> dict[int, float]:
  """Returns {step: mean of train/loss} of steps that all runs have logged."""
  curves = [
    {
      r["step"]: r[metric_names.LOSS]
      for r in run.rows
      if folder.number(r, metric_names.LOSS) is not None
    }
    for run in runs
  ]
  steps = set.intersection(*(set(curve) for curve in curves))
  return {s: statistics.fmean(c[s] for c in curves) for s in steps}


def _final_lines(sets, unit: str) -> list[str]:
  lines = []
  for letter, runs in zip("AB", sets, strict=True):
    for run in runs:
      end = f"at step {run.step:,} of {run.total:,}"
      if run.word == folder.DIVERGED:
        end = f"diverged, {end}"
      elif run.final is not None:
        end = f"{run.final[0]} {run.final[1]:.4f}"
        if unit == losses.BITS:
          end += f", {run.bits:.4f} {unit}"
      elif run.loss is not None:
        end += f", last logged training loss {run.loss:.4f}"
      lines.append(f"{letter} seed {run.seed}: {end}  ({run.id})")
  return lines


def _verdict(sets, unit: str) -> paired.Comparison:
  pair = []
  for letter, runs in zip("AB", sets, strict=True):
    found = {r.seed: losses.value(r, unit) for r in runs if r.final}
    lost = [r.seed for r in runs if r.word == folder.DIVERGED]
    pair.append((letter, found | dict.fromkeys(lost, math.inf)))
  shown = "" if unit == losses.NATS else unit
  (found,) = paired.judge([paired.pair(*pair, shown)])
  return found


def draw(found: Pair) -> str:
  """Returns the SVG of the training losses of all runs.

  Raises:
    InputError: no run has logged a loss.
  """
  sets, names = found.sets, found.names
  layers = []
  for color, runs, name in zip(COLORS, sets, names, strict=True):
    name = os.path.basename(os.path.normpath(name))[:22]
    for index, run in enumerate(runs):
      points = [
        (r["step"], r[metric_names.LOSS])
        for r in run.rows
        if (folder.number(r, metric_names.LOSS) or 0) > 0
      ]
      if points:
        layers.append(
          plot.Layer("line", points, color, None if index else name)
        )
  if not layers:
    raise InputError("neither run has logged a loss, so there is no curve")
  return plot.draw_layers(
    "training loss", "step", "nats per token", layers, "y"
  )


def _columns(rows, is_right: bool = False) -> list[str]:
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  side = ">" if is_right else "<"
  return [
    "  ".join(
      f"{word:{side}{width}}" for word, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
