"""Analyses finished runs with every fit that they allow.

A fit that the runs do not determine is left out and the reason recorded; but if
the caller asked for that fit, an error is raised.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

import numpy as np

from gpt_jax import files
from gpt_jax.config import InputError, require_choice
from gpt_jax.lab.scaling import (
  describe,
  figures,
  forecast,
  frontier,
  isoflop,
  line,
  parametric,
  text,
)
from gpt_jax.lab.scaling import points as points_lib

# Runs whose FLOPs are at most this fraction above the lowest are one budget.
TOLERANCE = 0.1
FORMS = ("parametric", "isoflop", "both")
# Fewer resamples than this do not give an interval.
MIN_RESAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Study:
  """The results of the fits to some runs.

  Attributes:
    points: the runs.
    found: all estimates, as scaling.json has them.
    fit: the parametric fit, None where there is none.
    curves: the IsoFLOP analysis, None where there is none.
  """

  points: points_lib.Points
  found: dict
  fit: parametric.Fit | None
  curves: dict | None

  def lines(self) -> list[str]:
    """Returns the report as text."""
    return text.lines(self.found)

  def runs(self) -> dict[str, list]:
    """Returns the runs as columns; predicted is None without a fit."""
    p = self.points
    found = {"name": list(p.names)}
    for name in ("params", "tokens", "flops", "loss"):
      found[name] = getattr(p, name).tolist()
    found["predicted"] = [None] * len(p)
    if self.fit is not None:
      found["predicted"] = (p.loss / np.exp(self.fit.residuals)).tolist()
    return found

  def coefficients(self) -> dict[str, list]:
    """Returns what was fitted as columns: form, name, value, low, high, why.

    Forms are parametric, line (N and D as powers of C, and the loss), isoflop
    (exponents of N* and D*). Of a coefficient that the runs do not determine,
    value is NaN and `why` says why; else `why` is "".
    """
    given = {
      "parametric": self.found.get("parametric", {}).get("coefficients", {}),
      "line": self.found.get("line") or {},
      "isoflop": {
        name: law["exponent"]
        for name, law in self.found.get("isoflop", {}).get("laws", {}).items()
      },
    }
    rows = [
      {"form": form, "name": name, "why": ""} | estimate
      for form, estimates in given.items()
      for name, estimate in estimates.items()
      if isinstance(estimate, dict)
    ]
    names = ("form", "name", "value", "low", "high", "why")
    return {name: [row[name] for row in rows] for name in names}

  def frontier(self) -> dict[str, list]:
    """Returns the compute-optimal params, tokens and loss as columns.

    A row for each of the `at` of analyse, with params_low, params_high and the
    like; none where the parametric form is not determined.
    """
    rows = self.found.get("parametric", {}).get("frontier", [])
    found = {"flops": [row["flops"] for row in rows]}
    for name in ("params", "tokens", "loss"):
      for kind, end in (("value", ""), ("low", "_low"), ("high", "_high")):
        found[name + end] = [row[name][kind] for row in rows]
    return found


def read(
  workdirs: str | os.PathLike,
  metric: str | None = None,
  convention: str = "6N",
  **options,
) -> Study:
  """Returns the study of finished runs: points.read_workdirs, then analyse.

  Args:
    options: arguments of analyse.
  """
  workdirs = os.fsdecode(workdirs)
  points = points_lib.read_workdirs(workdirs, metric, convention)
  return analyse(points, **options)


def analyse(
  points: points_lib.Points,
  form: str = "both",
  num_resamples: int = 1000,
  seed: int = 0,
  at: Sequence[float] | None = None,
  tolerance: float | None = None,
  hold_above: float | None = None,
  is_fit_required: bool = False,
) -> Study:
  """Returns the fits of runs.

  Args:
    points: from points.read_csv or points.read_workdirs.
    form: "parametric", "isoflop" or "both".
    num_resamples: number of bootstrap resamples, for intervals.
    seed: of the resamples.
    at: FLOPs at which to give the compute-optimal frontier; None takes the
      largest of the runs and ten times that.
    tolerance: see TOLERANCE, its default.
    hold_above: also fit the runs of at most these FLOPs, and predict the rest.
    is_fit_required: raise where the runs do not determine the parametric form,
      also with form "both".

  Raises:
    InputError: an option is not one of those above, or the runs do not
      determine a form that was asked for.
  """
  require_choice("form", form, FORMS)
  if num_resamples < MIN_RESAMPLES:
    raise InputError(
      f"num_resamples is {num_resamples}; an interval needs {MIN_RESAMPLES} or "
      "more"
    )
  if seed < 0:
    raise InputError(f"seed is {seed}; it must be 0 or more")
  at = [] if at is None else list(at)
  positive = {"tolerance": [tolerance], "hold_above": [hold_above], "at": at}
  for name, values in positive.items():
    for value in values:
      if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(
          f"{name} has {value}; it must be a finite number above 0"
        )
  found = {
    "points": describe.describe_points(points),
    "num_resamples": num_resamples,
    "seed": seed,
  }
  fit = curves = None
  if form != "isoflop":
    top = float(points.flops.max())
    budgets = at or [top, 10 * top]
    try:
      fit = parametric.fit(
        points.params, points.tokens, points.loss, num_resamples, seed
      )
      found["parametric"] = describe.describe_fit(fit, points, budgets)
      if found["parametric"]["frontier"]:
        found["conventions"] = frontier.compare_conventions(fit, points)
    except InputError as error:
      found["line"] = line.fit(points)
      if found["line"] is None or form == "parametric" or is_fit_required:
        raise
      found["no_parametric"] = str(error)
  if form != "parametric":
    try:
      curves = isoflop.fit(points, tolerance or TOLERANCE, num_resamples, seed)
      found["isoflop"] = describe.describe_isoflop(curves, points)
    except InputError as error:
      if form == "isoflop" or points.budgets is not None:
        raise
      found["no_isoflop"] = str(error)
  if hold_above is not None:
    found["held_out"] = forecast.hold_out(
      points, hold_above, num_resamples, seed
    )
  return Study(points, found, fit, curves)


def write(study: Study, folder: str) -> list[str]:
  """Writes scaling.json and the figures into a folder; returns their names."""
  drawn = figures.figures(study.found, study.points, study.fit, study.curves)
  whole = study.found | {"sentence": text.sentence(study.found)}
  content = {"scaling.json": json.dumps(_without_nan(whole), indent=1) + "\n"}
  content |= drawn
  for name, body in content.items():
    files.write_text(os.path.join(os.path.abspath(folder), name), body)
  return list(content)


def _without_nan(value):
  """Returns a value with NaN replaced by None, as JSON has no NaN."""
  if isinstance(value, dict):
    return {k: _without_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_without_nan(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
