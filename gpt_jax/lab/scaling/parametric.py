"""Loss as E + A/N^alpha + B/D^beta, fitted as published, with its bootstrap.

The objective (minimise.py) is the one of Hoffmann et al. 2022 with the
correction of Besiroglu et al. 2024.
"""

import dataclasses

import numpy as np

from gpt_jax.config import InputError
from gpt_jax.lab.scaling.minimise import (
  NUM_COEFFICIENTS,
  make_starts,
  minimise,
)

NAMES = ("A", "B", "E", "alpha", "beta")
# Largest number of jackknife fits; with more points, each leaves out several.
_MAX_LEFT_OUT = 400

# Runs lie on a line if their deviation across the best line in (log N, log D)
# is less than this fraction of their deviation along it. Published lists of
# optima have 0.04 to 0.11, published grids 0.5 to 0.9.
MIN_ASPECT = 0.15
# A term with less than this share of the loss counts as being at its bound, 0.
MIN_SHARE = 1e-3
# Bounds of the exponents of N and D. Published ones are 0.05 to 1.2.
EXPONENTS = (0.01, 3.0)
MAX_LOG_SCALE = 100.0


class OnALine(InputError):
  """The runs' N and D do not vary independently."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fit and its resamples.

  Attributes:
    theta: [5], (log A, log B, log E, alpha, beta) at the optimum.
    objective: sum of Huber losses at the optimum.
    residuals: [P], log loss less log prediction.
    thetas: [S, 5], the optima of the resamples; S may be 0.
    weights: [S, P], how often each resample has each point.
    left_out: [J, 5], the optima without each point; with more than 400 points,
      without each of 400 parts of them. J is 0 if S is.
  """

  theta: np.ndarray
  objective: float
  residuals: np.ndarray
  thetas: np.ndarray
  weights: np.ndarray
  left_out: np.ndarray


def fit(params, tokens, loss, num_resamples: int, seed: int) -> Fit:
  """Returns the fit of [P] points, and of resamples of them.

  Args:
    params, tokens, loss: [P], all positive.
    num_resamples: number of bootstrap resamples.
    seed: of the resamples.

  The order of the points does not matter: they are sorted before resampling.

  Raises:
    OnALine: N and D do not vary independently.
    InputError: the points cannot determine five coefficients, or the loss
      does not fall with N or D.
  """
  order = np.lexsort((loss, tokens, params))
  back = np.argsort(order)
  params, tokens, loss = (v[order] for v in (params, tokens, loss))
  found = _fit_points(params, tokens, loss)
  shares = share_of(found.theta, np.log(params), np.log(tokens))
  for i, name in enumerate("ND"):
    value = found.theta[3 + i]
    # An exponent means nothing if its term is zero.
    if not value > 0 and shares[i] >= MIN_SHARE:
      raise InputError(
        f"the loss of these runs does not fall with {name}: its exponent would "
        f"be {value:.3g}; runs of more sizes, or longer ones, may show it"
      )
  weights = resample(params, tokens, num_resamples, seed)
  found = _fit_resamples(found, params, tokens, loss, weights)
  return dataclasses.replace(
    found,
    residuals=found.residuals[back],
    weights=found.weights[:, back],
  )


def refit(old: Fit, params, tokens, loss) -> Fit:
  """Returns the fit of other points, with the resamples of a given fit."""
  found = _fit_points(params, tokens, loss)
  return _fit_resamples(found, params, tokens, loss, old.weights)


def _fit_points(params, tokens, loss) -> Fit:
  check_points(params, tokens)
  x, y, z = np.log(params), np.log(tokens), np.log(loss)
  starts = make_starts(x, y, z)
  thetas, values = minimise(starts, x, y, z, np.ones((len(starts), len(z))))
  best = int(np.argmin(np.where(np.isnan(values), np.inf, values)))
  theta = thetas[best]
  return Fit(
    theta,
    float(values[best]),
    residuals=z - log_predict(theta, x, y),
    thetas=np.empty((0, NUM_COEFFICIENTS)),
    weights=np.empty((0, len(z))),
    left_out=np.empty((0, NUM_COEFFICIENTS)),
  )


def _fit_resamples(fit: Fit, params, tokens, loss, weights) -> Fit:
  if not len(weights):
    return fit
  logs = np.log(params), np.log(tokens), np.log(loss)
  parts = np.arange(min(len(loss), _MAX_LEFT_OUT))
  is_kept = np.arange(len(loss)) % len(parts) != parts[:, None]
  rows = np.concatenate([weights, is_kept])
  warm = np.repeat(fit.theta[None], len(rows), 0)
  thetas, values = minimise(warm, *logs, rows)
  if share_of(fit.theta, *logs[:2])[2] < MIN_SHARE:
    # At E = 0 the gradient in log E vanishes, so a start there stays there. A
    # resample may have a larger E, so also start from a larger one.
    warm[:, 2] = np.log(0.5) + logs[2].min()
    others, better = minimise(warm, *logs, rows)
    thetas = np.where((better < values)[:, None], others, thetas)
  count = len(weights)
  return dataclasses.replace(
    fit, thetas=thetas[:count], weights=weights, left_out=thetas[count:]
  )


