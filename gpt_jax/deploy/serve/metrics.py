"""Metrics of a server, in the text format of Prometheus."""

import bisect
import collections
import threading

# Upper bounds of a histogram's buckets in seconds, each about 2.5 times the one
# before.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
PREFIX = "gpt_jax_"


class Histogram:
  """Counts observed times by bucket: those at most each of BOUNDS."""

  def __init__(self, about: str):
    self.about = about
    self._counts, self._sum = [0] * (len(BOUNDS) + 1), 0.0
    self._lock = threading.Lock()

  def observe(self, seconds: float) -> None:
    with self._lock:
      self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
      self._sum += seconds

  def lines(self, name: str) -> list[str]:
    with self._lock:
      counts, total = list(self._counts), self._sum
    found, count = _head(name, self.about, "histogram"), 0
    for bound, own in zip((*BOUNDS, "+Inf"), counts, strict=True):
      count += own
      found.append(f'{PREFIX}{name}_bucket{{le="{bound}"}} {count}')
    found += [f"{PREFIX}{name}_sum {total:.6f}"]
    return [*found, f"{PREFIX}{name}_count {count}"]


class Metrics:
  """The counters and histograms of a server, and of its engine."""

  def __init__(self):
    self._requests: collections.Counter = collections.Counter()
    self.first = Histogram("from a request to the first token of its text")
    self.whole = Histogram("from a request to the end of its answer")

  def count(self, path: str, status: int) -> None:
    self._requests[path, status] += 1

  def text(self, engine) -> str:
    """Returns all counters, gauges and histograms, the engine's too."""
    counts = engine.counts
    lines = _head("requests_total", "requests by path and status", "counter")
    lines += [
      f'{PREFIX}requests_total{{path="{path}",status="{status}"}} {count}'
      for (path, status), count in sorted(self._requests.items())
    ]
    lines += _head("texts_total", "texts by how they ended", "counter")
    lines += [
      f'{PREFIX}texts_total{{end="{name[5:]}"}} {count}'
      for name, count in sorted(counts.items())
      if name.startswith("jobs_")
    ]
    for name, about in (
      ("tokens", "tokens that were drawn"),
      ("guessed_tokens", "of these, tokens that were drafts"),
      ("prompt_tokens", "tokens of prompts"),
      ("reused_tokens", "of these, tokens whose keys and values were stored"),
      ("steps", "steps, each of which draws a token of every row"),
      ("faults", "faults of the engine"),
    ):
      lines += _head(f"{name}_total", about, "counter")
      lines.append(f"{PREFIX}{name}_total {counts[name]}")
    for name, about, value in (
      ("rows_active", "texts that are being written", engine.num_active),
      ("rows", "texts that can be written at once", engine.num_rows),
      ("waiting", "texts that wait for a row", engine.num_waiting),
      ("pages_held", "pages of prompts that are stored", engine.num_pages),
    ):
      lines += _head(name, about, "gauge")
      lines.append(f"{PREFIX}{name} {value}")
    lines += self.first.lines("first_token_seconds")
    lines += self.whole.lines("request_seconds")
    lines += engine.gaps.lines("step_seconds")
    return "\n".join(lines) + "\n"


def _head(name: str, about: str, kind: str) -> list[str]:
  return [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}"]
