"""Real SLURM, real preemption: bash tests/slurm/prove.sh.

A cluster of one node with two CPUs is started on this machine (cluster.sh). A
run of two processes is submitted as a user does, and a job of the partition
`high` takes its place. Nothing here signals the trainer: SLURM does.

What happened is written to $GPT_JAX_SLURM_LOG, with the time of each change.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CLUSTER = ["bash", ROOT / "tests/slurm/cluster.sh"]
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=PATH)]
SECONDS = 300
# Enough for SLURM to notice the other job before the run is finished.
STEPS = 250

pytestmark = [
  pytest.mark.slow,
  pytest.mark.slurm,
  pytest.mark.skipif(
    bool(ABSENT), reason=f"SLURM is not installed: no {', '.join(ABSENT)}"
  ),
]


class Log:
  """Lines with the time since the start, to the terminal and to a file."""

  def __init__(self, path: str | None):
    self.began = time.monotonic()
    self.file = open(path, "a") if path else None

  def say(self, text: str) -> None:
    for line in text.splitlines():
      line = f"{time.monotonic() - self.began:6.1f} s  {line}"
      print(line, flush=True)
      if self.file:
        print(line, file=self.file, flush=True)


class Cluster:
  """Commands of SLURM on a cluster of this test's own."""

  def __init__(self, folder: pathlib.Path, log: Log):
    self.folder, self.log, self.seen = folder, log, {}
    drop = ("XLA_FLAGS", "JAX_PLATFORMS")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env = {k: v for k, v in env.items() if not k.startswith("SLURM_")}
    self.env = env | {
      "PATH": PATH,
      "SLURM_CONF": str(folder / "slurm.conf"),
      "JAX_PLATFORMS": "cpu",
    }

  def call(self, *words) -> str:
    result = subprocess.run(
      [str(word) for word in words],
      cwd=ROOT,
      env=self.env,
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

  def submit(self, *words, args: list[str], name: str) -> str:
    """Submits a run; returns the job's id."""
    words = ["launch/slurm.sh", "--parsable", f"--job-name={name}", *words]
    words += [f"--output={self.folder}/{name}.out"]
    line = " ".join(["bash", *words, "-- ..."])
    job = self.call("bash", *words, "--", *args).strip().split(";")[0]
    self.log.say(f"$ {line}\n  job {job}")
    return job

  def occupy(self, seconds: int) -> str:
    """Submits a job to `high` that wants all of the node."""
    words = ["--parsable", "--partition=high", "--ntasks=2"]
    words += ["--job-name=urgent", "--output=/dev/null"]
    job = self.call("sbatch", *words, f"--wrap=sleep {seconds}").strip()
    self.log.say(f"$ sbatch {' '.join(words)} --wrap='sleep {seconds}'")
    self.log.say(f"  job {job}")
    return job

  def show(self, job: str) -> dict[str, str]:
    """Returns the fields of a job as SLURM shows them."""
    text = self.call("scontrol", "show", "job", "--oneliner", job)
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    state = f"{fields['JobState']} ({fields['Reason']})"
    if self.seen.get(job) != state:
      self.log.say(f"  job {job} {fields['JobName']}: {state}")
      self.seen[job] = state
    return fields

  def output(self, name: str) -> str:
    path = self.folder / f"{name}.out"
    return path.read_text() if path.exists() else ""

  def until(self, what: str, is_true, *jobs: str):
    """Looks at the jobs until something holds; fails after SECONDS."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
      for job in jobs:
        self.show(job)
      found = is_true()
      if found:
        return found
      time.sleep(0.25)
    texts = [p.read_text() for p in self.folder.glob("*.out")]
    raise AssertionError(f"waited in vain: {what}\n" + "\n".join(texts))

  def state(self, job: str) -> str:
    return self.show(job)["JobState"]

  def await_steps(self, workdir: pathlib.Path, number: int, job: str):
    def is_there():
      assert self.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), "".join(
        p.read_text() for p in self.folder.glob("*.out")
      )
      return len(rows(workdir)) >= number

    self.until(f"{number} steps", is_there)
    self.log.say(f"  {workdir.name}: step {rows(workdir)[-1]['step']}")

  def await_end(self, job: str, state: str = "COMPLETED") -> dict[str, str]:
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    self.until(f"the end of {job}", lambda: self.state(job) in ended, job)
    assert self.state(job) == state, "".join(
      p.read_text() for p in self.folder.glob("*.out")
    )
    return self.show(job)


@contextlib.contextmanager
def start_cluster(**env: str):
  """Starts a cluster and takes it down again, whatever happens."""
  # A socket's path may have 107 letters: not among pytest's folders.
  folder = pathlib.Path(tempfile.mkdtemp(prefix="gpt_jax-slurm-"))
  log = Log(os.environ.get("GPT_JAX_SLURM_LOG"))
  try:
    subprocess.run(
      [*CLUSTER, "start", folder], check=True, env=os.environ | env
    )
    yield Cluster(folder, log)
  finally:
    subprocess.run([*CLUSTER, "stop", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster():
  with start_cluster(GRACE="120") as cluster:
    yield cluster


@pytest.fixture(scope="module")
def small(tmp_path_factory, small_flags) -> list[str]:
  """Flags of a run of some seconds, of which a step takes some ms."""
  values = {
    "train.num_steps": STEPS,
    "data.seq_len": 128,
    "model.max_len": 128,
    "model.model_dim": 64,
    "train.global_batch_size": 16,
    "checkpoint.every_steps": 1000,
    "eval.every_steps": 1000,
  }
  flags = small_flags(tmp_path_factory.mktemp("slurm"))
  return [*flags, *(f"--config.{k}={v}" for k, v in values.items())]


def rows(workdir: pathlib.Path) -> list[dict]:
  """Returns the logged steps; a line that is being written is left out."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return [row for row in map(json.loads, lines) if "train/loss" in row]


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
  return [(row["step"], row["train/loss"]) for row in rows(workdir)]


def said(pattern: str, text: str) -> list[str]:
  return re.findall(pattern, text, re.M)


TWO = ("--partition=low", "--nodes=1", "--ntasks=2")


def test_a_preempted_run_of_two_processes_goes_on_and_ends_as_if_it_never_was(
  cluster, small, tmp_path
):
  run, straight = tmp_path / "preempted", tmp_path / "straight"
  say = cluster.log.say
  say("A run of two processes, preempted by a job of the partition high:")
  job = cluster.submit(*TWO, args=[*small, f"--workdir={run}"], name="low")
  cluster.await_steps(run, 10, job)
  assert cluster.state(job) == "RUNNING"
  urgent = cluster.occupy(5)
  assert cluster.state(urgent) == "PENDING"
  cluster.until(
    "the urgent job", lambda: cluster.state(urgent) == "RUNNING", job, urgent
  )
  assert cluster.state(job) == "PENDING"
  (stopped,) = said(
    rf"^stopped at step (\d+) of {STEPS}, saved", cluster.output("low")
  )
  assert 10 <= int(stopped) < STEPS
  assert len(rows(run)) == int(stopped)
  say(f"  saved at step {stopped}, {len(rows(run))} steps logged")
  cluster.await_end(urgent)
  fields = cluster.await_end(job)
  output = cluster.output("low")
  assert fields["ExitCode"] == "0:0" and fields["Restarts"] == "1"
  starts = said(r"^gpt_jax: job \d+, start (\d), tasks: (\d)", output)
  assert starts == [("1", "2"), ("2", "2")]
  assert said(r"^going on from step (\d+)$", output) == [stopped]
  say(
    f"  went on from step {stopped} and finished: step {rows(run)[-1]['step']}"
  )

  say("The same run, left alone:")
  alone = cluster.submit(
    *TWO, args=[*small, f"--workdir={straight}"], name="straight"
  )
  assert cluster.await_end(alone)["Restarts"] == "0"
  here, there = losses(run), losses(straight)
  assert [step for step, _ in here] == list(range(1, STEPS + 1))
  # Written in decimals that tell every float32 from its neighbours.
  assert here == there
  say(
    f"  the same {len(here)} losses, to the last bit: {here[-1][1]} at the end"
  )
  say("The control, another seed:")
  other = tmp_path / "other"
  args = [*small, "--config.seed=1", f"--workdir={other}"]
  job = cluster.submit(*TWO, args=args, name="other")
  cluster.await_steps(other, 10, job)
  cluster.call("scancel", job)
  assert losses(other)[:10] != there[:10]
  say("  other losses")
  say("What the job has printed, of both starts:\n" + output)


def test_a_cancelled_run_saves_and_is_not_requeued(cluster, small, tmp_path):
  cluster.log.say("A run that its user cancels:")
  run = tmp_path / "cancelled"
  job = cluster.submit(*TWO, args=[*small, f"--workdir={run}"], name="cancel")
  cluster.await_steps(run, 10, job)
  cluster.call("scancel", job)
  cluster.await_end(job, "CANCELLED")
  cluster.until("its shell", lambda: not cluster.call("squeue", "-h"), job)
  output = cluster.output("cancel")
  assert said(rf"^stopped at step \d+ of {STEPS}, saved", output), output
  assert cluster.show(job)["Restarts"] == "0"
  assert "back into the queue" not in output


def test_each_cell_of_an_array_is_a_run_of_its_own(cluster, small, tmp_path):
  cluster.log.say("An array of two cells:")
  cells = tmp_path / "cells"
  folders = [tmp_path / "a", tmp_path / "b c"]
  cells.write_text(
    "# seeds\n"
    f"--config.seed=1 --workdir={folders[0]}\n\n"
    f"--config.seed=2 '--workdir={folders[1]}'\n"
  )
  args = [*small, "--config.train.num_steps=8"]
  job = cluster.submit(
    f"--cells={cells}", "--ntasks=1", args=args, name="cell-%a"
  )
  for index in (0, 1):
    cluster.await_end(f"{job}_{index}")
  for seed, folder in enumerate(folders, 1):
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["seed"] == seed
    assert len(rows(folder)) == 8


def test_a_run_is_saved_where_preemption_gives_no_grace(small, tmp_path):
  with start_cluster(GRACE="0", KILL_WAIT="60") as cluster:
    cluster.log.say("A run that is preempted without time of grace:")
    run = tmp_path / "run"
    job = cluster.submit(*TWO, args=[*small, f"--workdir={run}"], name="hard")
    cluster.await_steps(run, 10, job)
    urgent = cluster.occupy(1)
    fields = cluster.await_end(job)
    assert cluster.state(urgent) == "COMPLETED"
    output = cluster.output("hard")
    (stopped,) = said(rf"^stopped at step (\d+) of {STEPS}, saved", output)
    assert said(r"^going on from step (\d+)$", output) == [stopped]
    assert fields["Restarts"] == "1"
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
