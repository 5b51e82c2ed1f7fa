"""The signals that tell a process to end, and how a run reacts.

Design choice: the handlers do nothing. Python's C handler writes the signal's
number to a pipe (signal.set_wakeup_fd), and a thread reads it. So a signal is
noticed while the main thread compiles or hangs, and none is lost where Python
swallows an exception from a handler, as in jax's garbage collector hook.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable

from gpt_jax import exits
from gpt_jax.machine import processes, streams

# The signals by which users, shells and schedulers end a process. Signals of
# faults, job control, timers and descriptors keep their handlers: libtpu, for
# one, profiles itself with SIGPROF.
NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGXCPU SIGPWR".split()


def _send_again() -> None:
  again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
  again.daemon = True
  again.start()


def _keep_interrupts(unraisable) -> None:
  """Sends a Ctrl-C again if it came in a callback that swallows exceptions."""
  if unraisable.exc_type is KeyboardInterrupt:
    _send_again()
  else:
    sys.__unraisablehook__(unraisable)


def _interrupt(number, frame) -> None:
  """Raises KeyboardInterrupt, once an import in progress has ended.

  Interrupting the import of an extension such as jaxlib's ends in a traceback
  or in a segmentation fault.
  """
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      return _send_again()
    frame = frame.f_back
  global _is_interrupted
  _is_interrupted = True
  raise KeyboardInterrupt


def require_uninterrupted() -> None:
  """Raises KeyboardInterrupt if one was raised earlier and got lost.

  Libraries that call back into Python, such as tensorstore, turn it into errors
  of their own, which look like a file that cannot be read.
  """
  if _is_interrupted:
    raise KeyboardInterrupt


def release() -> None:
  """Makes Ctrl-C end the process at once, when only the exit is left."""
  if signal.getsignal(signal.SIGINT) is _interrupt:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_is_interrupted = False
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, _interrupt)
# Sent from a keyboard: the second one exits at once.
IMPATIENT = (signal.SIGINT, signal.SIGQUIT)


class Listener:
  """Calls `act(number)` in a thread for each signal that arrives.

  Signals that are already ignored (nohup, a background job) or handled are
  left alone. Construct it in the main thread, one at a time.
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
      if handler in DEFAULTS:
        self.old[number] = signal.signal(number, _do_nothing)
    self.thread = threading.Thread(target=self._listen, daemon=True)
    self.thread.start()

  def close(self) -> None:
    """Restores the earlier handlers."""
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
  """Records the first signal, so that the train loop saves and ends.

  A second SIGINT or SIGQUIT exits at once. A second SIGTERM does not: srun
  forwards signals that SLURM has already sent to each task, and a scheduler
  that cannot wait has SIGKILL.

  A signal to one of several processes stops all of them at the same step.
  Before `wait_for` there is nothing to save, and the process ends at once.

  Args:
    command: the command that starts the run again.

  Attributes:
    code: exit code that a signal to this process asks for, else None.
    leaving: functions to call if the process ends before `wait_for`.
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
    # A normal exit would wait for threads that compile.
    os._exit(code)

  def wait_for(self) -> None:
    """From now on a signal waits for the loop, which calls `check`."""
    with self.lock:
      self.is_waited_for = True

  def check(self, step: int) -> int | None:
    """Returns the exit code to end with now, or None; see processes.check."""
    code = processes.check(step)
    return code if processes.count() > 1 else self.code

  def close(self) -> None:
    """Restores the earlier handlers, unless the process ends with the run."""
    if not _is_held:
      self.listener.close()


_is_held = False


def hold(is_run: bool) -> None:
  """Sets whether this process ends with its run; then Stop.close does nothing.

  Handlers then stay until `end_with`: with the default ones, a signal between
  the end of the run and `end_with` would make it look killed.

  From here on Ctrl-C does not interrupt an import.
  """
  global _is_held
  _is_held = is_run
  if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
  ):
    signal.signal(signal.SIGINT, _interrupt)
    if sys.unraisablehook is sys.__unraisablehook__:
      sys.unraisablehook = _keep_interrupts


def end_with(code: int) -> None:
  """Makes a signal end the process at once, with the exit code of its run.

  With the default handler, a signal between the end of the run and the exit of
  the process would make the run look killed.
  """
  for name in NAMES:
    number = getattr(signal, name, None)
    ours = number and signal.getsignal(number) in (*DEFAULTS, _do_nothing)
    if ours:
      signal.signal(number, lambda *_: os._exit(code))
      _ending.append(number)
  signal.set_wakeup_fd(-1)


_ending = []


# Registered first, so it is called last.
@atexit.register
def _ignore() -> None:
  """Ignores the signals of `end_with`, as Python now restores the defaults."""
  for number in _ending:
    signal.signal(number, signal.SIG_IGN)


def _do_nothing(number, frame) -> None:
  pass


def _forget() -> None:
  """Makes a forked child (a data worker) ignore signals.

  The parent gets the signals too, and the child must not write to the pipe that
  the two share.
  """
  if signal.getsignal(signal.SIGTERM) is _do_nothing:
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
