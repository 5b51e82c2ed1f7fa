"""Fits runs that lie on one line in (log N, log D).

Examples are runs with D = 20 N, or a list of compute-optimal runs. They do not
determine the parametric form, only the exponents of the line, and the loss as a
power of compute along it. Intervals are Student's t because such lists are
short.
"""

from typing import Any

import numpy as np

from gpt_jax.lab.scaling import frontier, parametric

# Exponents gamma of C that are tried.
_EXPONENTS = np.geomspace(1e-3, 2, 2000)
# E, K and gamma.
_NUM_COEFFICIENTS = 3
# The largest compute must be at least this many times the smallest.
_MIN_SPAN = 2.0


def fit(points) -> dict | None:
  """Returns the exponents along a line, and the loss against compute.

  Returns:
    None if there are fewer than four runs, they lie on no line, or compute
    hardly varies along it. Else {"num_points", "params", "tokens", "E",
    "gamma": estimates, "scale": K, "root_mean_square"} of N ~ C^params,
    D ~ C^tokens and loss = E + K / C^gamma.
  """
  if len({*zip(points.params, points.tokens, strict=True)}) < 4:
    return None
  line = parametric.line_of(points.params, points.tokens)
  if line is None or points.flops.max() < _MIN_SPAN * points.flops.min():
    return None
  log_c = np.log(points.flops)
  found = {
    "num_points": len(points),
    "params": _slope(log_c, np.log(points.params)),
    "tokens": _slope(log_c, np.log(points.tokens)),
  }
  return found | _loss(log_c, points.loss)


def _slope(x, y) -> dict:
  """Returns a least-squares slope with its interval, as frontier.estimate."""
  dx = x - x.mean()
  slope = float(dx @ y / (dx @ dx))
  rest = y - y.mean() - slope * dx
  degrees = len(x) - 2
  error = float(np.sqrt(rest @ rest / degrees / (dx @ dx)))
  half = frontier.student(degrees) * error
  return {
    "value": slope,
    "low": slope - half,
    "high": slope + half,
    "error": error,
  }


def _loss(log_c, loss) -> dict:
  """Returns E, K and gamma by relative least squares, with intervals.

  The interval of gamma spans the values whose sum of squares, minimised over E
  and K, an F test does not reject. The interval of E spans their values of E.
  """
  sums, levels, scales = [], [], []
  center = log_c.mean()
  for gamma in _EXPONENTS:
    if gamma * np.ptp(log_c) > 500:
      break
    basis = np.stack([np.ones_like(loss), np.exp(-gamma * (log_c - center))], 1)
    basis = basis / loss[:, None]
    (level, scale), *_ = np.linalg.lstsq(basis, np.ones_like(loss), rcond=None)
    if level < 0:
      level, scale = 0.0, basis[:, 1].sum() / (basis[:, 1] @ basis[:, 1])
    rest = 1 - basis @ (level, scale)
    sums.append(rest @ rest)
    levels.append(level)
    scales.append(scale)
  sums, levels = np.array(sums), np.array(levels)
  i = int(np.argmin(sums))
  found: dict[str, Any] = {
    "scale": float(scales[i] * np.exp(_EXPONENTS[i] * center)),
    "E": _unknown(levels[i]),
    "gamma": _unknown(_EXPONENTS[i]),
    "root_mean_square": float(np.sqrt(sums[i] / len(loss))),
  }
  degrees = len(loss) - _NUM_COEFFICIENTS
  if degrees < 1:
    return found
  bound = sums[i] * (1 + frontier.student(degrees) ** 2 / degrees)
  kept = np.flatnonzero(sums <= bound)
  if kept[0] == 0 or kept[-1] == len(sums) - 1 or scales[i] <= 0:
    why = f"losses allow any exponent down to {_EXPONENTS[0]:g}"
    if scales[i] <= 0:
      why = "the loss does not fall with compute"
    elif kept[-1] == len(sums) - 1:
      why = f"losses allow any exponent up to {_EXPONENTS[len(sums) - 1]:.3g}"
    for name in ("E", "gamma"):
      found[name] = frontier.no_estimate(why)
    return found
  for name, values in (("E", levels), ("gamma", _EXPONENTS)):
    found[name] |= {
      "low": float(np.min(values[kept])),
      "high": float(np.max(values[kept])),
    }
  return found


def _unknown(value) -> dict:
  """Returns an estimate with a value but no interval (NaN)."""
  nothing = dict.fromkeys(("low", "high", "error"), float("nan"))
  return {"value": float(value), **nothing}
