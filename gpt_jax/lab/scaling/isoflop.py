"""IsoFLOP analysis: a parabola for each budget, a power law through the minima.

Design choice: the bootstrap resamples residuals, not runs. A budget has only a
few runs at chosen sizes, and resampled runs would often have fewer sizes than a
parabola needs. Relative residuals are drawn from the pool of all budgets, so
that budgets of three runs, which a parabola fits exactly, have an uncertainty
too.
"""

import dataclasses
from typing import Any

import numpy as np

from gpt_jax.config import InputError
from gpt_jax.lab.scaling import frontier

# Number of a parabola's coefficients.
_ORDER = 3
_MIN_BUDGETS = 2
# Factors to try: a window has the sizes within it of the lowest loss's size.
_WINDOWS = (10.0, 5.0, 3.0, 2.0)
# A window keeps at least this number of a budget's runs.
_MIN_WINDOW = 4
# Parabolas are rejected if the p value of higher terms is below this.
_SURE = 0.01
# Degree of the highest term that is tested.
_HIGHEST = 4


@dataclasses.dataclass(frozen=True)
class Budget:
  """The runs of one compute budget.

  Attributes:
    flops: geometric mean of the runs' FLOPs.
    rows: indices of the runs.
    curve: [3], loss = curve @ (x^2, x, 1) with x = log N - center.
    center: mean of log N.
    log_params: log N at the minimum.
    loss: at the minimum.
    log_params_samples: [S], the same of resamples; NaN where a resample has no
      minimum within the sizes.
  """

  flops: float
  rows: np.ndarray
  curve: np.ndarray
  center: float
  log_params: float
  loss: float
  log_params_samples: np.ndarray


def group(flops, tolerance: float, budgets=None) -> list[np.ndarray]:
  """Returns the indices of each budget's runs, by rising compute.

  Args:
    flops: [P].
    tolerance: a group has the runs within this fraction above its lowest FLOPs.
    budgets: [P] values that name each run's budget instead, or None.
  """
  if budgets is not None:
    groups = [np.flatnonzero(budgets == v) for v in np.unique(budgets)]
    return sorted(groups, key=lambda rows: flops[rows].mean())
  groups, start = [], 0.0
  for i in np.argsort(flops, kind="stable"):
    if not groups or flops[i] > start * (1 + tolerance):
      groups.append([])
      start = flops[i]
    groups[-1].append(i)
  return [np.array(rows) for rows in groups]


def fit(points, tolerance: float, num_resamples: int, seed: int) -> dict:
  """Returns {"budgets", "left_out", "laws", "window"}.

  The result does not depend on the order of the points.

  Returns:
    budgets: a list of Budget.
    left_out: [{"flops", "num_sizes", "why"}, ...] of budgets without a minimum.
    laws: {"params", "tokens": {"log_scale", "exponent", ...}}, the power laws
      scale C^exponent with intervals and samples.
    window: see choose_window.

  Raises:
    InputError: fewer than two budgets have a minimum inside their sizes.
  """
  log_n = np.log(points.params)
  groups = [
    rows[np.lexsort((points.loss[rows], points.flops[rows], log_n[rows]))]
    for rows in group(points.flops, tolerance, points.budgets)
  ]
  rng = np.random.default_rng(seed)
  usable, left_out = [], []
  for rows in groups:
    flops = float(np.exp(np.log(points.flops[rows]).mean()))
    sizes = len(set(points.params[rows]))
    if sizes >= _ORDER:
      usable.append((flops, rows))
    else:
      why = f"{sizes} model size{'s' * (sizes > 1)}, a parabola needs 3"
      left_out.append({"flops": flops, "num_sizes": sizes, "why": why})
  window, kept = choose_window([rows for _, rows in usable], log_n, points.loss)
  usable = [
    (flops, rows) for (flops, _), rows in zip(usable, kept, strict=True)
  ]
  pool = _pool_residuals([rows for _, rows in usable], log_n, points.loss)
  found = []
  for flops, rows in usable:
    budget = _fit_budget(
      flops, rows, log_n[rows], points.loss[rows], pool, num_resamples, rng
    )
    if isinstance(budget, str):
      sizes = len(set(points.params[rows]))
      left_out.append({"flops": flops, "num_sizes": sizes, "why": budget})
    else:
      found.append(budget)
  if len(found) < _MIN_BUDGETS:
    reasons = [f"{b['flops']:.3g} FLOPs: {b['why']}" for b in left_out[:3]]
    why = f": {'; '.join(reasons)}" if reasons else ""
    raise InputError(
      f"{len(found)} budgets have a minimum inside their model sizes and a "
      f"power law needs {_MIN_BUDGETS} or more{why}"
    )
  return {
    "budgets": found,
    "left_out": left_out,
    "laws": _fit_laws(found, points, num_resamples),
    "window": window,
  }


