"""Reports what cleaning did: counts by rule, and examples, as text and HTML."""

import html
from collections.abc import Iterable, Sequence

from gpt_jax import theme

# The most examples for each filter, and the most characters of each example.
MAX_EXAMPLES = 5
MAX_CHARACTERS = 400

_STYLE = """
table { margin-bottom: 1.5rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { text-align: right; padding-right: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem .7rem;
  background: var(--stripe); border: 1px solid var(--line); }
"""


class Report:
  """The counts and examples of one cleaning.

  Examples are texts after replacement, so that the page shows no value that is
  removed from the output.

  Args:
    filters: {filter: the condition that documents meet to be kept}.

  Attributes:
    mended: {step of repair: number of documents that it changed}.
    replaced: {rule: number of values}, in documents that are left out too.
    num_documents: the number of documents read.
    has_text: whether any of them was not empty.
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
    self.num_documents, self.has_text = 0, False
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
    """Returns the counts, one per line."""
    rows = [(name, n, "documents mended") for name, n in self.mended.items()]
    rows += [(name, n, "replaced") for name, n in self.replaced.items()]
    rows += [(name, n, "left out") for name, n in self.left_out.items()]
    lines = [f"{name:<36}{n:>12,} {what}" for name, n, what in rows]
    last = f"{self.num_kept:,} of {self.num_documents:,} documents written"
    return "\n".join([*lines, last])

  def page(self, source: str) -> str:
    """Returns the counts and examples as one HTML page."""
    parts = [
      f"<h1>{html.escape(source)}</h1>",
      f"<p>{self.num_kept:,} of {self.num_documents:,} documents written</p>",
    ]
    if self.mended:
      parts.append(_table(("step", "documents mended"), self.mended.items()))
    if self.replaced:
      parts.append(_table(("rule", "replaced"), self.replaced.items()))
    rows = [(name, self._says[name], n) for name, n in self.left_out.items()]
    if rows:
      parts.append(_table(("filter", "kept are", "left out"), rows))
    for name, examples in self._examples.items():
      for document, value, text in examples:
        title = f"{name}: {value:.4g}, {html.escape(document)}"
        parts += [f"<h3>{title}</h3><pre>{html.escape(text)}</pre>"]
    return theme.page(f"Cleaning of {source}", "\n".join(parts), _STYLE)


def _table(names: Sequence[str], rows: Iterable[tuple]) -> str:
  """Returns an HTML table whose last column has counts."""
  head = "".join(f"<th>{name}</th>" for name in names)
  body = "".join(
    "<tr>"
    + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[:-1])
    + f"<td>{row[-1]:,}</td></tr>"
    for row in rows
  )
  return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
