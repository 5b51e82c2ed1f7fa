"""A run that makes no progress is ended, and says where it hangs.

Waiting is counted in ticks of a thread of this process, so that the time in
which the process was itself stopped, or the machine asleep, is none. Compiling
is seen in the stacks of the threads: it may take PATIENCE times longer.
"""

import faulthandler
import os
import socket
import sys
import threading
import time

from gpt_jax import exits
from gpt_jax.machine import streams

# Seconds between looks.
TICK = 0.5
# A process counts as stuck after this many times the longest wait so far.
PATIENCE = 10
# Where jax traces, lowers and compiles.
_COMPILERS = (
  "jax/_src/compiler.py",
  "jax/_src/interpreters/mlir.py",
  "jax/_src/interpreters/partial_eval.py",
)
# Seconds for writing stacks into a folder, which may be what hangs.
WRITE_SECONDS = 2.0


class Progress:
  """What a process has done, and how long it has done nothing.

  Args:
    floor: seconds that it may always take.
    is_alone: there are no others that may still compile at first.

  Attributes:
    step: steps done when the loop last looked.
    waited: seconds since something was done.
    is_begun: something has been done; before, nothing counts as stuck.
  """

  def __init__(self, floor: float, is_alone: bool):
    self.floor, self.is_alone = floor, is_alone
    self.step, self.waited, self.longest = 0, 0.0, 0.0
    self.is_begun = self.has_result = False
    self.ticked = time.monotonic()

  def note(self, step: int | None = None) -> None:
    """Something was done."""
    self.step = self.step if step is None else step
    if self.has_result:
      self.longest = max(self.longest, self.waited)
    self.waited, self.is_begun = 0.0, True

  def mark(self) -> None:
    """A result has come, so that the wait for the next is like this one's."""
    self.note()
    self.has_result = True

  def tick(self) -> None:
    """Counts the time since the last tick, of one that came late not all."""
    now = time.monotonic()
    self.waited += min(now - self.ticked, 2 * TICK)
    self.ticked = now

  def is_stuck(self, extra: float = 0.0) -> bool:
    """Returns whether it has waited too long, by `extra` seconds."""
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
  """Ends a single process that is stuck.

  Args:
    folder: the workdir, for the stacks.
    seconds: that it may always take.
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
          f"\ngpt_jax: nothing has come to its end for {progress.waited:.0f} "
          f"s, since step {progress.step:,}; {where}; saved checkpoints are "
          "whole: start again to go on\n"
        )
        os._exit(exits.PREEMPTED)


def is_compiling() -> bool:
  """Returns whether a thread of this process is in jax's compiler."""
  for frame in sys._current_frames().values():
    while frame is not None:
      if frame.f_code.co_filename.endswith(_COMPILERS):
        return True
      frame = frame.f_back
  return False


def write_stacks(folder: str) -> str:
  """Writes the stacks of all threads; returns a clause that says where.

  Into `folder`, or to standard error where that cannot be written to.
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
    return f"where each thread was is in {path}"
  faulthandler.dump_traceback(2, all_threads=True)
  return "where each thread was is told above"


def bound_exit(code: int, seconds: float) -> None:
  """Ends this process with `code`, should its end take longer than that.

  A process that has gone on by then, as a notebook does, is left alone.
  """

  def wait() -> None:
    time.sleep(seconds)
    if not threading.main_thread().is_alive():
      faulthandler.dump_traceback(2, all_threads=True)
      os._exit(code)

  threading.Thread(target=wait, daemon=True).start()