def choose_window(groups, log_n, loss) -> tuple[dict, list[np.ndarray]]:
  """Returns the window of sizes that parabolas can describe, and its runs.

  Far from its minimum the loss is not a parabola in log N: it rises by
  different powers on the two sides, and a parabola over decades misplaces the
  minimum. The window is the widest one in which an F test over all budgets
  finds no cubic or quartic terms.

  Args:
    groups: [[indices of runs] for each budget].
    log_n, loss: [P].

  Returns:
    A dict and the groups within the window. The dict has p_whole, the p value
    over all sizes; factor of the window, None for all sizes; p within it, NaN
    where no budget has enough runs for a test; and num_outside, the number of
    runs outside.
  """
  whole = _lack_of_fit(groups, log_n, loss)
  found: dict[str, Any] = {
    "p_whole": whole,
    "factor": None,
    "p": whole,
    "num_outside": 0,
  }
  kept = groups
  if not whole < _SURE:
    return found, kept
  for factor in _WINDOWS:
    kept = [_near(rows, log_n, loss, factor) for rows in groups]
    found |= {"factor": factor, "p": _lack_of_fit(kept, log_n, loss)}
    if not found["p"] < _SURE:
      break
  found["num_outside"] = sum(map(len, groups)) - sum(map(len, kept))
  return found, kept


def _near(rows, log_n, loss, factor: float) -> np.ndarray:
  """Returns the runs within a factor of the lowest loss's size.

  At least _MIN_WINDOW runs are returned, if there are as many.
  """
  away = abs(log_n[rows] - log_n[rows[np.argmin(loss[rows])]])
  reach = max(np.log(factor), np.sort(away)[:_MIN_WINDOW][-1])
  return rows[away <= reach + 1e-9]


def _lack_of_fit(groups, log_n, loss) -> float:
  """Returns the p value of an F test for terms above the square, over budgets.

  NaN if no budget has enough runs for the test.
  """
  from scipy import special

  square, higher, terms, degrees = 0.0, 0.0, 0, 0
  for rows in groups:
    x = log_n[rows] - log_n[rows].mean()
    order = min(_HIGHEST, len(set(x)) - 2)
    if order < _ORDER:
      continue
    y = loss[rows] / loss[rows].mean()
    rest = [y - np.polyval(np.polyfit(x, y, k), x) for k in (2, order)]
    square, higher = square + rest[0] @ rest[0], higher + rest[1] @ rest[1]
    terms, degrees = terms + order - 2, degrees + len(x) - order - 1
  if not terms:
    return float("nan")
  # Residuals below the level of rounding errors are raised to that level.
  higher = max(higher, degrees * 1e-24)
  ratio = (max(square - higher, 0.0) / terms) / (higher / degrees)
  return float(special.fdtrc(terms, degrees, ratio))


