"""What fits found: as text, as JSON, as figures."""

import math
import textwrap

import numpy as np

from gpt_jax.lab.scaling import forecast, frontier, parametric
from gpt_jax.runs import plot

_NAMES = (*parametric.NAMES, "a", "b")
_MEANINGS = {
  "E": "loss that no size and no data take away",
  "alpha": "of N",
  "beta": "of D",
  "a": "N* grows as C^a",
  "b": "D* grows as C^b",
}
_MOST_ROWS = 12
# Log residual that is an outlier's, if it is also 8 times the usual.
_OUTLIER = 0.22
# Root mean square of log residuals. Published ladders have .3 to 3 %.
_LARGE_RESIDUAL = 0.05
_FEW_POINTS = 15
# Of 57 fits of six runs with .5 % of noise, each coefficient.
_COVERAGE = (
  "intervals are widened by Student's t and hold the truth of six simulated "
  "runs in 93 to 98 % of trials, 67 to 77 % without"
)


def describe_points(points) -> dict:
  """Returns the JSON of what was fitted."""
  return {
    "source": points.source,
    "convention": points.convention,
    "num_points": len(points),
    "num_found": points.num_found,
    "left_out": list(points.left_out),
    "data_fingerprint": points.fingerprint(),
    "flops": [float(points.flops.min()), float(points.flops.max())],
    "params": [float(points.params.min()), float(points.params.max())],
    "tokens": [float(points.tokens.min()), float(points.tokens.max())],
    "loss": [float(points.loss.min()), float(points.loss.max())],
  }


def describe_fit(fit: parametric.Fit, points, budgets) -> dict:
  """Returns the JSON of a parametric fit.

  Args:
    budgets: FLOPs to give the frontier at.
  """
  cost = frontier.cost_of(*points.counts[points.convention])
  # Of the optimum, of resamples, without each point.
  three = [_figures_of(t, cost) for t in (fit.theta, fit.thetas, fit.left_out)]
  unknown = parametric.undetermined(fit.theta, points.params, points.tokens)
  degrees = frontier.degrees_of(fit)
  found = {
    name: frontier.no_estimate(unknown[name])
    if name in unknown
    else frontier.estimate(*(part[..., i] for part in three), degrees)
    for i, name in enumerate(_NAMES)
  }
  unknown |= _unbounded(found)
  found |= {k: frontier.no_estimate(why) for k, why in unknown.items()}
  residuals = fit.residuals
  return {
    "form": "E + A/N^alpha + B/D^beta",
    "objective": fit.objective,
    "huber_delta": parametric.DELTA,
    "num_resamples": len(fit.thetas),
    "level": frontier.LEVEL,
    "flops_per_token": {"c": cost[0], "g": cost[1]},
    "coefficients": found,
    "remarks": remarks(residuals, points),
    "frontier": [] if "a" in unknown else frontier.frontier(fit, budgets, cost),
    "residuals": {
      "median_absolute": float(np.median(abs(residuals))),
      "root_mean_square": float(np.sqrt(np.mean(residuals**2))),
      "rows": [
        {
          "name": points.names[i],
          "params": float(points.params[i]),
          "tokens": float(points.tokens[i]),
          "flops": float(points.flops[i]),
          "loss": float(points.loss[i]),
          "residual": float(residuals[i]),
        }
        for i in np.argsort(points.flops, kind="stable")
      ],
    },
  }


def _unbounded(found: dict) -> dict[str, str]:
  """Returns {name: why} of exponents whose intervals hold all that may be."""
  low, high = parametric.EXPONENTS
  bounds = {"alpha": (low, high), "beta": (low, high), "a": (0.0, 1.0)}
  why = {}
  for name, (low, high) in bounds.items():
    e = found[name]
    is_within = low < e["low"] and e["high"] < high
    if "why" in e or is_within or math.isnan(e["low"]):
      continue
    reason = (
      f"the {frontier.LEVEL} % interval of {name}, {_range(e)}, goes beyond "
      f"{low:g} to {high:g}"
    )
    scale = {"alpha": ["A"], "beta": ["B"], "a": []}[name]
    for other in (name, *scale, "a", "b"):
      why.setdefault(other, reason)
  return why


