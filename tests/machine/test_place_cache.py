"""The cache: fetched once, bounded, never taken from whoever reads it."""

import errno
import os
import subprocess
import sys

import pytest
from harness import ROOT

from gpt_jax.exits import InputError
from gpt_jax.machine import cache, places


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(cache, "_HELD", {})
  monkeypatch.setattr(cache, "_KNOWN", {})
  yield
  for name in list(cache._HELD):
    cache.release(name)


@pytest.fixture
def root(tmp_path):
  return f"file://{tmp_path}/bucket"


def test_an_object_is_fetched_once_and_under_its_own_name(root, monkeypatch):
  places.write(f"{root}/a.txt.gz", b"x" * 100)
  path = cache.local(f"{root}/a.txt.gz")
  assert path.endswith("/a.txt.gz") and open(path, "rb").read() == b"x" * 100
  monkeypatch.setattr(places, "fetch", None)
  assert cache.local(f"{root}/a.txt.gz") == path
  assert cache.local("/a/path") == "/a/path"
  assert cache.stat(f"{root}/a.txt.gz")[0] == 100


def test_an_object_that_has_changed_is_fetched_again(root):
  places.write(f"{root}/a", b"old")
  before = cache.local(f"{root}/a")
  cache._KNOWN.clear()
  places.write(f"{root}/a", b"newer")
  assert open(cache.local(f"{root}/a"), "rb").read() == b"newer"
  assert open(before, "rb").read() == b"old"


def test_a_folder_is_fetched_with_what_is_wanted_of_it(root):
  for name in ("a", "b/c", "d"):
    places.write(f"{root}/f/{name}", name.encode())
  folder = cache.local_folder(f"{root}/f", lambda key: key != "d")
  assert open(os.path.join(folder, "b", "c")).read() == "b/c"
  assert not os.path.exists(os.path.join(folder, "d"))
  # The address of one object is its file.
  assert open(cache.local_folder(f"{root}/f/a")).read() == "a"


def test_what_is_used_stays_and_what_is_not_makes_room(root, monkeypatch):
  monkeypatch.setenv("GPT_JAX_CACHE_BYTES", "250")
  paths = {}
  for name in "abc":
    places.write(f"{root}/{name}", b"x" * 100)
  for name in "ab":
    paths[name] = cache.local(f"{root}/{name}")
  with pytest.raises(InputError, match="may hold 250 bytes, 200 are in use"):
    cache.local(f"{root}/c")
  unit = os.path.basename(os.path.dirname(paths["a"]))
  cache.release(unit)
  cache.local(f"{root}/c")
  assert not os.path.exists(paths["a"]) and os.path.exists(paths["b"])


def test_an_object_larger_than_the_cache_is_refused(root, monkeypatch):
  monkeypatch.setenv("GPT_JAX_CACHE_BYTES", "50")
  places.write(f"{root}/a", b"x" * 100)
  with pytest.raises(InputError, match="100 more are needed; set GPT_JAX"):
    cache.local(f"{root}/a")
  monkeypatch.setenv("GPT_JAX_CACHE_BYTES", "many")
  with pytest.raises(InputError, match="is 'many'; it must be a number"):
    cache.local(f"{root}/a")


def test_a_full_disk_is_the_sentence_of_the_cache_and_other_errors_are_not():
  full = OSError(errno.ENOSPC, "No space left on device")
  for error, kind in ((full, InputError), (OSError(errno.EIO, "I/O"), OSError)):

    def make(folder, error=error):
      raise error

    with pytest.raises(kind, match="disk of the cache .* XDG_CACHE|I/O"):
      cache.fill("unit", 1, make)
    assert not os.path.exists(os.path.join(cache.top(), "unit"))


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing(root):
  places.write(f"{root}/a", b"x" * 100)
  code = f"""
import os, signal
from gpt_jax.machine import cache, places
def half(address, path, found):
  open(path, "wb").write(b"x" * 50)
  os.kill(os.getpid(), signal.SIGKILL)
places.fetch = half
cache.local("{root}/a")
"""
  ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
  assert ended.returncode == -9
  assert open(cache.local(f"{root}/a"), "rb").read() == b"x" * 100


def test_the_unit_of_a_process_that_has_ended_can_go(root, monkeypatch):
  places.write(f"{root}/a", b"x" * 100)
  places.write(f"{root}/b", b"x" * 100)
  code = f"from gpt_jax.machine import cache; print(cache.local('{root}/a'))"
  path = subprocess.check_output(
    [sys.executable, "-c", code], cwd=ROOT, text=True
  ).strip()
  assert os.path.exists(path)
  monkeypatch.setenv("GPT_JAX_CACHE_BYTES", "150")
  cache.local(f"{root}/b")
  assert not os.path.exists(path)


def test_nothing_is_left_of_a_unit_that_is_removed(root):
  places.write(f"{root}/a", b"x")
  unit = os.path.basename(os.path.dirname(cache.local(f"{root}/a")))
  cache.remove(unit)
  assert os.listdir(cache.top()) == []
  # One that another process reads stays.
  path = cache.local(f"{root}/a")
  other = cache._lock(unit, cache.fcntl.LOCK_SH)
  cache.remove(unit)
  assert os.path.exists(path)
  os.close(other)


def test_what_was_not_used_for_longest_goes_first(root, monkeypatch):
  paths = []
  for age, name in enumerate("bac"):
    places.write(f"{root}/{name}", b"x" * 100)
    paths.append(cache.local(f"{root}/{name}"))
    unit = os.path.basename(os.path.dirname(paths[-1]))
    cache.release(unit)
    when = 1e9 + age
    os.utime(os.path.join(cache.top(), f"{unit}.lock"), (when, when))
  monkeypatch.setenv("GPT_JAX_CACHE_BYTES", "350")
  cache.make_room(100)
  assert [os.path.exists(path) for path in paths] == [False, True, True]
