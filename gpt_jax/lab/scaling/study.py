"""A whole analysis of finished runs: every fit that they allow.

A fit that the runs do not determine is left out and its reason kept, unless the
caller asked for that fit.
"""

import dataclasses
import json
import math
import os

from gpt_jax import files
from gpt_jax.config import InputError
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
from gpt_jax.lab.scaling.points import Points

# Runs whose FLOPs are within this fraction of the least are of one budget.
TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Study:
  """What fits to runs found.

  Attributes:
    points: the runs.
    found: all estimates, as scaling.json has them.
    fit: the parametric fit, None where there is none.
    curves: the IsoFLOP analysis, None where there is none.
  """

  points: Points
  found: dict
  fit: parametric.Fit | None
  curves: dict | None

  def lines(self) -> list[str]:
    """Returns the report as text."""
    return text.lines(self.found)


def analyse(
  points: Points,
  form: str = "both",
  num_resamples: int = 1000,
  seed: int = 0,
  at: list[float] | None = None,
  tolerance: float | None = None,
  hold_above: float | None = None,
  is_fit_required: bool = False,
) -> Study:
  """Returns the fits of runs.

  Args:
    points: of points.read_csv or points.read_workdirs.
    form: "parametric", "isoflop" or "both".
    num_resamples: of the bootstrap that intervals are made of.
    seed: of the resamples.
    at: FLOPs at which to give the compute-optimal frontier; None takes the
      largest of the runs and ten times that.
    tolerance: see TOLERANCE, its default.
    hold_above: also fit the runs of at most these FLOPs, and predict the rest.
    is_fit_required: raise where the runs do not determine the parametric form,
      also with form "both".

  Raises:
    InputError: the runs do not determine a form that was asked for.
  """
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
  """Returns a value that every JSON reader takes: NaN becomes null."""
  if isinstance(value, dict):
    return {k: _without_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_without_nan(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
