"""The launch scripts against stub interpreters: no network, no installation.

Each test copies launch/ into a folder with a space in its name and gives it a
PATH of its own: the few tools that the scripts need, and stub Pythons that
write down what they are asked.
"""

import os
import shutil
import signal
import subprocess
import time

import pytest
from harness import ROOT
from houses import SCRIPTS, SHIM, House

INSTALLS = ["venv 3.11", "uv requirements.txt "]
TRAINS = "gpt_jax.train --workdir=runs/tiny"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script):
  subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_what_ci_and_the_workflow_call_exists():
  workflow = (ROOT / ".github/workflows/test.yml").read_text()
  for text in (workflow, (ROOT / ".ci/run").read_text()):
    assert "bash launch/test.sh" in text
  assert os.access(ROOT / ".ci/run", os.X_OK)


def test_without_a_new_python_one_sentence_says_so(tmp_path):
  house = House(tmp_path)
  house.add_python("python3", "3.10")
  house.add_python("python", "2.7")
  house.add_python("python3.12", "3.12", SHIM)
  out, err, log = house.launch(code=1)
  assert err.count("\n") == 1 and "no Python 3.11 or newer" in err
  assert not out and not log and not (house.root / ".venv").exists()


def test_the_newest_python_that_runs_is_taken(house):
  house.add_python("python3.13", "3.13", SHIM)
  house.add_python("python3.12", "3.12")
  _, err, log = house.launch()
  assert log == ["venv 3.12", "uv requirements.txt ", TRAINS]
  assert err.count("\n") == 1 and "Python 3.12" in err


def test_a_named_python_must_be_new_enough(house):
  house.add_python("old", "3.9")
  for python in ("old", "absent"):
    _, err, log = house.launch(code=1, PYTHON=python)
    assert err.count("\n") == 1 and f"PYTHON={python} " in err
    assert not log


def test_a_named_python_of_another_version_gets_its_own_folder(house):
  house.add_python("other", "3.12")
  house.launch()
  _, _, log = house.launch(PYTHON=str(house.bin / "other"))
  assert log[0] == "venv 3.12" and (house.root / ".venv-3.12").is_dir()
  _, err, log = house.launch(PYTHON="other")
  assert log == [TRAINS] and not err
  _, _, log = house.launch(PYTHON="../a bin/python3")
  assert log == [TRAINS]
  _, _, log = house.launch()
  assert log == [TRAINS]


def test_an_environment_of_an_old_python_is_left_alone(house):
  house.add_python("python", "3.9")
  old = house.root / ".venv" / "bin"
  old.mkdir(parents=True)
  for name in ("python", "python.version"):
    shutil.copy(house.bin / name, old / name)
  _, _, log = house.launch()
  assert log == [*INSTALLS, TRAINS] and (house.root / ".venv-3.11").is_dir()
  assert (old / "python.version").read_text() == "3.9\n"


def test_only_the_first_launch_installs(house):
  assert house.launch()[2] == [*INSTALLS, TRAINS]
  _, err, log = house.launch()
  assert log == [TRAINS] and not err
  assert (house.root / ".venv/.gitignore").read_text() == "*\n"
  assert not (house.root / ".venv/.uv").exists()


def test_a_changed_lock_is_installed_into_the_same_environment(house):
  house.launch()
  kept = house.root / ".venv" / "kept"
  kept.touch()
  (house.root / "requirements.txt").write_text("jax==2\n")
  assert house.launch()[2] == [INSTALLS[1], TRAINS]
  assert kept.exists()


def test_the_development_lock_serves_both_and_only_as_long_as_it_is_true(house):
  test = {"script": "launch/test.sh"}
  assert house.launch(**test)[2][:2] == [
    "venv 3.11",
    "uv requirements-dev.txt ",
  ]
  assert house.launch()[2] == [TRAINS]
  lock = house.root / "requirements.txt"
  lock.write_text("jax==2\n")
  assert house.launch()[2] == [INSTALLS[1], TRAINS]
  # Back at the first lock the packages are still those of the second.
  lock.write_text("jax==1\n")
  assert house.launch(**test)[2][0] == "uv requirements-dev.txt "


def test_an_installation_cut_off_halfway_is_done_anew(house):
  house.launch(code=-9, STUB_UV_DIES="1")
  half = house.root / ".venv" / "half"
  half.touch()
  assert house.launch()[2] == [*INSTALLS, TRAINS]
  assert not half.exists()


def test_a_replaced_interpreter_is_noticed(house):
  house.launch()
  (house.root / ".venv/bin/python.version").write_text("3.12\n")
  assert house.launch()[2] == [*INSTALLS, TRAINS]


