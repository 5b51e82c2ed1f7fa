"""Minimises the objective of a scaling law, many problems at once.

The objective is the sum, not the mean, of Huber losses of log residuals: the
Huber scale of 1e-3 makes a mean so small that a minimiser's absolute tolerance
stops it early (Besiroglu et al. 2024, section 3).

Design choice: this BFGS runs all starts, or all resamples, at once in numpy.
scipy's BFGS reaches the same objectives to 1e-14 (and coefficients to 3e-8),
but takes one problem at a time: 14 to 21 ms per problem of 240 points against
1.7 ms here, and a bootstrap is a thousand problems.
"""

import numpy as np

# Hoffmann et al. 2022, section D.2.
DELTA = 1e-3
NUM_COEFFICIENTS = 5

# Number of (problem, point) elements that are processed together, so that they
# stay in the processor's cache.
_BLOCK = 1 << 16
_MAX_STEPS = 400
_MAX_RESTARTS = 6


def make_starts(x, y, z) -> np.ndarray:
  """Returns [S, 5] starts on a grid of alpha, beta and E.

  With these three given, the loss is linear in A and B, which follow by
  relative least squares (variable projection). A negative A or B is replaced by
  a small positive one.
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

  BFGS with a weak Wolfe line search, which also handles the kinks of an
  objective that is nearly an absolute value (Lewis and Overton 2013). Its first
  inverse Hessian is that of reweighted least squares, and it is restarted from
  there until a restart gains nothing.

  Args:
    starts: [S, 5] thetas.
    x, y, z: [P] log params, log tokens, log loss.
    weights: [S, P] of the points.
  """
  # With centered logs alpha and A are nearly independent.
  x0, y0 = x.mean(), y.mean()
  p = starts.copy()
  p[:, 0] -= p[:, 3] * x0
  p[:, 1] -= p[:, 4] * y0
  value = np.empty(len(p))
  size = max(1, _BLOCK // len(z))
  for i in range(0, len(p), size):
    rows = slice(i, i + size)
    problem = _Problem(x - x0, y - y0, z, weights[rows])
    # A resample that lacks the runs which determine a term has zero or infinite
    # curvature along that term's coefficients.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
      p[rows], value[rows] = _polish(problem, p[rows])
  p[:, 0] += p[:, 3] * x0
  p[:, 1] += p[:, 4] * y0
  return p, value


class _Problem:
  """The objectives of S problems: different weights on the same P points."""

  def __init__(self, x, y, z, weights):
    self.x, self.y, self.z, self.weights = x, y, z, weights

  def take(self, rows):
    return _Problem(self.x, self.y, self.z, self.weights[rows])

  def value(self, p) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([S], [S, 5]): objectives and their gradients."""
    r, parts = self._residuals(p)
    psi = np.clip(r, -DELTA, DELTA)
    # Huber's loss is psi (r - psi / 2), both within DELTA and beyond it.
    weighted = self.weights * psi
    value = np.einsum("sp,sp->s", weighted, r - 0.5 * psi)
    g = [weighted * part for part in parts]
    slopes = [-(g[0] @ self.x), -(g[1] @ self.y)]
    return value, np.stack([*(k.sum(1) for k in g), *slopes], 1)

  def curvature(self, p) -> np.ndarray:
    """Returns [S, 5, 5] inverse Hessians of reweighted least squares."""
    r, (u, v, w) = self._residuals(p)
    jacobian = np.stack([u, v, w, -u * self.x, -v * self.y], 1)
    scale = self.weights * np.minimum(1, DELTA / np.maximum(abs(r), 1e-12))
    h = np.einsum("sip,sp,sjp->sij", jacobian, scale, jacobian, optimize=True)
    size = np.trace(h, axis1=1, axis2=2)[:, None, None]
    return np.linalg.inv(h + (1e-9 * size + 1e-300) * np.eye(5))

  def _residuals(self, p):
    a, b, e, alpha, beta = (p[:, i, None] for i in range(5))
    # Keep exp finite; the line search rejects steps that go this far.
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
  """Returns ([S, 5], [S]): minimisers and values of one run of BFGS."""
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
    # A problem ends after three steps without gain, or if the line search
    # finds no step.
    going = (idle[rows] < 3) & (t > 0)
    if not going.all():
      rows = rows[going]
      if not len(rows):
        break
      part = problem.take(rows)
  return p, value


def _search(problem: _Problem, p, value, slope, step):
  """Returns (t [S], values, gradients): steps under weak Wolfe conditions.

  t is 0 where no such step was found.
  """
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
  """Returns the BFGS update of inverse Hessians h.

  Args:
    s: [S, 5] steps.
    y: [S, 5] changes of the gradient over them.
  """
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
