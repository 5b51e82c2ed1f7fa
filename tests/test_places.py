"""launch/ for clusters: what a dry run prints is what is done.

As in test_launch, a copy of the repo has a PATH of its own: stubs of sbatch,
gcloud and kubectl write down their arguments, so nothing real is reached. The
stub of gcloud has hosts, folders on which it really runs what ssh brings.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from test_launch import STUB, House

ROOT = pathlib.Path(__file__).parent.parent
PLACES = ("launch/slurm.sh", "launch/tpu_vm.sh", "launch/gke.sh")
FILES = (*PLACES, "launch/host.sh", "launch/gke.yaml")
TOOLS = (
  "printf",
  "wc",
  "tr",
  "git",
  "nohup",
  "xargs",
  "basename",
  "env",
  "mkfifo",
)

NOTE = """
import json, os, sys
name, *words = sys.argv[1:]
with open(os.environ["STUB_LOG"] + ".json", "a") as log:
  log.write(json.dumps([name, *words]) + "\\n")
"""
SBATCH = """#!/bin/bash
note sbatch "$GPT_JAX_PYTHON" "$@"
echo Submitted batch job 7
"""
KUBECTL = """#!/bin/bash
note kubectl "$@"
cat >"$STUB_LOG.stdin"
"""
# describe answers the lines of $STUB_LOG.states in turn, and the last for ever.
GCLOUD = r"""#!/bin/bash
note gcloud "$@"
states=$STUB_LOG.states
hosts=("$STUB_HOSTS"/*)
for word in "$@"; do
  case $word in
    --worker=0) hosts=("${hosts[0]}") ;;
    --command=*) command=${word#*=} ;;
  esac
done
case "$4 $5" in
  *' describe' | 'describe '*)
    read -r state <"$states"
    [[ $(wc -l <"$states") -eq 1 ]] || sed -i 1d "$states"
    echo "$state" ;;
  'scp '*) for host in "${hosts[@]}"; do cp "$5" "$host/${6#*:}"; done ;;
  'ssh '*)
    for host in "${hosts[@]}"; do
      (cd "$host" && HOME=$host STUB_LOG=$host/stub.log bash -c "$command")
    done ;;
esac
"""
HOSTNAME = '#!/bin/bash\nbasename "$HOME"\n'
# A trainer that runs until it is told to stop.
RUNS = "if [[ -n ${STUB_RUNS:-} && $1 == gpt_jax.train ]]; then "
RUNS += 'trap "exit 75" TERM; '
RUNS += "while :; do sleep 0.05; done; fi ;;\nesac"
TRAINER = STUB.replace("|| exit 7 ;;\nesac", f"|| exit 7\n    {RUNS}")


class Places(House):
  """A repo with a commit, and stubs of what talks to clusters."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(folder)
    for name in FILES:
      shutil.copy(ROOT / name, self.root / name)
    for tool in TOOLS:
      (self.bin / tool).symlink_to(shutil.which(tool))
    self.add_python("python3", "3.11", TRAINER)
    # Not python3 from PATH: it may be a shim, which needs that PATH.
    note = f"#!{sys.executable}\n{NOTE}"
    stubs = {"note": note, "sbatch": SBATCH, "kubectl": KUBECTL}
    for name, text in {**stubs, "gcloud": GCLOUD, "hostname": HOSTNAME}.items():
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    self.hosts = folder / "hosts"
    for name in ("host-0", "host-1"):
      (self.hosts / name).mkdir(parents=True)
    self.states("ACTIVE")
    git = ["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b"]
    (self.root / ".gitignore").write_text("/.venv/\n/runs/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a commit"]):
      subprocess.run([*git, *words], check=True)

  def states(self, *states: str) -> None:
    pathlib.Path(f"{self.log_file}.states").write_text(
      "".join(state + "\n" for state in states)
    )

  def start(self, script, *words, **env):
    env = {"STUB_HOSTS": str(self.hosts), "HOME": str(self.hosts), **env}
    env.setdefault("TMPDIR", str(self.log_file.parent))
    return super().start(script, *words, **env)

  def call(self, script: str, *words: str, code=0, **env: str):
    """Returns (stdout, stderr, the commands that reached a stub)."""
    noted = pathlib.Path(f"{self.log_file}.json")
    noted.unlink(missing_ok=True)
    out, err, _ = self.launch(*words, script=script, code=code, **env)
    lines = noted.read_text().splitlines() if noted.exists() else []
    return out, err, [json.loads(line) for line in lines]

  def stdin(self) -> str:
    return pathlib.Path(f"{self.log_file}.stdin").read_text()


@pytest.fixture
def places(tmp_path) -> Places:
  return Places(tmp_path)


def commands(text: str) -> list[list[str]]:
  """Returns the gcloud commands of a dry run, as words."""
  split = [shlex.split(line, comments=True) for line in text.splitlines()]
  return [
    [word for word in words if not word.startswith(">")]
    for words in split
    if words[0] == "gcloud"
  ]


def test_shellcheck_finds_nothing_in_any_script(tmp_path):
  beside = str(pathlib.Path(sys.executable).parent)  # of the extra dev
  shellcheck = shutil.which("shellcheck", path=beside + os.pathsep + os.defpath)
  assert shellcheck, "the extra dev is not installed: there is no shellcheck"
  scripts = [*ROOT.glob("launch/*.sh"), *ROOT.glob("tests/**/*.sh")]
  scripts.append(ROOT / ".ci" / "run")
  assert {ROOT / name for name in PLACES} <= set(scripts)
  subprocess.run([shellcheck, "-x", *scripts], check=True, cwd=ROOT)
  bad = tmp_path / "bad.sh"  # the control
  bad.write_text("#!/bin/bash\ncd $1\n")
  assert subprocess.run([shellcheck, bad], capture_output=True).returncode


# SLURM

SLURM = ["-N", "2", "--ntasks-per-node=8", "--time=60", "--job-name=a b"]
SLURM_ARGS = ["--config=configs/tiny.py", "--config.sample.prompt=f'\"$x"]


@pytest.mark.parametrize("is_array", [False, True])
def test_a_dry_run_on_slurm_prints_what_is_then_done(places, is_array):
  words, args = [*SLURM], [*SLURM_ARGS]
  if is_array:
    cells = "# c\n--config.seed=1 --workdir=runs/a\n\n'--workdir=runs/b c'"
    (places.root / "cells").write_text(cells)
    words.append("--cells=cells")
  else:
    args.append("--workdir=runs/a")
  script = "launch/slurm.sh"
  out, _, noted = places.call(script, "--dry-run", *words, "--", *args)
  assert not noted and not (places.root / ".venv").exists()
  _, _, noted = places.call(script, *words, "--", *args)
  (places.root / "printed.sh").write_text("set -e\n" + out)
  shutil.rmtree(places.root / "runs")
  _, _, again = places.call("printed.sh")
  assert again == noted and (places.root / "runs").is_dir()
  (sbatch,) = noted
  python = places.root / ".venv" / "bin" / "python"
  assert sbatch[:2] == ["sbatch", str(python)]
  array, cells = (["--array=0-1"], ["--cells=cells"]) if is_array else ([], [])
  output = ["--output=runs/slurm-%j.out"]
  assert sbatch[2:] == [*output, *array, *SLURM, script, *cells, *args]
  steps = [line for line in out.splitlines() if line.startswith("# srun")]
  ends = [["--config.seed=1", "--workdir=runs/a"], ["--workdir=runs/b c"]]
  for line, end in zip(steps, ends if is_array else [[]], strict=True):
    trainer = shlex.split(line)[4:]
    assert trainer == ["$GPT_JAX_PYTHON", "-m", "gpt_jax.train", *args, *end]


@pytest.mark.parametrize(
  "words, cells, sentence",
  [
    (["-n2", "--workdir=runs/a"], None, "there is no --"),
    (["--", "--config=a.py"], None, "there is no --workdir"),
    (["--cells=absent", "--"], None, "there is no file absent"),
    (["--cells=cells", "--"], "# nothing\n", "cells is empty"),
    (["--cells=cells", "--"], "--config.seed=1\n", "has no --workdir"),
    (["--cells=cells", "--"], "--workdir=a\n--workdir=a\n", "two lines"),
    (["--cells=cells", "--"], "'--workdir=a\n", "open quote"),
  ],
)
def test_a_mistake_on_slurm_is_one_sentence_and_submits_nothing(
  places, words, cells, sentence
):
  if cells is not None:
    (places.root / "cells").write_text(cells)
  out, err, noted = places.call("launch/slurm.sh", *words, code=1)
  assert not out and not noted
  assert sentence in err and err.count("\n") == 1


def test_slurms_copy_of_the_script_elsewhere_says_where_to_submit(places):
  copy = places.root / "spool" / "slurm_script"
  copy.parent.mkdir()
  shutil.copy(places.root / "launch/slurm.sh", copy)
  words = {"cwd": places.hosts, "SLURM_JOB_ID": "7"}
  _, err, _ = places.launch(script="spool/slurm_script", code=1, **words)
  assert "submit from there" in err


# TPU VMs

TPU = ["gpt-x", "--zone=us-z"]
TYPE = "--type=v5litepod-16"
ARGS = ["--config=configs/tiny.py", "--config.sample.prompt=def f'\"$x"]
ARGS += ["--workdir=/mnt/run"]


@pytest.mark.parametrize(
  "words",
  [
    ["run", *TPU, TYPE, "--poll=0", "--", *ARGS],
    ["run", *TPU, TYPE, "--slices=2", "--spot", "--poll=0", "--", *ARGS],
    ["run", *TPU, "--existing", "--project=p", "--poll=0", "--", *ARGS],
    ["create", *TPU, TYPE, "--version=v9", "--poll=0"],
    ["setup", *TPU, "--before=true"],
    ["delete", *TPU],
    ["delete", *TPU, "--existing"],
  ],
)
def test_a_dry_run_on_a_tpu_vm_prints_what_is_then_done(places, words):
  out, _, noted = places.call("launch/tpu_vm.sh", "--dry-run", *words)
  assert not noted and not list(places.hosts.glob("*/*"))
  printed = commands(out)
  _, _, noted = places.call("launch/tpu_vm.sh", *words)
  # A run may be asked more than once whether it has ended.
  once = lambda found: [
    c for i, c in enumerate(found) if i == 0 or c != found[i - 1]
  ]
  assert once(noted) == once(printed) and printed


def test_a_run_on_tpu_vms_ends_with_the_trainers_code_and_its_logs(places):
  words = ["run", *TPU, TYPE, "--poll=0", "--", *ARGS]
  _, err, _ = places.call("launch/tpu_vm.sh", *words)
  assert "ended with 0" in err
  for name in ("host-0", "host-1"):
    log = (places.hosts / name / "stub.log").read_text().splitlines()
    assert log[-1] == "gpt_jax.train " + " ".join(ARGS)
    assert "pip .[tpu]" in log
    line = f"{name}: pid "
    assert line in (places.root / "runs" / "gpt-x.log").read_text()
    git = ["git", "-C", places.hosts / name / "gpt_jax", "rev-parse", "HEAD"]
    here = ["git", "-C", places.root, "rev-parse", "HEAD"]
    assert subprocess.check_output(git) == subprocess.check_output(here)
  _, err, _ = places.call(
    "launch/tpu_vm.sh", *words, code=7, STUB_FAILS="gpt_jax.train"
  )
  assert "ended with 7" in err


def test_a_run_on_tpu_vms_outlives_its_start_and_stops_with_75(places):
  script, tpu = "launch/tpu_vm.sh", [*TPU, "--existing"]
  places.call(script, "setup", *tpu)
  assert places.call(script, "status", *tpu)[0].splitlines() == [
    "host-0: not started",
    "host-1: not started",
  ]
  try:
    places.call(script, "start", *tpu, "--", *ARGS, STUB_RUNS="1")
    out = ""
    for _ in range(100):
      out = places.call(script, "status", *tpu)[0]
      if out.count("running") == 2:
        break
      time.sleep(0.05)
    assert out.splitlines() == ["host-0: running", "host-1: running"]
    _, err, _ = places.call(script, "start", *tpu, "--", *ARGS, code=1)
    assert "it runs already on host-" in err
  finally:
    out, _, _ = places.call(script, "stop", *tpu)
  assert out.splitlines() == ["host-0: ended 75", "host-1: ended 75"]
  _, err, _ = places.call(script, "wait", *tpu, code=75)
  assert "ended with 75" in err


def test_create_waits_for_the_tpu_and_says_when_it_will_not_come(places):
  words = ["create", *TPU, TYPE, "--poll=0"]
  places.states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
  _, err, noted = places.call("launch/tpu_vm.sh", *words)
  assert sum("describe" in c for c in noted) == 4  # and once at its exit
  assert "gpt-x is ACTIVE and costs until it is deleted: bash launch" in err
  assert "gpt-x is PROVISIONING" in err
  places.states("FAILED")
  _, err, _ = places.call("launch/tpu_vm.sh", *words, code=1)
  assert err.count("\n") == 1 and "gpt-x is FAILED" in err


def spoil(places, pattern: str, failures: int) -> None:
  """Makes the first calls of gcloud that match this pattern fail."""
  counter = pathlib.Path(f"{places.log_file}.failures")
  counter.write_text("x" * failures)
  stub = places.bin / "gcloud"
  text = stub.read_text()
  first, rest = text.split("\n", 1)
  guard = (
    f'if [[ "$*" == {pattern} && -s "$STUB_LOG.failures" ]]; then '
    'left=$(<"$STUB_LOG.failures"); printf %s "${left%x}" '
    '>"$STUB_LOG.failures"; exit 255; fi'
  )
  stub.write_text(f"{first}\n{guard}\n{rest}")


def test_a_failed_call_while_waiting_ends_nothing(places):
  words = ["create", *TPU, TYPE, "--poll=0"]
  places.states("PROVISIONING", "ACTIVE")
  spoil(places, "*describe*", 3)
  _, err, _ = places.call("launch/tpu_vm.sh", *words)
  assert "gpt-x did not answer, 3 of 20" in err and "is PROVISIONING" in err
  # Twenty times in a row are told, and that it may cost.
  pathlib.Path(f"{places.log_file}.failures").write_text("x" * 99)
  _, err, _ = places.call("launch/tpu_vm.sh", *words, code=1)
  assert "has not told 20 times in a row" in err
  assert (
    "may cost until it is deleted: bash launch/tpu_vm.sh delete gpt-x" in err
  )


@pytest.mark.parametrize(
  "words, code, deletes",
  [(["setup", *TPU], 1, False), (["run", *TPU, TYPE, "--", *ARGS], 1, True)],
)
def test_any_exit_tells_whether_the_tpu_costs(places, words, code, deletes):
  spoil(places, "*scp*", 1)
  _, err, _ = places.call("launch/tpu_vm.sh", *words, code=255)
  assert "gpt-x is ACTIVE and costs until it is deleted: " in err
  assert "delete gpt-x --zone=us-z" in err


@pytest.mark.parametrize("restarts, runs", [(0, 1), (2, 3)])
def test_a_run_starts_again_after_75_as_often_as_it_may(places, restarts, runs):
  trainer = TRAINER.replace("|| exit 7\n", "|| exit 75\n")
  for folder in (places.bin, *places.hosts.iterdir()):
    if (folder / "python3").exists():
      (folder / "python3").write_text(trainer)
  words = ["run", *TPU, TYPE, "--poll=0", f"--restarts={restarts}", "--", *ARGS]
  _, err, noted = places.call(
    "launch/tpu_vm.sh", *words, code=75, STUB_FAILS="gpt_jax.train"
  )
  starts = [c for c in noted if any("host.sh start" in word for word in c)]
  assert len(starts) == runs and err.count("starting again") == restarts
  # The TPU was there all the time: it was requested once.
  assert sum(c[4] == "create" for c in noted) == 1
  assert "costs until it is deleted" in err


def test_a_tpu_that_was_taken_away_is_requested_again(places):
  words = ["run", *TPU, TYPE, "--poll=0", "--restarts=1", "--", *ARGS]
  # It is there, then it is gone, and at last another one is there.
  places.states("ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE")
  spoil(places, "*watch*", 1)
  _, err, noted = places.call("launch/tpu_vm.sh", *words)
  assert "was taken away" in err and "ended with 0" in err
  verbs = [c[4] for c in noted]
  assert verbs.count("create") == 2 and verbs.count("delete") == 1


def test_logs_are_followed_until_the_run_ends_through_lost_calls(places):
  script, tpu = "launch/tpu_vm.sh", [*TPU, "--existing"]
  places.call(script, "setup", *tpu)
  places.call(script, "start", *tpu, "--", *ARGS)
  places.call(script, "wait", *tpu, "--poll=0")
  log = places.hosts / "host-0" / "gpt_jax" / "runs" / "host" / "log"
  with open(log, "a") as file:
    file.write("step 1\nstep 2\n")
  spoil(places, "*follow*", 2)
  out, err, _ = places.call(script, "logs", *tpu, "--follow", "--poll=0")
  assert out == log.read_text() and "2 of 20" in err
  # A call that is lost halfway: the next goes on from the line that is due.
  stub = places.bin / "gcloud"
  stub.write_text(
    stub.read_text().replace(
      "exit 255; fi", 'sed -n 1p "$STUB_LOG.lines"; exit 255; fi'
    )
  )
  shutil.copy(log, f"{places.log_file}.lines")
  pathlib.Path(f"{places.log_file}.failures").write_text("x")
  out, err, noted = places.call(script, "logs", *tpu, "--follow", "--poll=0")
  assert out == log.read_text()
  assert any("follow 2" in word for word in noted[-1])


def test_a_run_that_cannot_start_is_refused_before_anything_is_created(places):
  """The check is python -m gpt_jax.lab.verify.check; here it says no."""
  fails = {"STUB_FAILS": "gpt_jax.lab.verify.check"}
  tpu = ["run", *TPU, TYPE, "--", *ARGS]
  for script, words in (
    ("tpu_vm.sh", tpu),
    ("gke.sh", [*GKE, "--", *GKE_ARGS]),
  ):
    _, _, noted = places.call(f"launch/{script}", *words, code=1, **fails)
    assert not noted
    out, _, _ = places.call(
      f"launch/{script}", "--dry-run", *words, code=1, **fails
    )
    assert not out


def test_the_real_gcloud_knows_every_command(places, tmp_path):
  gcloud = shutil.which("gcloud")
  if not gcloud:
    pytest.skip("gcloud is not installed")
  lines = []
  for words in (
    ["run", *TPU, TYPE, "--slices=2", "--spot", "--", *ARGS],
    ["run", *TPU, TYPE, "--project=p", "--", *ARGS],
    ["run", *TPU, "--existing", "--", *ARGS],
    ["delete", *TPU],
    ["delete", *TPU, "--existing"],
  ):
    out, _, _ = places.call("launch/tpu_vm.sh", "--dry-run", *words)
    made = [shlex.join(command) for command in commands(out)]
    lines += [line for line in dict.fromkeys(made) if line not in lines]
  lines.append("gcloud compute tpus tpu-vm ssh gpt-x --nonsense=1")
  file = tmp_path / "commands.json"
  file.write_text(json.dumps([{"command_string": line} for line in lines]))
  # Reads the commands alone: no account, no network.
  result = subprocess.run(
    [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={file}"],
    capture_output=True,
    text=True,
    env={
      "PATH": os.environ["PATH"],
      "HOME": str(tmp_path),
      "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
      "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
    },
  )
  if "Invalid choice" in result.stderr:
    pytest.skip("this gcloud cannot check commands")
  answers = json.loads(result.stdout)
  assert len(answers) == len(lines) and not answers[-1]["success"]
  wrong = [a["error_message"] for a in answers[:-1] if not a["success"]]
  assert not wrong


# GKE

GKE = ["gpt-x", "--type=tpu-v5-lite-podslice", "--topology=4x4"]
GKE += ["--image=eu-docker.pkg.dev/p/r/g:1", "--claim=nfs"]
GKE_ARGS = ["--config=configs/tiny.py", "--workdir=/runs/x"]
ODD = "--config.sample.prompt=a \"b\" \\n ${NAME} $(NAME) $$: # 'c'"


def expand(word: str) -> str:
  """Returns what Kubernetes makes of a word of a command."""
  put = lambda m: "$" if m[0] == "$$" else "a variable"
  return re.sub(r"\$\$|\$\(\w+\)", put, word)


def manifest(places, *words: str) -> dict:
  out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
  assert not noted
  return yaml.safe_load(out)


def test_a_dry_run_on_gke_prints_the_manifest_that_is_then_applied(places):
  words = [*GKE, "--", *GKE_ARGS, ODD]
  out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
  assert not noted
  _, _, noted = places.call("launch/gke.sh", "--namespace=n", *words)
  assert noted == [["kubectl", "apply", "--namespace=n", "--filename=-"]]
  assert places.stdin() == out


@pytest.mark.parametrize(
  "words, slices, hosts, chips",
  [
    ([], 1, 4, 4),
    (["--slices=3"], 3, 4, 4),
    (["--topology=2x4", "--chips=8"], 1, 1, 8),
    (["--topology=4x4x8"], 1, 32, 4),
    (["--topology=1x1", "--chips=1"], 1, 1, 1),
  ],
)
def test_the_manifest_has_a_job_a_slice_and_a_pod_a_host(
  places, words, slices, hosts, chips
):
  found = manifest(places, *GKE, *words, "--", *GKE_ARGS, ODD)
  assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert found["kind"] == "JobSet" and found["metadata"]["name"] == "gpt-x"
  (replicated,) = found["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert replicated["replicas"] == slices
  assert job["parallelism"] == job["completions"] == hosts
  assert job["completionMode"] == "Indexed"
  pod = job["template"]["spec"]
  topology = next((w[11:] for w in words if "topology" in w), "4x4")
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": topology,
  }
  (container,) = pod["containers"]
  resources = container["resources"]
  assert resources["limits"] == resources["requests"]
  assert resources["limits"] == {
    "google.com/tpu": chips,
    "cpu": 8,
    "memory": "32Gi",
  }
  (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
  assert mount == {"name": volume["name"], "mountPath": "/runs"}
  assert volume["persistentVolumeClaim"] == {"claimName": "nfs"}
  assert container["image"] == "eu-docker.pkg.dev/p/r/g:1"
  command = [expand(word) for word in container["command"]]
  assert command == ["python", "-m", "gpt_jax.train", *GKE_ARGS, ODD]


def test_verbs_on_gke_are_those_of_kubectl(places):
  said = {
    "status": [["get", "jobset", "gpt-x"], ["get", "pods"]],
    "logs": [["logs"]],
    "stop": [["patch", "jobset", "gpt-x"]],
    "delete": [["delete", "jobset", "gpt-x"]],
  }
  for verb, starts in said.items():
    words = [verb, "gpt-x", "--namespace=n"]
    out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
    assert not noted
    _, _, noted = places.call("launch/gke.sh", *words)
    assert noted == [shlex.split(line) for line in out.splitlines()]
    for command, start in zip(noted, starts, strict=True):
      assert command[0] == "kubectl" and command[1 : 1 + len(start)] == start
      assert "--namespace=n" in command
  _, _, noted = places.call("launch/gke.sh", "logs", "gpt-x", "--follow")
  assert "--follow" in noted[0]
  _, _, noted = places.call("launch/gke.sh", "stop", "gpt-x")
  (patch,) = [w for w in noted[0] if w.startswith("--patch=")]
  assert json.loads(patch.partition("=")[2]) == {"spec": {"suspend": True}}
  # What stop sets, start takes back.
  assert manifest(places, *GKE, "--", *GKE_ARGS)["spec"]["suspend"] is False


def test_the_manifest_has_the_environment_and_labels_that_were_asked_for(
  places,
):
  words = ["--env=HERE", '--env=ODD=a "b" $(X) $y', "--secret=tokens"]
  words += ["--label=team=lm", "--label=kueue.x-k8s.io/queue-name=q"]
  words += ["--cpu=100", "--memory=160Gi"]
  out, _, _ = places.call(
    "launch/gke.sh", "--dry-run", *GKE, *words, "--", *GKE_ARGS, HERE="there"
  )
  found = yaml.safe_load(out)
  labels = {
    "app.kubernetes.io/name": "gpt_jax",
    "team": "lm",
    "kueue.x-k8s.io/queue-name": "q",
  }
  assert found["metadata"]["labels"] == labels
  (job,) = found["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]
  assert pod["metadata"]["labels"] == labels
  (container,) = pod["spec"]["containers"]
  env = {e["name"]: expand(e["value"]) for e in container["env"]}
  assert env == {"HERE": "there", "ODD": 'a "b" $(X) $y'}
  assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
  assert container["resources"]["limits"]["memory"] == "160Gi"


def test_exit_75_starts_the_jobset_again_and_does_not_count(places):
  spec = manifest(places, *GKE, "--restarts=2", "--", *GKE_ARGS)["spec"]
  policy = spec["failurePolicy"]
  assert policy["maxRestarts"] == 2
  assert policy["rules"] == [
    {
      "name": "goOn",
      "action": "RestartJobSetAndIgnoreMaxRestarts",
      "onJobFailureReasons": ["PodFailurePolicy"],
    }
  ]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 60
  exit_rule, node_rule = job["podFailurePolicy"]["rules"]
  assert exit_rule["onExitCodes"] == {
    "containerName": pod["containers"][0]["name"],
    "operator": "In",
    "values": [75],
  }
  assert node_rule["onPodConditions"][0]["type"] == "DisruptionTarget"
  assert {exit_rule["action"], node_rule["action"]} == {"FailJob"}


def test_the_manifest_leaves_no_name_to_fill_in(places):
  out, _, _ = places.call("launch/gke.sh", "--dry-run", *GKE, "--", *GKE_ARGS)
  lines = [line for line in out.splitlines() if not line.startswith("#")]
  assert "${" not in "\n".join(lines)


# Mistakes

MISTAKES = [
  ("tpu_vm.sh", [], "the verb is ''"),
  ("tpu_vm.sh", ["fly", *TPU], "the verb is 'fly'"),
  ("tpu_vm.sh", ["stop", "Gpt"], "the name is 'Gpt'"),
  ("tpu_vm.sh", ["stop", "gpt"], "there is no --zone"),
  ("tpu_vm.sh", ["stop", *TPU, "x"], "one word too many"),
  ("tpu_vm.sh", ["create", *TPU], "there is no --type"),
  ("tpu_vm.sh", ["create", *TPU, "--type=v99-8"], "no system image"),
  ("tpu_vm.sh", ["create", *TPU, TYPE, "--existing"], "leave --existing out"),
  ("tpu_vm.sh", ["start", *TPU], "there is no --workdir"),
  ("tpu_vm.sh", ["start", *TPU, "--config=a"], "no option --config=a"),
  ("tpu_vm.sh", ["stop", *TPU, "--", "--a"], "stop takes no arguments"),
  ("tpu_vm.sh", ["stop", *TPU, "--slices=0"], "--slices is '0'"),
  ("gke.sh", [], "the name is ''"),
  ("gke.sh", ["gpt"], "--type is ''"),
  ("gke.sh", [*GKE[:2], "--topology=4"], "--topology is '4'"),
  ("gke.sh", GKE[:3], "--image is ''"),
  ("gke.sh", GKE[:4], "--claim is ''"),
  ("gke.sh", GKE, "there is no --;"),
  ("gke.sh", [*GKE, "--chips=3"], "--chips is '3'"),
  ("gke.sh", [*GKE, "--topology=2x3", "--", "--a"], "not share evenly"),
  ("gke.sh", [*GKE, "--", "--workdir=runs/x"], "--workdir is 'runs/x'"),
  ("gke.sh", [*GKE, "--", *GKE_ARGS, "a\nb"], "control character"),
  ("gke.sh", [*GKE, "--nonsense"], "no option --nonsense"),
  ("gke.sh", [*GKE, "--cpu=0"], "--cpu is '0'"),
  ("gke.sh", [*GKE, "--memory=9"], "--memory is '9'"),
  ("gke.sh", [*GKE, "--env=a-b"], "--env is 'a-b'"),
  ("gke.sh", [*GKE, "--env=NOT_SET"], "not set here"),
  ("gke.sh", [*GKE, "--label=x"], "--label is 'x'"),
  ("gke.sh", [*GKE, "--secret=A_B"], "--secret is 'A_B'"),
  ("gke.sh", ["stop", "a", "b"], "one word too many"),
  ("gke.sh", ["stop"], "the name is ''"),
  ("gke.sh", ["stop", "a", "--", "--b"], "stop takes no arguments"),
  ("gke.sh", ["stop", "a", "--follow"], "--follow is for logs"),
  ("tpu_vm.sh", ["stop", *TPU, "--restarts=2"], "--restarts is for run"),
  ("tpu_vm.sh", ["stop", *TPU, "--follow"], "--follow is for logs"),
  ("tpu_vm.sh", ["stop", *TPU, "--restarts=x"], "--restarts is 'x'"),
]


@pytest.mark.parametrize("script, words, sentence", MISTAKES)
def test_every_mistake_is_one_sentence_and_reaches_nobody(
  places, script, words, sentence
):
  out, err, noted = places.call(f"launch/{script}", *words, code=1)
  assert not out and not noted
  assert sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
  "script, tool, words",
  [
    ("tpu_vm.sh", "gcloud", ["stop", *TPU]),
    ("gke.sh", "kubectl", [*GKE, "--", *GKE_ARGS]),
    ("slurm.sh", "sbatch", ["--", "--workdir=runs/a"]),
  ],
)
def test_a_missing_tool_is_named(places, script, tool, words):
  (places.bin / tool).unlink()
  _, err, _ = places.call(f"launch/{script}", *words, code=1)
  assert tool in err and err.count("\n") == 1
