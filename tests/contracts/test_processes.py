"""Several processes are one run: the same losses, one voice, one end.

Real processes that meet over TCP and compute over gloo. What goes wrong in one
of them ends all of them, in a sentence; nothing is left waiting.
"""

import functools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import labelled
import numpy as np
import pytest
from harness import ROOT, logged, user_env

from gpt_jax import exits, metric_names
from gpt_jax.runs import restore

# Enough that a signal lands before the end.
STEPS = 30


class Team:
  """N processes of one command, from the nursery.

  Args:
    words_of: {index: further words}.
    cwd_of: {index: folder}.
    code_of: {index: folder}, whose code a new interpreter runs there.
    before: Python that each runs first.
  """

  def __init__(
    self,
    nursery,
    count,
    verb,
    *words,
    words_of=types.MappingProxyType({}),
    cwd_of=types.MappingProxyType({}),
    code_of=types.MappingProxyType({}),
    before="",
    **env,
  ):
    with socket.create_server(("127.0.0.1", 0)) as server:
      port = server.getsockname()[1]
    env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    env["JAX_NUM_PROCESSES"] = str(count)
    self.running = []
    for index in range(count):
      own = env | {"JAX_PROCESS_ID": str(index)}
      its = [*map(str, words), *words_of.get(index, [])]
      if index in code_of:
        process = subprocess.Popen(
          [sys.executable, "-m", f"gpt_jax.{verb}", *its],
          cwd=code_of[index],
          env=user_env() | own,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      else:
        cwd = str(cwd_of.get(index, ROOT))
        more = dict(env=own, cwd=cwd, before=before)
        process = nursery.start(verb, *its, **more)
      self.running.append(process)

  def end(self, seconds: float = 240, without=()):
    """Returns (codes, standard outputs, standard errors)."""
    try:
      chosen = [p for i, p in enumerate(self.running) if i not in without]
      ended = [process.communicate(timeout=seconds) for process in chosen]
      codes = [process.returncode for process in chosen]
      return codes, [out for out, _ in ended], [err for _, err in ended]
    finally:
      for process in self.running:
        process.kill()

  def await_checkpoint(self, workdir, step: int) -> None:
    deadline = time.monotonic() + 240
    while step not in restore.list_steps(str(workdir / "checkpoints")):
      if any(process.poll() is not None for process in self.running):
        raise AssertionError(self.end())
      assert time.monotonic() < deadline, "no checkpoint came"
      time.sleep(0.005)


def assert_same_losses(there, here) -> None:
  for name in (metric_names.LOSS, metric_names.eval_name("valid", "loss")):
    a, b = logged(there, name), logged(here, name)
    assert a.keys() == b.keys() and len(a) > 1
    np.testing.assert_allclose([*b.values()], [*a.values()], rtol=1e-5)


def last_line(text: str) -> str:
  return text.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, small_flags) -> list[str]:
  more = {
    "train.num_steps": STEPS,
    "checkpoint.every_steps": 10,
    "checkpoint.keep_last": 9,
    "eval.every_steps": 15,
    "eval.num_batches": 2,
    "sample.every_steps": 100,
    "sample.num_tokens": 4,
  }
  folder = tmp_path_factory.mktemp("processes")
  return small_flags(folder) + [f"--config.{k}={v}" for k, v in more.items()]


@pytest.fixture(scope="module")
def team(nursery):
  return functools.partial(Team, nursery)


@pytest.fixture(scope="module")
def alone(nursery, flags, tmp_path_factory):
  """The workdir of the run by one process on one device."""
  workdir = tmp_path_factory.mktemp("alone")
  outcome = nursery.run("train", *flags, f"--workdir={workdir}")
  assert outcome.code == 0, outcome.err
  return workdir


@pytest.fixture(scope="module")
def together(team, flags, tmp_path_factory):
  """(workdir, standard outputs, errors) of the run by two processes."""
  # A folder whose name would be a pattern: Orbax merges what both have written.
  workdir = tmp_path_factory.mktemp("together") / "lr[3e-4]"
  words = [*flags, f"--workdir={workdir}", "--config.train.profile_steps=2"]
  words.append("--config.train.check_replicas_every_steps=7")
  codes, outs, errs = team(2, "train", *words).end()
  assert codes == [0, 0], errs
  return workdir, outs, errs


def test_two_processes_learn_what_one_does_and_one_speaks(alone, together):
  workdir, outs, errs = together
  assert_same_losses(alone, workdir)
  assert "trained 30 steps" in outs[0] and "mesh        data 2" in outs[0]
  assert (outs[1], errs) == ("", ["", ""])
  names = lambda folder: {
    re.sub(r"tfevents.*", "", str(p.relative_to(folder)))
    for p in folder.rglob("*")
    if not {"checkpoints", "profile"} & set(p.parts) and p.is_file()
  }
  assert names(workdir) == names(alone)
  for sample in alone.glob("samples/*"):
    assert (workdir / "samples" / sample.name).read_text() == sample.read_text()
  assert len([*workdir.rglob("*.xplane.pb")]) == 1
  # The control: what one step more or less would do to the comparison.
  losses = [*logged(alone).values()]
  assert not np.allclose(losses[1:], losses[:-1], rtol=1e-3)


