"""A run that is killed and resumed is the run that was never killed.

Real processes, real checkpoints: parameters, moments and every logged loss are
compared bit for bit, through the files that the runs leave.
"""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from harness import ROOT, user_env

from gpt_jax import exits, metric_names, sharding, tree
from gpt_jax.machine import signals
from gpt_jax.models import build_model
from gpt_jax.runs import checkpoint, metrics, restore
from gpt_jax.runs import workdir as workdir_lib
from gpt_jax.training import optim, state


def final_leaves(workdir) -> dict[str, np.ndarray]:
  """Reads the newest checkpoint of a run back, on one device."""
  config = workdir_lib.read_config(str(workdir), {"mesh.data": "1"})
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  model = build_model(config.model)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  abstract = state.abstract_state(model, tx, config, mesh)
  keeper = checkpoint.Checkpointer(
    str(workdir / "checkpoints"), config.checkpoint, {}
  )
  restored, _ = keeper.restore(abstract)
  keeper.close()
  return {
    k: np.asarray(v) for k, v in tree.flatten_with_names(restored).items()
  }


def logged(workdir, name: str = metric_names.LOSS) -> list[tuple[int, float]]:
  rows = metrics.read_rows(str(workdir / "metrics.jsonl"))
  return [(r["step"], r[name]) for r in rows if name in r]


def start_and_kill(start, flags, workdir, step: int, sent=signal.SIGKILL):
  """Starts a run and sends it a signal once `step` is saved.

  Args:
    start: the nursery's, or one that returns a subprocess.Popen.
  """
  process = start("train", *flags, f"--workdir={workdir}")
  folder = workdir / "checkpoints"
  deadline = time.monotonic() + 90
  keeper = lambda: restore.list_steps(str(folder))
  while step not in keeper():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, "no checkpoint came"
    time.sleep(0.005)
  process.send_signal(sent)
  out, err = process.communicate(timeout=60)
  return process.returncode, f"{err}{out}"


# Long enough that a kill lands before the end.
LAST = 140
SLOW = [
  f"--config.train.num_steps={LAST}",
  "--config.checkpoint.every_steps=40",
  "--config.eval.every_steps=20",
  "--config.eval.num_batches=2",
]


def test_a_killed_and_resumed_run_is_the_straight_run_bit_for_bit(
  small_run, nursery, fork_verb, tmp_path
):
  straight, broken, other = (tmp_path / n for n in ("a", "b", "c"))
  flags = [*small_run, *SLOW, "--config.model.dropout_rate=0.1"]
  # A kill in the second stage of three, and one more to come.
  flags += [
    "--config.train.ema_decay=0.9",
    "--config.train.batch_ramp=4@20+2@80",
    "--config.train.num_microbatches=2",
  ]
  fork_verb("gpt_jax.train", *flags, f"--workdir={straight}", check=0)
  code, _ = start_and_kill(nursery.start, flags, broken, 40)
  assert code == -signal.SIGKILL
  assert len(logged(broken)) < LAST
  result = fork_verb("gpt_jax.train", *flags, f"--workdir={broken}", check=0)
  assert "going on from step" in result.stdout
  assert logged(broken) == logged(straight)
  name = metric_names.eval_name("valid", "loss")
  average = metric_names.eval_name("valid", "ema_loss")
  for each in (name, average, metric_names.BATCH_HASH):
    assert logged(broken, each) == logged(straight, each)
  assert [s for s, _ in logged(straight, name)] == list(range(20, LAST + 1, 20))
  assert logged(straight, average) != logged(straight, name)
  hashes = [value for _, value in logged(straight, metric_names.BATCH_HASH)]
  assert len(set(hashes)) == len(hashes) == LAST  # no batch comes twice
  a, b = final_leaves(straight), final_leaves(broken)
  assert a.keys() == b.keys()
  assert any(name.startswith("ema/") for name in a)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)

  # The control: another seed is another run, from its first step on.
  few = ["--config.train.num_steps=6", "--config.train.batch_ramp=4@5"]
  few += ["--config.seed=1", f"--workdir={other}"]
  fork_verb("gpt_jax.train", *flags, *few, check=0)
  assert logged(other)[0] != logged(straight)[0]


