"""What cleaning did: counts for each rule, and examples, as text and a page."""

import html
from collections.abc import Sequence

# Examples of a filter, and characters of each.
MAX_EXAMPLES = 5
MAX_CHARACTERS = 400

_HEAD = """<!doctype html><meta charset="utf-8"><title>clean</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto;
padding:0 1em}table{margin-bottom:1.5em}td:last-child{text-align:right}
td,th{padding:.2em 1em;text-align:left}pre{white-space:pre-wrap;
background:#f4f4f4;padding:.5em}</style>
"""


class Report:
  """Counts of one cleaning.

  Examples are of texts after replacement: the page must not hold what the
  output does not.

  Args:
    filters: {filter: what documents that are kept are}.

  Attributes:
    mended: {step of repair: documents that it changed}.
    replaced: {rule: values}; those of documents that were left out count too.
    num_documents: documents read.
  """

  def __init__(
    self,
    replaced: dict[str, int],
    filters: dict[str, str],
    steps: Sequence[str] = (),
  ):
    self.mended = dict.fromkeys(steps, 0)
    self.replaced = replaced
    self._says = filters
    self.num_documents = 0
    self.left_out = dict.fromkeys(filters, 0)
    self._examples = {name: [] for name in filters}

  def leave_out(self, filter: str, value: float, name: str, text: str) -> None:
    """Counts a document that a filter removed, with its measure."""
    self.left_out[filter] += 1
    if len(self._examples[filter]) < MAX_EXAMPLES:
      self._examples[filter].append((name, value, text[:MAX_CHARACTERS]))

  def mend(self, step: str) -> None:
    """Counts a document that a step of repair changed."""
    self.mended[step] += 1

  @property
  def num_kept(self) -> int:
    return self.num_documents - sum(self.left_out.values())

  def describe(self) -> str:
    """Returns the counts, a line each."""
    rows = [(name, n, "documents mended") for name, n in self.mended.items()]
    rows += [(name, n, "replaced") for name, n in self.replaced.items()]
    rows += [(name, n, "left out") for name, n in self.left_out.items()]
    lines = [f"{name:<36}{n:>12,} {what}" for name, n, what in rows]
    last = f"{self.num_kept:,} of {self.num_documents:,} documents written"
    return "\n".join([*lines, last])

  def page(self, source: str) -> str:
    """Returns the counts and examples as one HTML page."""
    parts = [_HEAD, f"<h1>{html.escape(source)}</h1>"]
    parts += [f"<p>{self.num_kept:,} of {self.num_documents:,} documents "]
    parts += ["written</p>"]
    if self.mended:
      parts += ["<table><tr><th>step<th>documents mended</tr>"]
      parts += [f"<tr><td>{s}<td>{n:,}</tr>" for s, n in self.mended.items()]
      parts += ["</table>"]
    parts += ["<table><tr><th>rule<th>replaced</tr>"]
    parts += [f"<tr><td>{r}<td>{n:,}</tr>" for r, n in self.replaced.items()]
    parts += ["</table><table><tr><th>filter<th>kept are<th>left out</tr>"]
    for name, count in self.left_out.items():
      says = html.escape(self._says[name])
      parts += [f"<tr><td>{name}<td>{says}<td>{count:,}</tr>"]
    parts += ["</table>"]
    for name, examples in self._examples.items():
      for document, value, text in examples:
        title = f"{name}: {value:.4g}, {html.escape(document)}"
        parts += [f"<h3>{title}</h3><pre>{html.escape(text)}</pre>"]
    return "\n".join(parts) + "\n"
