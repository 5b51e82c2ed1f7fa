"""Prints what a run reports: tables, and a progress bar or plain lines.

On a terminal the bar stays on the last line; elsewhere there is a line of
under 100 characters every INTERVAL seconds, however fast the steps are.
"""

import contextlib
import os
import re
import sys
import time

from gpt_jax.machine import places, runtime

# Seconds between progress lines where there is no terminal.
INTERVAL = 10.0
_CONTROLS = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


class Console:
  """Prints to standard output; silent where `is_speaking` is false."""

  def __init__(self, is_speaking: bool = True):
    self.is_speaking = is_speaking
    self.is_live = is_speaking and runtime.is_terminal(sys.stdout)
    self.bar = None
    self.last_line = float("-inf")

  def say(self, line: str = "") -> None:
    """Prints a line, above the bar if there is one."""
    if not self.is_speaking:
      return
    line = places.rename(line)
    if self.bar is not None:
      self.bar.console.print(line, markup=False, highlight=False)
    else:
      print(line, flush=True)

  def table(self, rows: list[tuple[str, str]]) -> None:
    """Prints names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
      self.say(f"  {name:<{width}}  {value}")

  def progress(
    self,
    step: int,
    total: int,
    loss: float,
    rates: dict,
    left: float | None = None,
  ) -> None:
    """Shows the progress of a run.

    Args:
      rates: what Meter.rates returns.
      left: seconds to the end, None if not known yet.
    """
    if not self.is_speaking:
      return
    line = progress_line(step, total, loss, rates, left)
    if self.is_live:
      self._show(step, total, line)
    elif time.monotonic() - self.last_line >= INTERVAL or step == total:
      self.last_line = time.monotonic()
      print(line, flush=True)

  def wait(self, line: str) -> None:
    """Prints a line about a long wait, at most once per INTERVAL."""
    if time.monotonic() - self.last_line >= INTERVAL:
      self.last_line = time.monotonic()
      self.say(line)

  def close(self) -> None:
    """Removes the bar."""
    if self.bar is not None:
      self.bar.stop()
      self.bar = None

  def _show(self, step: int, total: int, line: str) -> None:
    from rich.progress import BarColumn, Progress, TextColumn

    if self.bar is None:
      self.bar = Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        auto_refresh=False,
      )
      self.task = self.bar.add_task(line, total=total)
      self.bar.start()
    self.bar.update(self.task, completed=step, description=line, refresh=True)


def progress_line(
  step: int,
  total: int,
  loss: float,
  rates: dict,
  left: float | None = None,
) -> str:
  """Returns "step 1,200/2,000  loss 1.8321  21,450 tok/s  ..."."""
  # A diverged loss must not fill the line with digits.
  shown = f"{loss:.4f}" if abs(loss) < 1e5 else f"{loss:.3e}"
  words = [f"step {step:,}/{total:,}", f"loss {shown}"]
  if rates:
    speed = rates["perf/tokens_per_second"]
    words.append(
      f"{speed:,.0f} tok/s" if speed < 1e8 else f"{format_count(speed)} tok/s"
    )
    if "perf/mfu" in rates:
      words.append(f"mfu {100 * rates['perf/mfu']:.1f}%")
  if left is not None:
    words.append(f"{format_seconds(left)} left")
  return "  ".join(words)


def plain(text: str) -> str:
  """Returns the text as one line, with control characters escaped.

  Names and errors from outside could otherwise send commands to the terminal.
  """
  shown = lambda c: " " if c.isspace() else repr(c)[1:-1]
  return "".join(c if c.isprintable() else shown(c) for c in text)


def tell(line: str, is_error: bool = True) -> None:
  """Prints a plain line, by default to standard error; never raises.

  If the stream is closed, full or a broken pipe, this line and later ones are
  lost.
  """
  stream = sys.stderr if is_error else sys.stdout
  try:
    stream.write(plain(line) + "\n")
    stream.flush()
  except (OSError, ValueError, AttributeError):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      # Flushing its buffer at exit would fail again.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, stream.fileno())
      os.close(null)


def wrap_text(text: str, width: int = 90) -> list[str]:
  """Returns the text as lines of at most `width`, without control characters.

  An untrained model's output could otherwise send commands to the terminal.
  """
  lines = []
  for line in text.strip("\n").splitlines():
    line = line.expandtabs(2)
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    lines += [line[i : i + width] for i in range(0, len(line) or 1, width)]
  return lines


def escape_controls(text: str) -> str:
  """Returns the text with characters escaped that could command a terminal.

  These are the control characters C0 and C1, except newline and tab, and those
  that change the direction of text, which can hide a part of it. They are
  escaped as Python writes them ("\\x1b").
  """
  return _CONTROLS.sub(lambda c: repr(c[0])[1:-1], text)


def format_seconds(seconds: float) -> str:
  """Returns "42 s", "3 min 05 s", "2 h 10 min" or "12 days"."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60:02d} s"
  if seconds < 100 * 3600:
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
  return f"{seconds // 86400:,} days"


def format_bytes(count: float) -> str:
  """Returns "1.4 MiB"."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if count < 1024:
      return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1024
  return f"{count:.1f} TiB"


def format_count(count: float) -> str:
  """Returns "12.3 M" style figures."""
  for unit in ("", " k", " M", " B", " T"):
    if abs(count) < 1000:
      return f"{count:.0f}" if not unit else f"{count:.2f}{unit}"
    count /= 1000
  return f"{count:.2f}e15"
