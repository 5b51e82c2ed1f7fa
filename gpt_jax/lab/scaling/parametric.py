"""Loss as E + A/N^alpha + B/D^beta, fitted as published, with its bootstrap.

The objective is the sum, not the mean, of Huber losses of log residuals: the
Huber scale of 1e-3 makes a mean so small that a minimiser's absolute tolerance
ends it early (Besiroglu et al. 2024, section 3). It is minimised here by a BFGS
of our own that runs all starts, or all resamples, at once in numpy: a library's
takes one problem at a time, and a bootstrap is a thousand.
"""

import dataclasses

import numpy as np

from gpt_jax.config import InputError

# Hoffmann et al. 2022, section D.2.
DELTA = 1e-3
NUM_COEFFICIENTS = 5
NAMES = ("A", "B", "E", "alpha", "beta")

# Elements of (problems x points) that are worked on together: they stay in the
# processor's cache.
_BLOCK = 1 << 16
_MAX_STEPS = 400
_MAX_LEFT_OUT = 400
_MAX_RESTARTS = 6


# Across a line over along it, below which runs lie on one. Published lists of
# optima have .04 to .11, published grids .5 to .9.
MIN_ASPECT = 0.15
# Of the loss, below which a term is at its bound.
MIN_SHARE = 1e-3
# Of N and D. Published ones are .05 to 1.2.
EXPONENTS = (0.01, 3.0)
MAX_LOG_SCALE = 100.0


class OnALine(InputError):
  """N and D of the runs do not vary independently."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fit and its resamples.

  Attributes:
    theta: [5], (log A, log B, log E, alpha, beta) at the optimum.
    objective: the sum of Huber losses there.
    residuals: [P], log L - log prediction.
    thetas: [S, 5], of the resamples; S may be 0.
    weights: [S, P], how often each resample holds each point.
    left_out: [J, 5], of the points without each one; of more than 400, without
      each 400th part. J is 0 where S is.
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
    num_resamples: of the points, drawn with replacement.
    seed: of the resamples.

  The order of the points changes nothing: resamples draw from them sorted.

  Raises:
    OnALine: N and D do not vary independently.
    InputError: the points cannot determine five coefficients, or loss does
      not fall with N or D.
  """
  order = np.lexsort((loss, tokens, params))
  back = np.argsort(order)
  params, tokens, loss = (v[order] for v in (params, tokens, loss))
  found = _fit_points(params, tokens, loss)
  for name, value in (("N", found.theta[3]), ("D", found.theta[4])):
    if not value > 0:
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
  """Returns the fit of changed points, with the resamples of another fit."""
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
    # Nothing draws E away from 0, where its slope in log E vanishes. A resample
    # may have it elsewhere.
    warm[:, 2] = np.log(0.5) + logs[2].min()
    others, better = minimise(warm, *logs, rows)
    thetas = np.where((better < values)[:, None], others, thetas)
  count = len(weights)
  return dataclasses.replace(
    fit, thetas=thetas[:count], weights=weights, left_out=thetas[count:]
  )


