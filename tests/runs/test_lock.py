"""One process at a time trains in a workdir; a dead one does not hold it."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from gpt_jax.config import InputError
from gpt_jax.runs import lock


@pytest.fixture(autouse=True)
def _short(monkeypatch):
  monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)
  monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.1)


@pytest.fixture(params=["flock", "no flock", "no flock and no links"])
def disk(request, monkeypatch):
  def refuse(*words):
    raise OSError(37, "No locks available")

  if request.param != "flock":
    monkeypatch.setattr(fcntl, "flock", refuse)
  if request.param.endswith("links"):
    monkeypatch.setattr(os, "link", refuse)
  return request.param


def write(path, age=0.0, **changed) -> None:
  path.write_text(json.dumps(lock.facts() | changed))
  now = path.stat().st_mtime
  os.utime(path, (now - age, now - age))


def test_a_second_start_is_told_who_holds_the_workdir(disk, tmp_path):
  workdir = str(tmp_path / "run")
  first = lock.hold(workdir, pytest.fail)
  said = []
  with pytest.raises(InputError) as error:
    lock.hold(workdir, said.append)
  host = socket.gethostname()
  assert f"in use by process {os.getpid()} on {host} since 20" in str(
    error.value
  )
  assert len(said) == 1 and "waiting" in said[0]
  assert os.listdir(workdir) == ["lock.json"]
  (tmp_path / "run" / "config.json").touch()
  first.release()
  second = lock.hold(workdir, pytest.fail)
  second.release()
  assert os.listdir(workdir) == ["config.json"]


def test_a_start_that_leaves_nothing_leaves_no_folder(disk, tmp_path):
  lock.hold(str(tmp_path / "a" / "b"), pytest.fail).release()
  assert os.listdir(tmp_path) == []


def test_a_start_that_waits_survives_a_holder_that_leaves_no_folder(
  disk, tmp_path
):
  workdir = str(tmp_path / "a" / "run")
  first = lock.hold(workdir, pytest.fail)
  second = lock.hold(workdir, lambda line: first.release())
  assert os.listdir(workdir) == ["lock.json"]
  second.release()
  assert not os.listdir(tmp_path)


def test_a_dead_holder_is_taken_over(disk, tmp_path):
  path, said = tmp_path / "lock.json", []
  for changed in (
    {"pid": 2**22 + 1},
    {"start": "1"},  # another process has its number now
    {"boot": "another", "start": "1"},
  ):
    write(path, **changed)
    lock.hold(str(tmp_path), said.append).release()
    assert "taken over" in said.pop() or disk == "flock"
  write(path, age=2 * lock.STALE_SECONDS, host="elsewhere")
  lock.hold(str(tmp_path), said.append).release()
  assert not path.exists()


def test_a_holder_on_another_machine_that_is_alive_is_kept(disk, tmp_path):
  import threading

  path, is_over = tmp_path / "lock.json", threading.Event()
  write(path, host="elsewhere")

  def touch():
    while not is_over.wait(0.05):
      os.utime(path)

  thread = threading.Thread(target=touch)
  thread.start()
  try:
    with pytest.raises(InputError, match="on elsewhere since"):
      lock.hold(str(tmp_path), lambda line: None)
  finally:
    is_over.set()
    thread.join()
  if disk == "flock":
    # It is touched no more, and its machine has let go of the lock.
    lock.hold(str(tmp_path), lambda line: None).release()


HOLD = """
import sys, time
from gpt_jax.runs import lock
held = lock.hold(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_holder_lets_go_at_once(tmp_path):
  words = [sys.executable, "-c", HOLD, str(tmp_path)]
  process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  with pytest.raises(InputError, match=f"process {process.pid} "):
    lock.hold(str(tmp_path), lambda line: None)
  process.kill()
  process.communicate()
  lock.hold(str(tmp_path), lambda line: None).release()


@pytest.mark.parametrize("name", ["a.txt", "data", "essay.md", "x.jsonl"])
def test_a_folder_of_other_things_is_no_workdir(tmp_path, name):
  (tmp_path / name).touch()
  with pytest.raises(InputError, match=f"holds '{name}' and no run"):
    lock.hold(str(tmp_path))
  assert os.listdir(tmp_path) == [name]
  (tmp_path / "config.json").touch()
  lock.hold(str(tmp_path), pytest.fail).release()


def test_what_schedulers_and_sweeps_leave_is_allowed(tmp_path):
  names = "slurm-12.out log.txt running.json cell.json .nfs0001 lost+found "
  names += "tensorboard run.err a.log metrics.jsonl.damaged-1"
  for name in names.split():
    (tmp_path / name).touch()
  lock.hold(str(tmp_path), pytest.fail).release()
  assert sorted(os.listdir(tmp_path)) == sorted(names.split())


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("mine")
  for path in ("/proc/x", str(tmp_path / "file"), str(tmp_path / "file" / "x")):
    with pytest.raises(InputError, match="cannot be written"):
      lock.hold(path)


def test_a_lock_that_is_no_file_is_one_sentence(tmp_path):
  (tmp_path / "lock.json").symlink_to("/dev/zero")
  with pytest.raises(InputError, match="cannot be written"):
    lock.hold(str(tmp_path))
