"""Signatures are those of one process, in order, and no process is left."""

import itertools
import subprocess
import sys

import pytest

from gpt_jax.data.cleaning import duplicates, signing
from gpt_jax.exits import InputError


@pytest.fixture
def started(monkeypatch):
  """The processes that were started; a batch has 200 characters."""
  monkeypatch.setattr(signing, "BATCH_CHARS", 200)
  found, start = [], signing._start
  keep = lambda: found.append(start()) or found[-1]
  monkeypatch.setattr(signing, "_start", keep)
  return found


def texts(count: int = 60):
  return [f"text {i} " + "of 國 words " * (i % 13) for i in range(count)]


def test_signatures_are_in_order_for_any_number_of_processes(started):
  expected = [duplicates.sign(text) for text in texts()]
  assert len(set(expected)) == len(expected)
  assert list(signing.sign_all(texts(), 1)) == expected and not started
  assert list(signing.sign_all(texts(), 3)) == expected
  assert len(started) == 3 and all(p.poll() is not None for p in started)


def test_a_text_of_one_batch_starts_no_process(started):
  assert list(signing.sign_all([], 2)) == []
  few = texts()[:3]
  assert list(signing.sign_all(few, 2)) == list(map(duplicates.sign, few))
  assert not started


def test_texts_are_read_no_further_than_their_turn_and_an_error_ends_all(
  started,
):
  read = []

  def reader():
    for i in itertools.count():
      if i == 40:
        raise InputError("the forty-first cannot be read")
      read.append(i)
      yield "a" * 200

  found = signing.sign_all(reader(), 2)
  next(found)
  assert len(read) == 2 * signing.AHEAD + 1
  with pytest.raises(InputError, match="forty-first"):
    list(found)
  assert len(started) == 2 and all(p.poll() is not None for p in started)


def test_a_process_that_is_killed_is_one_sentence(started):
  found = signing.sign_all(itertools.repeat("a" * 200), 2)
  next(found)
  started[0].kill()
  with pytest.raises(InputError, match="ended with status -9; if memory ran"):
    for _ in found:
      pass
  assert all(process.poll() is not None for process in started)


def test_a_process_ends_with_its_input():
  worker = signing._start()
  assert worker.communicate(timeout=60)[0] == b"" and worker.returncode == 0
  code = (
    "import os, signal, sys\n"
    "from gpt_jax.data.cleaning import signing\n"
    "worker = signing._start()\n"
    "print(worker.pid, flush=True)\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
  )
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  # Its output is closed when the worker ends, too.
  assert run.returncode == -9 and int(run.stdout) > 0
