"""The report as one HTML file, which loads nothing from a network.

Everything that comes from a config, a name or an error passes through
html.escape. The script only sorts the table and holds no data.
"""

import dataclasses
import html
import re
import time

from gpt_jax import theme
from gpt_jax.lab.sweep import losses, paired
from gpt_jax.machine import console
from gpt_jax.runs import plot

# Pixels for a name of figures.LEGEND_CHARS characters.
LEGEND_WIDTH = 250

_STYLE = """
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem;
  margin: 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap:
  anywhere; }
table { width: 100%; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid
  var(--line); vertical-align: top; }
th { white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--stripe); }
td.n, th.n { text-align: right; white-space: nowrap; }
td.name { min-width: 9rem; overflow-wrap: anywhere; }
.sort th { cursor: pointer; user-select: none; }
.sort th[aria-sort=ascending]::after { content: " \\2191"; }
.sort th[aria-sort=descending]::after { content: " \\2193"; }
.done, .better { color: var(--good); } .failed, .unreadable, .refused, .worse,
  .diverged { color: var(--bad); } .better, .worse { font-weight: 600; }
.wide > svg { display: block; max-width: 100%; min-width: 36rem; height: auto;
  margin: .5rem 0 1rem; }
details { margin-top: 2rem; } summary { cursor: pointer; color: var(--soft); }
"""

_SCRIPT = """
for (const head of document.querySelectorAll(".sort th")) {
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells)
      other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[at].dataset.v;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y)
        ? x.localeCompare(y) : Number(x) - Number(y);
      return down ? -order : order;
    });
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", e => { if (e.key === "Enter") sort(); });
}
"""


@dataclasses.dataclass(frozen=True)
class Value:
  """One field of the table.

  Attributes:
    text: the text that is shown.
    key: the value that the column is sorted by; None sorts by the text.
    link: relative address that the text links to.
    kind: CSS class.
  """

  text: str
  key: object = None
  link: str = ""
  kind: str = ""


def write(
  title: str,
  facts: list[tuple[str, str]],
  curves: str,
  telemetry: list[str],
  comparisons: list[paired.Comparison],
  sensitivity: list[str],
  confounded: list[str],
  why: str,
  columns: list[str],
  rows: list[list[Value]],
  troubles: list[tuple[str, ...]],
  branches: list[str],
  common: list[tuple[str, str]],
) -> str:
  """Returns the page, its sections in this order; empty ones are left out."""
  parts = [f"<h1>{_e(title)}</h1>", _facts(facts)]
  if troubles:
    parts += ["<h2>What did not work</h2>", _troubles(troubles)]
  parts.append("<h2>Curves</h2>")
  parts.append(_figure(curves, 0) or "<p>No run has logged a loss yet.</p>")
  parts += ["<h2>Comparisons</h2>", _comparisons(comparisons)]
  if sensitivity:
    figures = "".join(_figure(s, i + 1) for i, s in enumerate(sensitivity))
    parts.append("<h2>Sensitivity</h2>")
    parts.append(
      "<p class=soft>A dot is a run, a cross at the upper edge one that "
      "diverged; a line joins the means over seeds of runs that differ in this "
      "key alone.</p>"
    )
    parts.append(figures)
  if why:
    parts.append(
      f"<p class=soft>These runs have no lowest loss and no sensitivity: "
      f"{_e(why)}.</p>"
    )
  if confounded:
    verb = "changes" if len(confounded) == 1 else "change"
    parts.append(
      f"<p class=soft>{_e(', '.join(confounded))} {verb} only together with "
      "other keys: these runs cannot tell the effects apart.</p>"
    )
  if telemetry:
    first = 1 + len(sensitivity)
    figures = "".join(_figure(s, first + i) for i, s in enumerate(telemetry))
    parts.append(
      "<details><summary>Telemetry: scores and logits, activations and updates "
      f"by layer, gradients by role</summary>{figures}</details>"
    )
  if branches:
    items = "".join(f"<li>{_e(line)}</li>" for line in branches)
    parts += ["<h2>Branches</h2>", f"<ul>{items}</ul>"]
  parts += ["<h2>Cells</h2>", _table(columns, rows)]
  if common:
    parts.append(
      "<details><summary>What all cells have in common</summary>"
      f"{_facts(common)}</details>"
    )
  now = time.strftime("%Y-%m-%d %H:%M")
  parts.append(f"<p class=soft>Written {now} by gpt_jax.lab.sweep.</p>")
  return theme.page(console.plain(title), "\n".join(parts), _STYLE, _SCRIPT)


def _e(text) -> str:
  return html.escape(console.plain(str(text)), quote=True)


def _facts(rows) -> str:
  items = "".join(f"<dt>{_e(k)}</dt><dd>{_e(v)}</dd>" for k, v in rows)
  return f"<dl>{items}</dl>"


