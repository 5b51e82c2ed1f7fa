"""A run on TPU VMs: created, followed, ended, paid for."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest
from clusters import ARGS, TPU, TRAINER, TYPE


def commands(text: str) -> list[list[str]]:
  """Returns the gcloud commands of a dry run, as words."""
  split = [shlex.split(line, comments=True) for line in text.splitlines()]
  return [
    [word for word in words if not word.startswith(">")]
    for words in split
    if words[0] == "gcloud"
  ]


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


@pytest.mark.wide
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


@pytest.mark.wide
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
