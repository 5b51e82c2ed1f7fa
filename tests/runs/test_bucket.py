"""How a run lies at an address: what is torn or damaged never counts."""

import json
import os

import pytest

from gpt_jax.exits import InputError
from gpt_jax.files import Damage
from gpt_jax.machine import places
from gpt_jax.runs import bucket, lease, lock, mirror
from gpt_jax.runs.bucket import Kept

ONE = Kept(8, "000001.00", 1)


@pytest.fixture
def root(tmp_path):
  return f"file://{tmp_path}/bucket/run"


@pytest.fixture
def step(tmp_path):
  """The folder of a step as two processes of one disk would leave it."""
  folder = tmp_path / "8"
  for key in (
    "meta/metadata",
    "state/manifest.ocdbt",
    "state/d/merged",
    "state/_METADATA",
    "state/ocdbt.process_0/d/a",
    "state/ocdbt.process_1/d/b",
    "state/array_metadatas/process_1",
  ):
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(key)
  return str(folder)


def nothing():
  return None


def names(folder) -> list[str]:
  return bucket.list_files(str(folder), 0, 1)


def test_a_step_that_was_sent_comes_back_as_it_was(root, step, tmp_path):
  seen = []
  look = lambda: seen.append(bucket.list_steps(root)[0])
  bucket.send_step(root, step, ONE, 0, look)
  assert seen == [{}]  # rows are sent after the files and before the note
  assert bucket.list_steps(root) == ({8: ONE}, set())
  bucket.fetch_step(root, ONE, str(tmp_path / "back"))
  assert names(tmp_path / "back") == names(step)
  is_meta = lambda key: key.startswith("meta/")
  bucket.fetch_step(root, ONE, str(tmp_path / "meta"), is_meta)
  assert names(tmp_path / "meta") == ["meta/metadata"]
  assert bucket.count_bytes(root, ONE) == sum(len(n) for n in names(step))


def test_each_process_sends_what_itself_wrote(step):
  first, second = (set(bucket.list_files(step, i, 2)) for i in range(2))
  assert second == {
    "state/ocdbt.process_1/d/b",
    "state/array_metadatas/process_1",
  }
  # The index that merges them is made again where they are read.
  assert not any("merged" in key or "manifest" in key for key in first)
  assert "meta/metadata" in first and "state/_METADATA" in first


def test_a_step_counts_with_the_notes_of_all_processes_alone(root, step):
  two = Kept(8, "000001.00", 2)
  bucket.send_step(root, step, two, 1, nothing)
  assert bucket.list_steps(root) == ({}, {two})
  # Nor with one that another run wrote.
  bucket.send_step(root, step, Kept(8, "000002.00", 2), 0, nothing)
  assert bucket.list_steps(root)[0] == {}
  bucket.send_step(root, step, two, 0, nothing)
  assert bucket.list_steps(root)[0] == {8: two}
  later = Kept(8, "000003.00", 1)
  bucket.send_step(root, step, later, 0, nothing)
  assert bucket.list_steps(root)[0] == {8: later}


def test_a_step_is_removed_notes_first(root, step, monkeypatch):
  bucket.send_step(root, step, ONE, 0, nothing)
  removed = []
  monkeypatch.setattr(places, "remove", removed.append)
  bucket.drop_step(root, ONE)
  assert removed[0] == places.join(root, ONE.notes()[0])
  assert len(removed) == 1 + len(names(step))


def test_what_an_interrupted_run_left_is_swept(root, step):
  bucket.send_step(root, step, ONE, 0, nothing)
  torn = Kept(16, "000001.00", 2)
  bucket.send_step(root, step, torn, 0, nothing)
  places.write(f"{root}/checkpoints/24/000001.00/0/state/d/x", b"no note")
  bucket.sweep(root, *bucket.list_steps(root))
  left = {key.split("/")[0] for key in places.find(f"{root}/checkpoints")}
  assert left == {"8"}
  assert bucket.list_steps(root) == ({8: ONE}, set())


def test_a_changed_file_of_a_step_is_not_taken(root, step, tmp_path):
  bucket.send_step(root, step, ONE, 0, nothing)
  at = f"{root}/checkpoints/8/000001.00/0/state/_METADATA"
  places.write(at, places.read(at).swapcase())
  with pytest.raises(Damage, match="_METADATA is not what was sent"):
    bucket.fetch_step(root, ONE, str(tmp_path / "back"))


