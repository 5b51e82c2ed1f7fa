"""The report's figures: curves of runs, telemetry, loss over a swept key."""

import json
import math
import statistics

from gpt_jax import config as config_lib
from gpt_jax import metric_names
from gpt_jax.lab.sweep import folder, losses
from gpt_jax.lab.sweep.cells import short_name
from gpt_jax.lab.sweep.groups import Group, asked, drawn_loss
from gpt_jax.runs import plot

# A curve of more points is averaged down to this many.
CURVE_POINTS = 120
# Up to this many groups get a color each; more are shaded by their loss.
MAX_COLORS = 8
# Colors that are legible on white and on black.
COLORS = (
  *("#3b82c4", "#d1602f", "#3f9d5a", "#9a68cc"),
  *("#b8860b", "#c8508a", "#2a9d9d", "#808080"),
)
# Longest name in a legend, in characters.
LEGEND_CHARS = 36
# Largest number of lines that a legend names.
MAX_LINES = 6


def draw_curves(
  groups: list[Group],
  title="training loss",
  label="nats per token",
  points=None,
) -> str:
  """Returns the SVG of all training losses, "" where there are none.

  Args:
    points: state -> [(tokens, value), ...] to draw another metric; None draws
      the loss.
  """
  points = points or curve
  finals = [s.the_final()[1] for g in groups for s in g.ended]
  low, high = min(finals, default=0.0), max(finals, default=1.0)
  layers = []
  for index, one in enumerate(groups):
    is_named = False
    for state in one.states:
      line = points(state)
      if not line:
        continue
      color = COLORS[index % len(COLORS)]
      if len(groups) > MAX_COLORS:
        color = "#808080"
        if state.final is not None:
          color = plot.shade((state.final[1] - low) / (high - low or 1))
      name = None
      if len(groups) <= MAX_COLORS and not is_named:
        lost = sum(s.word == folder.DIVERGED for s in one.states)
        name = _cut(one.name + (f" ({lost} diverged)" if lost else ""))
        is_named = True
      # A line of one point cannot be seen.
      kind = "line" if len(line) > 1 else "dots"
      layers.append(plot.Layer(kind, line, color, name))
  if not layers:
    return ""
  if len(groups) > MAX_COLORS:
    title += ", from the lowest final loss (light blue) to the highest (red)"
  return plot.draw_layers(title, "tokens", label, layers, "y")


def draw_telemetry(groups: list[Group]) -> list[str]:
  """Returns an SVG for every telemetry metric that a run has logged.

  A metric of every layer is drawn as its largest value over layers.
  """
  kinds: dict[str, None] = {}
  for one in groups:
    for state in one.states:
      kinds |= dict.fromkeys(_kind(k) for row in state.rows for k in row)
  kinds.pop("", None)
  svgs = []
  for kind in sorted(kinds, key=lambda k: (k not in _FIRST, k)):
    values = lambda state, kind=kind: curve(state, kind)
    title = kind.removesuffix("/layers") + (
      ", the largest over layers" if kind.endswith("/layers") else ""
    )
    svgs.append(draw_curves(groups, title, kind, values))
  return [svg for svg in svgs if svg]


# Metrics that rise first when training becomes unstable; drawn first.
_FIRST = ("attn_logit_max/layers", "logit_max", "residual_rms")


def _kind(key: str) -> str:
  """Returns the name of the figure that a metric is drawn in, "" for none.

  The metrics of single layers share one figure, NAME/layers.
  """
  if not key.startswith("telemetry/") or key in (
    metric_names.GRAD_SQUARE,
    metric_names.GRAD_VARIANCE,
  ):
    return ""
  name, slash, last = key.removeprefix("telemetry/").partition("/")
  return f"{name}/layers" if last.isdecimal() else name + slash + last


def curve(state: folder.State, kind: str = "") -> list[tuple[float, float]]:
  """Returns [(tokens, loss or metric), ...] of a run, with points averaged."""
  c = state.the_config()
  tokens = lambda step: (
    config_lib.count_sequences(c.train, step) * c.data.seq_len
  )
  rows = []
  for row in state.rows:
    names = [k for k in row if kind and _kind(k) == kind]
    found = [
      folder.number(row, k) for k in names or [metric_names.LOSS] * (not kind)
    ]
    values = [value for value in found if value is not None]
    if values and max(values) > 0:
      rows.append((tokens(row["step"]), max(values)))
  size = max(1, math.ceil(len(rows) / CURVE_POINTS))
  parts = [rows[i : i + size] for i in range(0, len(rows), size)]
  return [
    (statistics.fmean(x for x, _ in p), statistics.fmean(y for _, y in p))
    for p in parts
  ]


def draw_axis(
  key: str, states: list[folder.State], unit: str = losses.NATS
) -> str:
  """Returns the SVG of the final loss over one swept key.

  "" if no two runs differ in this key alone. A line joins the runs whose other
  keys are equal, averaged over seeds. A run that diverged is a cross at the
  upper edge, and the line has a gap there.
  """
  lines: dict[str, dict[float, list[float]]] = {}
  for state in states:
    height = drawn_loss(state, unit)
    if height is None:
      continue
    flat = asked(state)
    rest = {
      k: v
      for k, v in flat.items()
      if k not in (key, "seed") and not config_lib.is_free(k)
    }
    line = lines.setdefault(json.dumps(rest, sort_keys=True), {})
    line.setdefault(flat[key], []).append(height)
  if all(len(line) < 2 for line in lines.values()):
    return ""
  heights = [y for line in lines.values() for ys in line.values() for y in ys]
  if not any(map(math.isfinite, heights)):
    return ""
  flats = [json.loads(text) for text in lines]
  differing = [k for k in flats[0] if len({repr(f[k]) for f in flats}) > 1]
  layers = []
  for index, (flat, line) in enumerate(zip(flats, lines.values(), strict=True)):
    color = COLORS[index % len(COLORS)]
    what = ", ".join(f"{short_name(k)} {flat[k]}" for k in differing)
    name = _cut(what) if what and len(lines) <= MAX_LINES else None
    for piece in _unbroken(line):
      layers.append(plot.Layer("line", piece, color, name))
      name = None
    dots = [(x, y) for x, ys in line.items() for y in ys]
    sound = [(x, y) for x, y in dots if math.isfinite(y)]
    lost = [(x, y) for x, y in dots if not math.isfinite(y)]
    layers.append(plot.Layer("dots", sound, color, name))
    layers.append(plot.Layer("crosses", lost, color))
  xs = [x for line in lines.values() for x in line]
  log = "x" if min(xs) > 0 and max(xs) / min(xs) >= 8 else ""
  return plot.draw_layers(f"final loss by {key}", key, unit, layers, log)


def _unbroken(line: dict[float, list[float]]) -> list[list]:
  """Returns the line's pieces of (x, mean over seeds), without diverged seeds.

  An x at which any seed diverged ends a piece.
  """
  pieces: list[list] = [[]]
  for x, ys in sorted(line.items()):
    if all(map(math.isfinite, ys)):
      pieces[-1].append((x, statistics.fmean(ys)))
    else:
      pieces.append([])
  return [piece for piece in pieces if piece]


def _cut(text: str) -> str:
  """Returns a name cut to LEGEND_CHARS, to fit beside a figure."""
  if len(text) <= LEGEND_CHARS:
    return text
  return f"{text[: LEGEND_CHARS - 1]}…"
