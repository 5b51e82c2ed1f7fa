"""Draws fits as figures."""

import math

import numpy as np

from gpt_jax.lab.scaling import frontier, parametric
from gpt_jax.runs import plot

# Largest number of budgets or sizes that a figure's legend names.
_MOST_NAMED = 12


def figures(found: dict, points, fit, isoflop) -> dict[str, str]:
  """Returns {file name: SVG} of the fits that were made."""
  drawn = {}
  if fit is not None:
    drawn["residuals.svg"] = _draw_residuals(points, fit)
    if found["parametric"]["frontier"]:
      drawn["fit.svg"] = _draw_fit(found, points, fit)
    else:
      fit = None
  if isoflop is not None:
    drawn["isoflop.svg"] = _draw_isoflop(points, isoflop)
  drawn["frontier.svg"] = _draw_frontier(found, points, fit, isoflop)
  return drawn


def _span(low: float, high: float, count: int = 60):
  return np.geomspace(low, high, count)


def _shades(values):
  """Returns a color for each of values, by their logarithms."""
  logs = np.log(values)
  wide = np.ptp(logs) or 1
  return [plot.shade((v - logs.min()) / wide) for v in logs]


def _draw_fit(found, points, fit) -> str:
  cost = frontier.cost_of(*points.counts[points.convention])
  layers = []
  colors = _shades(points.params)
  order = np.argsort(points.params, kind="stable")
  sizes = np.unique(points.params)
  picked = sizes[np.linspace(0, len(sizes) - 1, min(7, len(sizes))).astype(int)]
  for i in order:
    layers.append(
      plot.Layer("dots", [(points.flops[i], points.loss[i])], colors[i])
    )
  for size in np.unique(picked):
    i = int(np.flatnonzero(points.params == size)[0])
    span = _span(points.flops.min(), points.flops.max())
    tokens = span / (cost[0] * size ** cost[1])
    # Draw a size's curve only where its tokens are near those of the runs.
    span, tokens = (
      v[tokens >= points.tokens.min() / 2] for v in (span, tokens)
    )
    if not len(span):
      continue
    loss = np.exp(
      parametric.log_predict(fit.theta, np.log(size), np.log(tokens))
    )
    inside = loss <= points.loss.max() * 1.02
    layers.append(
      plot.Layer(
        "line",
        list(zip(span[inside], loss[inside], strict=True)),
        colors[i],
        f"N = {size:.3g}",
      )
    )
  budgets = _span(points.flops.min(), _reach(found, points))
  best = [frontier.optimum(fit.theta, c, cost)[2] for c in budgets]
  layers.append(
    plot.Layer(
      "line",
      list(zip(budgets, best, strict=True)),
      "black",
      "compute-optimal",
      is_dashed=True,
    )
  )
  title = "Loss against compute: runs, fit, frontier"
  return plot.draw_layers(title, "training FLOPs", "loss", layers)


def _reach(found, points) -> float:
  budgets = [row["flops"] for row in found["parametric"]["frontier"]]
  return max([float(points.flops.max()), *budgets])


def _draw_residuals(points, fit) -> str:
  colors = _shades(points.params)
  flops = points.flops
  layers = [plot.Layer("line", [(flops.min(), 0), (flops.max(), 0)], "#555555")]
  order = np.argsort(points.params, kind="stable")
  named = {order[0], order[len(order) // 2], order[-1]}
  for i in order:
    name = f"N = {points.params[i]:.3g}" if i in named else None
    layers.append(
      plot.Layer("dots", [(flops[i], 100 * fit.residuals[i])], colors[i], name)
    )
  title = "Residuals: log loss less log prediction"
  return plot.draw_layers(title, "training FLOPs", "percent", layers, "x")


def _draw_isoflop(points, isoflop) -> str:
  layers, minima = [], []
  budgets = isoflop["budgets"]
  colors = _shades([b.flops for b in budgets])
  every = math.ceil(len(budgets) / _MOST_NAMED)
  for i, (b, color) in enumerate(zip(budgets, colors, strict=True)):
    name = None if i % every else f"{b.flops:.3g} FLOPs"
    n = points.params[b.rows]
    span = _span(n.min(), n.max())
    curve = np.polyval(b.curve, np.log(span) - b.center)
    dots = list(zip(n, points.loss[b.rows], strict=True))
    layers.append(plot.Layer("dots", dots, color, name))
    layers.append(
      plot.Layer("line", list(zip(span, curve, strict=True)), color)
    )
    minima.append((math.exp(b.log_params), b.loss))
  layers.append(plot.Layer("dots", minima, "black", "minima"))
  title = "IsoFLOP: loss against size at each budget"
  return plot.draw_layers(title, "parameters N", "loss", layers)


def _draw_frontier(found, points, fit, isoflop) -> str:
  layers = [
    plot.Layer(
      "dots",
      list(zip(points.flops, points.params, strict=True)),
      "#bbbbbb",
      "runs",
    )
  ]
  if fit is not None:
    cost = frontier.cost_of(*points.counts[points.convention])
    budgets = _span(points.flops.min(), _reach(found, points), 40)
    layers += _band(
      budgets,
      [frontier.optimum(fit.theta, c, cost)[0] for c in budgets],
      [frontier.optimum(fit.thetas, c, cost)[0] for c in budgets],
      plot.COLORS[1],
      "parametric fit",
    )
  if isoflop is not None:
    low, high = (
      (points.flops.min(), _reach(found, points))
      if fit is not None
      else (points.flops.min(), points.flops.max())
    )
    budgets, law = _span(low, high, 40), isoflop["laws"]["params"]
    line = lambda level, slope, c: np.exp(level + slope * np.log(c))
    level, slope = law["log_scale"]["value"], law["exponent"]["value"]
    layers += _band(
      budgets,
      [line(level, slope, c) for c in budgets],
      [line(*law["samples"].T, c) for c in budgets],
      plot.COLORS[2],
      "IsoFLOP",
    )
    minima = [(b.flops, math.exp(b.log_params)) for b in isoflop["budgets"]]
    layers.append(plot.Layer("dots", minima, plot.COLORS[2], "minima"))
  title = "Compute-optimal size, with its interval"
  return plot.draw_layers(title, "training FLOPs", "parameters N", layers)


def _band(x, values, samples, color, name) -> list[plot.Layer]:
  """Returns a line, with its interval behind it if there are samples."""
  layers = [plot.Layer("line", list(zip(x, values, strict=True)), color, name)]
  pairs = np.array([frontier.interval(s) for s in samples])
  if not np.isnan(pairs).any():
    outline = [*zip(x, pairs[:, 0], strict=True)]
    outline += [*zip(x, pairs[:, 1], strict=True)][::-1]
    layers.insert(0, plot.Layer("band", outline, color))
  return layers