def remarks(residuals, points) -> list[str]:
  """Returns sentences on what a fit leaves: outliers, size, few points.

  Args:
    residuals: [P], log loss less log prediction.
  """
  said = []
  usual = 1.4826 * float(np.median(abs(residuals)))
  is_far = abs(residuals) > max(_OUTLIER, 8 * usual)
  for i in np.flatnonzero(is_far)[:_MOST_ROWS]:
    ratio = math.exp(residuals[i])
    guess = "a run that diverged, or a slip of the pen"
    if abs(ratio * math.log(2) - 1) < 0.05:
      guess = "bits in place of nats"
    said.append(
      f"{points.names[i]}: its loss, {points.loss[i]:.4g}, is {ratio:.3g} "
      f"times what the others say ({guess}); mend it or leave it out"
    )
  rest = residuals[~is_far]
  size = float(np.sqrt(np.mean(rest**2))) if len(rest) else math.inf
  if size > _LARGE_RESIDUAL:
    said.append(
      f"residuals of {100 * size:.0f} % (root mean square) are large: the form "
      "does not describe these runs, so its intervals say little"
    )
  if len(residuals) < _FEW_POINTS:
    said.append(
      f"{len(residuals)} points for {parametric.NUM_COEFFICIENTS} coefficients "
      f"are few: {_COVERAGE}; {_FEW_POINTS} or more are better"
    )
  return said


def _figures_of(theta, cost) -> np.ndarray:
  """Returns [..., 7] coefficients; a and b for a token that costs c N^g."""
  values = parametric.coefficients(theta)
  values[..., 5] = frontier.exponent(theta, cost[1])
  values[..., 6] = 1 - cost[1] * values[..., 5]
  return values


def describe_isoflop(found: dict, points) -> dict:
  """Returns the JSON of an IsoFLOP analysis."""
  budgets = []
  for b in found["budgets"]:
    budgets.append(
      {
        "flops": b.flops,
        "num_points": len(b.rows),
        "params": frontier.estimate(
          math.exp(b.log_params), np.exp(b.log_params_samples)
        ),
        "loss": b.loss,
        "curve": b.curve.tolist(),
        "center": b.center,
      }
    )
  laws = {
    name: {k: v for k, v in law.items() if k != "samples"}
    for name, law in found["laws"].items()
  }
  return {
    "budgets": budgets,
    "left_out": found["left_out"],
    "laws": laws,
    "window": found["window"],
  }


def sentence(found: dict) -> str:
  """Returns what a person can quote."""
  where, parts = found["points"], []
  if "parametric" in found:
    p = found["parametric"]
    c = p["coefficients"]
    count = str(where["num_points"])
    if where["num_found"] > where["num_points"]:
      count += f" of {where['num_found']}"
    unknown = {k: v["why"] for k, v in c.items() if "why" in v}
    if "a" in unknown:
      parts.append(
        f"Fitted to {count} runs, the law E + A/N^alpha + B/D^beta is not "
        f"determined ({'; '.join(dict.fromkeys(unknown.values()))}), nor is "
        "what is compute-optimal"
      )
    else:
      level = f"{c['E']['value']:.3f}"
      if "E" in unknown:
        level = "E (not determined, at its bound 0)"
      parts.append(
        f"Fitted to {count} runs, loss = {level} + {c['A']['value']:.4g} / "
        f"N^{c['alpha']['value']:.3f} + {c['B']['value']:.4g} / "
        f"D^{c['beta']['value']:.3f}: compute-optimal parameters grow as C^"
        f"{_short(c['a'])} and tokens as C^{_short(c['b'])}"
      )
      best = p["frontier"][-1]
      parts.append(
        f"at {best['flops']:.3g} FLOPs the best are {_size(best['params'])} "
        f"parameters and {_size(best['tokens'])} tokens, for a loss of "
        f"{_short(best['loss'])}"
      )
  if "line" in found:
    line = found["line"]
    parts.append(
      f"Along the line of {line['num_points']} runs, parameters grow as C^"
      f"{_short(line['params'])} and tokens as C^{_short(line['tokens'])}, and "
      f"{_line_loss(line)} ({frontier.LEVEL} % intervals of Student's t)"
    )
  if "isoflop" in found:
    laws, count = found["isoflop"]["laws"], len(found["isoflop"]["budgets"])
    if found["isoflop"]["left_out"]:
      count = f"{count} of {count + len(found['isoflop']['left_out'])}"
    factor = found["isoflop"]["window"]["factor"]
    near = f" (sizes within {factor:g} times)" if factor is not None else ""
    parts.append(
      f"{count} IsoFLOP minima{near} give N* ~ C^"
      f"{_short(laws['params']['exponent'])}"
    )
  if "parametric" in found or "isoflop" in found:
    parts[-1] += (
      f" ({frontier.LEVEL} % bootstrap intervals, "
      f"{found['num_resamples']:,} resamples)"
    )
  if "parametric" in found and found["parametric"]["remarks"]:
    parts.append(f"but {found['parametric']['remarks'][0]}")
  return f"{'; '.join(parts)}."


