"""A run at an address: killed, continued from an empty disk, and the same."""

import collections
import json
import os
import pathlib
import shutil
import time
import types

import pytest
from harness import move_to

from gpt_jax.exits import InputError
from gpt_jax.machine import cache, clients, places
from gpt_jax.runs import bucket, integrity, lease, metrics
from gpt_jax.runs import mirror as mirror_lib

# A child that is killed when it has sent three files of step 16.
KILL = """
import os, signal
from gpt_jax.machine import places
put, seen = places.put, []
def counted(path, address):
  put(path, address)
  if "/checkpoints/16/" in address:
    seen.append(address)
    if len(seen) == 3:
      os.kill(os.getpid(), signal.SIGKILL)
places.put = counted
"""
STEPS = 24


@pytest.fixture(scope="module")
def flags(tmp_path_factory, small_flags):
  """(flags of a run on files, the same with all of it at an address, root)."""
  folder = tmp_path_factory.mktemp("mirror")
  more = {
    "model.num_layers": 1,
    "train.num_steps": STEPS,
    "checkpoint.every_steps": 8,
    "checkpoint.keep_last": 1,
  }
  more = [f"--config.{key}={value}" for key, value in more.items()]
  files = small_flags(folder) + more
  root = f"file://{folder}/bucket"
  return files, move_to(root, files, folder), root


@pytest.fixture(scope="module")
def start(nursery, tmp_path_factory):
  """Starts a verb on a machine of its own: its cache is empty."""
  compiled = tmp_path_factory.mktemp("xla")

  def start(machine, verb, *words, **settings):
    home = tmp_path_factory.mktemp(machine)
    own = {
      "XDG_CACHE_HOME": str(home),
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "GPT_JAX_NETWORK_SECONDS": "2",
    }
    settings["env"] = settings.get("env", {}) | own
    return types.SimpleNamespace(
      home=home, child=nursery.start(verb, *words, **settings)
    )

  return start


@pytest.fixture(scope="module")
def alone(start, flags, tmp_path_factory):
  """The workdir of the run on files."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  outcome = start("a", "train", *flags[0], f"--workdir={workdir}").child.wait()
  assert outcome.code == 0, outcome.err
  return workdir


def plain_rows(folder) -> list[dict]:
  rows = metrics.read_rows(str(folder / "metrics.jsonl"))
  return [metrics.without_time(row) for row in rows]


def rows_at(address, folder):
  bucket.fetch_rows(address, str(folder / "metrics.jsonl"))
  return plain_rows(folder)


def assert_same_run(alone, address, tmp_path):
  """Every logged figure, and every bit of the last step."""
  there = rows_at(address, tmp_path)
  here = plain_rows(alone)
  assert len(here) >= STEPS and there == here
  steps, torn = bucket.list_steps(address)
  assert list(steps) == [STEPS] and not torn
  bucket.fetch_step(address, steps[STEPS], str(tmp_path / str(STEPS)))
  sums = lambda folder: integrity.read_meta(str(folder), STEPS)["checksum"]
  assert sums(tmp_path) == sums(alone / "checkpoints")


@pytest.mark.wide
def test_a_run_killed_while_it_sends_goes_on_elsewhere_bit_for_bit(
  start, flags, alone, tmp_path
):
  _, remote, root = flags
  words = [*remote, f"--workdir={root}/run"]
  first = start("b", "train", *words, before=KILL)
  assert first.child.wait().code == -9
  # What was sent of step 16 is there, and does not count.
  sent = places.find(f"{root}/run/checkpoints")
  assert any(key.startswith("16/") for key in sent)
  steps, _ = bucket.list_steps(f"{root}/run")
  assert list(steps) == [8]
  # It is read as it is, by a machine that has nothing.
  said = start("c", "generate", f"--workdir={root}/run", "--num_tokens=2")
  assert said.child.wait().code == 0, said.child.wait().err
  # And it goes on there, without the flags.
  second = start("d", "train", f"--workdir={root}/run").child.wait()
  assert second.code == 0, second.err
  assert "going on from step 8" in second.out
  assert_same_run(alone, f"{root}/run", tmp_path)
  # Nothing is left of the step that was not sent, of the lock, and here.
  sent = places.find(f"{root}/run/checkpoints")
  assert {key.split("/")[0] for key in sent} == {str(STEPS)}
  (lock,) = [k for k in places.find(f"{root}/run/lock") if "2" in k]
  assert json.loads(places.read(f"{root}/run/lock/{lock}"))["released"]
  # Addresses, not the folders that stand for them.
  assert f"training in {root}/run" in second.out
  assert "places" not in second.out + second.err


@pytest.fixture
def pair(tmp_path, monkeypatch):
  """(makes the mirror of a run, makes a step in its scratch, address)."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "0")
  monkeypatch.setattr(cache, "_HELD", {})
  monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
  monkeypatch.setattr(integrity, "check_opens", lambda *_: None)
  address, said = f"file://{tmp_path}/bucket/run", []

  def save(mirror, step):
    folder = pathlib.Path(mirror.folder, "checkpoints", str(step), "state")
    folder.mkdir(parents=True)
    (folder / "arrays").write_text(f"step {step}")
    mirror.send(step)

  made = []

  def begin():
    made.append(mirror_lib.hold(address, said.append))
    return made[-1]

  yield types.SimpleNamespace(
    begin=begin, save=save, address=address, said=said
  )
  for mirror in made:
    mirror._is_closed.set()


def arrived(address) -> list[int]:
  return list(bucket.list_steps(address)[0])


