"""Curves as an SVG file, without a plotting library."""

import dataclasses
import math
from collections.abc import Iterable

from gpt_jax.metric_names import (
  EXPERT_LOAD_MAX,
  EXPERT_LOAD_MIN,
  LOSS,
  eval_name,
)

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 46, 34, 20
COLORS = ("#9ec5e8", "#1f5fa8", "#c4501b", "#3b8a4e", "#7a4fa3", "#555555")


def draw_curves(title: str, x_label: str, curves: dict[str, list]) -> str:
  """Returns an SVG of curves {"name": [(x, y), ...]}; y is logarithmic."""
  points = [p for curve in curves.values() for p in curve if p[1] > 0]
  if not points:
    points = [(0, 1.0)]
  x_high = max(x for x, _ in points) or 1
  y_low, y_high = min(y for _, y in points), max(y for _, y in points)
  y_low, y_high = y_low * 0.97, y_high * 1.03
  span = math.log(y_high / y_low)
  at_x = lambda x: LEFT + x / x_high * (WIDTH - LEFT - RIGHT)
  at_y = lambda y: TOP + math.log(y_high / y) / span * (HEIGHT - TOP - BOTTOM)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
    f'height="{HEIGHT}" font-family="sans-serif" font-size="12">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    f'<text x="{LEFT}" y="20" font-size="14">{_escape(title)}</text>',
  ]
  for y in _log_ticks(y_low, y_high):
    parts.append(
      f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" '
      f'y2="{at_y(y):.1f}" stroke="#ddd"/><text x="{LEFT - 8}" '
      f'y="{at_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
    )
  for x in _ticks(x_high):
    parts.append(
      f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" '
      f'text-anchor="middle">{x:,}</text>'
    )
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
    f'text-anchor="middle">{_escape(x_label)}</text>'
  )
  for index, (name, curve) in enumerate(curves.items()):
    color = COLORS[index % len(COLORS)]
    path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in curve if y > 0)
    parts.append(
      f'<polyline points="{path}" fill="none" stroke="{color}" '
      f'stroke-width="1.6"/><text x="{WIDTH - RIGHT - 4}" '
      f'y="{TOP + 16 * (index + 1)}" text-anchor="end" fill="{color}">'
      f"{_escape(name)}</text>"
    )
  return "\n".join([*parts, "</svg>\n"])


@dataclasses.dataclass(frozen=True)
class Layer:
  """One element of a figure, drawn over the layers before it.

  Attributes:
    kind: "line", "dots", "crosses", or "band" (a filled closed outline).
    points: [(x, y), ...]; an infinite y is drawn at the upper edge.
    color: any SVG color.
    name: in the legend; None for no entry.
    is_dashed: of a line.
  """

  kind: str
  points: list
  color: str
  name: str | None = None
  is_dashed: bool = False


def draw_layers(
  title: str, x_label: str, y_label: str, layers: list[Layer], log: str = "xy"
) -> str:
  """Returns an SVG of layers, with the legend to the right.

  Args:
    log: the logarithmic axes: "", "x", "y" or "xy".
  """
  legend = [layer for layer in layers if layer.name]
  right = WIDTH + 20
  axes = []
  for i, letter in enumerate("xy"):
    values = [float(p[i]) for layer in layers for p in layer.points]
    values = [v for v in values if math.isfinite(v)]
    axes.append(_Axis(values, letter in log, i))
  at_x, at_y = axes[0].place, axes[1].place
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 150}" '
    f'height="{HEIGHT}" font-family="sans-serif" font-size="12">',
    f'<rect width="{right + 150}" height="{HEIGHT}" fill="white"/>',
    f'<text x="{LEFT}" y="20" font-size="14">{_escape(title)}</text>',
    f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP}" '
    f'width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>'
    "</clipPath>",
  ]
  for value, text in axes[1].ticks():
    y = at_y(value)
    parts.append(
      f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
      f'stroke="#ddd"/><text x="{LEFT - 8}" y="{y + 4:.1f}" '
      f'text-anchor="end">{text}</text>'
    )
  for value, text in axes[0].ticks():
    parts.append(
      f'<line x1="{at_x(value):.1f}" x2="{at_x(value):.1f}" y1="{TOP}" '
      f'y2="{HEIGHT - BOTTOM}" stroke="#eee"/><text x="{at_x(value):.1f}" '
      f'y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'
    )
  middle = (TOP + HEIGHT - BOTTOM) / 2
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
    f'text-anchor="middle">{_escape(x_label)}</text>'
    f'<text x="14" y="{middle}" text-anchor="middle" '
    f'transform="rotate(-90 14 {middle})">{_escape(y_label)}</text>'
  )
  for layer in layers:
    spots = [(at_x(x), at_y(y)) for x, y in layer.points]
    if layer.kind == "dots":
      parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{layer.color}" '
        'fill-opacity="0.75"/>'
        for x, y in spots
      ]
      continue
    if layer.kind == "crosses":
      parts += [
        f'<path d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8" fill="none" '
        f'stroke="{layer.color}" stroke-width="1.6"/>'
        for x, y in spots
      ]
      continue
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    style = f'fill="none" stroke="{layer.color}" stroke-width="1.6"'
    if layer.is_dashed:
      style += ' stroke-dasharray="6 4"'
    tag = "polyline"
    if layer.kind == "band":
      tag, style = "polygon", f'fill="{layer.color}" fill-opacity="0.2"'
    parts.append(f'<{tag} points="{path}" {style} clip-path="url(#inside)"/>')
  step = min(18, (HEIGHT - TOP - BOTTOM) / max(1, len(legend)))
  for i, layer in enumerate(legend):
    name = _escape(layer.name or "")
    y = TOP + 8 + i * step
    parts.append(
      f'<rect x="{WIDTH - 8}" y="{y - 8:.1f}" width="10" height="10" '
      f'fill="{layer.color}"/><text x="{WIDTH + 8}" y="{y + 1:.1f}">'
      f"{name}</text>"
    )
  return "\n".join([*parts, "</svg>\n"])