def lines(found: dict) -> list[str]:
  """Returns the report's lines."""
  text = _point_lines(found["points"])
  if "parametric" in found:
    text += ["", *_fit_lines(found["parametric"])]
  if "line" in found:
    text += ["", *_line_lines(found["line"], found["no_parametric"])]
  if "isoflop" in found:
    text += ["", *_isoflop_lines(found["isoflop"])]
  if "no_isoflop" in found:
    text += ["", f"no IsoFLOP analysis: {found['no_isoflop']}"]
  if "conventions" in found:
    text += ["", *_convention_lines(found["conventions"], found["points"])]
  if "held_out" in found:
    text += ["", *_held_out_lines(found["held_out"])]
  return [*text, "", sentence(found)]


def _point_lines(where: dict) -> list[str]:
  span = lambda name: f"{where[name][0]:.3g} to {where[name][1]:.3g}"
  text = [
    f"{where['num_points']} runs of {where['source']}, FLOPs by "
    f"{_convention(where['convention'])}",
    f"  N {span('params')}, D {span('tokens')}, C {span('flops')}, "
    f"loss {span('loss')}",
  ]
  return text + [f"  left out: {why}" for why in where["left_out"]]


def _fit_lines(p: dict) -> list[str]:
  text = [
    f"loss = {p['form']}, sum of Huber(log residual, {p['huber_delta']:g}) = "
    f"{p['objective']:.6e}",
    f"  {'':6} {'value':>10} {'error':>10}   {p['level']} % interval",
  ]
  for name, c in p["coefficients"].items():
    if "why" in c:
      text.append(f"  {name:6} not determined: {c['why']}")
      continue
    meaning = _MEANINGS[name] if name in _MEANINGS else ""
    text.append(
      f"  {name:6} {c['value']:>10.5g} {c['error']:>10.3g}   {_range(c):22} "
      f"{meaning}".rstrip()
    )
  r = p["residuals"]
  text += [
    f"  residuals: median {100 * r['median_absolute']:.2f} %, root mean square "
    f"{100 * r['root_mean_square']:.2f} % of the loss; the largest:",
  ]
  worst = sorted(r["rows"], key=lambda row: -abs(row["residual"]))[:3]
  text += [
    f"    {100 * row['residual']:+.2f} % at N {row['params']:.3g}, D "
    f"{row['tokens']:.3g} ({row['name']})"
    for row in worst
  ]
  text += [f"  note: {words}" for words in p["remarks"]]
  if not p["frontier"]:
    return [*text, "", "compute-optimal: not determined"]
  text += [
    "",
    "compute-optimal",
    f"  {'FLOPs':>9}   {'N*':34} {'D*':34} loss",
  ]
  for row in p["frontier"]:
    cells = [
      f"{_figure(row[k]):12} {_range(row[k], _figure)}"
      for k in ("params", "tokens")
    ]
    loss = row["loss"]
    text.append(
      f"  {row['flops']:>9.3g}   {cells[0]:34} {cells[1]:34} "
      f"{loss['value']:.4f} {_range(loss)}"
    )
  return text


def _line_lines(line: dict, why: str) -> list[str]:
  return [
    f"no parametric fit: {why}",
    "what they do determine, along that line",
    f"  N ~ C^{_short(line['params'])}",
    f"  D ~ C^{_short(line['tokens'])}",
    f"  {_line_loss(line)}, residuals {100 * line['root_mean_square']:.2f} % "
    "(root mean square)",
    "  if each run is the best of its compute, these are the exponents of N* "
    "and D*",
  ]


def _line_loss(line: dict) -> str:
  if "why" in line["gamma"]:
    return f"the loss against C is not determined ({line['gamma']['why']})"
  return (
    f"loss = E + {line['scale']:.4g} / C^gamma, E {_short(line['E'])}, gamma "
    f"{_short(line['gamma'])}"
  )


def _isoflop_lines(found: dict) -> list[str]:
  text = [
    "IsoFLOP: a parabola in log N for each budget",
    f"  {'FLOPs':>9} {'runs':>5}   {'N at the minimum':36} loss",
  ]
  for b in found["budgets"]:
    cell = f"{_figure(b['params']):12} {_range(b['params'], _figure)}"
    text.append(
      f"  {b['flops']:>9.3g} {b['num_points']:>5}   {cell:36} {b['loss']:.4f}"
    )
  text += _window_lines(found["window"])
  by_size: dict[int, list[str]] = {}
  for b in found["left_out"]:
    if b["num_sizes"] < 3:
      by_size.setdefault(b["num_sizes"], []).append(f"{b['flops']:.3g}")
    else:
      text.append(f"  left out: {b['flops']:.3g} FLOPs, {b['why']}")
  for sizes, budgets in sorted(by_size.items()):
    text += textwrap.wrap(
      f"left out, a parabola needs 3 sizes: {len(budgets)} budgets of {sizes} "
      f"({', '.join(budgets)})",
      96,
      initial_indent="  ",
      subsequent_indent="    ",
    )
  for name, letter in (("params", "N"), ("tokens", "D")):
    text.append(
      f"  {letter}* ~ C^{_short(found['laws'][name]['exponent'])}"
      f", {found['laws'][name]['num_samples']:,} resamples"
    )
  return text