def line_of(params, tokens) -> tuple[float, float] | None:
  """Returns the line that runs lie on in (log N, log D), or None.

  That is where their deviation across the best line is less than MIN_ASPECT of
  that along it: N and D then cannot be told apart.

  Returns:
    (dx, dy), the line's direction in log N and log D, of length 1.
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
  """Returns [3]: the largest share of the loss that each term has at any point.

  Of A/N^alpha, B/D^beta and E. A term without a share is at its bound: the runs
  say no more of it than that it is small.
  """
  a, b, e, alpha, beta = theta
  terms = a - alpha * log_params, b - beta * log_tokens, e
  whole = log_predict(theta, log_params, log_tokens)
  return np.array([np.exp(term - whole).max() for term in terms])


def undetermined(theta, params, tokens) -> dict[str, str]:
  """Returns {name: why} of the coefficients that points do not determine.

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

  A draw that has too few distinct points for any fit is drawn again.
  """
  rng, P = np.random.default_rng(seed), len(params)
  _, kind = np.unique(np.stack([params, tokens]), axis=1, return_inverse=True)
  is_kind = np.eye(kind.max() + 1)[kind.ravel()]
  weights = np.zeros((num_resamples, P))
  todo = np.arange(num_resamples)
  while len(todo):
    drawn = rng.integers(0, P, (len(todo), P))
    for row, draw in zip(todo, drawn, strict=True):
      weights[row] = np.bincount(draw, minlength=P)
    counts = (weights[todo] @ is_kind > 0).sum(1)
    todo = todo[counts < NUM_COEFFICIENTS]
  return weights


def make_starts(x, y, z) -> np.ndarray:
  """Returns [S, 5] starts: a grid of alpha, beta and E; A and B follow.

  Given the grid's three, loss is linear in A and B, which relative least
  squares give (variable projection). Where one would be negative it is small.
  """
  grid = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
  shares = (0.1, 0.5, 0.8, 0.95)
  x0, y0, low, L = x.mean(), y.mean(), z.min(), np.exp(z)
  starts = []
  for alpha in grid:
    for beta in grid:
      u = np.exp(-alpha * (x - x0)) / L
      v = np.exp(-beta * (y - y0)) / L
      for share in shares:
        E = share * np.exp(low)
        t = 1 - E / L
        uu, vv, uv, ut, vt = u @ u, v @ v, u @ v, u @ t, v @ t
        size = uu * vv - uv * uv
        with np.errstate(all="ignore"):
          A, B = (vv * ut - uv * vt) / size, (uu * vt - uv * ut) / size
          if not np.isfinite([A, B]).all():
            A = B = 1e-9
        if A <= 0:
          A, B = 1e-3 * ut / uu, vt / vv
        elif B <= 0:
          A, B = ut / uu, 1e-3 * vt / vv
        logs = np.log([max(A, 1e-9), max(B, 1e-9), E])
        starts.append([*logs, alpha, beta])
  starts = np.array(starts)
  starts[:, 0] += starts[:, 3] * x0
  starts[:, 1] += starts[:, 4] * y0
  return starts


def minimise(starts, x, y, z, weights) -> tuple[np.ndarray, np.ndarray]:
  """Returns ([S, 5], [S]): optima of weighted objectives, and their values.

  BFGS with a weak Wolfe line search, which also passes the kinks of a nearly
  absolute objective (Lewis and Overton 2013). The first curvature is that of
  reweighted least squares; it is taken anew until that gains nothing.

  Args:
    starts: [S, 5] thetas.
    x, y, z: [P] log params, log tokens, log loss.
    weights: [S, P] of the points.
  """
  # About the means, alpha and A are nearly independent.
  x0, y0 = x.mean(), y.mean()
  p = starts.copy()
  p[:, 0] -= p[:, 3] * x0
  p[:, 1] -= p[:, 4] * y0
  value = np.empty(len(p))
  size = max(1, _BLOCK // len(z))
  for i in range(0, len(p), size):
    rows = slice(i, i + size)
    problem = _Problem(x - x0, y - y0, z, weights[rows])
    # A resample that lacks the runs that a term shows in has no curvature, or
    # an infinite one, along it.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
      p[rows], value[rows] = _polish(problem, p[rows])
  p[:, 0] += p[:, 3] * x0
  p[:, 1] += p[:, 4] * y0
  return p, value


class _Problem:
  """Weighted objectives of S problems on the same P points."""

  def __init__(self, x, y, z, weights):
    self.x, self.y, self.z, self.weights = x, y, z, weights

  def take(self, rows):
    return _Problem(self.x, self.y, self.z, self.weights[rows])

  def value(self, p) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([S], [S, 5]): objectives and their gradients."""
    r, parts = self._residuals(p)
    psi = np.clip(r, -DELTA, DELTA)
    # Huber's loss is psi (r - psi / 2) on both of its sides.
    weighted = self.weights * psi
    value = np.einsum("sp,sp->s", weighted, r - 0.5 * psi)
    g = [weighted * part for part in parts]
    slopes = [-(g[0] @ self.x), -(g[1] @ self.y)]
    return value, np.stack([*(k.sum(1) for k in g), *slopes], 1)

  def curvature(self, p) -> np.ndarray:
    """Returns [S, 5, 5] inverses of reweighted least squares' curvature."""
    r, (u, v, w) = self._residuals(p)
    jacobian = np.stack([u, v, w, -u * self.x, -v * self.y], 1)
    scale = self.weights * np.minimum(1, DELTA / np.maximum(abs(r), 1e-12))
    h = np.einsum("sip,sp,sjp->sij", jacobian, scale, jacobian, optimize=True)
    size = np.trace(h, axis1=1, axis2=2)[:, None, None]
    return np.linalg.inv(h + (1e-9 * size + 1e-300) * np.eye(5))

  def _residuals(self, p):
    a, b, e, alpha, beta = (p[:, i, None] for i in range(5))
    # Steps that overshoot are turned back by the line search.
    u = np.exp(np.minimum(a - alpha * self.x, 300))
    v = np.exp(np.minimum(b - beta * self.y, 300))
    w = np.exp(np.minimum(e, 300))
    whole = u + v + w
    share = 1 / whole
    return np.log(whole) - self.z, (u * share, v * share, w * share)


