"""What every script for clusters promises; SLURM.

What a dry run prints is what is done: gcloud, kubectl and sbatch are stubs.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from clusters import ARGS, GKE, GKE_ARGS, PLACES, TPU, TYPE
from harness import ROOT


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
