"""The compute-optimal frontier of a parametric fit, under any FLOP convention.

FLOPs per token need not be proportional to N: those of attention, or of an
output head that N does not count, grow differently. FLOPs per token are fitted
as c N^g over the runs' models, and the frontier for C = c N^g D is exact. The
convention 6 N has c = 6, g = 1.
"""

import statistics

import numpy as np

from gpt_jax.lab.scaling import parametric

# Level of all intervals, in percent.
LEVEL = 95
_TAILS = (0.5 - LEVEL / 200, 0.5 + LEVEL / 200)
_NORMAL = statistics.NormalDist()


def interval(samples) -> tuple[float, float]:
  """Returns (low, high), percentiles of bootstrap samples; ignores NaNs."""
  low, high = _quantiles(samples, _TAILS)
  return low, high


def corrected_interval(value, samples, left_out) -> tuple[float, float]:
  """Returns (low, high) by BCa: percentiles corrected for bias and skew.

  Efron 1987, section 3. In simulations, percentile intervals of B contained the
  true value too often, and basic bootstrap intervals of all seven coefficients
  contained it too rarely.

  Args:
    value: the estimate.
    samples: [S], the estimates of resamples; NaNs are left out.
    left_out: [J], the estimates without each point.
  """
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  # With few points, A or B may overflow when one is left out.
  left_out = np.asarray(left_out, float)
  left_out = left_out[np.isfinite(left_out)]
  influence = left_out.mean() - left_out if len(left_out) else left_out
  if len(influence) and abs(influence).max() > 0:
    influence = influence / abs(influence).max()
    skew = np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5)
  else:
    skew = 0.0
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
  with np.errstate(invalid="ignore"):
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
  """Returns exponents a of N* ~ C^a, of thetas [..., 5]; D* ~ C^(1 - g a)."""
  return theta[..., 4] / (theta[..., 3] + g * theta[..., 4])


def optimum(theta, flops: float, cost: tuple[float, float] = (6.0, 1.0)):
  """Returns (N*, D*, loss) [...] of thetas [..., 5] at one compute budget.

  Where E + A/N^alpha + B/D^beta is smallest subject to c N^g D = C,
  alpha A N^-alpha equals g beta B D^-beta.
  """
  c, g = cost
  a, b, e, alpha, beta = (theta[..., i] for i in range(5))
  log_c = np.log(flops) - np.log(c)
  # A resample whose loss does not fall with N or D gives NaN.
  with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
    share = np.log(alpha) + a - np.log(g * beta) - b
    log_n = (share + beta * log_c) / (alpha + g * beta)
    log_d = log_c - g * log_n
    loss = np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e)
    return np.exp(log_n), np.exp(log_d), loss


def frontier(fit: parametric.Fit, budgets, cost) -> list[dict]:
  """Returns the optimum at each compute budget, with intervals."""
  rows = []
  for flops in budgets:
    parts = zip(
      *(optimum(t, flops, cost) for t in (fit.theta, fit.thetas, fit.left_out)),
      strict=True,
    )
    names = ("params", "tokens", "loss")
    rows.append(
      {"flops": flops}
      | {
        k: estimate(*three, degrees_of(fit))
        for k, three in zip(names, parts, strict=True)
      }
    )
  return rows


def compare_conventions(fit: parametric.Fit, points) -> list[dict]:
  """Returns the exponent a by each convention of counting N and C.

  Each convention's N is fitted separately, but with the same resamples, so that
  the interval of a shift between two conventions is of a paired difference.
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
        "a": estimate(*three, degrees_of(found)),
        "shift": estimate(*shifts, degrees_of(found)),
      }
    )
  return rows


def degrees_of(fit: parametric.Fit) -> int:
  """Returns a fit's degrees of freedom: points minus coefficients."""
  return len(fit.residuals) - parametric.NUM_COEFFICIENTS


def estimate(value, samples, left_out=None, degrees=None) -> dict:
  """Returns {"value", "low", "high", "error"} of a bootstrapped figure.

  Args:
    left_out: estimates without each point, for corrected_interval; None takes
      plain percentiles.
    degrees: the residuals' degrees of freedom, by whose small_sample_factor the
      interval is widened; None does not widen it.
  """
  samples = np.asarray(samples, float)
  samples = samples[~np.isnan(samples)]
  is_corrected = left_out is not None and len(samples)
  low, high = (
    corrected_interval(value, samples, left_out)
    if is_corrected
    else interval(samples)
  )
  if degrees is not None:
    low, high = widen(float(value), low, high, small_sample_factor(degrees))
  error = float("nan")
  if len(samples) > 1:
    # A resample may lack the points that determine a term, and A is then
    # unbounded. In that case, use half the width of the middle 68 % of samples.
    with np.errstate(over="ignore", invalid="ignore"):
      middle = np.quantile(samples, (_NORMAL.cdf(-1), _NORMAL.cdf(1)))
      error = float(
        samples.std(ddof=1)
        if samples.max() < 1e100
        else (middle[1] - middle[0]) / 2
      )
  return {"value": float(value), "low": low, "high": high, "error": error}


def no_estimate(why: str) -> dict:
  """Returns an all-NaN estimate, for a figure that the points do not determine.

  Args:
    why: the reason, stored with it.
  """
  return dict.fromkeys(("value", "low", "high", "error"), float("nan")) | {
    "why": why
  }


def student(degrees: int) -> float:
  """Returns the half-width of a Student interval, in standard errors."""
  from scipy import special

  return float(special.stdtrit(degrees, _TAILS[1]))


def small_sample_factor(degrees: int) -> float:
  """Returns the factor by which a bootstrap interval of few points is widened.

  A fit of k coefficients to n points shrinks its residuals by
  sqrt((n - k) / n), and bootstrap quantiles follow the normal distribution
  instead of Student's t; both make the interval too small.
  """
  count = degrees + parametric.NUM_COEFFICIENTS
  wide = student(degrees) / _NORMAL.inv_cdf(_TAILS[1])
  return wide * (count / degrees) ** 0.5


def widen(value: float, low: float, high: float, factor: float):
  """Returns (low, high) moved `factor` times as far from the value.

  Distances are ratios where all are positive, as A and B span powers of ten.
  """
  if value > 0 and low > 0 and np.isfinite(high):
    with np.errstate(over="ignore"):
      low = value * np.float64(low / value) ** factor
      high = value * np.float64(high / value) ** factor
    return float(low), float(high)
  return value + factor * (low - value), value + factor * (high - value)