def test_two_launches_do_not_install_at_once(house):
  house.uv.write_text('#!/bin/bash\necho uv >>"$STUB_LOG"\nexec sleep 5\n')
  house.log_file.write_text("")
  first = house.start("launch/local.sh")
  try:
    while "uv" not in house.log_file.read_text():
      assert first.poll() is None
    _, err, log = house.launch(code=1)
    assert f"process {first.pid} is installing" in err and not log
  finally:
    first.kill()
    first.communicate()


def test_pip_installs_where_uv_cannot(house):
  pip = ["venv 3.11", "pip requirements.txt", TRAINS]
  assert house.launch(STUB_NO_UV="1")[2] == pip
  shutil.rmtree(house.root / ".venv")
  pip.insert(1, INSTALLS[1])
  assert house.launch(STUB_UV_FAILS="1")[2] == pip


def test_uv_gets_the_index_of_pips_settings(house):
  _, _, log = house.launch(STUB_INDEX="file:///mirror")
  assert log[1] == "uv requirements.txt file:///mirror"


def test_a_failed_installation_stops_and_is_tried_again(house):
  _, err, log = house.launch(code=1, STUB_NO_UV="1", STUB_NO_PIP="1")
  assert "could not be installed" in err and TRAINS not in log
  assert house.launch()[2] == [*INSTALLS, TRAINS]


def test_a_missing_venv_module_is_named(house):
  _, err, _ = house.launch(code=1, STUB_NO_VENV="1")
  assert "install python3.11-venv" in err
  assert not (house.root / ".venv").exists()


@pytest.mark.parametrize(
  "words, workdir",
  [
    ([], "runs/tiny"),
    (["--config.optim.total_steps=5"], "runs/tiny"),
    (["--config=configs/gpt2.py:medium"], "runs/gpt2-medium"),
    (["--config", "/a b/my model.py:x=1,y/2"], "runs/my-model-x-1-y-2"),
    (["--config=a.py", "--config=b.py"], "runs/b"),
    (["--workdir=here"], None),
    (["--config", "configs/gpt2.py", "--workdir", "there"], None),
  ],
)
def test_the_workdir_is_named_after_the_config_unless_given(
  house, words, workdir
):
  log = house.launch(*words)[2]
  default = [f"--workdir={workdir}"] if workdir else []
  assert log[-1] == " ".join(["gpt_jax.train", *default, *words])


def test_several_processes_get_one_address_and_an_index_each(house):
  _, _, log = house.launch("--processes=3", "--config.seed=1", "--devices=2")
  trained = "gpt_jax.train --workdir=runs/tiny --config.seed=1 --devices=2"
  assert log[2:].count(trained) == 3
  # What the stub answers where it is asked for a free port.
  places = [f"{i} of 3 at 127.0.0.1:3.11" for i in range(3)]
  assert sorted(line for line in log if " of 3 at " in line) == places
  assert house.launch("--processes", "1", "--config.seed=1")[2] == [
    "gpt_jax.train --workdir=runs/tiny --config.seed=1"
  ]
  for wrong in ("0", "two", "", "-1"):
    _, err, log = house.launch(f"--processes={wrong}", code=1)
    assert err.count("\n") == 1 and "whole number" in err and not log


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_code_comes_back(house, sent):
  house.launch()
  house.log_file.write_text("")
  process = house.start("launch/local.sh", "--processes=2", STUB_WAITS="0")
  while "0 waits" not in house.log_file.read_text():
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(sent)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 75, out + err
  assert house.log_file.read_text().count("heard") == 1


def test_one_that_fails_ends_the_others_and_gives_its_code(house):
  house.launch()
  # The ten seconds that the others have to end by themselves, ten times faster.
  sleep = shutil.which("sleep")
  (house.bin / "sleep").unlink()
  (house.bin / "sleep").write_text(f"#!/bin/bash\nexec {sleep} 0.02\n")
  (house.bin / "sleep").chmod(0o755)
  started = time.monotonic()
  log = house.launch("--processes=3", code=9, STUB_DIES="2", STUB_WAITS="01")[2]
  assert sorted(line for line in log if "heard" in line) == [
    "0 heard",
    "1 heard",
  ]
  assert time.monotonic() - started < 30


def test_the_trainer_is_the_launched_process_and_runs_in_the_repo(
  house, tmp_path
):
  process = house.start("launch/local.sh", cwd=tmp_path)
  out, err = process.communicate(timeout=30)
  assert f"pid {process.pid} cwd {house.root} data none" in out, err


