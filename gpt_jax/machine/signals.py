"""Every signal that tells a process to end, and what a run does with it.

Design choice: the handlers do nothing. Python's C handler writes the number of
a signal to a pipe (signal.set_wakeup_fd), and a thread reads it. So a signal is
heard while the main thread compiles or hangs, and none is lost where Python
would swallow what a handler raises, as in jax's hook of the garbage collector.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

from gpt_jax import exits
from gpt_jax.machine import processes, streams

# By which users, shells and schedulers tell a process to end. Those of faults,
# of stopping for a while, and of a process's own timers and descriptors stay:
# libtpu, for one, profiles itself by SIGPROF.
NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGXCPU SIGPWR".split()
# From a keyboard: the second one means at once.
IMPATIENT = (signal.SIGINT, signal.SIGQUIT)


class Listener:
  """Calls `act(number)` in a thread for each signal that comes.

  Signals that are ignored (nohup, a shell's background) or handled already
  when this begins are left alone. One at a time; for the main thread.
  """

  def __init__(self, act: Callable[[int], None]):
    self.act = act
    self.old = {}
    self.wake, self.waker = os.pipe()
    os.set_blocking(self.waker, False)
    self.old_waker = signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
    for name in NAMES:
      number = getattr(signal, name, None)
      if number is None:
        continue
      handler = signal.getsignal(number)
      if handler in (signal.SIG_DFL, signal.default_int_handler):
        self.old[number] = signal.signal(number, _do_nothing)
    self.thread = threading.Thread(target=self._listen, daemon=True)
    self.thread.start()

  def close(self) -> None:
    """Puts the earlier handlers back."""
    for number, handler in self.old.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self.old_waker)
    os.write(self.waker, b"\0")
    self.thread.join()
    os.close(self.wake)
    os.close(self.waker)

  def _listen(self) -> None:
    while True:
      for number in os.read(self.wake, 64):
        if number == 0:
          return
        if number in self.old:
          self.act(number)


class Stop:
  """Notes the first signal, for the loop to save and end.

  A second SIGINT or SIGQUIT exits at once. A second SIGTERM does not: srun
  passes on what SLURM has sent already to each task, and a scheduler that is
  in a hurry has SIGKILL.

  A signal to one of several processes stops all of them at the same step.
  Before the loop looks there is nothing to save, and the process ends.

  Args:
    command: what to type to start again.

  Attributes:
    code: exit code that a signal to this process asks for, else None.
    leaving: what is called where it ends before the loop looks.
  """

  def __init__(self, command: str):
    self.command = command
    self.code, self.leaving = None, []
    self.is_waited_for = False
    self.lock = threading.Lock()
    self.listener = Listener(self._note)

  def _note(self, number: int) -> None:
    code = exits.INTERRUPTED if number == signal.SIGINT else exits.PREEMPTED
    with self.lock:
      if self.code is not None:
        if number in IMPATIENT:
          os._exit(code)
        return
      self.code = code
      if not self.is_waited_for:
        self._leave(code)
    processes.ask_to_stop(code)
    streams.tell("\nstopping; Ctrl-C exits at once, without saving\n")

  def _leave(self, code: int) -> None:
    why = f"stopped before the first step; start again with: {self.command}"
    for call in self.leaving:
      call()
    if processes.index() == 0:
      print(why)
    sys.stdout.flush()
    processes.end(code, why)
    # Threads that compile would be waited for.
    os._exit(code)

  def wait_for(self) -> None:
    """From here on the loop looks, and saves."""
    with self.lock:
      self.is_waited_for = True

  def check(self, step: int) -> int | None:
    """Returns the exit code to end with now, the same in all processes."""
    code = processes.check(step)
    return code if processes.count() > 1 else self.code

  def close(self) -> None:
    """Puts the earlier handlers back."""
    self.listener.close()


def _do_nothing(number, frame) -> None:
  pass


def _forget() -> None:
  """In a forked child, such as a reader of data: what it is told is ignored,
  for its parent is told too, and not taken for what the parent is told."""
  if signal.getsignal(signal.SIGTERM) is _do_nothing:
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