def _polish(problem: _Problem, p):
  """Restarts the minimiser until a restart gains nothing."""
  value = np.full(len(p), np.inf)
  todo = np.arange(len(p))
  for _ in range(_MAX_RESTARTS):
    found, better = _bfgs(problem.take(todo), p[todo])
    gain = value[todo] - better
    p[todo], value[todo] = found, np.minimum(better, value[todo])
    todo = todo[gain > 1e-8 * better]
    if not len(todo):
      break
  return p, value


def _bfgs(problem: _Problem, p):
  p = p.copy()
  value, slope = problem.value(p)
  inverse = problem.curvature(p)
  idle = np.zeros(len(p), int)
  rows = np.arange(len(p))
  part = problem
  for _ in range(_MAX_STEPS):
    g, h = slope[rows], inverse[rows]
    step = -np.einsum("sij,sj->si", h, g)
    length = np.linalg.norm(step, axis=1, keepdims=True)
    step *= np.minimum(1, 2 / np.maximum(length, 1e-300))
    moved = _search(part, p[rows], value[rows], g, step)
    t, new_value, new_slope = moved
    s = t[:, None] * step
    inverse[rows] = _update(h, s, new_slope - g)
    gain = value[rows] - new_value
    p[rows] += s
    value[rows], slope[rows] = new_value, new_slope
    small = gain <= 1e-12 * new_value
    idle[rows] = np.where(small, idle[rows] + 1, 0)
    # Three steps without gain, or none that the line search would take.
    going = (idle[rows] < 3) & (t > 0)
    if not going.all():
      rows = rows[going]
      if not len(rows):
        break
      part = problem.take(rows)
  return p, value


def _search(problem: _Problem, p, value, slope, step):
  """Returns (t [S], values, slopes): steps that meet the weak Wolfe terms."""
  down = np.einsum("si,si->s", slope, step)
  low, high = np.zeros(len(p)), np.full(len(p), np.inf)
  t = np.ones(len(p))
  best_t, best_value, best_slope = np.zeros(len(p)), value.copy(), slope.copy()
  rows = np.flatnonzero(down < 0)
  for _ in range(25):
    part = problem if len(rows) == len(p) else problem.take(rows)
    now, grad = part.value(p[rows] + t[rows, None] * step[rows])
    is_high = ~(now <= value[rows] + 1e-4 * t[rows] * down[rows])
    is_low = np.einsum("si,si->s", grad, step[rows]) < 0.9 * down[rows]
    is_low &= ~is_high
    better = ~is_high & (now <= best_value[rows])
    kept = rows[better]
    best_t[kept], best_value[kept] = t[kept], now[better]
    best_slope[kept] = grad[better]
    high[rows[is_high]] = t[rows[is_high]]
    low[rows[is_low]] = t[rows[is_low]]
    rows = rows[is_high | is_low]
    if not len(rows):
      break
    bounded = np.isfinite(high[rows])
    middle = 0.5 * (low[rows] + np.where(bounded, high[rows], 0))
    t[rows] = np.where(bounded, middle, 2 * t[rows])
  return best_t, best_value, best_slope


def _update(h, s, y):
  """Returns the inverses after steps s with changes y of the gradients."""
  sy = np.einsum("si,si->s", s, y)
  hy = np.einsum("sij,sj->si", h, y)
  is_curved = sy > 1e-14 * np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
  rho = 1 / np.where(is_curved, sy, 1)
  outer = s[:, :, None] * hy[:, None, :]
  size = rho + rho**2 * np.einsum("si,si->s", y, hy)
  new = (
    h
    - rho[:, None, None] * (outer + outer.transpose(0, 2, 1))
    + size[:, None, None] * s[:, :, None] * s[:, None, :]
  )
  return np.where(is_curved[:, None, None], new, h)


def _linear(theta) -> np.ndarray:
  # Of a resample that lacks the runs that a term shows in, A or B may be huge.
  with np.errstate(over="ignore"):
    return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:5]], -1)
