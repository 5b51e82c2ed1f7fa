"""Formats fits as JSON: estimates, remarks, and what is not determined."""

import math

import numpy as np

from gpt_jax.lab.scaling import frontier, minimise, parametric

_NAMES = (*parametric.NAMES, "a", "b")
# Largest number of outliers that are named.
_MOST_OUTLIERS = 12
# Least log residual of an outlier, which must also be 8 times the usual one.
_OUTLIER = 0.22
# A root mean square of log residuals above this is remarked on. Published
# ladders have 0.3 to 3 %.
_LARGE_RESIDUAL = 0.05
_FEW_POINTS = 15
# Measured coverage: the share of intervals that contained the true coefficient,
# over 57 simulated fits of six runs with 0.5 % of noise.
_COVERAGE = (
  "intervals are widened by Student's t and hold the truth of six simulated "
  "runs in 93 to 98 % of trials, 67 to 77 % without"
)


def describe_points(points) -> dict:
  """Returns the runs that were fitted, in JSON's types."""
  return {
    "source": points.source,
    "convention": points.convention,
    "num_points": len(points),
    "num_found": points.num_found,
    "left_out": list(points.left_out),
    "data_fingerprint": points.fingerprint(),
    "flops": [float(points.flops.min()), float(points.flops.max())],
    "params": [float(points.params.min()), float(points.params.max())],
    "tokens": [float(points.tokens.min()), float(points.tokens.max())],
    "loss": [float(points.loss.min()), float(points.loss.max())],
  }


def describe_fit(fit: parametric.Fit, points, budgets) -> dict:
  """Returns a parametric fit in JSON's types.

  Args:
    budgets: FLOPs at which to give the compute-optimal frontier.
  """
  cost = frontier.cost_of(*points.counts[points.convention])
  # Coefficients of the fit, of its resamples, and without each point.
  three = [_figures_of(t, cost) for t in (fit.theta, fit.thetas, fit.left_out)]
  unknown = parametric.undetermined(fit.theta, points.params, points.tokens)
  degrees = frontier.degrees_of(fit)
  found = {
    name: frontier.no_estimate(unknown[name])
    if name in unknown
    else frontier.estimate(*(part[..., i] for part in three), degrees)
    for i, name in enumerate(_NAMES)
  }
  unknown |= _unbounded(found)
  found |= {k: frontier.no_estimate(why) for k, why in unknown.items()}
  residuals = fit.residuals
  return {
    "form": "E + A/N^alpha + B/D^beta",
    "objective": fit.objective,
    "huber_delta": minimise.DELTA,
    "num_resamples": len(fit.thetas),
    "level": frontier.LEVEL,
    "flops_per_token": {"c": cost[0], "g": cost[1]},
    "coefficients": found,
    "remarks": remarks(residuals, points),
    "frontier": [] if "a" in unknown else frontier.frontier(fit, budgets, cost),
    "residuals": {
      "median_absolute": float(np.median(abs(residuals))),
      "root_mean_square": float(np.sqrt(np.mean(residuals**2))),
      "rows": [
        {
          **points.describe(i),
          "loss": float(points.loss[i]),
          "residual": float(residuals[i]),
        }
        for i in np.argsort(points.flops, kind="stable")
      ],
    },
  }


def _unbounded(found: dict) -> dict[str, str]:
  """Returns {name: why} of exponents whose intervals exceed their bounds."""
  low, high = parametric.EXPONENTS
  bounds = {"alpha": (low, high), "beta": (low, high), "a": (0.0, 1.0)}
  why = {}
  for name, (low, high) in bounds.items():
    e = found[name]
    is_within = low < e["low"] and e["high"] < high
    if "why" in e or is_within or math.isnan(e["low"]):
      continue
    reason = (
      f"the {frontier.LEVEL} % interval of {name}, {format_range(e)}, goes "
      f"beyond {low:g} to {high:g}"
    )
    scale = {"alpha": ["A"], "beta": ["B"], "a": []}[name]
    for other in (name, *scale, "a", "b"):
      why.setdefault(other, reason)
  return why


def remarks(residuals, points) -> list[str]:
  """Returns sentences on outliers, large residuals and few points.

  Args:
    residuals: [P], log loss less log prediction.
  """
  said = []
  usual = 1.4826 * float(np.median(abs(residuals)))
  is_far = abs(residuals) > max(_OUTLIER, 8 * usual)
  for i in np.flatnonzero(is_far)[:_MOST_OUTLIERS]:
    ratio = math.exp(residuals[i])
    guess = "a run that diverged, or a slip of the pen"
    if abs(ratio * math.log(2) - 1) < 0.05:
      guess = "bits in place of nats"
    said.append(
      f"{points.names[i]}: its loss, {points.loss[i]:.4g}, is {ratio:.3g} "
      f"times what the others say ({guess}); mend it or leave it out"
    )
  rest = residuals[~is_far]
  size = float(np.sqrt(np.mean(rest**2))) if len(rest) else math.inf
  if size > _LARGE_RESIDUAL:
    said.append(
      f"residuals of {100 * size:.0f} % (root mean square) are large: the form "
      "does not describe these runs, so its intervals say little"
    )
  if len(residuals) < _FEW_POINTS:
    said.append(
      f"{len(residuals)} points for {parametric.NUM_COEFFICIENTS} coefficients "
      f"are few: {_COVERAGE}; {_FEW_POINTS} or more are better"
    )
  return said


def _figures_of(theta, cost) -> np.ndarray:
  """Returns [..., 7] coefficients, with a and b for c N^g FLOPs per token."""
  values = parametric.coefficients(theta)
  values[..., 5] = frontier.exponent(theta, cost[1])
  values[..., 6] = 1 - cost[1] * values[..., 5]
  return values


def describe_isoflop(found: dict, points) -> dict:
  """Returns an IsoFLOP analysis in JSON's types."""
  budgets = []
  for b in found["budgets"]:
    budgets.append(
      {
        "flops": b.flops,
        "num_points": len(b.rows),
        "params": frontier.estimate(
          math.exp(b.log_params), np.exp(b.log_params_samples)
        ),
        "loss": b.loss,
        "curve": b.curve.tolist(),
        "center": b.center,
      }
    )
  laws = {
    name: {k: v for k, v in law.items() if k != "samples"}
    for name, law in found["laws"].items()
  }
  return {
    "budgets": budgets,
    "left_out": found["left_out"],
    "laws": laws,
    "window": found["window"],
  }


def format_range(estimate: dict, style=lambda v: f"{v:.4g}") -> str:
  low, high = estimate["low"], estimate["high"]
  if math.isnan(low) or math.isnan(high):
    return "[no interval]"
  return f"[{style(low)}, {style(high)}]"
