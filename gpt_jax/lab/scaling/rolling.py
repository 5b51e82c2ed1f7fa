"""Rolling hold-outs: measures how far off predictions of larger runs are.

A fit's residuals show noise, but not whether the form is wrong beyond the runs.
So, for several cuts in compute, the runs up to the cut are fitted and the
larger ones predicted. Intervals are widened until they contain the predicted
runs' losses as often as their level (95 %) says: split conformal prediction
with the interval's half-width as scale (Papadopoulos et al. 2002).
"""

import dataclasses

import numpy as np

from gpt_jax.config import InputError
from gpt_jax.lab.scaling import frontier, parametric

_MAX_CUTS = 6
# Least number of runs with distinct (N, D) below a cut.
_MIN_RUNS = 10
_NUM_RESAMPLES = 100


@dataclasses.dataclass(frozen=True)
class Widening:
  """How much hold-outs widen the intervals of predictions.

  Attributes:
    factor: multiplies the half-widths of intervals for noise alone; 1 or more.
    times: the largest ratio, over all cuts, of predicted to fitted compute.
    num_fits: number of cuts.
    num_losses: number of predicted losses, over all cuts.
    inside_noise: fraction of losses inside intervals for noise alone.
    inside: fraction of losses inside widened intervals, where each cut's are
      widened by the factor of the other cuts; NaN with one cut.
  """

  factor: float
  times: float
  num_fits: int
  num_losses: int
  inside_noise: float
  inside: float


# Where no run could be held out.
NONE = Widening(1.0, 1.0, 0, 0, float("nan"), float("nan"))


def measure(points, predict, seed: int) -> Widening:
  """Returns the Widening by rolling hold-outs of points.

  Args:
    predict: (fit, params, tokens) -> (loss, low, high [P]).
    seed: of the resamples.
  """
  scores, times = [], [1.0]
  for below in _cuts(points):
    fitted, rest = points.take(below), points.take(~below)
    try:
      fit = parametric.fit(
        fitted.params, fitted.tokens, fitted.loss, _NUM_RESAMPLES, seed
      )
    except InputError:
      continue
    scores.append(_scores(*predict(fit, rest.params, rest.tokens), rest))
    times.append(float(rest.flops.max() / fitted.flops.max()))
  if not scores:
    return NONE
  inside = []
  for i in range(len(scores)):
    others = scores[:i] + scores[i + 1 :]
    if others:
      inside.append(scores[i] <= _factor(others))
  whole = np.concatenate(scores)
  return Widening(
    factor=_factor(scores),
    times=max(times),
    num_fits=len(scores),
    num_losses=len(whole),
    inside_noise=float(np.mean(whole <= 1)),
    inside=float(np.mean(np.concatenate(inside))) if inside else float("nan"),
  )


def _cuts(points) -> list[np.ndarray]:
  """Returns masks [P] of the runs below each cut in compute."""
  low, high = points.flops.min(), points.flops.max()
  cuts = []
  for flops in np.geomspace(low, high, _MAX_CUTS + 2)[1:-1]:
    below = points.flops <= flops * (1 + 1e-9)
    kinds = {*zip(points.params[below], points.tokens[below], strict=True)}
    is_new = not cuts or below.sum() > cuts[-1].sum()
    if len(kinds) >= _MIN_RUNS and is_new and not below.all():
      cuts.append(below)
  return cuts


def _scores(value, low, high, rest) -> np.ndarray:
  """Returns [P] errors of log loss, in half-widths of the interval.

  An interval has two half-widths; the one on the error's side is used.
  """
  error = np.log(rest.loss / value)
  half = np.where(error > 0, np.log(high / value), np.log(value / low))
  return abs(error) / np.maximum(half, 1e-9)


def _factor(scores: list[np.ndarray]) -> float:
  """Returns the scores' quantile at the level, every cut with equal weight."""
  weights = np.concatenate([np.full(len(s), 1 / len(s)) for s in scores])
  values = np.concatenate(scores)
  order = np.argsort(values)
  reached = np.cumsum(weights[order]) / weights.sum()
  i = min(np.searchsorted(reached, frontier.LEVEL / 100), len(values) - 1)
  return max(1.0, float(values[order][i]))
