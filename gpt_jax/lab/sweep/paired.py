"""Is one set of runs better than another? A paired t test over seeds.

A seed decides the initial weights and the order of the data, and so moves the
losses of both runs of a pair in the same direction: differences within pairs
vary less than losses. The mean difference gets a t interval. When several
comparisons are made together, p values and intervals are corrected by Holm
(1979), so that an interval excludes zero exactly where the verdict says that
there is a difference.

With fewer than two pairs there is no spread to judge by, hence no verdict. A
set in which a run diverged gets the verdict "diverged": a mean of the other
seeds would be a mean of survivors.
"""

import dataclasses
import math
import statistics

# Confidence of verdicts and intervals, over all comparisons made together.
LEVEL = 0.95
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
NO_VERDICT = "no verdict"
DIVERGED = "diverged"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A set of runs compared with a baseline by loss: less is better.

  Attributes:
    name, baseline: the names of the two sets.
    seeds: the seeds that both sets have.
    mean: mean difference of losses, this set less the baseline; None without a
      pair.
    spread: standard error of the mean; None without two pairs.
    low, high: interval of the mean, corrected like p; None without a verdict.
    p: two-sided p value of this comparison alone; None without a verdict.
    adjusted: p by Holm, over the comparisons made together.
    verdict: BETTER, WORSE, SAME, NO_VERDICT, or DIVERGED with the number of
      seeds that did.
    why: the reason where there is no verdict.
    unit: of the losses; "" means nats per token.
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
    """The verdict as a sentence."""
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
      f"(p = {_probability(self.adjusted or 0.0)})"
    )


def _probability(p: float) -> str:
  return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def compare(
  baseline: tuple[str, dict[int, float]],
  others: list[tuple[str, dict[int, float]]],
) -> list[Comparison]:
  """Returns each of the other sets compared with the baseline.

  Args:
    baseline: (name, {seed: loss}); the loss of a run that diverged is inf.
    others: the same for each of the other sets.
  """
  return judge([pair(baseline, other) for other in others])


def pair(baseline, other, unit: str = "") -> Comparison:
  """Returns a Comparison with its p but without a verdict, see judge.

  Args:
    baseline, other: (name, {seed: loss}), as in compare.
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
  if n < 2:
    mean = differences[0] if n else None
    return make(mean=mean, why="it takes two seeds that both have finished")
  mean = statistics.fmean(differences)
  spread = statistics.stdev(differences) / math.sqrt(n)
  # Equal differences still spread by rounding.
  if spread <= 1e-12 * max(abs(mean), *map(abs, a.values())):
    if mean == 0:
      return make(mean=0.0, spread=0.0, p=1.0)
    why = "all seeds differ by the same, so that they are not independent"
    return make(mean=mean, why=why)
  from scipy import special

  p = 2 * float(special.stdtr(n - 1, -abs(mean) / spread))
  return make(mean=mean, spread=spread, p=p)


def _lost(losses: dict[int, float]) -> int:
  return sum(not math.isfinite(loss) for loss in losses.values())


def _count(losses: dict[int, float]) -> str:
  return f"{len(losses)} seed" + "s" * (len(losses) != 1)


def judge(found: list[Comparison]) -> list[Comparison]:
  """Returns the comparisons with corrected p, intervals and verdicts."""
  from scipy import special

  factors = iter(holm_factors([c.p for c in found if c.p is not None]))
  out = []
  for one in found:
    if one.p is not None:
      assert one.mean is not None and one.spread is not None  # p follows
      factor = next(factors)
      p = min(1.0, one.p * factor)
      verdict = SAME
      if p < 1 - LEVEL:
        verdict = BETTER if one.mean < 0 else WORSE
      tail = (1 - LEVEL) / factor / 2
      degrees = len(one.seeds) - 1
      half = -float(special.stdtrit(degrees, tail)) * one.spread
      low, high = one.mean - half, one.mean + half
      one = dataclasses.replace(
        one, adjusted=p, verdict=verdict, low=low, high=high
      )
    out.append(one)
  return out


def holm_factors(ps: list[float]) -> list[float]:
  """Returns the factor, from 1 to n, by which Holm multiplies each of n ps.

  The k-th least p is multiplied by n - k + 1, or by more where the corrected
  value would fall below that of a lesser p. An interval of confidence
  1 - (1 - LEVEL) / factor agrees with the corrected p.
  """
  order = sorted(range(len(ps)), key=lambda i: ps[i])
  out, highest = [1.0] * len(ps), 0.0
  for rank, i in enumerate(order):
    own = len(ps) - rank
    highest = max(highest, ps[i] * own)
    out[i] = max(own, highest / ps[i]) if ps[i] else own
  return out
