"""Is one set of runs better than another? Paired by seed, and honest.

A seed decides the initial weights and the order of the data, and moves both
runs of a pair alike, so the differences of pairs spread less than the runs do.
Their mean has a t interval; several comparisons are corrected by Holm (1979).
With fewer than two pairs there is no spread to judge by, hence no verdict.
"""

import dataclasses
import math
import statistics

# Of verdicts and intervals.
LEVEL = 0.95
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
NO_VERDICT = "no verdict"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One set of runs against a baseline; losses, so that less is better.

  Attributes:
    name, baseline: of the sets.
    seeds: that both have.
    mean: of the differences, this less the baseline; None without a pair.
    low, high: interval of the mean at LEVEL; None without two pairs.
    p: two-sided, of this comparison alone; None without a verdict.
    adjusted: p by Holm, over the comparisons made together.
    verdict: one of the words above.
    why: why there is no verdict.
  """

  name: str
  baseline: str
  seeds: tuple[int, ...]
  mean: float | None
  low: float | None
  high: float | None
  p: float | None
  adjusted: float | None
  verdict: str
  why: str = ""

  @property
  def sentence(self) -> str:
    """What was found, in words."""
    if self.mean is None:
      return f"{self.name}: no verdict against {self.baseline}: {self.why}"
    count = len(self.seeds)
    pairs = f"{count} paired seed" + "s" * (count != 1)
    if self.low is None:
      return (
        f"{self.name}: {self.mean:+.4f} against {self.baseline} in {pairs}; no "
        f"verdict: {self.why}"
      )
    line = (
      f"{self.name}: {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
      f"against {self.baseline} over {pairs}: {self.verdict}"
    )
    if self.adjusted is not None:
      return f"{line} (p = {_probability(self.adjusted)})"
    return f"{line}: {self.why}"


def _probability(p: float) -> str:
  return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def compare(
  baseline: tuple[str, dict[int, float]],
  others: list[tuple[str, dict[int, float]]],
) -> list[Comparison]:
  """Returns a Comparison of each of the others with the baseline.

  Args:
    baseline: (name, {seed: loss}).
    others: the same of each set.
  """
  found = [_compare(baseline, other) for other in others]
  adjusted = iter(holm([c.p for c in found if c.p is not None]))
  out = []
  for one in found:
    if one.p is not None:
      p = next(adjusted)
      verdict = SAME
      if p < 1 - LEVEL:
        verdict = BETTER if one.mean < 0 else WORSE
      one = dataclasses.replace(one, adjusted=p, verdict=verdict)
    out.append(one)
  return out


def _compare(baseline, other) -> Comparison:
  (base_name, a), (name, b) = baseline, other
  seeds = tuple(sorted(set(a) & set(b)))
  differences = [b[s] - a[s] for s in seeds]
  n = len(differences)
  mean = statistics.fmean(differences) if n else None
  make = lambda low, high, p, why: Comparison(
    name, base_name, seeds, mean, low, high, p, None, NO_VERDICT, why
  )
  if n < 2:
    return make(None, None, None, "it takes two seeds that both have finished")
  spread = statistics.stdev(differences) / math.sqrt(n)
  # Rounding alone spreads a little what is the same for every seed.
  if spread <= 1e-12 * max(abs(mean), *map(abs, a.values())):
    if mean == 0:
      return make(0.0, 0.0, 1.0, "")
    why = "all seeds differ by the same, so that they are not independent"
    return make(mean, mean, None, why)
  half = t_quantile(0.5 + LEVEL / 2, n - 1) * spread
  p = 2 * t_cdf(-abs(mean) / spread, n - 1)
  return make(mean - half, mean + half, p, "")


def holm(ps: list[float]) -> list[float]:
  """Returns p values that hold together: the k-th least times n - k + 1."""
  order = sorted(range(len(ps)), key=lambda i: ps[i])
  out, highest = [0.0] * len(ps), 0.0
  for rank, i in enumerate(order):
    highest = max(highest, min(1.0, ps[i] * (len(ps) - rank)))
    out[i] = highest
  return out


def t_cdf(t: float, freedom: int) -> float:
  """Returns P(T <= t) of Student's distribution."""
  x = freedom / (freedom + t * t)
  tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, x)
  return 1 - tail if t > 0 else tail


def t_quantile(p: float, freedom: int) -> float:
  """Returns the t with P(T <= t) = p, for p of at least 1/2."""
  low, high = 0.0, 1.0
  while t_cdf(high, freedom) < p:
    high *= 2
  for _ in range(60):
    middle = (low + high) / 2
    if t_cdf(middle, freedom) < p:
      low = middle
    else:
      high = middle
  return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
  """Returns I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
  if x <= 0 or x >= 1:
    return float(x >= 1)
  if x > (a + 1) / (a + b + 2):
    return 1 - _incomplete_beta(b, a, 1 - x)
  front = math.exp(
    math.lgamma(a + b)
    - math.lgamma(a)
    - math.lgamma(b)
    + a * math.log(x)
    + b * math.log1p(-x)
  )
  tiny = 1e-300
  f, c, d = 1.0, 1.0, 0.0
  for i in range(300):
    m = i // 2
    if i == 0:
      term = 1.0
    elif i % 2 == 0:
      term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
    else:
      term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    d = 1 / ((1 + term * d) or tiny)
    c = (1 + term / c) or tiny
    f *= c * d
    if abs(1 - c * d) < 1e-15:
      break
  return front * (f - 1) / a