@pytest.mark.slow
def test_a_killed_run_of_two_is_gone_on_with_by_four(
  team, flags, alone, tmp_path
):
  words = [*flags, f"--workdir={tmp_path}"]
  two = team(2, "train", *words)
  two.await_checkpoint(tmp_path, 10)
  two.running[1].kill()
  codes, _, errs = two.end()
  assert codes == [exits.PREEMPTED, -signal.SIGKILL]
  assert last_line(errs[0]).startswith("gpt_jax: process 1 of 2 disappeared")
  before = logged(tmp_path)
  assert 10 <= len(before) < STEPS
  axes = ["--config.mesh.data=1", "--config.mesh.tensor=2"]
  four = team(4, "train", *words, *axes, "--config.mesh.fsdp=2")
  codes, outs, errs = four.end()
  assert codes == [0] * 4, errs
  assert "going on from step" in outs[0] and outs[1:] == [""] * 3
  assert "fsdp 2 x tensor 2" in outs[0]
  assert_same_losses(alone, tmp_path)


@pytest.mark.wide
def test_the_survivors_of_process_0_end_with_a_sentence(team, flags, tmp_path):
  group = team(2, "train", *flags, f"--workdir={tmp_path}")
  group.await_checkpoint(tmp_path, 10)
  group.running[0].kill()
  codes, _, errs = group.end()
  assert codes == [-signal.SIGKILL, exits.PREEMPTED]
  assert last_line(errs[1]).startswith(
    "gpt_jax: process 1: process 0 of 2 disappeared"
  )


def test_a_signal_to_one_stops_all_at_one_step(team, flags, alone, tmp_path):
  words = [*flags, f"--workdir={tmp_path}"]
  group = team(2, "train", *words)
  group.await_checkpoint(tmp_path, 10)
  group.running[1].send_signal(signal.SIGTERM)
  codes, outs, errs = group.end()
  assert codes == [exits.PREEMPTED] * 2, errs
  said = last_line(outs[0])
  assert said.startswith("stopped at step ") and outs[1] == ""
  step = int(said.split()[3])
  assert restore.list_steps(str(tmp_path / "checkpoints"))[-1] == step
  assert max(logged(tmp_path)) == step < STEPS
  assert "Traceback" not in "".join(errs)


# A step may take seconds on a busy machine, and a run then waits ten times as
# long: time counts from when the test says so, and against the floor alone.
PATIENT = """
import os
from gpt_jax.machine import watchdog

is_stuck = watchdog.Progress.is_stuck

def is_stuck_since(self, extra=0.0):
  self.longest = 0.0
  if os.path.exists({}):
    return is_stuck(self, extra)
  self.waited = 0.0
  return False

watchdog.Progress.is_stuck = is_stuck_since
"""


@pytest.mark.wide
def test_a_process_that_is_stuck_is_noticed(team, flags, tmp_path):
  is_stopped = tmp_path / "stopped"
  two = team(
    2,
    "train",
    *flags,
    f"--workdir={tmp_path / 'run'}",
    GPT_JAX_STUCK_SECONDS="3",
    before=PATIENT.format(repr(str(is_stopped))),
  )
  two.await_checkpoint(tmp_path / "run", 10)
  two.running[1].send_signal(signal.SIGSTOP)
  is_stopped.touch()
  codes, _, errs = two.end(without=[1])
  assert codes == [exits.PREEMPTED]
  said = last_line(errs[0])
  assert said.startswith("gpt_jax: no step has ended for ")
  assert "process 0 is at step " in said and "process 1 has been silent" in said


@pytest.mark.wide
@pytest.mark.parametrize(
  "verb, words",
  [
    ("evaluate", ["--json"]),
    ("generate", ["--prompt=a", "--prompt=def train(", "--num_tokens=20"]),
  ],
)
def test_what_reads_a_run_prints_once_and_the_same(
  team, together, call_verb, verb, words
):
  words = [f"--workdir={together[0]}", *words]
  codes, outs, errs = team(2, verb, *words).end()
  assert (codes, errs, outs[1]) == ([0, 0], ["", ""], "")
  single = call_verb(verb, *words).stdout
  if verb == "evaluate":
    there, here = json.loads(single), json.loads(outs[0])
    assert there.keys() == here.keys()
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
    assert here["num_tokens"] == there["num_tokens"]
  else:
    assert outs[0] == single and len(single) > 20


