"""What launch/slurm.sh decides, on real SLURM: bash tests/slurm/prove.sh.

A stand-in for the trainer notes each signal, so that one too many is seen: the
trainer would end before it has saved.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CLUSTER = ROOT / "tests/slurm/cluster.sh"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=PATH)]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.slurm,
  pytest.mark.skipif(
    bool(ABSENT), reason=f"SLURM is not installed: no {', '.join(ABSENT)}"
  ),
]

# Ends by itself when started again; when told to stop it saves for a second,
# and a second time would end it before.
STAND_IN = f"""#!{sys.executable}
import os, signal, sys, time
told = []
def note(number, frame):
  told.append(number)
  if len(told) > 1:
    print("told twice", flush=True)
    os._exit(9)
signal.signal(signal.SIGTERM, note)
print("words", sys.argv[1:], flush=True)
if "--fails" in sys.argv:
  sys.exit(3)
end = time.time() + (1 if os.environ.get("SLURM_RESTART_COUNT") else 60)
while time.time() < end and not told:
  time.sleep(0.05)
if told:
  time.sleep(1)
  print("saved", flush=True)
  sys.exit(75)
print("finished", flush=True)
"""


class Cluster:
  """A SLURM of one node, and what it said when."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.began = time.monotonic()
    self.env = os.environ | {
      "SLURM_CONF": str(folder / "slurm.conf"),
      "PATH": PATH,
    }

  def tell(self, line: str) -> None:
    print(f"{time.monotonic() - self.began:6.1f} s  {line}", flush=True)

  def call(self, *words: str, **env: str) -> str:
    process = subprocess.run(
      [str(word) for word in words],
      cwd=ROOT,
      env=self.env | env,
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert process.returncode == 0, (words, process.stdout, process.stderr)
    return process.stdout

  def submit(self, *words: str, **env: str) -> str:
    """Returns the number of the job that the command submitted."""
    self.tell("$ " + " ".join(map(str, words)))
    said = self.call(*words, **env).strip().splitlines()[-1]
    self.tell(said)
    return said.split()[-1]

  def show(self, job: str) -> dict[str, str]:
    text = self.call("scontrol", "show", "job", "--oneliner", job)
    return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

  def wait(self, what: str, is_so, jobs: tuple[str, ...], seconds=300) -> None:
    """Waits until `is_so()`, telling every change of the jobs' states."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
      states = [(job, self.show(job)) for job in jobs]
      line = "; ".join(
        f"job {job} {s['JobState']} ({s['Reason']}), restarts {s['Restarts']}"
        for job, s in states
      )
      if line != last:
        self.tell(line)
        last = line
      if is_so():
        return
      assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
      time.sleep(0.2)

  def wait_for_state(self, job: str, state: str, *others: str) -> None:
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def has_come() -> bool:
      now = self.show(job)["JobState"]
      assert now == state or now not in ends, f"job {job} is {now}"
      return now == state

    self.wait(f"job {job} {state}", has_come, (job, *others))


@pytest.fixture(scope="module")
def cluster():
  # A socket's path may have 107 letters: not among pytest's folders.
  folder = pathlib.Path(tempfile.mkdtemp(prefix="gpt_jax-slurm-"))
  cluster = Cluster(folder)
  try:
    cluster.call("bash", CLUSTER, "start", folder)
    yield cluster
  finally:
    cluster.call("bash", CLUSTER, "stop", folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stand_in(tmp_path) -> str:
  path = tmp_path / "stand_in"
  path.write_text(STAND_IN)
  path.chmod(0o755)
  return str(path)


def test_jobs_of_an_array_are_requeued_each_alone(cluster, stand_in, tmp_path):
  cells = tmp_path / "cells"
  cells.write_text("# two\n--seed=0 --prompt='a  b'\n\n--seed=1 --prompt=c\n")
  array = cluster.submit(
    "sbatch",
    "--array=0-1",
    f"--output={tmp_path}/%a.out",
    "launch/slurm.sh",
    f"--cells={cells}",
    "--all",
    GPT_JAX_PYTHON=stand_in,
  )
  jobs = [f"{array}_0", f"{array}_1"]
  outs = [tmp_path / "0.out", tmp_path / "1.out"]
  read = lambda: [out.read_text() if out.exists() else "" for out in outs]
  ready = lambda: all("words" in text for text in read())
  cluster.wait("both have started", ready, (array,))
  # The later one has the array's own number.
  assert array in [cluster.show(job)["JobId"] for job in jobs]
  first = next(job for job in jobs if cluster.show(job)["JobId"] == array)
  cluster.call("scancel", "--signal=TERM", first)
  is_told = lambda: cluster.show(first)["Restarts"] == "1"
  cluster.wait("one is requeued", is_told, (first,))
  other = next(job for job in jobs if job != first)
  state = cluster.show(other)
  assert (state["JobState"], state["Restarts"]) == ("RUNNING", "0")
  cluster.call("scancel", "--signal=TERM", other)
  for job in jobs:
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.show(job)["Restarts"] == "1"
  for text, words in zip(
    read(),
    ("'--seed=0', '--prompt=a  b'", "'--seed=1', '--prompt=c'"),
    strict=True,
  ):
    assert text.count(f"['-m', 'gpt_jax.train', '--all', {words}]") == 2
    assert text.count("saved") == text.count("finished") == 1
    assert "told twice" not in text


@pytest.mark.parametrize("signal", ["TERM", "B:TERM"])
def test_before_the_time_limit_it_saves_and_is_requeued(
  cluster, stand_in, tmp_path, signal
):
  out = tmp_path / "out"
  job = cluster.submit(
    "sbatch",
    "--ntasks=2",
    "--time=1",
    f"--signal={signal}@58",
    f"--output={out}",
    "launch/slurm.sh",
    GPT_JAX_PYTHON=stand_in,
  )
  cluster.wait_for_state(job, "COMPLETED")
  text = out.read_text()
  assert text.count("saved") == text.count("finished") == 2
  assert "told twice" not in text
  assert cluster.show(job)["Restarts"] == "1"


def test_what_is_cancelled_saves_and_stays_so(cluster, stand_in, tmp_path):
  out = tmp_path / "out"
  job = cluster.submit(
    "sbatch",
    "--ntasks=2",
    f"--output={out}",
    "launch/slurm.sh",
    GPT_JAX_PYTHON=stand_in,
  )
  ready = lambda: out.exists() and out.read_text().count("words") == 2
  cluster.wait("both tasks have started", ready, (job,))
  cluster.call("scancel", job)
  cluster.wait_for_state(job, "CANCELLED")
  time.sleep(7)  # longer than a requeued job waits
  assert cluster.show(job)["JobState"] == "CANCELLED"
  assert cluster.show(job)["Restarts"] == "0"
  assert out.read_text().count("saved") == 2
  assert "told twice" not in out.read_text()


def test_what_fails_is_not_requeued(cluster, stand_in, tmp_path):
  job = cluster.submit(
    "sbatch",
    "--ntasks=2",
    f"--output={tmp_path}/out",
    "launch/slurm.sh",
    "--fails",
    GPT_JAX_PYTHON=stand_in,
  )
  cluster.wait_for_state(job, "FAILED")
  assert cluster.show(job)["ExitCode"] == "3:0"
  assert cluster.show(job)["Restarts"] == "0"
