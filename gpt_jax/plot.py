"""Curves as an SVG file: no plotting library to install or import."""

import math

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 46, 34, 20
COLORS = ("#9ec5e8", "#1f5fa8", "#c4501b", "#3b8a4e", "#7a4fa3", "#555555")


def draw_curves(
  title: str, x_label: str, curves: dict[str, list], is_log_x: bool = False
) -> str:
  """Returns an SVG of curves {"name": [(x, y), ...]}; y is logarithmic.

  Args:
    is_log_x: x too, in powers of two.
  """
  points = [p for curve in curves.values() for p in curve if p[1] > 0]
  if not points:
    points = [(0, 1.0)]
  x_low, x_high = 0, max(x for x, _ in points) or 1
  x_ticks, scale = _ticks(x_high), lambda x: x
  if is_log_x:
    scale = math.log2
    x_low = min(x for x, _ in points)
    first, last = math.ceil(math.log2(x_low)), math.floor(math.log2(x_high))
    x_ticks = [2**k for k in range(first, last + 1)]
  y_low, y_high = min(y for _, y in points), max(y for _, y in points)
  y_low, y_high = y_low * 0.97, y_high * 1.03
  span = math.log(y_high / y_low)
  at_x = lambda x: (
    LEFT
    + (scale(x) - scale(x_low))
    / (scale(x_high) - scale(x_low) or 1)
    * (WIDTH - LEFT - RIGHT)
  )
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
  for x in x_ticks:
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
  return text.replace("&", "&amp;").replace("<", "&lt;")
