"""Formats fits as text: one sentence to quote, and the report's lines."""

import math
import textwrap

from gpt_jax.lab.scaling import forecast, frontier
from gpt_jax.lab.scaling.describe import format_range

_MEANINGS = {
  "E": "loss that no size and no data take away",
  "alpha": "of N",
  "beta": "of D",
  "a": "N* grows as C^a",
  "b": "D* grows as C^b",
}
# Largest number of rows in the table of held-out runs.
_MOST_ROWS = 12


def sentence(found: dict) -> str:
  """Returns the findings as one sentence to quote."""
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
      f"  {name:6} {c['value']:>10.5g} {c['error']:>10.3g}   "
      f"{format_range(c):22} {meaning}".rstrip()
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
      f"{_figure(row[k]):12} {format_range(row[k], _figure)}"
      for k in ("params", "tokens")
    ]
    loss = row["loss"]
    text.append(
      f"  {row['flops']:>9.3g}   {cells[0]:34} {cells[1]:34} "
      f"{loss['value']:.4f} {format_range(loss)}"
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
    cell = f"{_figure(b['params']):12} {format_range(b['params'], _figure)}"
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
      shift = f"{s['value']:+.4f} {format_range(s)}"
    a = f"{row['a']['value']:.4f} {format_range(row['a'])}"
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
      f"{format_range(row)}{mark}"
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


def _short(estimate: dict) -> str:
  value = f"{estimate['value']:.3f}"
  return f"{value} {format_range(estimate, lambda v: f'{v:.3f}')}"


def _figure(value) -> str:
  value = value["value"] if isinstance(value, dict) else value
  return f"{value:.3g}"


def _size(estimate: dict) -> str:
  return f"{_figure(estimate)} {format_range(estimate, _figure)}"
