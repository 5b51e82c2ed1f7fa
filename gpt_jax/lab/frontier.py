"""The compute-optimal frontier of a parametric fit, under any FLOP convention.

A convention need not make FLOPs per token proportional to N: attention and an
uncounted head grow otherwise. They are fitted as c N^g over the runs' models,
and the frontier of C = c N^g D is exact for that; 6 N is c = 6, g = 1.
"""

import numpy as np

from gpt_jax.lab import parametric

# Of intervals, in percent.
LEVEL = 95


def interval(samples) -> tuple[float, float]:
  """Returns (low, high), the bootstrap's percentiles; NaNs are left out.

  Of percentile, basic, normal and BCa intervals, these and BCa covered the
  truth of simulations as often as they should; BCa costs a fit for each point.
  """
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  if not len(samples):
    return float("nan"), float("nan")
  low, high = np.percentile(samples, [50 - LEVEL / 2, 50 + LEVEL / 2])
  return float(low), float(high)


def cost_of(params, flops_per_token) -> tuple[float, float]:
  """Returns (c, g) of FLOPs per token = c N^g, by least squares of logs."""
  ratio = flops_per_token / params
  if np.ptp(ratio) <= 1e-9 * ratio.max():
    return float(ratio[0]), 1.0
  g, c = np.polyfit(np.log(params), np.log(flops_per_token), 1)
  return float(np.exp(c)), float(g)


def exponent(theta, g: float = 1.0):
  """Returns a of N* ~ C^a for thetas [..., 5]; D* ~ C^(1 - g a)."""
  return theta[..., 4] / (theta[..., 3] + g * theta[..., 4])


def optimum(theta, flops: float, cost: tuple[float, float] = (6.0, 1.0)):
  """Returns (N*, D*, loss) [...] of thetas [..., 5] at one compute.

  The least E + A/N^alpha + B/D^beta where c N^g D = C has alpha A N^-alpha =
  g beta B D^-beta.
  """
  c, g = cost
  a, b, e, alpha, beta = (theta[..., i] for i in range(5))
  log_c = np.log(flops) - np.log(c)
  # A resample whose loss does not fall with N or D has no optimum: NaN.
  with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
    share = np.log(alpha) + a - np.log(g * beta) - b
    log_n = (share + beta * log_c) / (alpha + g * beta)
    log_d = log_c - g * log_n
    loss = np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e)
    return np.exp(log_n), np.exp(log_d), loss


def frontier(fit: parametric.Fit, budgets, cost) -> list[dict]:
  """Returns a row for each compute budget, with intervals."""
  rows = []
  for flops in budgets:
    best = optimum(fit.theta, flops, cost)
    spread = optimum(fit.thetas, flops, cost)
    names = ("params", "tokens", "loss")
    row = {"flops": flops}
    for name, value, samples in zip(names, best, spread, strict=True):
      row[name] = estimate(value, samples)
    rows.append(row)
  return rows


def compare_conventions(fit: parametric.Fit, points) -> list[dict]:
  """Returns how the exponent a moves with what is counted.

  Each convention's N is fitted anew, with the same resamples, so that the
  interval of a shift is that of a paired difference.
  """
  rows, fits = [], {}
  params, per_token = points.counts[points.convention]
  own_g = cost_of(params, per_token)[1]
  own, owns = exponent(fit.theta, own_g), exponent(fit.thetas, own_g)
  for name, (params, per_token) in points.counts.items():
    key = params.tobytes()
    if name == points.convention:
      fits[key] = fit
    if key not in fits:
      fits[key] = parametric.refit(fit, params, points.tokens, points.loss)
    found, (c, g) = fits[key], cost_of(params, per_token)
    a, samples = exponent(found.theta, g), exponent(found.thetas, g)
    rows.append(
      {
        "convention": name,
        "flops_per_token": {"c": c, "g": g},
        "alpha": float(found.theta[3]),
        "beta": float(found.theta[4]),
        "objective": found.objective,
        "a": estimate(a, samples),
        "shift": estimate(a - own, samples - owns),
      }
    )
  return rows


def estimate(value, samples) -> dict:
  """Returns {"value", "low", "high", "error"} of a bootstrapped figure."""
  low, high = interval(samples)
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  error = float(samples.std(ddof=1)) if len(samples) > 1 else float("nan")
  return {"value": float(value), "low": low, "high": high, "error": error}
