"""Cells are run: by processes in place of training runs, and by real ones."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from harness import ROOT, user_env
from sweeps import load

from gpt_jax import exits
from gpt_jax.lab.sweep import folder, pool
from gpt_jax.lab.sweep import run as run_lib
from gpt_jax.runs import integrity, restore


def test_one_cell_that_fails_costs_no_other(write, fake, call_verb, tmp_path):
  path = write(*(f'add("c{i}", seed={i})' for i in (0, 1, 2, 3, 5, 6)))
  root = tmp_path / "root"
  words = [f"--config={path}", f"--workdir={root}", "--workers=2", "--memory=4"]
  result = call_verb("lab.sweep", "run", *words)
  assert result.returncode == exits.FAILED, result.stderr
  named = {c.config.seed: c.id for c in load(path).cells}
  states = {seed: folder.read(str(root), i) for seed, i in named.items()}
  words_of = {seed: state.word for seed, state in states.items()}
  assert words_of == dict.fromkeys((0, 5, 6), "done") | dict.fromkeys(
    (1, 2, 3), "failed"
  )
  assert states[1].reason == "exit code 1: text:x matches no file"
  assert states[2].reason.startswith("killed by SIGKILL")
  assert states[3].reason.startswith("out of memory: MemoryError")
  for seed in (1, 2, 3):
    assert f"failed   {named[seed]} c{seed} seed {seed}: " in result.stdout
  listed = call_verb("lab.sweep", "list", f"--workdir={root}")
  assert "text:x matches no file" in listed.stdout
  assert listed.stdout.splitlines()[-1] == "6 cells: 3 done, 3 failed"

  # Passed over, until it is asked for; then these alone.
  times = {s: os.stat(state.path).st_mtime_ns for s, state in states.items()}
  again = call_verb("lab.sweep", "run", *words)
  assert again.returncode == exits.FAILED
  assert "6 cells: 3 done, 0 to run" in again.stdout
  fake.touch()
  ids = f"{named[1]},{named[2]}"
  result = call_verb("lab.sweep", "run", *words, f"--only={ids}", "--retry")
  assert result.returncode == 0, result.stdout
  assert "2 cells: 0 done, 2 to run" in result.stdout
  result = call_verb("lab.sweep", "run", *words, "--retry")
  assert result.returncode == 0 and "5 done, 1 to run" in result.stdout
  for seed in (0, 5, 6):
    assert os.stat(states[seed].path).st_mtime_ns == times[seed]


def test_a_stopped_sweep_goes_on(write, fake, tmp_path, monkeypatch):
  path = write('add("first", seed=4)', 'add("second", seed=0)')
  root = tmp_path / "root"
  sweep = load(path)
  say = pool.Pool._say

  def stop(self):
    if (tmp_path / "ready").exists() and self.signal is None:
      os.kill(os.getpid(), signal.SIGTERM)
    say(self)

  monkeypatch.setattr(pool.Pool, "_say", stop)
  assert run_lib.run(sweep, str(root)).code == exits.PREEMPTED
  words = [folder.read(str(root), c.id).word for c in sweep.cells]
  assert words == [folder.STOPPED, folder.WAITING]
  fake.touch()
  monkeypatch.setattr(pool.Pool, "_say", say)
  assert run_lib.run(sweep, str(root)).code == 0
  assert all(folder.is_done(str(root), c.id) for c in sweep.cells)


def test_what_cannot_fit_is_refused_by_name(write, fake, call_verb, tmp_path):
  path = write('add("small")', 'add("huge", {"model.mlp_dim": 10**9})')
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "run", *words)
  assert result.returncode == exits.FAILED
  assert "huge seed 0: does not fit: it needs about" in result.stdout
  assert "finished" in result.stdout  # the other


def test_a_cell_of_two_sweeps_is_run_once(write, fake, call_verb, tmp_path):
  words = [f"--workdir={tmp_path / 'root'}", "--config=" + write('add("a")')]
  assert "1 to run" in call_verb("lab.sweep", "run", *words).stdout
  write('add("b", seed=0)', 'add("c", seed=5)')
  result = call_verb("lab.sweep", "run", *words)
  assert "2 cells: 1 done, 1 to run" in result.stdout
  # Without its folder it is run again: the control.
  shutil.rmtree(tmp_path / "root" / "cells")
  assert "0 done, 2 to run" in call_verb("lab.sweep", "run", *words).stdout


def test_emitted_lines_are_cells_for_slurm(write, fake, call_verb, tmp_path):
  path = write(
    'add("it\'s", {"optim.decay_frac": 0.0})',
    'add("b", {"train.num_steps": 20}, branch_from=("it\'s", 6))',
    'add("c", {"sample.prompt": "two words", "seed": 7})',
  )
  file = tmp_path / "cells.txt"
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "run", *words, f"--emit={file}")
  assert result.returncode == 0, result.stderr
  lines = [shlex.split(line) for line in file.read_text().splitlines()]
  assert len(lines) == 2 and "b seed 0" in result.stdout.splitlines()[-1]
  assert "--config.sample.prompt=two words" in lines[1]
  shown = subprocess.run(
    ["bash", "launch/slurm.sh", "--dry-run", f"--cells={file}", "--"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert shown.returncode == 0, shown.stderr
  assert "--array=0-1" in shown.stdout
  assert shown.stdout.count("gpt_jax.train --config=") == 2


def test_a_line_break_in_a_value_is_not_emitted(write, call_verb, tmp_path):
  path = write('add("a", {"sample.prompt": "two\\nlines"})', 'add("b", seed=1)')
  file, root = tmp_path / "cells.txt", tmp_path / "root"
  words = ["run", f"--config={path}", f"--workdir={root}", f"--emit={file}"]
  result = call_verb("lab.sweep", *words)
  assert result.returncode == 2 and "holds a line break" in result.stderr
  assert not file.exists() and not (root / "cells").exists()
  only = f"--only={load(path).cells[1].id}"
  assert call_verb("lab.sweep", *words, only).returncode == 0
  assert len(file.read_text().splitlines()) == 1


def test_many_emitted_lines_are_counted(write, call_verb, tmp_path):
  path = write('add("a", seeds=range(9))')
  file = tmp_path / "cells.txt"
  words = ["run", f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", *words, f"--emit={file}")
  assert result.stdout.count("python -m gpt_jax.train") == 3
  assert "# and 6 more" in result.stdout
  assert len(file.read_text().splitlines()) == 9


class Broken:
  """A stream whose reader is gone."""

  def __init__(self, path):
    self.file = open(path, "w")

  def write(self, text):
    raise BrokenPipeError(32, "Broken pipe")

  flush = isatty = lambda self: None

  def fileno(self):
    return self.file.fileno()


def test_what_becomes_of_its_lines_decides_nothing_about_a_sweep(
  write, fake, tmp_path, monkeypatch
):
  sweep = load(write('add("a")'))
  for index, stream in enumerate((Broken(tmp_path / "pipe"), None)):
    root = str(tmp_path / f"root-{index}")
    with monkeypatch.context() as patch:
      patch.setattr(sys, "stdout", stream)
      assert run_lib.run(sweep, root).code == 0
    assert folder.is_done(root, sweep.cells[0].id)


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1", "USR2"])
def test_signals_stop_a_sweep_unless_they_were_ignored(
  name, write, fake, tmp_path, monkeypatch
):
  number = signal.Signals[f"SIG{name}"]
  path = write('add("a", seed=4)', 'add("b", seed=0)')
  say = pool.Pool._say
  sent = []

  def kill(self):
    if (tmp_path / "ready").exists() and not sent:
      sent.append(number)
      os.kill(os.getpid(), number)
      fake.touch()
      if signal.getsignal(number) == signal.SIG_IGN:
        self.workers[0].process.kill()
    say(self)

  monkeypatch.setattr(pool.Pool, "_say", kill)
  old = signal.signal(number, signal.SIG_IGN)
  try:
    ignored = run_lib.run(load(path), str(tmp_path / "ignored")).code
    assert signal.getsignal(number) == signal.SIG_IGN
  finally:
    signal.signal(number, old)
  # The cell was killed here; the sweep went on to the other.
  words = lambda root: [
    folder.read(str(tmp_path / root), c.id).word for c in load(path).cells
  ]
  assert ignored == exits.FAILED and words("ignored") == ["failed", "done"]
  fake.unlink()
  (tmp_path / "ready").unlink()
  sent.clear()
  # A test that runs in the background may have inherited it ignored.
  signal.signal(number, lambda *_: pytest.fail("it was not heard"))
  try:
    code = run_lib.run(load(path), str(tmp_path / "heard")).code
  finally:
    signal.signal(number, old)
  is_int = number == signal.SIGINT
  assert code == (exits.INTERRUPTED if is_int else exits.PREEMPTED)
  assert words("heard") == [folder.STOPPED, folder.WAITING]


def test_verbs_and_flags_are_checked(call_verb, write, tmp_path):
  path = write('add("a")')
  said = {
    (): "the first word must be what to do",
    ("rum",): "did you mean run?",
    ("plan",): "--config=FILE is missing",
    ("run", f"--config={path}"): "--workdir=ROOT is missing",
    ("list", f"--workdir={tmp_path}/no"): "does not exist",
    ("report", f"--workdir={tmp_path}"): "holds no cell",
    ("run", f"--config={path}", f"--workdir={tmp_path}/r", "--only=ffff"): (
      "no cell of this sweep"
    ),
    ("run", f"--config={path}", f"--workdir={tmp_path}/r", "--workers=0"): (
      "--workers is 0"
    ),
  }
  for words, sentence in said.items():
    result = call_verb("lab.sweep", *words)
    assert result.returncode == 2 and sentence in result.stderr, words
    assert len(result.stderr.splitlines()) == 1


def command(*words) -> list[str]:
  return [sys.executable, "-m", "gpt_jax.lab.sweep", *map(str, words)]


def start(*words) -> subprocess.Popen:
  return subprocess.Popen(
    command(*words),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=user_env(),
  )


def losses_of(path: str) -> dict[int, float]:
  rows = folder.read_path(path).rows
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def newest_meta(path: str) -> dict:
  """Returns the record of the newest checkpoint in a workdir."""
  checkpoints = os.path.join(path, "checkpoints")
  return integrity.read_meta(checkpoints, restore.list_steps(checkpoints)[-1])


@pytest.mark.wide
def test_a_branch_equals_a_straight_run_bit_for_bit(write, tmp_path):
  trunk = 'add("trunk", {"optim.decay_frac": 0.0})'
  decay = 'add("decay", {"train.num_steps": 20}%s)'
  lost = 'add("lost", {"train.init_from": "nowhere"})'
  root, other = tmp_path / "root", tmp_path / "other"
  path = write(trunk, decay % ', branch_from=("trunk", 8)', lost)
  words = ["run", f"--config={path}", f"--workdir={root}"]
  process = start(*words)
  said = process.communicate(timeout=200)[0]
  assert process.returncode == exits.FAILED, said
  first, branch, failed = load(path).cells
  states = [folder.read(str(root), c.id) for c in (first, branch, failed)]
  assert [s.word for s in states] == ["done", "done", "failed"], said
  assert "train.init_from is 'nowhere'" in states[2].reason
  # Each step was done once: 12 of the trunk, 12 of the decay.
  log = pathlib.Path(states[1].path, "log.txt").read_text()
  assert "going on from step 8\n" in log

  process = start("run", f"--config={write(decay % '')}", f"--workdir={other}")
  assert process.wait(timeout=200) == 0
  straight = folder.path_of(str(other), branch.id)
  a, b = map(newest_meta, (states[1].path, straight))
  assert a["step"] == b["step"] == 20 and a["checksum"] == b["checksum"]
  assert losses_of(states[1].path) == losses_of(straight)
  assert states[1].final == folder.read_path(straight).final
  # The control: the trunk's own end is another state.
  assert newest_meta(states[0].path)["checksum"] != a["checksum"]

  # Finished, it says so at once: without jax, which takes a second to import.
  write(trunk, decay % ', branch_from=("trunk", 8)')
  code = (
    "import sys; from gpt_jax.lab import sweep; code = sweep.main(sys.argv[1:])"
    "; assert 'jax' not in sys.modules and code == 0"
  )
  started = time.monotonic()
  again = subprocess.run(
    [sys.executable, "-c", code, *words],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=user_env(),
  )
  assert again.returncode == 0, again.stderr
  first, second = again.stdout.splitlines()
  assert first.startswith("1 cell is in ") and second == (
    "2 cells: 2 done, 0 to run"
  )
  assert time.monotonic() - started < 5


@pytest.mark.slow
def test_twelve_cells_of_which_three_fail(write, tmp_path):
  lines = [
    "for i in range(9):",
    '  add(f"good {i}", seed=i)',
    'add("bad", {"optim.learning_rate": RATE, "seed": 10})',
    'add("killed", {"train.num_steps": 3000, "seed": 11})',
    'add("large", {"train.global_batch_size": 4096, "seed": 12})',
  ]
  root = tmp_path / "root"
  spell = lambda rate, *more: write(
    *(line.replace("RATE", rate) for line in lines), *more
  )
  path = spell("-1.0")
  words = [f"--config={path}", f"--workdir={root}"]
  sweep = load(path)
  ids = {cell.name: cell.id for cell in sweep.cells}
  process = start("run", *words, "--workers=2", "--memory=1.2")
  killed = pathlib.Path(folder.path_of(str(root), ids["killed"]))
  deadline = time.monotonic() + 400
  while not (killed / "metrics.jsonl").exists():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.1)
  held = json.loads((killed / "running.json").read_text())
  os.kill(held["pid"], signal.SIGKILL)
  said = process.communicate(timeout=400)[0]
  assert process.returncode == exits.FAILED, said
  states = {name: folder.read(str(root), i) for name, i in ids.items()}
  done = [name for name, state in states.items() if state.word == "done"]
  assert done == [f"good {i}" for i in range(9)], said
  assert "refused: bad seed 10: optim.learning_rate is -1.0" in said
  assert states["killed"].reason.startswith("killed by SIGKILL")
  assert states["large"].reason.startswith("out of memory")
  print(said)

  # Mended: another value, more memory, and once more.
  path = spell("0.01")
  ids = {cell.name: cell.id for cell in load(path).cells}
  for name in ("bad", "killed", "large"):
    only = f"--only={ids[name]}"
    process = start("run", *words, "--retry", only)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0 and "1 to run" in said, said
    print(said)
  started = time.monotonic()
  process = start("run", *words)
  said = process.communicate(timeout=60)[0]
  assert process.returncode == 0 and "12 cells: 12 done, 0 to run" in said
  seconds = time.monotonic() - started
  print(f"again: {seconds:.2f} s")
  assert seconds < 5

  # Two more values, on two machines, and their folders together.
  times = {
    i: os.stat(folder.path_of(str(root), i)).st_mtime_ns for i in ids.values()
  }
  path = spell("0.01", 'add("more", seed=20)', 'add("yet more", seed=21)')
  new = {c.name: c.id for c in load(path).cells if c.id not in ids.values()}
  assert set(new) == {"more", "yet more"}
  other = tmp_path / "other"
  process = start("run", *words, f"--only={new['more']}")
  assert process.wait(timeout=200) == 0
  there = [words[0], f"--workdir={other}", f"--only={new['yet more']}"]
  process = start("run", *there)
  assert process.wait(timeout=200) == 0
  shutil.copytree(other / "cells", root / "cells", dirs_exist_ok=True)
  process = start("run", *words)
  said = process.communicate(timeout=60)[0]
  assert process.returncode == 0 and "14 cells: 14 done, 0 to run" in said
  for i, changed in times.items():
    assert os.stat(folder.path_of(str(root), i)).st_mtime_ns == changed


def test_workers_have_cores_of_their_own(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5})
  assert pool.share_cores(2) == [{0, 3}, {2, 5}]
  assert pool.share_cores(4) == [{0}, {2}, {3}, {5}]
  # One has all; more than there are cores share them.
  assert pool.share_cores(1) == pool.share_cores(5) == []
