"""Progress of a pass over text: a bar on a terminal, else a line every 5 s."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from gpt_jax.machine import runtime

# Seconds between lines where there is no terminal.
REPORT_SECONDS = 5.0
# Characters of the sources' specs that a label shows.
_LABEL_CHARS = 40


class Progress:
  """Reports one pass over the text of sources; used as a context manager.

  Args:
    doing: what the pass does, such as "reading".
    source_list: the sources that are read.
    say: receives the lines.
  """

  def __init__(
    self, doing: str, source_list: Sequence[Any], say: Callable[[str], None]
  ):
    sizes = [source.num_bytes() for source in source_list]
    self._total = None if None in sizes else sum(sizes)
    what = ", ".join(source.spec for source in source_list)
    if len(what) > _LABEL_CHARS:
      what = "..." + what[3 - _LABEL_CHARS :]
    self._label = f"{doing} {what}"
    self._say = say
    self._done = 0
    self._bar = None
    self._start = self._last = time.monotonic()

  def __enter__(self):
    if runtime.is_terminal(sys.stderr):
      from rich.console import Console
      from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
      )

      self._bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
      )
      self._task = self._bar.add_task(self._label, total=self._total)
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.stop()

  def add(self, text: str) -> None:
    """Counts a piece of text as done."""
    self.add_bytes(count_bytes(text))

  def add_bytes(self, num_bytes: int) -> None:
    """Counts bytes of text as done."""
    self._done += num_bytes
    if self._bar is not None:
      self._bar.update(self._task, completed=self._done)
      return
    now = time.monotonic()
    if now - self._last >= REPORT_SECONDS:
      self._last = now
      rate = self._done / (now - self._start) / 1e6
      of = f" of {self._total / 1e6:,.0f}" if self._total else ""
      self._say(
        f"{self._label}: {self._done / 1e6:,.0f}{of} MB, {rate:,.1f} MB/s"
      )


def count_bytes(text: str) -> int:
  """Returns the length of a text in UTF-8."""
  return len(text) if text.isascii() else len(text.encode("utf-8"))
