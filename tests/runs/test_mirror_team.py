"""Several processes of a run at an address, one of which cannot write."""

import socket

import pytest
from harness import move_to, team_flags

from gpt_jax.runs import bucket

STEPS = 24
# Process 0 does not wait long for what process 1 sends.
SOON = """
from gpt_jax.runs import mirror
mirror.OTHERS_SECONDS = 1.0
"""
# What fails in process 1: sending the last step, or committing the one before.
SEND = """
from gpt_jax.machine import places
put = places.put
def refused(path, address):
  if "/checkpoints/24/" in address:
    raise places.Unreached(f"{address} cannot be written: no right to")
  put(path, address)
places.put = refused
"""
UNSAVED = "step 16 was not saved in "
COMMIT = """
import errno, os, pathlib
rename, replace = os.rename, os.replace
def full(move):
  def moved(source, target, *more, **words):
    if str(target).endswith("checkpoints/16"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    return move(source, target, *more, **words)
  return moved
os.rename, os.replace = full(rename), full(replace)
pathlib.Path.rename = lambda path, to: os.rename(path, to) or type(path)(to)
pathlib.Path.replace = lambda path, to: os.replace(path, to) or type(path)(to)
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory, small_flags):
  folder = tmp_path_factory.mktemp("team")
  root = f"file://{folder}/bucket"
  return move_to(root, small_flags(folder) + team_flags(STEPS), folder), root


@pytest.fixture(scope="module")
def team(nursery, tmp_path_factory):
  compiled = str(tmp_path_factory.mktemp("xla"))

  def start(*words, before=("", "")):
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    env = {
      "JAX_COMPILATION_CACHE_DIR": compiled,
      "GPT_JAX_NETWORK_SECONDS": "2",
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": "2",
    }
    return [
      nursery.start(
        "train",
        *words,
        before=before[index],
        env=env
        | {
          "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("home")),
          "JAX_PROCESS_ID": str(index),
        },
      )
      for index in range(2)
    ]

  return start


@pytest.mark.wide
def test_a_process_that_cannot_send_ends_all_and_says_why(team, flags):
  words, root = flags
  address = f"{root}/send"
  started = team(*words, f"--workdir={address}", before=[SOON, SEND])
  ended = [child.wait(90) for child in started]
  assert [e.code for e in ended] == [2, 2], ended
  step = f"step 24 to {address}"
  assert ended[0].err.strip() == (
    f"gpt_jax: process 1 has not sent its part of {step}, and its log says "
    f"why; step 16 has arrived at {address}"
  )
  (line,) = ended[1].err.strip().splitlines()
  assert line.startswith("gpt_jax: process 1: ") and "no right to" in line
  assert list(bucket.list_steps(address)[0])[-1] == 16


@pytest.mark.wide
def test_a_process_that_cannot_commit_ends_all_and_loses_nothing(team, flags):
  words, root = flags
  address = f"{root}/commit"
  started = team(*words, f"--workdir={address}", before=["", COMMIT])
  ended = [child.wait(90) for child in started]
  assert [e.code for e in ended] == [2, 2], ended
  (line,) = ended[0].err.strip().splitlines()
  assert line.startswith(f"gpt_jax: process 1: the disk of {address}/check")
  assert "is full: step 16 was not saved, step 8 is safe" in line
  assert ended[1].err.strip() in ("", f"gpt_jax: process 1: {UNSAVED}{address}")
  assert list(bucket.list_steps(address)[0]) == [8]
  again = [child.wait(90) for child in team(f"--workdir={address}")]
  assert [e.code for e in again] == [0, 0], again
  assert "going on from step 8" in again[0].out
  assert list(bucket.list_steps(address)[0]) == [STEPS]