def refuse(monkeypatch, part):
  """Lets no file whose address holds `part` be sent."""
  put = places.put

  def fail(path, address):
    if part in address:
      raise places.Unreached(f"{address} cannot be written: no network")
    put(path, address)

  monkeypatch.setattr(places, "put", fail)
  return lambda: monkeypatch.setattr(places, "put", put)


def test_an_old_step_stays_until_a_newer_one_has_arrived(pair, monkeypatch):
  mirror = pair.begin()
  pair.save(mirror, 1)
  allow = refuse(monkeypatch, "/2/")
  mirror.await_sent()
  pair.save(mirror, 2)
  mirror.drop(1)
  mirror.await_sent()
  assert arrived(pair.address) == [1]
  assert "no network; the run goes on, and it is tried again" in pair.said[-1]
  allow()
  pair.save(mirror, 3)
  mirror.drop(2)
  mirror.close()
  assert arrived(pair.address) == [3]
  # All has arrived, and nothing is left here.
  assert not os.path.exists(mirror.folder)


def test_what_did_not_arrive_is_said_and_sent_by_the_next_run(
  pair, monkeypatch
):
  mirror = pair.begin()
  pair.save(mirror, 1)
  mirror.await_sent()
  allow = refuse(monkeypatch, "/2/")
  pair.save(mirror, 2)
  with pytest.raises(InputError) as raised:
    mirror.close()
  assert str(raised.value).endswith(
    f"no network; step 1 has arrived at {pair.address}; the rest is in the "
    "cache here, and the same command sends it"
  )
  allow()
  again = pair.begin()
  assert again.folder == mirror.folder
  again.close()
  assert arrived(pair.address) == [1, 2]


def test_an_end_without_a_network_waits_for_it_once(pair, monkeypatch):
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "1")
  monkeypatch.setattr(places, "PAUSE", 0.05)
  mirror, tries = pair.begin(), collections.Counter()

  def fail(self, path, key, **_):
    tries[key.split("/checkpoints/")[1][0]] += 1
    raise ConnectionResetError("gone")

  store = type(clients.file_system("file"))
  monkeypatch.setattr(store, "put_file", fail)
  for step in (1, 2, 3):
    pair.save(mirror, step)
  with pytest.raises(InputError, match="no step has arrived"):
    mirror.close()
  assert tries["1"] > places.MIN_TRIES
  assert tries["2"] == tries["3"] == places.MIN_TRIES
  # Another run of this process is as patient as the first.
  monkeypatch.undo()
  monkeypatch.setattr(places, "PAUSE", 0.05)
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "1")
  monkeypatch.setattr(store, "put_file", fail)
  tries.clear()
  with pytest.raises(places.Unreached):
    places.put(__file__, f"{pair.address}/checkpoints/4/a")
  assert tries["4"] > places.MIN_TRIES


def test_a_scratch_that_another_machine_has_overtaken_is_not_used(
  pair, monkeypatch, tmp_path
):
  mirror = pair.begin()
  allow = refuse(monkeypatch, "/1/")
  pair.save(mirror, 1)
  with pytest.raises(InputError, match="no step has arrived"):
    mirror.close()
  allow()
  monkeypatch.setattr(cache, "_HELD", {})
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = pair.begin()
    pair.save(other, 5)
    other.close()
  monkeypatch.setattr(cache, "_HELD", {})
  pair.begin().close()
  assert arrived(pair.address) == [5]


def test_steps_of_a_run_that_went_back_are_gone_before_a_newer_one_counts(
  pair, monkeypatch
):
  mirror = pair.begin()
  for step in (1, 2, 3):
    pair.save(mirror, step)
  mirror.await_sent()
  mirror.go_back([2, 3])
  seen, write = [], places.write

  def look(address, data):
    if "/steps/2." in address:
      seen.append(arrived(pair.address))
    write(address, data)

  monkeypatch.setattr(places, "write", look)
  shutil.rmtree(os.path.join(mirror.folder, "checkpoints", "2"))
  pair.save(mirror, 2)
  mirror.await_sent()
  assert seen == [[1]]
  assert bucket.list_steps(pair.address)[0][2].tag == "000001.01"
  mirror.close()


def test_a_run_that_was_taken_over_saves_nothing_more(pair):
  mirror = pair.begin()
  places.write(f"{pair.address}/lock/000002.json", b"{}")
  deadline = time.monotonic() + 10
  while not pair.said and time.monotonic() < deadline:
    time.sleep(0.02)
  with pytest.raises(lease.Lost, match="was taken over by another process"):
    pair.save(mirror, 1)
  with pytest.raises(InputError, match="no step has arrived"):
    mirror.close()
  assert arrived(pair.address) == []


def test_files_beside_the_steps_are_sent_when_they_change(pair, monkeypatch):
  mirror, puts, put = pair.begin(), [], places.put
  keep = lambda path, address: (puts.append(address), put(path, address))
  monkeypatch.setattr(places, "put", keep)
  folder = pathlib.Path(mirror.folder)
  (folder / "plots").mkdir()
  (folder / "plots" / "loss.svg").write_text("<svg/>")
  (folder / "lock.json").write_text("{}")
  (folder / "config.json.7.tmp").write_text("half")
  (folder / "metrics.jsonl").write_text('{"step": 1}\n')
  for step in (1, 2):
    pair.save(mirror, step)
    mirror.await_sent()
  mirror.close()
  beside = [p for p in puts if "/checkpoints/" not in p]
  assert beside == [f"{pair.address}/plots/loss.svg"]
  assert rows_at(pair.address, folder.parent.parent) == [{"step": 1}]
