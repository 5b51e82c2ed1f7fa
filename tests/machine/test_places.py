"""Addresses: what is written is read, and what fails is said in a sentence."""

import errno
import time

import faulty
import pytest

from gpt_jax.exits import InputError
from gpt_jax.machine import clients, places


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Failures are tried again for a second, and a test has its own plan."""
  faulty.register()
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "1")
  monkeypatch.setattr(places, "PAUSE", 0.05)
  monkeypatch.setattr(faulty, "PLAN", {})
  monkeypatch.setattr(faulty, "CALLS", [])


@pytest.fixture(params=["memory://t", "file://{}", "faulty://t"])
def root(request, tmp_path):
  return request.param.format(tmp_path)


def test_what_is_written_is_found_and_read(root, tmp_path):
  path = tmp_path / "own" / "one.txt"
  path.parent.mkdir()
  path.write_bytes(b"by file")
  places.put(str(path), f"{root}/b/a/one.txt")
  places.write(f"{root}/b/two.txt", b"by bytes")
  found = places.find(f"{root}/b")
  assert {key: one.size for key, one in found.items()} == {
    "a/one.txt": 7,
    "two.txt": 8,
  }
  assert places.glob(f"{root}/b", "**/*.txt").keys() == found.keys()
  assert places.glob(f"{root}/b", "*.txt").keys() == {"two.txt"}
  assert places.stat(f"{root}/b/two.txt") == found["two.txt"]
  assert places.read(f"{root}/b/a/one.txt") == b"by file"
  into = tmp_path / "new" / "folder" / "file"
  places.fetch(f"{root}/b/two.txt", str(into), found["two.txt"])
  assert into.read_bytes() == b"by bytes"
  # The date is that of the object, so that every machine sees the same.
  assert into.stat().st_mtime_ns == found["two.txt"].time_ns
  places.remove(f"{root}/b/two.txt")
  places.remove(f"{root}/b/two.txt")
  assert places.find(f"{root}/b").keys() == {"a/one.txt"}
  assert places.find(f"{root}/nothing") == {}
  assert places.read_if_there(f"{root}/b/two.txt") is None


def test_of_several_that_create_an_object_one_does(root):
  assert places.create(f"{root}/c/lock", b"first")
  assert not places.create(f"{root}/c/lock", b"second")
  assert places.read(f"{root}/c/lock") == b"first"


def test_a_request_that_was_answered_but_not_heard_is_still_mine():
  write = faulty.FaultyFileSystem.pipe_file

  def lost(self, path, value, mode="overwrite", **kwargs):
    is_first = not self.exists(path)
    write(self, path, value, mode=mode, **kwargs)
    if is_first:
      raise ConnectionResetError("the answer was lost")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(faulty.FaultyFileSystem, "pipe_file", lost)
    assert places.create("faulty://t/d/lock", b"mine")


def test_a_dropped_request_is_sent_again():
  places.write("faulty://t/e", b"x")
  faulty.PLAN["read"] = [ConnectionResetError("dropped"), OSError("again")]
  assert places.read("faulty://t/e") == b"x"
  assert [name for name, _ in faulty.CALLS] == ["write"] + ["read"] * 3


def test_a_network_that_is_gone_is_one_sentence_after_a_bounded_time():
  faulty.PLAN["write"] = [ConnectionRefusedError("no route")] * 99
  with pytest.raises(places.Unreached) as raised:
    places.write("faulty://t/f", b"x")
  said = str(raised.value)
  assert said.startswith("faulty://t/f cannot be written: ConnectionRefused")
  assert "times within 1 s; check the network and go on with the same" in said
  assert 3 < 99 - len(faulty.PLAN["write"]) < 20


def test_a_server_that_falls_silent_is_not_waited_for(monkeypatch):
  places.write("faulty://t/g", b"x")
  monkeypatch.setattr(places, "PATIENCE", 0.1)
  faulty.PLAN["read"] = [30]
  assert places.read("faulty://t/g") == b"x"
  faulty.PLAN["read"] = [30] * 99
  with pytest.raises(places.Unreached, match="no answer within"):
    places.read("faulty://t/g")


def test_silence_is_waited_for_as_long_as_a_failing_network(monkeypatch):
  monkeypatch.setattr(places, "LEAST_PATIENCE", 0.1)
  faulty.PLAN["write"] = [30] * 99
  started = time.monotonic()
  with pytest.raises(places.Unreached, match="no answer within"):
    places.write("faulty://t/g", b"x")
  assert time.monotonic() - started < 5  # of a second, in two shares


def test_at_the_end_of_a_run_each_request_is_tried_twice(monkeypatch):
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "60")
  faulty.PLAN["write"] = [ConnectionRefusedError("no route")] * 99
  places.hurry(True)
  try:
    with pytest.raises(places.Unreached, match="tried 2 times"):
      places.write("faulty://t/f", b"x")
  finally:
    places.hurry(False)


def test_an_answer_that_is_cut_short_is_not_taken(tmp_path):
  places.write("faulty://t/h", b"whole")
  found = places.stat("faulty://t/h")
  faulty.PLAN["cut"] = [3]
  with pytest.raises(places.Unreached, match="3 of 5 bytes came"):
    places.fetch("faulty://t/h", str(tmp_path / "h"), found)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "error, sentence",
  [
    (PermissionError("AccessDenied"), "permission denied; give this account"),
    (
      OSError(errno.ENOSPC, "No space left on device", "/cache"),
      "the disk of /cache is full; make room",
    ),
    (type("NoCredentialsError", (Exception,), {})("x"), "the credentials for"),
    (type("HttpError", (Exception,), {"code": 403})("x"), "permission denied"),
    # So gcsfs says it.
    (OSError("Forbidden: https://x/o\nno rights"), "permission denied; give"),
  ],
)
def test_what_would_fail_again_is_not_tried_again(error, sentence):
  places.write("faulty://t/i", b"x")
  faulty.PLAN["read"] = [error] * 9
  with pytest.raises(places.Unreached, match=sentence):
    places.read("faulty://t/i")
  assert len(faulty.PLAN["read"]) == 8


def test_what_is_not_there_is_named():
  with pytest.raises(places.Unreached, match="nobody does not exist") as raised:
    places.read("memory://t/nobody")
  assert raised.value.is_missing
  with pytest.raises(InputError, match="odd:// is no address that can be"):
    places.find("odd://bucket/x")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
  def missing(name):
    raise ImportError(name)

  clients.file_system.cache_clear()
  monkeypatch.setattr(clients.importlib, "import_module", missing)
  with pytest.raises(InputError, match=r"s3:// is read by s3fs.*'\.\[s3\]'"):
    places.find("s3://bucket/x")
  with pytest.raises(InputError, match=r"gs:// is read by gcsfs.*'\.\[gcs\]'"):
    places.find("gs://bucket/x")


def test_a_wrong_number_of_seconds_is_a_sentence(monkeypatch):
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "soon")
  faulty.PLAN["read"] = [OSError("x")]
  with pytest.raises(InputError, match="GPT_JAX_NETWORK_SECONDS is 'soon'"):
    places.read("faulty://t/j")


def test_of_many_requests_the_first_error_ends_the_rest():
  done = []

  def work(item):
    if item == 3:
      raise InputError("three")
    done.append(item)

  with pytest.raises(InputError, match="three"):
    places.each(work, list(range(1000)))
  assert len(done) < 999