def _figure(svg: str, number: int) -> str:
  """Returns an SVG of plot.py in the page's colors and width."""
  size = re.search(r'width="(\d+)" height="(\d+)"', svg)
  if size is None:
    return ""
  # A legend stands to the right of the figure.
  has_legend = f'x="{plot.WIDTH + 8}"' in svg
  width = plot.WIDTH + (LEGEND_WIDTH if has_legend else 0)
  svg = svg.replace(
    size[0],
    f'viewBox="0 0 {width} {size[2]}" width="{width}" fill="currentColor"',
    1,
  )
  svg = svg.replace('fill="white"', 'fill="none"')
  svg = re.sub(r'stroke="#(ddd|eee)"', 'stroke="var(--line)"', svg)
  svg = svg.replace("inside", f"inside{number}")
  return f"<div class=wide>{svg}</div>"


def _troubles(rows) -> str:
  lines = "".join(
    f"<tr><td><code>{_e(cell)}</code></td><td class=name>{_e(title)}</td>"
    f'<td class="{_e(word)}">{_e(word)}</td><td>{_e(reason)}</td></tr>'
    for cell, title, word, reason in rows
  )
  return (
    "<div class=wide><table><thead><tr><th>cell</th><th>name</th>"
    f"<th>state</th><th>reason</th></tr></thead><tbody>{lines}</tbody></table>"
    "</div>"
  )


def _comparisons(found: list[paired.Comparison]) -> str:
  if not found:
    return "<p>There are no two groups of finished runs to compare.</p>"
  reach: dict[str, float] = {}
  for one in found:
    ends = [abs(v) for v in (one.low, one.high, one.mean) if v is not None]
    reach[one.unit] = max([reach.get(one.unit, 0.0), *ends])
  lines = []
  for one in found:
    mean = "" if one.mean is None else f"{one.mean:+.4f} {one.unit}"
    interval, p = "", ""
    if one.low is not None:
      interval = f"{one.low:+.4f} to {one.high:+.4f}"
    if one.adjusted is not None:
      p = f"{one.adjusted:.2g}"
    word = one.verdict + (f": {one.why}" if one.why else "")
    lines.append(
      f"<tr><td class=name>{_e(one.name)}</td><td class=n>{len(one.seeds)}</td>"
      f"<td class=n>{mean}</td><td class=n>{interval}</td>"
      f"<td>{_bar(one, reach[one.unit] or 1.0)}</td><td class=n>{p}</td>"
      f'<td class="{_e(one.verdict.split()[0])}">{_e(word)}</td></tr>'
    )
  return (
    f"<p>Final loss less that of <strong>{_e(found[0].baseline)}</strong> in "
    f"{losses.NATS}, paired by seed: the mean difference{_measured(found)}. "
    "Below zero is better.</p>"
    "<div class=wide><table><thead><tr><th>name</th>"
    "<th class=n>pairs</th><th class=n>difference</th><th class=n>interval</th>"
    "<th></th><th class=n>p</th><th>verdict</th></tr></thead>"
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


def _measured(found: list[paired.Comparison]) -> str:
  """Returns the note beside the differences; "" without two paired seeds."""
  count = sum(one.p is not None for one in found)
  if not count:
    return ""
  return (
    ", its 95&nbsp;% t interval and p, both corrected for "
    f"{count} comparison{'s' * (count != 1)} by Holm, so that an interval "
    "without zero is a verdict"
  )


def _bar(one: paired.Comparison, reach: float) -> str:
  """Returns the interval as a drawing around zero."""
  if one.mean is None:
    return ""
  at = lambda v: 60 + 54 * v / reach
  line = ""
  if one.low is not None:
    line = (
      f'<line x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" y1="8" y2="8" '
      'stroke="var(--band)" stroke-width="2"/>'
    )
  return (
    '<svg viewBox="0 0 120 16" width="120" height="16">'
    '<line x1="60" x2="60" y1="0" y2="16" stroke="var(--soft)"/>'
    f'{line}<circle cx="{at(one.mean):.1f}" cy="8" r="3" fill="var(--band)"/>'
    "</svg>"
  )


def _table(columns: list[str], rows: list[list[Value]]) -> str:
  is_number = [
    all(_is_number(row[i].key) for row in rows if row[i].text)
    and any(row[i].text for row in rows)
    for i in range(len(columns))
  ]
  head = "".join(
    f"<th tabindex=0{' class=n' * n}>{_e(c)}</th>"
    for c, n in zip(columns, is_number, strict=True)
  )
  lines = []
  for row in rows:
    fields = []
    for i, value in enumerate(row):
      key = value.text if value.key is None else value.key
      classes = [value.kind] if value.kind else []
      classes += ["n"] if is_number[i] else []
      classes += ["name"] if columns[i] == "name" else []
      text = _e(value.text)
      if value.link:
        text = f'<a href="{_e(value.link)}/"><code>{text}</code></a>'
      style = f' class="{" ".join(classes)}"' if classes else ""
      fields.append(f'<td data-v="{_e(key)}"{style}>{text}</td>')
    lines.append(f"<tr>{''.join(fields)}</tr>")
  return (
    f"<div class=wide><table class=sort><thead><tr>{head}</tr></thead>\n"
    f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
  )


def _is_number(key) -> bool:
  return type(key) in (int, float)
