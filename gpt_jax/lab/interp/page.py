"""The template of the pages of lab.interp, and the parts that they consist of.

The strength of a cell's color shows its value. Everything that comes from a
text or a model passes through html.escape.
"""

import html
from collections.abc import Sequence

import numpy as np

from gpt_jax import theme

_STYLE = """
body { max-width: 1200px; }
nav a { margin-right: 1rem; display: inline-block; }
.wide { padding-bottom: .4rem; }
table { font-size: .85rem; }
th, td { padding: .2rem .45rem; text-align: right; white-space: pre; }
td.c { position: relative; border: 1px solid var(--line); }
td.t, th.t { text-align: left; }
.maps { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(200px, 44%), 1fr)); }
.maps figure { margin: 0; } figcaption { color: var(--soft);
  font-size: .85rem; } svg { display: block; width: 100%; height: auto; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.text { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.text span { border-radius: 2px; padding: .1em 0; }
svg text { fill: var(--ink); } .m { fill: var(--mark); }
.e { fill: none; stroke: var(--line); }
"""


def build(title: str, sections: Sequence[tuple[str, str]], intro="") -> str:
  """Returns a page.

  Args:
    sections: (heading, HTML).
    intro: HTML before them.
  """
  links = "".join(
    f'<a href="#s{i}">{escape(name)}</a>'
    for i, (name, _) in enumerate(sections)
  )
  parts = [f"<h1>{escape(title)}</h1>{intro}<nav>{links}</nav>"]
  for i, (name, body) in enumerate(sections):
    parts.append(f'<section id="s{i}"><h2>{escape(name)}</h2>{body}</section>')
  return theme.page(title, "\n".join(parts), _STYLE)


def escape(text: str) -> str:
  return html.escape(text)


def show_token(text: str) -> str:
  """Returns a token's text with its spaces and line ends visible."""
  shown = text.replace("\n", "\u23ce").replace(" ", "\u00b7")
  return escape(shown or "\u2205")


def paragraph(text: str) -> str:
  return f"<p>{escape(text)}</p>"


def wide(body: str) -> str:
  """Returns HTML that scrolls horizontally if it is wider than the page."""
  return f'<div class="wide">{body}</div>'


def _shade(value: float, largest: float) -> str:
  """Returns the CSS of a background: one color above zero, another below."""
  if not np.isfinite(value) or largest <= 0:
    return ""
  strength = round(70 * min(1.0, abs(value) / largest))
  color = "--mark" if value >= 0 else "--bad"
  mixed = f"color-mix(in srgb, var({color}) {strength}%, transparent)"
  return f"background:{mixed}"


def grid(
  values: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  form: str = ".2f",
  largest: float | None = None,
) -> str:
  """Returns a table of numbers with shaded cells.

  Args:
    rows, columns: HTML of the row and column headings.
    form: format of the numbers.
    largest: the magnitude with the strongest shade; None takes the largest
      magnitude in `values`.
  """
  values = np.asarray(values, np.float64)
  top = float(np.nanmax(np.abs(values))) if largest is None else largest
  head = "".join(f"<th>{name}</th>" for name in columns)
  body = []
  for name, row in zip(rows, values, strict=True):
    cells = "".join(
      f'<td class="c" style="{_shade(v, top)}">'
      f"{format(v, form) if np.isfinite(v) else ''}</td>"
      for v in row
    )
    body.append(f'<tr><th class="t">{name}</th>{cells}</tr>')
  return wide(f"<table><tr><th></th>{head}</tr>{''.join(body)}</table>")


def words(
  values: np.ndarray, texts: np.ndarray, rows: Sequence[str], columns, title=""
) -> str:
  """Returns a table of words with cells shaded by values from 0 to 1.

  Args:
    values, texts: of the same shape.
  """
  head = "".join(f"<th>{name}</th>" for name in columns)
  body = []
  for name, row, said in zip(rows, values, texts, strict=True):
    cells = "".join(
      f'<td class="c t" style="{_shade(v, 1.0)}" title="{v:.3f}">'
      f"{show_token(text)}</td>"
      for v, text in zip(row, said, strict=True)
    )
    body.append(f'<tr><th class="t">{name}</th>{cells}</tr>')
  return wide(f"<table><tr><th>{title}</th>{head}</tr>{''.join(body)}</table>")


def colored(tokens: Sequence[str], values: np.ndarray) -> str:
  """Returns a text whose tokens are shaded by values."""
  top = float(np.max(np.abs(values))) if len(values) else 0.0
  spans = "".join(
    f'<span style="{_shade(v, top)}" title="{v:.4g}">'
    f"{escape(token.replace(chr(10), chr(0x23CE)))}</span>"
    for token, v in zip(tokens, values, strict=True)
  )
  return f'<div class="text">{spans}</div>'


def attention_map(weights_TS: np.ndarray, caption: str) -> str:
  """Returns a figure of a head: queries down, keys across."""
  T = len(weights_TS)
  cells = [
    f'<rect class="m" x="{s}" y="{t}" width="1" height="1" '
    f'fill-opacity="{weights_TS[t, s]:.2f}"/>'
    for t, s in np.argwhere(weights_TS >= 0.02)
  ]
  frame = f'<rect class="e" width="{T}" height="{T}" stroke-width="{T / 200}"/>'
  return (
    f'<figure><svg viewBox="0 0 {T} {T}" role="img" '
    f'aria-label="{escape(caption)}">{"".join(cells)}{frame}</svg>'
    f"<figcaption>{escape(caption)}</figcaption></figure>"
  )


def maps(weights_LNTS: np.ndarray) -> str:
  """Returns the attention maps of all heads."""
  figures = [
    attention_map(weights, f"layer {layer}, head {head}")
    for layer, heads in enumerate(weights_LNTS)
    for head, weights in enumerate(heads)
  ]
  return f'<div class="maps">{"".join(figures)}</div>'