def line_of(params, tokens) -> tuple[float, float] | None:
  """Returns the direction of the line that runs lie on, or None.

  Runs lie on a line if their spread across it in (log N, log D) is less than
  MIN_ASPECT of that along it. The effects of N and D then cannot be separated.

  Returns:
    (dx, dy) in log N and log D, of length 1.
  """
  logs = np.log(np.stack([params, tokens], 1))
  _, (along, across), axes = np.linalg.svd(logs - logs.mean(0))
  if across > MIN_ASPECT * along:
    return None
  dx, dy = axes[0] * (1 if axes[0, 0] > 0 else -1)
  return float(dx), float(dy)


def check_points(params, tokens) -> None:
  """Raises InputError where five coefficients cannot be determined."""
  distinct = len(set(zip(params, tokens, strict=True)))
  if distinct <= NUM_COEFFICIENTS:
    raise InputError(
      f"{distinct} distinct points are too few for the form "
      f"E + A/N^alpha + B/D^beta: its {NUM_COEFFICIENTS} coefficients need "
      f"{NUM_COEFFICIENTS + 1} or more"
    )
  for name, values in (("params", params), ("tokens", tokens)):
    if len(set(values)) < 3:
      raise InputError(
        f"the points have {len(set(values))} distinct value(s) of {name}; a "
        "power law with a constant needs 3 or more"
      )
  line = line_of(params, tokens)
  if line is not None:
    dx, dy = line
    law = f"D ~ N^{dy / dx:.2f}" if abs(dx) > 0.1 else "one N"
    if abs(dy / max(dx, 1e-9) + 1) < 0.1:
      law = "one compute budget, D ~ 1 / N"
    elif abs(dy) < 0.1:
      law = "one D"
    elif 0.9 < dy / max(dx, 1e-9) < 1.1:
      law = f"D = {np.exp(np.mean(np.log(tokens / params))):.3g} N"
    raise OnALine(
      f"these runs lie on one line in (log N, log D) ({law}), so what N does "
      "to the loss cannot be told from what D does; add runs off that line: "
      "each size at two or more numbers of tokens"
    )


def share_of(theta, log_params, log_tokens) -> np.ndarray:
  """Returns [3]: each term's largest share of the loss at any point.

  The terms are A/N^alpha, B/D^beta and E. A term without a share is at its
  bound, 0: the runs say only that it is small.
  """
  a, b, e, alpha, beta = theta
  terms = a - alpha * log_params, b - beta * log_tokens, e
  whole = log_predict(theta, log_params, log_tokens)
  return np.array([np.exp(term - whole).max() for term in terms])


def undetermined(theta, params, tokens) -> dict[str, str]:
  """Returns {name: why} for coefficients that the points do not determine.

  Args:
    theta: [5], of a fit.
    params, tokens: [P].
  """
  shares = share_of(theta, np.log(params), np.log(tokens))
  why = {}
  if shares[2] < MIN_SHARE:
    why["E"] = "at its bound, 0"
  for i, (scale, name, size) in enumerate(
    (("A", "alpha", "N"), ("B", "beta", "D"))
  ):
    exponent, log_scale = float(theta[3 + i]), float(theta[i])
    reason = None
    if not np.isfinite([exponent, log_scale]).all():
      reason = "not finite"
    elif shares[i] < MIN_SHARE:
      reason = f"the term in {size} is at its bound, 0"
    elif not EXPONENTS[0] <= exponent <= EXPONENTS[1]:
      reason = (
        f"the exponent of {size} is {exponent:.3g}, outside "
        f"{EXPONENTS[0]} to {EXPONENTS[1]:g}"
      )
    elif abs(log_scale) > MAX_LOG_SCALE:
      reason = f"{scale} is e^{log_scale:.0f}"
    if reason is not None:
      why |= dict.fromkeys((scale, name), reason)
      why.setdefault("a", reason)
      why.setdefault("b", reason)
  return why


def coefficients(theta) -> np.ndarray:
  """Returns [..., 7]: A, B, E, alpha, beta, a, b of [..., 5] thetas.

  N*(C) grows as C^a and D*(C) as C^b with a = beta / (alpha + beta), where
  C is proportional to N D.
  """
  alpha, beta = theta[..., 3], theta[..., 4]
  a = beta / (alpha + beta)
  return np.stack([*np.moveaxis(_linear(theta), -1, 0), a, 1 - a], -1)


def log_predict(theta, log_params, log_tokens) -> np.ndarray:
  """Returns log loss [..., P] of thetas [..., 5] at [P] points."""
  a, b, e, alpha, beta = (theta[..., i, None] for i in range(5))
  return np.logaddexp(
    np.logaddexp(a - alpha * log_params, b - beta * log_tokens), e
  )


def resample(params, tokens, num_resamples: int, seed: int) -> np.ndarray:
  """Returns [S, P] counts of points drawn with replacement.

  A draw with too few distinct points for a fit is drawn again.
  """
  rng, P = np.random.default_rng(seed), len(params)
  _, kind = np.unique(np.stack([params, tokens]), axis=1, return_inverse=True)
  is_kind = np.eye(int(np.max(kind)) + 1)[kind.ravel()]
  weights = np.zeros((num_resamples, P))
  todo = np.arange(num_resamples)
  while len(todo):
    drawn = rng.integers(0, P, (len(todo), P))
    for row, draw in zip(todo, drawn, strict=True):
      weights[row] = np.bincount(draw, minlength=P)
    counts = (weights[todo] @ is_kind > 0).sum(1)
    todo = todo[counts < NUM_COEFFICIENTS]
  return weights


def _linear(theta) -> np.ndarray:
  # A or B may overflow in a resample that lacks the runs which determine it.
  with np.errstate(over="ignore"):
    return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:5]], -1)
