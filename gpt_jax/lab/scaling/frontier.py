"""The compute-optimal frontier of a parametric fit, under any FLOP convention.

A convention need not make FLOPs per token proportional to N: attention and an
uncounted head grow otherwise. They are fitted as c N^g over the runs' models,
and the frontier of C = c N^g D is exact for that; 6 N is c = 6, g = 1.
"""

import statistics

import numpy as np

from gpt_jax.lab.scaling import parametric

# Of intervals, in percent.
LEVEL = 95
_TAILS = (0.5 - LEVEL / 200, 0.5 + LEVEL / 200)
_NORMAL = statistics.NormalDist()


def interval(samples) -> tuple[float, float]:
  """Returns (low, high), percentiles of a bootstrap; NaNs are left out."""
  low, high = _quantiles(samples, _TAILS)
  return low, high


def corrected_interval(value, samples, left_out) -> tuple[float, float]:
  """Returns (low, high) by BCa: percentiles corrected for bias and skew.

  In simulations plain percentiles of B held the truth too often, and basic
  intervals of all seven too seldom (lab/README.md). Efron 1987, section 3.

  Args:
    value: the estimate.
    samples: [S], of resamples; NaNs are left out.
    left_out: [J], of the points without each one.
  """
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  influence = np.nanmean(left_out) - left_out
  influence = influence[~np.isnan(influence)]
  size = np.sum(influence**2) ** 1.5
  skew = np.sum(influence**3) / (6 * size) if size > 0 else 0.0
  below = np.mean(samples < value) + np.mean(samples == value) / 2
  edge = 1 / (len(samples) + 1)
  bias = _NORMAL.inv_cdf(float(min(max(below, edge), 1 - edge)))
  tails = []
  for tail in _TAILS:
    z = bias + _NORMAL.inv_cdf(tail)
    tails.append(_NORMAL.cdf(bias + z / max(1 - skew * z, 1e-3)))
  return _quantiles(samples, tails)


def _quantiles(samples, tails) -> tuple[float, float]:
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  if not len(samples):
    return float("nan"), float("nan")
  low, high = np.quantile(samples, tails)
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
    parts = zip(
      *(optimum(t, flops, cost) for t in (fit.theta, fit.thetas, fit.left_out)),
      strict=True,
    )
    names = ("params", "tokens", "loss")
    rows.append(
      {"flops": flops}
      | {k: estimate(*three) for k, three in zip(names, parts, strict=True)}
    )
  return rows


def compare_conventions(fit: parametric.Fit, points) -> list[dict]:
  """Returns how the exponent a moves with what is counted.

  Each convention's N is fitted anew, with the same resamples, so that the
  interval of a shift is that of a paired difference.
  """
  rows, fits = [], {}
  params, per_token = points.counts[points.convention]
  own_g = cost_of(params, per_token)[1]
  exponents = lambda fit, g: [
    exponent(t, g) for t in (fit.theta, fit.thetas, fit.left_out)
  ]
  own = exponents(fit, own_g)
  for name, (params, per_token) in points.counts.items():
    key = params.tobytes()
    if name == points.convention:
      fits[key] = fit
    if key not in fits:
      fits[key] = parametric.refit(fit, params, points.tokens, points.loss)
    found, (c, g) = fits[key], cost_of(params, per_token)
    three = exponents(found, g)
    shifts = [a - b for a, b in zip(three, own, strict=True)]
    rows.append(
      {
        "convention": name,
        "flops_per_token": {"c": c, "g": g},
        "alpha": float(found.theta[3]),
        "beta": float(found.theta[4]),
        "objective": found.objective,
        "a": estimate(*three),
        "shift": estimate(*shifts),
      }
    )
  return rows


def estimate(value, samples, left_out=None) -> dict:
  """Returns {"value", "low", "high", "error"} of a bootstrapped figure.

  By corrected_interval where it is known without each point, else by interval.
  """
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  is_corrected = left_out is not None and len(samples)
  low, high = (
    corrected_interval(value, samples, left_out)
    if is_corrected
    else interval(samples)
  )
  error = float(samples.std(ddof=1)) if len(samples) > 1 else float("nan")
  return {"value": float(value), "low": low, "high": high, "error": error}
