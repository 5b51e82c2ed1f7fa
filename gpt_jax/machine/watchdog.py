"""Ends a run that makes no progress, and writes where it hangs.

A thread of this process counts the waiting time in ticks, so that time in
which the process was stopped, or the machine asleep, does not count. Compiling
(recognized by the stacks of the threads) may take PATIENCE times longer.
"""

import faulthandler
import os
import socket
import sys
import threading
import time

from gpt_jax import exits
from gpt_jax.machine import streams

# Seconds between checks.
TICK = 0.5
# A process counts as stuck after this many times the longest wait so far.
PATIENCE = 10
# The files in which jax traces, lowers and compiles.
_COMPILERS = (
  "jax/_src/compiler.py",
  "jax/_src/interpreters/mlir.py",
  "jax/_src/interpreters/partial_eval.py",
)
# Seconds allowed for writing stacks to the folder, whose disk may hang itself.
WRITE_SECONDS = 2.0


class Progress:
  """The progress of a process, and the time since it last made any.

  Args:
    floor: the least time without progress to count as stuck, in seconds.
    is_alone: there are no peers, which might compile for longer at the start.

  Attributes:
    step: steps done when the loop last reported.
    waited: seconds since the last progress.
    is_begun: there has been progress; before, the process is never stuck.
  """

  def __init__(self, floor: float, is_alone: bool):
    self.floor, self.is_alone = floor, is_alone
    self.step, self.waited, self.longest = 0, 0.0, 0.0
    self.is_begun = self.has_result = False
    self.ticked = time.monotonic()

  def note(self, step: int | None = None) -> None:
    """Records progress."""
    self.step = self.step if step is None else step
    if self.has_result:
      self.longest = max(self.longest, self.waited)
    self.waited, self.is_begun = 0.0, True

  def mark(self) -> None:
    """Records a result: from now on waits show how long one may take."""
    self.note()
    self.has_result = True

  def tick(self) -> None:
    """Adds the time since the last tick, at most two ticks of it."""
    now = time.monotonic()
    self.waited += min(now - self.ticked, 2 * TICK)
    self.ticked = now

  def is_stuck(self, extra: float = 0.0) -> bool:
    """Returns whether the wait exceeds its limit by `extra` seconds."""
    if not self.is_begun:
      return False
    usual = self.longest
    if not (self.has_result or self.is_alone):
      usual = self.floor
    limit = max(self.floor, PATIENCE * usual) + extra
    if self.waited < limit:
      return False
    return self.waited >= PATIENCE * limit or not is_compiling()


class Watchdog:
  """Ends this process if it gets stuck; for a run of one process.

  Args:
    folder: the workdir, where the stacks are written.
    seconds: the least time without progress to count as stuck.
  """

  def __init__(self, folder: str, seconds: float):
    self.folder = folder
    self.progress = Progress(seconds, is_alone=True)
    self.is_over = threading.Event()
    self.thread = threading.Thread(target=self._watch, daemon=True)
    self.thread.start()

  def close(self) -> None:
    """Stops watching."""
    self.is_over.set()
    self.thread.join()

  def _watch(self) -> None:
    progress = self.progress
    while not self.is_over.wait(min(TICK, progress.floor / 4)):
      progress.tick()
      if progress.is_stuck():
        where = write_stacks(self.folder)
        streams.tell(
          f"\ngpt_jax: no progress for {progress.waited:.0f} s, since step "
          f"{progress.step:,}; {where}; saved checkpoints are intact: start "
          "again to continue\n"
        )
        os._exit(exits.PREEMPTED)


def is_compiling() -> bool:
  """Returns whether a thread of this process is tracing or compiling."""
  for frame in sys._current_frames().values():
    while frame is not None:
      if frame.f_code.co_filename.endswith(_COMPILERS):
        return True
      frame = frame.f_back
  return False


def write_stacks(folder: str) -> str:
  """Writes the stacks of all threads; returns a clause that says where.

  They go to a file in `folder`, or to standard error if it cannot be written.
  """
  name = f"stacks-{socket.gethostname()}-{os.getpid()}.txt"
  path = os.path.join(folder, name)
  is_written = threading.Event()

  def write() -> None:
    try:
      with open(path, "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
      is_written.set()
    except OSError:
      pass

  writer = threading.Thread(target=write, daemon=True)
  writer.start()
  writer.join(WRITE_SECONDS)
  if is_written.is_set():
    return f"the stacks of its threads are in {path}"
  faulthandler.dump_traceback(2, all_threads=True)
  return "the stacks of its threads are above"


def bound_exit(code: int, seconds: float) -> None:
  """Ends this process with `code` if its exit takes longer than `seconds`.

  A process whose main thread is still running then, as in a notebook, is left
  alone.
  """

  def wait() -> None:
    time.sleep(seconds)
    if not threading.main_thread().is_alive():
      faulthandler.dump_traceback(2, all_threads=True)
      os._exit(code)

  threading.Thread(target=wait, daemon=True).start()