def _window_lines(window: dict) -> list[str]:
  p = lambda value: f"terms beyond it: p = {value:.2g}"
  if math.isnan(window["p_whole"]):
    return ["  lack of fit not tested: no budget has 5 sizes or more"]
  if window["factor"] is None:
    return [f"  a parabola over all sizes is not refused ({p(window['p'])})"]
  text = [
    f"  a parabola over all sizes does not fit ({p(window['p_whole'])}): sizes "
    f"within {window['factor']:g} times that of the least loss are used, "
    f"{window['num_outside']} runs are outside"
  ]
  if math.isnan(window["p"]):
    text.append("  lack of fit not tested within: no budget has 5 sizes there")
  elif window["p"] < 0.01:
    text.append(
      f"  note: nor does one within ({p(window['p'])}); run sizes nearer to "
      "the minima"
    )
  return text


def _convention_lines(rows: list[dict], where: dict) -> list[str]:
  text = [
    "what is counted moves the exponent a of N* ~ C^a",
    f"  {'FLOPs by':22} {'a token costs':>18}   {'a':26} shift",
  ]
  for row in rows:
    cost = row["flops_per_token"]
    shift = ""
    if row["convention"] != where["convention"]:
      s = row["shift"]
      shift = f"{s['value']:+.4f} {_range(s)}"
    a = f"{row['a']['value']:.4f} {_range(row['a'])}"
    power = f"{cost['c']:.3g} N^{cost['g']:.3f}"
    name = _convention(row["convention"])
    text.append(f"  {name:22} {power:>18}   {a:26} {shift}".rstrip())
  if len(rows) == 1:
    text.append("  others need the models' shapes, which workdirs have")
  return text


def _held_out_lines(found: dict) -> list[str]:
  rows = found["rows"]
  text = [
    f"held out: fitted to {found['num_fitted']} runs at most "
    f"{found['above']:.3g} FLOPs, predicted {len(rows)} above, up to "
    f"{found['extrapolation']:.1f} times",
    f"  {'FLOPs':>9} {'N':>9} {'measured':>9} {'predicted':>9} {'error':>8}   "
    f"{frontier.LEVEL} % prediction interval",
  ]
  for row in rows[-_MOST_ROWS:]:
    mark = "" if row["is_inside"] else "  outside"
    text.append(
      f"  {row['flops']:>9.3g} {row['params']:>9.3g} {row['measured']:>9.4f} "
      f"{row['predicted']:>9.4f} {100 * row['relative_error']:>+7.2f}%   "
      f"{_range(row)}{mark}"
    )
  if len(rows) > _MOST_ROWS:
    text.append(f"  the largest {_MOST_ROWS}; scaling.json has all")
  said = forecast.describe_widening(found["widening"], found["extrapolation"])
  text += [f"  {words}" for words in said]
  text.append(
    f"  relative error: median {100 * found['median_relative_error']:.2f} %, "
    f"mean with its sign {100 * found['mean_relative_error']:+.2f} %, largest "
    f"{100 * found['largest_relative_error']:.2f} %; {found['num_inside']} of "
    f"{len(rows)} inside their intervals"
  )
  return text


def _convention(name: str) -> str:
  return "the column" if name == "as given" else name


def _range(estimate: dict, style=lambda v: f"{v:.4g}") -> str:
  low, high = estimate["low"], estimate["high"]
  if math.isnan(low) or math.isnan(high):
    return "[no interval]"
  return f"[{style(low)}, {style(high)}]"


def _short(estimate: dict) -> str:
  value = f"{estimate['value']:.3f}"
  return f"{value} {_range(estimate, lambda v: f'{v:.3f}')}"


def _figure(value) -> str:
  value = value["value"] if isinstance(value, dict) else value
  return f"{value:.3g}"


def _size(estimate: dict) -> str:
  return f"{_figure(estimate)} {_range(estimate, _figure)}"


def figures(found: dict, points, fit, isoflop) -> dict[str, str]:
  """Returns {file name: SVG} of what was fitted."""
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
    # A model is drawn where runs like it could be: no curve from far off.
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
  every = math.ceil(len(budgets) / _MOST_ROWS)
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
  """Returns a line with its interval; none where there are no samples."""
  layers = [plot.Layer("line", list(zip(x, values, strict=True)), color, name)]
  pairs = np.array([frontier.interval(s) for s in samples])
  if not np.isnan(pairs).any():
    outline = [*zip(x, pairs[:, 0], strict=True)]
    outline += [*zip(x, pairs[:, 1], strict=True)][::-1]
    layers.insert(0, plot.Layer("band", outline, color))
  return layers