def refused(group: Team, *said: str, seconds: float = 30) -> None:
  """All processes exit with 2 and say so in one line with all of `said`."""
  codes, outs, errs = group.end(seconds)
  assert codes == [2] * len(codes), errs
  for out, err in zip(outs, errs, strict=True):
    assert out == "" and err.count("\n") == 1, err
    assert err.startswith("gpt_jax: ")
    for words in said:
      assert words in err


def test_different_configs_are_refused_by_all(team, flags, tmp_path):
  own = {1: ["--config.optim.learning_rate=0.5", "--config.seed=7"]}
  words = [*flags, f"--workdir={tmp_path / 'run'}"]
  refused(
    team(2, "train", *words, words_of=own),
    "started differently: seed (7 in process 1, 0 in process 0)",
    "optim.learning_rate (0.5 in process 1, 0.008 in process 0)",
  )
  assert not (tmp_path / "run").exists()


def test_different_code_is_refused_by_all(team, flags, tmp_path):
  for name in ("gpt_jax", "configs"):
    shutil.copytree(
      ROOT / name,
      tmp_path / name,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  words = [*flags, f"--workdir={tmp_path / 'run'}"]
  with open(tmp_path / "gpt_jax" / "objective.py", "a") as file:
    file.write("# another line\n")
  refused(
    team(2, "train", *words, code_of={1: tmp_path}), "the code of gpt_jax ("
  )
  # The control: another place of the same code is the same code.
  shutil.copy(ROOT / "gpt_jax" / "objective.py", tmp_path / "gpt_jax")
  own = {1: ["--config.seed=7"]}
  group = team(2, "train", *words, code_of={1: tmp_path}, words_of=own)
  codes, _, errs = group.end()
  assert codes == [2, 2] and "the code of" not in "".join(errs)


@pytest.mark.wide
def test_a_coordinator_that_never_answers_is_named_in_time(
  team, flags, tmp_path
):
  words = [*flags, f"--workdir={tmp_path / 'run'}"]
  for index, said in (
    (1, "process 1 of 2 got no answer from process 0 at 127.0.0.1:"),
    (0, "1 of 2 processes did not connect to 127.0.0.1:"),
  ):
    group = team(2, "train", *words, GPT_JAX_JOIN_SECONDS="2")
    other = group.running.pop(1 - index)
    other.kill()
    other.communicate()
    started = time.monotonic()
    refused(group, said, "within 2 s")
    assert time.monotonic() - started < 10


def test_a_count_that_does_not_divide_the_batch_is_one_sentence(
  team, flags, tmp_path
):
  group = team(3, "train", *flags, f"--workdir={tmp_path / 'run'}")
  codes, _, errs = group.end()
  assert codes == [2] * 3
  said = [line for err in errs for line in err.splitlines()]
  assert len(said) == 1 and "on 3 devices of 3 processes" in said[0], errs
  assert "8 sequences" in said[0] and not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_all(team, flags, tmp_path):
  """Only process 1 cannot write its prepared data; process 0 says so."""
  (tmp_path / "file").write_text("")
  words = [*flags, f"--workdir={tmp_path / 'run'}"]
  words.append("--config.data.dir=prepared")
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "two" / "prepared").write_text("in the way")
  cwd = {0: tmp_path / "one", 1: tmp_path / "two"}
  codes, _, errs = team(2, "train", *words, cwd_of=cwd).end()
  assert codes == [2, 2], errs
  assert "gpt_jax: process 1: cannot write in prepared" in errs[0]


@pytest.mark.slow  # four starts of two processes or one: a minute and a half
def test_a_classifier_that_starts_from_another_is_the_same_in_two_processes(
  team, tmp_path
):
  path = labelled.write(tmp_path / "reviews.jsonl", labelled.rows(100))
  values = {
    "data.source": f"labelled:{path}",
    "data.tokenizer": "bytes",
    "data.dir": tmp_path / "prepared",
    "model.num_layers": 1,
    "optim.warmup_steps": 0,
    "train.num_steps": 3,
    "train.log_every_steps": 1,
    "train.global_batch_size": 8,
    "eval.every_steps": 1,
  }
  flags = [f"--config.{k}={v}" for k, v in values.items()]
  words = ["--config=configs/classify.py", *flags]
  first = tmp_path / "first"
  codes, _, errs = team(1, "train", *words, f"--workdir={first}").end()
  assert codes == [0], errs
  more = [*words, f"--config.train.init_from={first}"]
  for count in (1, 2):
    run = f"--workdir={tmp_path / str(count)}"
    codes, outs, errs = team(count, "train", *more, run).end()
    assert codes == [0] * count, errs
    assert "starts fresh" not in outs[0]  # the labels, and so the head, fit
  assert_same_losses(tmp_path / "1", tmp_path / "2")