@pytest.mark.parametrize("path", ["../../x", "/tmp/x", "a/../../x"])
def test_a_note_cannot_name_a_file_outside_of_its_step(root, path, tmp_path):
  from gpt_jax import files

  note = files.seal({"files": {path: [1, "0"]}})
  places.write(places.join(root, ONE.notes()[0]), json.dumps(note).encode())
  with pytest.raises(Damage, match="names"):
    bucket.fetch_step(root, ONE, str(tmp_path / "back"))


def test_rows_come_back_whole_and_never_of_two_writers(root, tmp_path):
  path = str(tmp_path / "metrics.jsonl")
  rows = mirror.Rows(root, path, 3)
  rows.send()  # there is no file yet
  with open(path, "w") as file:
    for line in ("a\n", "b\n", "half"):
      file.write(line)
      file.flush()
      rows.send()
  parts = places.find(f"{root}/metrics")
  assert [int(key.split(".")[2]) for key in parts] == [0, 2]
  back = str(tmp_path / "back.jsonl")
  bucket.fetch_rows(root, back)
  assert open(back).read() == "a\nb\n"
  # A run that goes back writes the file anew.
  os.replace(_write(tmp_path / "new", "a\nc\n"), path)
  rows.send()
  bucket.fetch_rows(root, back)
  assert open(back).read() == "a\nc\n"
  assert len(places.find(f"{root}/metrics")) == 1
  # A later holder's first part is whole; one that has only a later part, of a
  # process that was killed, is none.
  places.write(f"{root}/metrics/000009.000001.000000000004.jsonl", b"z\n")
  bucket.fetch_rows(root, back)
  assert open(back).read() == "a\nc\n"


def test_rows_after_a_part_that_is_missing_are_not_taken(root, tmp_path):
  for start, line in ((0, b"a\n"), (2, b"b\n"), (4, b"c\n")):
    bucket.send_rows(root, "000001.000001", start, line)
  places.remove(f"{root}/metrics/000001.000001.000000000002.jsonl")
  bucket.fetch_rows(root, str(tmp_path / "back"))
  assert (tmp_path / "back").read_text() == "a\n"


def test_many_parts_of_rows_become_one(root, tmp_path, monkeypatch):
  monkeypatch.setattr(mirror, "MAX_PARTS", 3)
  path = tmp_path / "metrics.jsonl"
  rows = mirror.Rows(root, str(path), 1)
  for index in range(10):
    with open(path, "a") as file:
      file.write(f"{index}\n")
    rows.send()
    assert len(places.find(f"{root}/metrics")) <= 3
  bucket.fetch_rows(root, str(tmp_path / "back"))
  assert (tmp_path / "back").read_text() == path.read_text()


def _write(path, text: str) -> str:
  path.write_text(text)
  return str(path)


@pytest.fixture
def quick_lease(monkeypatch):
  monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)
  monkeypatch.setattr(lease, "STALE_SECONDS", 0.3)


def test_a_lease_is_held_by_one_and_passed_on_at_once(root, quick_lease):
  first = lease.take(root)
  assert (first.number, first.previous) == (1, None)
  first.release()
  second = lease.take(root)
  assert (second.number, second.previous) == (2, first.nonce)
  with pytest.raises(lease.Lost, match="was taken over by another process"):
    first.renew()
  second.renew()


def test_a_holder_ends_as_soon_as_there_is_a_next_one(root, quick_lease):
  first = lease.take(root)
  places.write(f"{root}/lock/000002.json", b"{}")
  with pytest.raises(lease.Lost):
    first.renew()


def test_a_holder_that_shows_no_sign_of_life_is_followed(root, quick_lease):
  said = []
  first = lease.take(root)
  second = lease.take(root, said.append)
  assert second.number == 2 and "which is gone: taken over" in said[-1]
  # It comes back, much later, and finds even its own object gone.
  third = lease.take(root)
  assert third.number == 3
  for late in (first, second):
    with pytest.raises(lease.Lost):
      late.renew()


def test_a_holder_that_lives_is_not_disturbed(root, quick_lease, monkeypatch):
  first = lease.take(root)
  beat = lease.time.sleep
  monkeypatch.setattr(lease.time, "sleep", lambda s: (first.renew(), beat(s)))
  with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
    lease.take(root)


def test_a_dead_process_of_this_machine_is_not_waited_for(root, monkeypatch):
  first = lease.take(root)
  gone = lock.facts() | {"start": "1", "nonce": first.nonce}
  places.write(f"{root}/lock/000001.json", json.dumps(gone).encode())
  monkeypatch.setattr(lease.time, "sleep", None)
  assert lease.take(root).number == 2


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "x", "host": 1}'])
def test_a_lease_that_cannot_be_read_is_given_up(root, text, quick_lease):
  places.write(f"{root}/lock/000007.json", text)
  assert lease.take(root).number == 8
