"""What tells a process to end, and what becomes of its screen, decide no run.

Signals are sent to this process; screens are lost by small processes of their
own, which do not import jax.
"""

import gc
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from gpt_jax import exits
from gpt_jax.machine import signals

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def ended(monkeypatch):
  """The codes that os._exit was called with."""
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  return codes


@pytest.fixture
def stop(ended):
  stop = signals.Stop("the command")
  stop.wait_for()
  yield stop
  stop.close()


def await_truth(is_so) -> None:
  deadline = time.monotonic() + 10
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.001)


@pytest.mark.parametrize("name", signals.NAMES)
def test_every_signal_that_ends_a_process_is_noted(stop, name):
  os.kill(os.getpid(), getattr(signal, name))
  await_truth(lambda: stop.code is not None)
  code = exits.INTERRUPTED if name == "SIGINT" else exits.PREEMPTED
  assert stop.check(1) == code


def test_no_signal_whose_default_is_to_end_is_left_out():
  others = {
    # Cannot be caught, or are faults of the program itself.
    *"SIGKILL SIGABRT SIGBUS SIGFPE SIGILL SIGSEGV SIGSYS SIGTRAP".split(),
    # Do not end a process, or are Python's: writing raises instead.
    *"SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGCONT SIGCHLD SIGURG SIGWINCH".split(),
    *"SIGPIPE SIGXFSZ".split(),
    # Of the process's own timers and descriptors: libraries use them.
    *"SIGALRM SIGVTALRM SIGPROF SIGIO".split(),
    # No one's to send; of a coprocessor that there is not.
    "SIGSTKFLT",
  }
  named = {s.name for s in signal.Signals if s < signal.SIGRTMIN}
  aliases = {signal.Signals(getattr(signal, n)).name for n in signals.NAMES}
  assert named - others == aliases


def test_a_timer_of_a_library_does_not_stop_a_run():
  # In a process of its own: libtpu's handlers are not Python's to put back.
  program = (
    "import os, signal, time; from gpt_jax.machine import signals; "
    "stop, heard = signals.Stop('the command'), []; stop.wait_for(); "
    "timers = signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF; "
    "[signal.signal(n, lambda n, _: heard.append(n)) for n in timers]; "
    "[os.kill(os.getpid(), n) for n in timers]; time.sleep(.1); "
    "print(len(heard), stop.code)"
  )
  said = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
  )
  assert said.stdout == "3 None\n", said


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_at_the_start_stays_ignored(ended, ignored):
  old = signal.signal(ignored, signal.SIG_IGN)
  try:
    stop = signals.Stop("the command")
    stop.wait_for()
    try:
      os.kill(os.getpid(), ignored)
      os.kill(os.getpid(), signal.SIGUSR1)
      await_truth(lambda: stop.code is not None)
      os.kill(os.getpid(), ignored)
      time.sleep(0.01)
      # Not 130, and no second one that would end it at once.
      assert stop.code == exits.PREEMPTED and not ended
    finally:
      stop.close()
    assert signal.getsignal(ignored) is signal.SIG_IGN
  finally:
    signal.signal(ignored, old)


def test_a_signal_is_not_lost_in_a_hook_that_swallows_errors(ended):
  """As jax's hook of the garbage collector, before the loop looks."""

  def hook(phase, info):
    if phase == "start":
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.001)

  stop = signals.Stop("the command")
  gc.callbacks.append(hook)
  try:
    gc.collect()
    gc.callbacks.remove(hook)
    await_truth(lambda: ended)
    assert ended[0] == exits.INTERRUPTED
  finally:
    stop.close()


def test_a_child_that_is_told_does_not_tell_its_parent(stop):
  child = os.fork()
  if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
  os.waitpid(child, 0)
  time.sleep(0.01)
  assert stop.code is None


def test_before_the_loop_it_ends_at_once_with_what_to_type(ended, capsys):
  stop, told = signals.Stop("the command"), []
  stop.leaving.append(lambda: told.append("the lock is released"))
  try:
    os.kill(os.getpid(), signal.SIGHUP)
    await_truth(lambda: ended)
    assert ended == [exits.PREEMPTED] and len(told) == 1
    said = capsys.readouterr().out
    assert said.startswith("stopped before the first step; start again with")
  finally:
    stop.close()


def test_handlers_are_put_back():
  before = [signal.getsignal(getattr(signal, n)) for n in signals.NAMES]
  signals.Stop("the command").close()
  after = [signal.getsignal(getattr(signal, n)) for n in signals.NAMES]
  assert after == before and signal.set_wakeup_fd(-1) == -1


IMPORT = """
import sys, time
from gpt_jax import cli
sys.path.insert(0, sys.argv[1])
def main(argv):
  import slow
  time.sleep(10)
  return 0
cli.run(main, [])
"""


def test_ctrl_c_waits_for_the_import_that_is_under_way(tmp_path):
  (tmp_path / "slow.py").write_text(
    "import os, signal, time\n"
    "os.kill(os.getpid(), signal.SIGINT)\n"
    "time.sleep(0.3)\n"
    "print('imported')\n"
  )
  words = [sys.executable, "-c", IMPORT, str(tmp_path)]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (130, "gpt_jax: interrupted\n")
  assert done.stdout == "imported\n"


IN_A_CALLBACK = """
import gc, os, signal, time
from gpt_jax import cli
def callback(phase, about):
  gc.callbacks.remove(callback)
  os.kill(os.getpid(), signal.SIGINT)
def main(argv):
  gc.callbacks.append(callback)
  gc.collect()
  time.sleep(10)
  return 0
cli.run(main, [])
"""