def _pool_residuals(groups, log_n, loss) -> np.ndarray:
  """Returns relative residuals of all budgets, scaled by degrees of freedom."""
  pool = []
  for rows in groups:
    if len(rows) <= _ORDER:
      continue
    x, y = log_n[rows] - log_n[rows].mean(), loss[rows]
    curve = np.polyfit(x, y, 2)
    smooth = np.polyval(curve, x)
    pool.append((y / smooth - 1) * np.sqrt(len(rows) / (len(rows) - _ORDER)))
  return np.concatenate(pool) if pool else np.empty(0)


def _fit_budget(flops, rows, log_n, loss, pool, num_resamples, rng):
  """Returns a Budget, or a sentence that says why it has no minimum."""
  center = float(log_n.mean())
  x = log_n - center
  design = np.stack([x**2, x, np.ones_like(x)], 1)
  solve = np.linalg.pinv(design)
  curve = solve @ loss
  minimum = _minima(curve[None], x)[0]
  if np.isnan(minimum):
    bends = "bends down" if curve[0] <= 0 else "falls or rises throughout"
    where = ""
    if curve[0] > 0:
      where = f" (minimum at {np.exp(center - curve[1] / curve[0] / 2):.3g})"
    return (
      f"the parabola {bends} over N "
      f"{np.exp(log_n.min()):.3g} to {np.exp(log_n.max()):.3g}{where}"
    )
  smooth = design @ curve
  samples = np.full(num_resamples, np.nan)
  if len(pool) and num_resamples:
    drawn = smooth * (1 + rng.choice(pool, (num_resamples, len(x))))
    samples = center + _minima(drawn @ solve.T, x)
  return Budget(
    flops=flops,
    rows=rows,
    curve=curve,
    center=center,
    log_params=float(center + minimum),
    loss=float(np.polyval(curve, minimum)),
    log_params_samples=samples,
  )


def _minima(curves, x) -> np.ndarray:
  """Returns the minima [S] of parabolas [S, 3]; NaN outside the range of x."""
  bend, slope = curves[:, 0], curves[:, 1]
  is_up = bend > 0
  at = np.where(is_up, -slope / np.where(is_up, 2 * bend, 1), np.nan)
  return np.where((at >= x.min()) & (at <= x.max()), at, np.nan)


def _fit_laws(budgets, points, num_resamples) -> dict:
  log_c = np.log([b.flops for b in budgets])
  log_n = np.array([b.log_params for b in budgets])
  # Tokens at the minimum: the budget over FLOPs per token there.
  c, g = frontier.cost_of(points.params, points.flops / points.tokens)
  samples = np.stack([b.log_params_samples for b in budgets], 1)
  laws = {}
  quantities = {
    "params": (log_n, samples),
    "tokens": (
      log_c - np.log(c) - g * log_n,
      log_c - np.log(c) - g * samples,
    ),
  }
  for name, (value, drawn) in quantities.items():
    slope, level = _line(log_c, value[None])
    slopes, levels = _line(log_c, drawn)
    laws[name] = {
      "exponent": frontier.estimate(slope[0], slopes),
      "log_scale": frontier.estimate(level[0], levels),
      "num_samples": int((~np.isnan(slopes)).sum()),
      "samples": np.stack([levels, slopes], 1),
    }
  return laws


def _line(x, y):
  """Returns slopes [S] and levels [S] of lines through [S, M] without NaNs.

  NaN for a resample with fewer than two budgets.
  """
  there = ~np.isnan(y)
  count = there.sum(1)
  enough = count >= _MIN_BUDGETS
  y = np.where(there, y, 0)
  size = np.where(enough, count, 1)
  mean_x = (there * x).sum(1) / size
  mean_y = y.sum(1) / size
  dx = there * (x - mean_x[:, None])
  spread = (dx**2).sum(1)
  slope = (dx * (y - mean_y[:, None])).sum(1)
  slope = np.where(enough, slope / np.where(spread > 0, spread, 1), np.nan)
  return slope, mean_y - slope * mean_x