@pytest.mark.wide
def test_a_run_resumes_on_another_number_of_devices(
  small_run, nursery, fork_verb, call_verb, tmp_path
):
  straight, moved = tmp_path / "a", tmp_path / "b"
  # Evaluations keep the end away until the kill has come.
  flags = [*small_run, "--config.train.num_steps=60"]
  flags += ["--config.eval.every_steps=6", "--config.eval.num_batches=8"]
  result = call_verb("train", *flags, f"--workdir={straight}")
  assert result.returncode == 0, result.stderr
  flags.append("--config.mesh.fsdp=4")
  more = ["--devices=8", "--config.mesh.data=2"]
  code, _ = start_and_kill(nursery.start, [*flags, *more], moved, 17)
  assert code == -signal.SIGKILL and len(logged(moved)) < 60
  result = fork_verb(
    "gpt_jax.train", *flags, f"--workdir={moved}", devices=4, check=0
  )
  assert "going on from step" in result.stdout
  there, here = logged(straight), logged(moved)
  assert [s for s, _ in there] == [s for s, _ in here]
  np.testing.assert_allclose(
    [v for _, v in there], [v for _, v in here], rtol=1e-5
  )


@pytest.mark.parametrize(
  "sent, expected",
  [
    (signal.SIGINT, exits.INTERRUPTED),
    (signal.SIGTERM, exits.PREEMPTED),
  ],
)
def test_a_signal_saves_says_how_to_go_on_and_exits(
  small_run, nursery, tmp_path, sent, expected
):
  workdir, flags = tmp_path / "run", [*small_run, *SLOW]
  code, output = start_and_kill(nursery.start, flags, workdir, 40, sent)
  assert code == expected
  last = output.strip().splitlines()[-1]
  assert last.startswith("stopped at step ") and "--workdir" in last
  assert "Traceback" not in output
  step = int(last.split()[3].replace(",", ""))
  assert restore.list_steps(str(workdir / "checkpoints"))[-1] == step


def test_only_a_second_ctrl_c_gives_up_saving(monkeypatch):
  ended = []
  monkeypatch.setattr(os, "_exit", ended.append)
  stop = signals.Stop("the command")
  stop.wait_for()
  try:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    deadline = time.monotonic() + 10
    while not ended:
      assert time.monotonic() < deadline
      time.sleep(0.001)
    # What a shell is told is how it was asked to end first.
    assert stop.code == exits.PREEMPTED and ended == [exits.INTERRUPTED]
  finally:
    stop.close()


@pytest.mark.wide
def test_a_signal_saves_though_nobody_listens_any_more(small_run, tmp_path):
  """Its output goes to a pipe that has no reader, standard error is closed."""
  workdir = tmp_path / "run"
  reader, writer = os.pipe()
  os.close(reader)
  start = lambda verb, *words: subprocess.Popen(
    [sys.executable, "-m", f"gpt_jax.{verb}", *words],
    cwd=ROOT,
    env=user_env(),
    stdout=writer,
    preexec_fn=lambda: os.close(2),
  )
  flags = [*small_run, *SLOW]
  code, _ = start_and_kill(start, flags, workdir, 40, signal.SIGHUP)
  os.close(writer)
  assert code == exits.PREEMPTED
  rows = metrics.read_rows(str(workdir / "metrics.jsonl"))
  saved = restore.list_steps(str(workdir / "checkpoints"))[-1]
  assert 40 <= saved == max(row["step"] for row in rows) < LAST


@pytest.mark.wide
def test_a_finished_run_says_so_and_a_lost_report_is_made_up(
  small_run, call_verb, tmp_path
):
  workdir = tmp_path / "run"
  flags = [*small_run, f"--workdir={workdir}"]
  flags.append("--config.train.num_steps=10")
  assert call_verb("train", *flags).returncode == 0
  again = call_verb("train", *flags)
  assert again.returncode == 0 and "this run is finished" in again.stdout
  (workdir / "plots" / "loss.svg").unlink()
  again = call_verb("train", *flags)
  assert again.returncode == 0 and "bits per byte" in again.stdout
  assert (workdir / "plots" / "loss.svg").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_in_one_line(
  small_run, nursery, tmp_path, sent
):
  run = nursery.start("train", *small_run, f"--workdir={tmp_path / 'run'}")
  while "compiling" not in (run.folder / "out").read_text():
    assert run.is_running()
    time.sleep(0.005)
  run.signal(sent)
  ended = run.wait(60)
  rest = (ended.err + ended.out).strip().splitlines()
  code = {signal.SIGINT: 130, signal.SIGTERM: 75}[sent]
  assert ended.code == code, rest
  assert rest[-1].startswith("stopped before the first step; start again with")
  assert not any("Traceback" in line for line in rest)