def test_tests_run_after_lint_and_format_and_their_exit_code_is_passed_on(
  house,
):
  ci = {"script": ".ci/run"}
  log = house.launch(**ci)[2][2:]
  assert log[0] == "pip tests/runs/servers.txt"
  names = [line.split()[0] for line in log[1:]]
  assert names == ["ruff", "ruff", "ty", "pytest"]
  assert house.launch(code=7, STUB_FAILS="pytest", **ci)[2][-1].startswith("py")
  assert len(house.launch(code=7, STUB_FAILS="ruff", **ci)[2]) == 2
  assert house.launch(code=7, STUB_FAILS="ty", **ci)[2][-1].startswith("ty ")


def test_ci_goes_on_without_the_stores_and_says_so(house):
  said = "could not install tests/runs/servers.txt"
  _, err, log = house.launch(script=".ci/run")
  assert said not in err
  _, err, log = house.launch(script=".ci/run", STUB_NO_PIP="1")
  assert said in err and log[-1].startswith("pytest")


APT_GET = """#!/bin/bash
printf 'apt-get %s as %s\\n' "${*: -1}" "${AS:-itself}" >>"$STUB_LOG"
[[ -z ${STUB_NO_APT:-} ]]
"""


def test_ci_installs_chromium_once_or_says_that_it_could_not(house):
  ci = {"script": ".ci/run"}
  said = "could not install Chromium"
  out, err, log = house.launch(**ci)
  assert said in err and log[-1].startswith("pytest")
  sudo = '#!/bin/bash\nshift\nAS=root "$@"\n'
  for name, script in (("apt-get", APT_GET), ("sudo", sudo)):
    (house.bin / name).write_text(script)
    (house.bin / name).chmod(0o755)
  who = "itself" if os.geteuid() == 0 else "root"
  installs = [f"apt-get {word} as {who}" for word in ("update", "chromium")]
  out, err, log = house.launch(**ci)
  assert log[:2] == installs and said not in err
  _, err, log = house.launch(STUB_NO_APT="1", **ci)
  assert log[0] == installs[0] and "chromium" not in log[1] and said in err
  (house.bin / "chromium").symlink_to("/bin/true")
  _, err, log = house.launch(**ci)
  assert "apt-get" not in " ".join(log) and said not in err
  log = house.launch("-m", "slow", "-n", "0", script="launch/test.sh")[2]
  assert log[-1].endswith("and not wide -m slow -n 0")


def test_lint_looks_at_what_is_tracked_alone(house):
  """A user's own config in configs/ fails nobody's tests."""
  (house.bin / "git").symlink_to(shutil.which("git"))
  git = ["git", "-C", house.root, "-c", "user.name=a", "-c", "user.email=a@b"]
  (house.root / "ours.py").write_text("")
  (house.root / "gone.py").write_text("")
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "ours.py", "gone.py"], check=True)
  (house.root / "gone.py").unlink()
  (house.root / "theirs.py").write_text("not = (formatted")
  log = house.launch(script="launch/test.sh")[2]
  linted = [line for line in log if line.startswith("ruff ")]
  assert linted == ["ruff check ours.py", "ruff format --check ours.py"]


def test_a_link_or_a_second_environment_is_ignored(tmp_path):
  shutil.copy(ROOT / ".gitignore", tmp_path)
  subprocess.run(["git", "init", "-q", tmp_path], check=True)
  (tmp_path / ".venv").symlink_to("/tmp")
  (tmp_path / ".venv-3.12").mkdir()
  (tmp_path / ".venv-3.12" / "python").touch()
  words = ["git", "-C", tmp_path, "status", "--porcelain"]
  found = subprocess.check_output(words, text=True).split()
  assert found == ["??", ".gitignore"]


def test_ci_names_the_real_texts_where_they_are(house, tmp_path):
  data = tmp_path / "shared" / "data"
  ci = {"script": ".ci/run"}
  assert "data none" in house.launch(**ci)[0]
  data.mkdir(parents=True)
  assert f"data {data}" in house.launch(**ci)[0]
  assert "data own" in house.launch(GPT_JAX_TEST_DATA="own", **ci)[0]


@pytest.mark.parametrize("script", ["study.sh", "article.sh"])
@pytest.mark.parametrize(
  "words, sentence",
  [
    (["a", "b"], "takes one folder; found 2 words: a b."),
    (["--workdir=a"], "takes a folder, found '--workdir=a'."),
    ([""], "takes a folder, found ''."),
  ],
)
def test_a_study_takes_one_folder(house, words, sentence, script):
  out, err, log = house.launch(*words, script=f"launch/{script}", code=1)
  assert err == f"gpt_jax: {script} {sentence}\n" and not out and not log


def test_a_study_whose_folder_its_config_names_takes_no_words(house):
  out, err, log = house.launch("a", script="launch/families.sh", code=1)
  said = "families.sh takes no words; found 1 words: a."
  assert err == f"gpt_jax: {said}\n" and not out and not log
