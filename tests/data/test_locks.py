"""Prepared folders are complete or absent, whatever is killed."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gpt_jax.data import (
  folders,
  locks,
)
from gpt_jax.data.prepare import prepare_data

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


@pytest.mark.parametrize("number", [37, 95, 38, 524, 5, 22])
def test_a_disk_without_locks_is_told_and_used(corpus, monkeypatch, number):
  def refuse(*_):
    raise OSError(number, "refused")

  monkeypatch.setattr(locks.fcntl, "flock", refuse)
  lines = []
  data = corpus(TEXTS)
  os.makedirs(f"{data.dir}/.tmp-x.{locks.socket.gethostname()}.{'9' * 30}")
  assert prepare_data(data, say=lines.append).train
  assert "has no locks (refused)" in lines[0]
  assert not [n for n in os.listdir(data.dir) if n.startswith(".tmp")]


def test_four_processes_at_once_prepare_one_set(corpus):
  data = corpus(TEXTS * 50, tokenizer="bpe:500")
  code = (
    "from gpt_jax.config import DataConfig\n"
    "from gpt_jax.data.prepare import prepare_data\n"
    f"print(prepare_data({data!r}).fingerprint)"
  )
  running = [_start(code) for _ in range(4)]
  outputs = [process.communicate(timeout=60) for process in running]
  assert all(process.returncode == 0 for process in running), outputs
  assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
  made = [out for out, _ in outputs if "prepared " in out]
  assert len(made) == 1
  assert len(os.listdir(data.dir)) == 1


def test_whoever_renames_second_takes_what_is_there(corpus, monkeypatch):
  data = corpus(TEXTS)
  rename = os.rename

  def raced(source, target):
    if not os.path.exists(target):
      monkeypatch.setattr(os, "rename", rename)
      with monkeypatch.context() as patch:
        patch.setattr(locks, "lock", lambda *_: contextlib.nullcontext())
        patch.setattr(locks, "remove_stale", lambda *_: None)
        patch.setattr(os, "getpid", lambda: 1)
        prepare_data(data, say=quiet)
    rename(source, target)

  monkeypatch.setattr(os, "rename", raced)
  assert prepare_data(data, say=quiet).train
  assert len(os.listdir(data.dir)) == 1


def test_a_killed_preparation_leaves_nothing_that_counts(corpus):
  data = corpus(TEXTS)
  code = (
    "import time\nfrom gpt_jax.config import DataConfig\n"
    "from gpt_jax.data.prepare import prepare_data\n"
    "from gpt_jax.data.shards import SplitWriter\n"
    "finish = SplitWriter.finish\n"
    "def slow(writer):\n"
    "  result = finish(writer)\n  print('half', flush=True)\n"
    "  time.sleep(60)\n  return result\n"
    "SplitWriter.finish = slow\n"
    f"prepare_data({data!r})"
  )
  process = _start(code)
  assert process.stdout.readline() == "half\n"
  process.send_signal(signal.SIGKILL)
  process.wait()
  left = [n for n in os.listdir(data.dir) if n.startswith(".tmp-")]
  assert len(left) == 1
  started = time.monotonic()
  prepared = prepare_data(data, say=quiet)
  assert time.monotonic() - started < 10
  assert os.listdir(data.dir) == [os.path.basename(prepared.folders[0])]
  folders.verify_folder(prepared.folders[0])


def test_a_kill_at_any_moment_leaves_a_whole_set_or_none(corpus):
  data = corpus(TEXTS * 20)
  code = (
    "from gpt_jax.config import DataConfig\n"
    "from gpt_jax.data.prepare import prepare_data\n"
    f"print('go', flush=True)\nprepare_data({data!r})"
  )
  for delay in (0.0, 0.003, 0.01, 0.03):
    process = _start(code)
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.wait()
    if os.path.isdir(data.dir):
      for name in os.listdir(data.dir):
        if not name.startswith("."):
          folders.verify_folder(os.path.join(data.dir, name))
  folders.verify_folder(prepare_data(data, say=quiet).folders[0])
  assert len(os.listdir(data.dir)) == 1


def _start(code: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
