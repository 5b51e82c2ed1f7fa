"""Shows exposure by number of copies, as a table and a figure."""

import html
import math
from collections.abc import Sequence

import numpy as np

from gpt_jax.lab.canaries import NUM_CANDIDATES
from gpt_jax.runs.plot import COLORS

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 380, 56, 46, 40, 150
CHANCE = 1 / math.log(2)  # mean exposure by chance: of -log2(u), u ~ U(0, 1)


def table(curves: dict[str, np.ndarray], counts: Sequence[int]) -> str:
  """Returns a table of each group's mean exposure and its range over runs.

  Args:
    curves: {group: exposure in bits (runs, counts)}.
  """
  lines = [f"{'copies':<24}" + "".join(f"{n:>20,}" for n in counts)]
  for name, bits in curves.items():
    cells = [
      f"{column.mean():.2f} ({column.min():.2f}-{column.max():.2f})"
      for column in bits.T
    ]
    lines.append(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells))
  highest = math.log2(NUM_CANDIDATES)
  return "\n".join(
    [*lines, f"bits; {CHANCE:.2f} by chance, {highest:.0f} at most"]
  )


def draw(curves: dict[str, np.ndarray], counts: Sequence[int]) -> str:
  """Returns an SVG: per group, a line of means and dots of single runs."""
  highest = math.log2(NUM_CANDIDATES)
  span = max(1.0, math.log2(counts[-1] / counts[0]))
  at_x = lambda n: (
    LEFT + 14 + math.log2(n / counts[0]) / span * (WIDTH - LEFT - RIGHT - 28)
  )
  at_y = lambda bits: HEIGHT - BOTTOM - bits / highest * (HEIGHT - BOTTOM - TOP)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
    f'height="{HEIGHT}" font-family="sans-serif" font-size="12">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    f'<text x="{LEFT}" y="20" font-size="14">Exposure of canaries, bits</text>',
  ]
  for bits in range(0, int(highest) + 1, 2):
    y = at_y(bits)
    parts.append(
      f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
      f'stroke="#ddd"/><text x="{LEFT - 8}" y="{y + 4:.1f}" '
      f'text-anchor="end">{bits}</text>'
    )
  y = at_y(CHANCE)
  parts.append(
    f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
    f'stroke="#555" stroke-dasharray="4 3"/><text x="{WIDTH - RIGHT + 8}" '
    f'y="{y + 4:.1f}" fill="#555">chance</text>'
  )
  for n in counts:
    parts.append(
      f'<text x="{at_x(n):.1f}" y="{HEIGHT - BOTTOM + 18}" '
      f'text-anchor="middle">{n:,}</text>'
    )
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
    f'text-anchor="middle">copies that were planted</text>'
  )
  for i, (name, bits) in enumerate(curves.items()):
    color = COLORS[1:][i % (len(COLORS) - 1)]
    means = bits.mean(0)
    line = " ".join(
      f"{at_x(n):.1f},{at_y(m):.1f}" for n, m in zip(counts, means, strict=True)
    )
    parts.append(
      f'<polyline points="{line}" fill="none" stroke="{color}" '
      'stroke-width="1.8"/>'
    )
    for row in bits:
      for n, value in zip(counts, row, strict=True):
        parts.append(
          f'<circle cx="{at_x(n):.1f}" cy="{at_y(value):.1f}" r="3" '
          f'fill="{color}" fill-opacity="0.5"/>'
        )
    parts.append(
      f'<rect x="{WIDTH - RIGHT + 8}" y="{TOP + 18 * i}" width="12" '
      f'height="3" fill="{color}"/><text x="{WIDTH - RIGHT + 26}" '
      f'y="{TOP + 18 * i + 6}" fill="{color}">{html.escape(name)}</text>'
    )
  return "\n".join([*parts, "</svg>\n"])
