"""Is one set of runs better than another? Paired by seed, and honest.

A seed decides the initial weights and the order of the data, and moves both
runs of a pair alike, so the differences of pairs spread less than the runs do.
Their mean has a t interval; of several comparisons p and interval are corrected
together by Holm (1979), so that an interval excludes zero exactly where the
verdict says that there is a difference.
With fewer than two pairs there is no spread to judge by, hence no verdict. A
run that diverged has no loss: its set is called diverged, for the mean of
those that are left would be a mean of survivors.
"""

import dataclasses
import math
import statistics

# Of verdicts and intervals, over all comparisons that are made together.
LEVEL = 0.95
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
NO_VERDICT = "no verdict"
DIVERGED = "diverged"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One set of runs against a baseline; losses, so that less is better.

  Attributes:
    name, baseline: of the sets.
    seeds: that both have.
    mean: of the differences, this less the baseline; None without a pair.
    spread: standard error of the mean; None without two pairs.
    low, high: interval of the mean, corrected as p is; None without a verdict.
    p: two-sided, of this comparison alone; None without a verdict.
    adjusted: p by Holm, over the comparisons made together.
    verdict: one of the words above, DIVERGED with its seeds counted.
    why: why there is no verdict.
    unit: of the losses, "" where they are nats per token.
  """

  name: str
  baseline: str
  seeds: tuple[int, ...]
  mean: float | None = None
  spread: float | None = None
  low: float | None = None
  high: float | None = None
  p: float | None = None
  adjusted: float | None = None
  verdict: str = NO_VERDICT
  why: str = ""
  unit: str = ""

  @property
  def sentence(self) -> str:
    """What was found, in words."""
    if self.verdict.startswith(DIVERGED):
      return f"{self.name}: {self.verdict}, against {self.baseline}"
    if self.mean is None:
      return f"{self.name}: no verdict against {self.baseline}: {self.why}"
    count = len(self.seeds)
    pairs = f"{count} paired seed" + "s" * (count != 1)
    mean = f"{self.name}: {self.mean:+.4f}" + (self.unit and f" {self.unit}")
    if self.low is None:
      return (
        f"{mean} against {self.baseline} in {pairs}; no verdict: {self.why}"
      )
    interval = f"[{self.low:+.4f}, {self.high:+.4f}]"
    return (
      f"{mean} {interval} against {self.baseline} over {pairs}: {self.verdict} "
      f"(p = {_probability(self.adjusted)})"
    )


def _probability(p: float) -> str:
  return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def compare(
  baseline: tuple[str, dict[int, float]],
  others: list[tuple[str, dict[int, float]]],
) -> list[Comparison]:
  """Returns a Comparison of each of the others with the baseline.

  Args:
    baseline: (name, {seed: loss}); the loss of a run that diverged is inf.
    others: the same of each set.
  """
  return judge([pair(baseline, other) for other in others])


def pair(baseline, other, unit: str = "") -> Comparison:
  """Returns a Comparison that has p and no verdict yet, see judge.

  Args:
    baseline, other: as compare takes them.
    unit: see Comparison.
  """
  (base_name, a), (name, b) = baseline, other
  seeds = tuple(sorted(set(a) & set(b)))
  make = lambda **found: Comparison(name, base_name, seeds, unit=unit, **found)
  if _lost(b):
    return make(verdict=f"{DIVERGED} ({_lost(b)} of {_count(b)})")
  if _lost(a):
    return make(why=f"{base_name} diverged ({_lost(a)} of {_count(a)})")
  differences = [b[s] - a[s] for s in seeds]
  n = len(differences)
  mean = statistics.fmean(differences) if n else None
  if n < 2:
    return make(mean=mean, why="it takes two seeds that both have finished")
  spread = statistics.stdev(differences) / math.sqrt(n)
  # Rounding alone spreads a little what is the same for every seed.
  if spread <= 1e-12 * max(abs(mean), *map(abs, a.values())):
    if mean == 0:
      return make(mean=0.0, spread=0.0, p=1.0)
    why = "all seeds differ by the same, so that they are not independent"
    return make(mean=mean, why=why)
  p = 2 * t_cdf(-abs(mean) / spread, n - 1)
  return make(mean=mean, spread=spread, p=p)


def _lost(losses: dict[int, float]) -> int:
  return sum(not math.isfinite(loss) for loss in losses.values())


def _count(losses: dict[int, float]) -> str:
  return f"{len(losses)} seed" + "s" * (len(losses) != 1)


def judge(found: list[Comparison]) -> list[Comparison]:
  """Returns the comparisons with p corrected, intervals and verdicts."""
  factors = iter(holm_factors([c.p for c in found if c.p is not None]))
  out = []
  for one in found:
    if one.p is not None:
      factor = next(factors)
      p = min(1.0, one.p * factor)
      verdict = SAME
      if p < 1 - LEVEL:
        verdict = BETTER if one.mean < 0 else WORSE
      tail = (1 - LEVEL) / factor / 2
      half = t_quantile(1 - tail, len(one.seeds) - 1) * one.spread
      low, high = one.mean - half, one.mean + half
      one = dataclasses.replace(
        one, adjusted=p, verdict=verdict, low=low, high=high
      )
    out.append(one)
  return out


def holm(ps: list[float]) -> list[float]:
  """Returns p values that hold together: the k-th least times n - k + 1."""
  factors = holm_factors(ps)
  return [min(1.0, p * f) for p, f in zip(ps, factors, strict=True)]


def holm_factors(ps: list[float]) -> list[float]:
  """Returns what Holm multiplies each p by, from 1 to their number.

  The k-th least by n - k + 1, and by more where one before it would else end
  above it. An interval at 1 - (1 - LEVEL) / factor agrees with the corrected p.
  """
  order = sorted(range(len(ps)), key=lambda i: ps[i])
  out, highest = [1.0] * len(ps), 0.0
  for rank, i in enumerate(order):
    own = len(ps) - rank
    highest = max(highest, ps[i] * own)
    out[i] = max(own, highest / ps[i]) if ps[i] else own
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
