"""What the shell of a job decides, where SLURM is a few stubs.

tests/slurm tries it on a real one, which cannot be made to fail on cue.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Answers after so many failures; srun is the trainer, told by scancel.
STUBS = {
  "scontrol": """
    echo "scontrol $1" >>"$LOG"
    if [[ $1 == requeue ]]; then exit; fi
    if (( $(grep -c 'scontrol show' "$LOG") <= FAILURES )); then
      echo 'Unable to contact slurm controller' >&2
      exit 1
    fi
    echo "JobId=7 JobName=x JobState=$STATE Reason=None"
  """,
  "scancel": """
    echo "scancel $*" >>"$LOG"
    kill -TERM "$(<"$LOG.srun")"
  """,
  "srun": """
    trap 'exit 75' TERM
    echo $$ >"$LOG.srun"
    for ((i = 0; i < TENTHS; i++)); do sleep 0.1; done
  """,
}


@pytest.mark.battery
@pytest.mark.parametrize(
  "state, failures, is_told, is_requeued",
  [
    ("RUNNING", 0, True, True),
    ("RUNNING", 1, True, True),
    # Not known: told all the same, and not taken out of a cancellation.
    ("RUNNING", 100, True, False),
    # SLURM ends the job, and has told the tasks itself.
    ("COMPLETING", 0, False, False),
  ],
)
def test_a_signal_to_the_shell_alone_is_passed_on_and_what_is_told_requeued(
  tmp_path, state, failures, is_told, is_requeued
):
  for name, text in STUBS.items():
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
    (tmp_path / name).chmod(0o755)
  # As SLURM runs it: a copy, beside which there is nothing.
  script = tmp_path / "slurm_script"
  shutil.copy(ROOT / "launch/slurm.sh", script)
  log = tmp_path / "log"
  process = subprocess.Popen(
    ["bash", script, "--workdir=x"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      "LOG": str(log),
      "STATE": state,
      "FAILURES": str(failures),
      # What is to be told lives long enough to be, however slow the machine.
      "TENTHS": "300" if is_told else "20",
      "GPT_JAX_PYTHON": "/bin/true",
      "SLURM_JOB_ID": "7",
      "SLURM_JOB_NODELIST": "node",
    },
  )
  try:
    deadline = time.monotonic() + 20
    while not (tmp_path / "log.srun").exists():
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
  finally:
    process.kill()
  lines = log.read_text().splitlines()
  assert ("scancel --signal=TERM 7.0" in lines) == is_told, lines
  assert ("scontrol requeue" in lines) == is_requeued, lines
  assert process.returncode == (75 if is_told else 0), out + err