def draw_run(rows: list[dict], sets: Iterable[str]) -> dict[str, str]:
  """Returns {file: SVG} of a run's rows; loss.svg is the last.

  Args:
    rows: of metrics.jsonl.
    sets: names of the validation sets.
  """
  curve = lambda name: [(r["step"], r[name]) for r in rows if name in r]
  names = [LOSS, *(eval_name(name, "loss") for name in sets)]
  loads = draw_loads(rows)
  figures = {} if loads is None else {"expert_load.svg": loads}
  loss = {name: curve(name) for name in names}
  figures["loss.svg"] = draw_curves("loss, nats per token", "step", loss)
  return figures


def draw_loads(rows: list[dict]) -> str | None:
  """Returns an SVG of the experts' loads over the steps, by layer.

  A line for the largest load of each layer and a dashed one for the smallest;
  1 is an even share. None where no row has any.

  Args:
    rows: of metrics.jsonl.
  """
  names = sorted({k for r in rows for k in r if k.startswith(EXPERT_LOAD_MAX)})
  layers = []
  for i, name in enumerate(names):
    color = shade(i / max(1, len(names) - 1))
    layer = int(name.rpartition("/")[2])
    least = name.replace(EXPERT_LOAD_MAX, EXPERT_LOAD_MIN)
    for what, label in ((name, f"layer {layer}"), (least, None)):
      points = [(r["step"], r[what]) for r in rows if what in r]
      layers.append(Layer("line", points, color, label, is_dashed=not label))
  if not layers:
    return None
  return draw_layers(
    "load of the busiest expert, and of the idlest (dashed)",
    "step",
    "load; 1 is an even share",
    layers,
    log="",
  )


def shade(share: float) -> str:
  """Returns a color from light blue (0) through violet to dark red (1)."""
  low, middle, high = (0x7F, 0xB8, 0xE6), (0x5B, 0x4F, 0xB0), (0xB2, 0x1E, 0x2B)
  pair, at = ((low, middle), 2 * share)
  if share > 0.5:
    pair, at = (middle, high), 2 * share - 1
  mixed = [
    round(a + (b - a) * min(1, max(0, at))) for a, b in zip(*pair, strict=True)
  ]
  return "#" + "".join(f"{c:02x}" for c in mixed)


class _Axis:
  """One axis: the position of a value in the image, and the ticks.

  Args:
    values: the axis covers all of them.
    is_log: logarithmic; all values are positive.
    index: 0 for x, 1 for y.
  """

  def __init__(self, values: list[float], is_log: bool, index: int):
    self.is_log = is_log
    self.scale = math.log10 if is_log else float
    low, high = self.scale(min(values)), self.scale(max(values))
    margin = 0.04 * (high - low) or 0.1
    self.low, self.high = low - margin, high + margin
    self.start, self.end = (
      (LEFT, WIDTH - RIGHT) if index == 0 else (HEIGHT - BOTTOM, TOP)
    )

  def place(self, value: float) -> float:
    if value == math.inf:
      return self.end
    share = (self.scale(value) - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)

  def ticks(self) -> list[tuple[float, str]]:
    if self.is_log and self.high - self.low > 2:
      step = math.ceil((self.high - self.low) / 8)
      powers = range(math.ceil(self.low), math.floor(self.high) + 1, step)
      return [
        (10.0**k, f"1e{k}" if abs(k) > 3 else f"{10.0**k:g}") for k in powers
      ]
    low, high = self.low, self.high
    if self.is_log:
      found = _log_ticks(10**low, 10**high)
    else:
      size = 10 ** math.floor(math.log10(high - low))
      size = next(
        s for s in (size / 5, size / 2, size, 2 * size) if (high - low) / s <= 8
      )
      first, last = math.ceil(low / size), math.floor(high / size)
      found = [k * size for k in range(first, last + 1)]
    return [(t, f"{t:.4g}") for t in found]


def _ticks(high: float) -> list[int]:
  size = 10 ** math.floor(math.log10(max(high, 1)))
  sizes = (size // 5 or 1, size // 2 or 1, size, 2 * size)
  size = next(s for s in sizes if high / s <= 6)
  return list(range(0, int(high) + 1, size))


def _log_ticks(low: float, high: float) -> list[float]:
  for steps in (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    [1 + i / 5 for i in range(45)],
  ):
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [round(s * 10**p, 10) for p in powers for s in steps]
    ticks = [t for t in ticks if low <= t <= high]
    if len(ticks) >= 3:
      break
  return ticks[:: max(1, len(ticks) // 7)]


def _escape(text: str) -> str:
  # XML cannot express most control characters, and forbids "]]>" in text.
  text = "".join(c if _is_xml(c) else "\ufffd" for c in text)
  return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _is_xml(c: str) -> bool:
  """Returns whether XML 1.0 (2.2) has this character."""
  is_control = ord(c) < 0x20 and c not in "\t\n\r"
  return not (is_control or 0xD800 <= ord(c) < 0xE000 or c in "\ufffe\uffff")
