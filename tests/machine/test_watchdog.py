"""A single process that hangs is ended, and its stacks say where."""

import os
import subprocess
import sys
import threading
import time

import pytest
from harness import ROOT, user_env

from gpt_jax import exits
from gpt_jax.machine import watchdog


@pytest.fixture
def clock(monkeypatch):
  """Sets the time, which stands still otherwise."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])

  def go(seconds: float, progress, tick: float = watchdog.TICK) -> None:
    end = now[0] + seconds
    while now[0] < end:
      now[0] += tick
      progress.tick()

  return go


def test_what_has_not_begun_is_never_stuck(clock):
  progress = watchdog.Progress(10.0, is_alone=True)
  clock(1000, progress)
  assert not progress.is_stuck()
  progress.note()
  clock(9, progress)
  assert not progress.is_stuck()
  clock(2, progress)
  assert progress.is_stuck() and not progress.is_stuck(extra=5.0)


def test_others_are_given_time_to_compile_before_the_first_result(clock):
  progress = watchdog.Progress(10.0, is_alone=False)
  progress.note(1)
  clock(99, progress)
  assert not progress.is_stuck()
  progress.mark()
  assert progress.step == 1
  clock(11, progress)
  assert progress.is_stuck()


def test_a_long_step_is_given_as_long_many_times_over(clock):
  progress = watchdog.Progress(10.0, is_alone=True)
  progress.mark()
  clock(8, progress)
  progress.mark()
  clock(79, progress)
  assert not progress.is_stuck()
  clock(2, progress)
  assert progress.is_stuck()


def test_time_in_which_the_process_was_stopped_does_not_count(clock):
  progress = watchdog.Progress(10.0, is_alone=True)
  progress.mark()
  clock(3600, progress, tick=3600)
  assert progress.waited == 2 * watchdog.TICK and not progress.is_stuck()
  # The control: as long, and awake.
  clock(3600, progress)
  assert progress.is_stuck()


@pytest.mark.parametrize(
  "file, is_stuck",
  [("/any/where/jax/_src/compiler.py", False), ("/any/jax/_src/api.py", True)],
)
def test_a_thread_that_compiles_is_not_stuck(clock, file, is_stuck):
  begun, end = threading.Event(), threading.Event()
  space = {"begun": begun, "end": end}
  code = "def work():\n  begun.set()\n  end.wait()\n"
  exec(compile(code, file, "exec"), space)
  thread = threading.Thread(target=space["work"], daemon=True)
  thread.start()
  begun.wait()
  try:
    progress = watchdog.Progress(10.0, is_alone=True)
    progress.mark()
    clock(11, progress)
    assert progress.is_stuck() == is_stuck
    # A compiler that never ends is stuck too.
    clock(10 * watchdog.PATIENCE, progress)
    assert progress.is_stuck()
  finally:
    end.set()
    thread.join()


def test_jax_compiles_where_it_is_looked_for(monkeypatch):
  """The names of jax's files are its own: this fails where they change."""
  import jax

  seen = []
  look = jax._src.compiler.backend_compile_and_load

  def compile_it(*args, **more):
    seen.append(watchdog.is_compiling())
    return look(*args, **more)

  monkeypatch.setattr(jax._src.compiler, "backend_compile_and_load", compile_it)

  def traced(x):
    seen.append(watchdog.is_compiling())
    return x * 3 + time.time()  # another program each time

  assert not watchdog.is_compiling()
  jax.jit(traced)(1.0).block_until_ready()
  assert seen and all(seen)


def test_stacks_go_to_the_folder_or_where_they_can(tmp_path, capfd):
  said = watchdog.write_stacks(str(tmp_path))
  (path,) = tmp_path.iterdir()
  assert str(path) in said and path.name.startswith("stacks-")
  assert "test_stacks_go_to_the_folder" in path.read_text()
  said = watchdog.write_stacks(str(tmp_path / "nowhere"))
  assert "above" in said
  assert "test_stacks_go_to_the_folder" in capfd.readouterr().err


HANG = """
import os
from gpt_jax import cli, train

def hang_in_a_pipe(*args, **more):
  os.open(os.environ["PIPE"], os.O_RDONLY)

def main(argv):
  from gpt_jax.machine import runtime
  runtime.start()
  from gpt_jax.runs import checkpoint
  from gpt_jax.data import batches
  WHAT
  return train.main(argv)

cli.run(main, is_run=True)
"""
HANGS = {
  "save": "checkpoint.Checkpointer.save = hang_in_a_pipe",
  "read": "batches.make_train_iterator = lambda *a: iter(hang_in_a_pipe, 0)",
}


@pytest.fixture(scope="module")
def hung(tmp_path_factory, small_flags):
  """{what: (workdir, process)}: both wait at once."""
  started = {}
  for what, line in HANGS.items():
    folder = tmp_path_factory.mktemp(what)
    os.mkfifo(folder / "pipe")
    words = [*small_flags(folder), f"--workdir={folder / 'run'}"]
    words += ["--config.train.num_steps=6", "--config.checkpoint.every_steps=3"]
    env = {"PIPE": str(folder / "pipe"), "GPT_JAX_STUCK_SECONDS": "6"}
    process = subprocess.Popen(
      [sys.executable, "-c", HANG.replace("WHAT", line), *words],
      cwd=ROOT,
      env=user_env() | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started[what] = folder / "run", process
  yield started
  for _, process in started.values():
    process.kill()


@pytest.mark.wide
@pytest.mark.parametrize("what", HANGS)
def test_a_file_system_that_hangs_ends_the_run_and_is_named(hung, what):
  workdir, process = hung[what]
  _, said = process.communicate(timeout=240)
  assert process.returncode == exits.PREEMPTED, said
  step = {"save": 3, "read": 0}[what]
  said = said.strip()
  assert said.startswith("gpt_jax: no progress for")
  assert f"since step {step}" in said and said.count("\n") == 0
  (stacks,) = workdir.glob("stacks-*.txt")
  assert str(stacks) in said
  assert "hang_in_a_pipe" in stacks.read_text()


@pytest.mark.parametrize(
  "last, code", [("time.sleep(.6)", 0), ("thread.start()", 9)]
)
def test_only_a_process_that_is_ending_is_held_to_its_end(last, code):
  program = (
    "import threading, time; from gpt_jax.machine import watchdog; "
    "thread = threading.Thread(target=time.sleep, args=(60,)); "
    f"watchdog.bound_exit(9, .2); {last}"
  )
  ended = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL
  )
  assert ended.returncode == code