def test_ctrl_c_in_a_callback_is_not_lost():
  words = [sys.executable, "-c", IN_A_CALLBACK]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (130, "gpt_jax: interrupted\n")


LEAVE = """
import atexit, sys, time
from gpt_jax import cli
def leave():
  print("over", flush=True)
  time.sleep(60)
atexit.register(leave)
cli.run(lambda argv: 7, [], is_run=IS_RUN)
"""


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_after_the_end_of_a_run_leaves_it_its_code(name, is_run):
  code = LEAVE.replace("IS_RUN", str(is_run))
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"over\n"
  process.send_signal(getattr(signal, name))
  # The control: other commands end as the signal says.
  assert (process.wait(30) == 7) == is_run
  process.stdout.close()


CLOSE = """
import time
from gpt_jax import cli
from gpt_jax.machine import signals
def main(argv):
  stop = signals.Stop("the command")
  stop.wait_for()
  stop.close()
  print("over", flush=True)
  time.sleep(0.5)
  return 7
cli.run(main, [], is_run=IS_RUN)
"""
# What is destroyed last, when Python has put its own handlers back.
FINAL = """
import os, time
from gpt_jax import cli
class Last:
  def __del__(self, write=os.write, sleep=time.sleep):
    write(1, b"over\\n")
    sleep(0.5)
last = Last()
cli.run(lambda argv: 7, [], is_run=IS_RUN)
"""


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("code", [CLOSE, FINAL], ids=["closing", "final"])
def test_a_signal_between_the_last_step_and_the_end_leaves_the_code(
  name, is_run, code
):
  code = code.replace("IS_RUN", str(is_run))
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"over\n"
  process.send_signal(getattr(signal, name))
  # The control: other commands end as the signal says.
  assert (process.wait(30) == 7) == is_run
  process.stdout.close()


# Screens

TALK = """
import os, sys
from gpt_jax import cli
from gpt_jax.machine import streams
streams.READER_SECONDS = streams._Unfailing.patience = 0.05
def main(argv):
  opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
  os.write(opened, b"%d" % opened)
  for line in range(3000):
    print("a line of a hundred letters " * 4)
    print("what is said of it", file=sys.stderr)
  print(sys.stdin.read() if opened < 3 else "", end="", flush=True)
  os.write(opened, b" whole")
  return 7
cli.run(main, [], is_run=IS_RUN)
"""


def talk(path, is_run: bool, redirect: str) -> int:
  """Returns the exit code of a process that talks into a lost screen."""
  code = TALK.replace("IS_RUN", str(is_run))
  line = f'"$0" -c "$1" "$2" {redirect}; exit "${{PIPESTATUS[0]}}"'
  return subprocess.run(
    ["bash", "-c", line, sys.executable, code, str(path)],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    timeout=60,
  ).returncode


LOST = [
  "| head -1",
  ">&-",
  "2>&-",
  "<&- >&- 2>&-",
  ">/dev/full 2>/dev/full",
  "2> >(exec 0<&-)",
  "> >(exec 0<&-)",
]


@pytest.mark.parametrize("redirect", LOST)
def test_a_run_goes_on_whatever_becomes_of_its_screen(tmp_path, redirect):
  assert talk(tmp_path / "file", True, redirect) == 7
  number, word = (tmp_path / "file").read_text().split()
  # Not one of the three that C libraries write to.
  assert int(number) > 2 and word == "whole"


def test_a_run_goes_on_when_its_reader_has_stopped_reading(tmp_path):
  """As a pager, or a terminal after Ctrl-S."""
  reader, writer = os.pipe()
  try:
    process = subprocess.Popen(
      [sys.executable, "-c", TALK.replace("IS_RUN", "True"), tmp_path / "file"],
      cwd=ROOT,
      stdin=subprocess.DEVNULL,
      stdout=writer,
      stderr=writer,
    )
    assert process.wait(60) == 7
  finally:
    process.kill()
    os.close(reader)
    os.close(writer)


def test_a_run_goes_on_when_its_terminal_is_closed(tmp_path):
  ours, its = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", TALK.replace("IS_RUN", "True"), tmp_path / "file"],
    cwd=ROOT,
    stdin=its,
    stdout=its,
    stderr=its,
  )
  os.close(its)
  os.read(ours, 10)
  os.close(ours)
  assert process.wait(60) == 7
  assert (tmp_path / "file").read_text().endswith(" whole")


@pytest.mark.parametrize(
  "redirect, code", [("| head -1", exits.UNREAD), (">/dev/full", 2)]
)
def test_what_is_for_printing_ends_with_a_code_that_says_so(
  tmp_path, redirect, code
):
  errors = tmp_path / "errors"
  redirect = redirect.replace("|", f"2>{errors} |", 1)
  redirect = redirect if "|" in redirect else f"{redirect} 2>{errors}"
  assert talk(tmp_path / "file", False, redirect) == code
  assert "whole" not in (tmp_path / "file").read_text()
  said = errors.read_text().replace("what is said of it\n", "")
  found = "gpt_jax: cannot read or write: No space left on device\n"
  assert said == ("" if code == exits.UNREAD else found)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_said_last_is_written_before_a_hard_end(unbuffered):
  program = (
    "import os, sys; from gpt_jax.machine import streams; streams.hold(True); "
    "print('said', file=sys.stderr); os._exit(3)"
  )
  ended = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
  )
  assert (ended.returncode, ended.stderr) == (3, "said\n")
