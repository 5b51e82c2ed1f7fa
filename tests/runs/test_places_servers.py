"""Runs in gs:// and s3://, against servers that speak the protocols.

Two processes with data, prepared set and workdir in a bucket, killed and
continued from an empty disk; and networks that fail. servers.txt lists the
packages, which .ci/run installs: those of the extras gcs and s3, moto and
gcp-storage-emulator.
"""

import functools
import http.server
import importlib.util
import re
import socket
import time

import pytest
from harness import move_to, team_flags
from proxy import Proxy

from gpt_jax.machine import clients, places
from gpt_jax.runs import bucket, integrity, metrics, restore

PACKAGES = {
  "s3": ("s3fs", "moto.server"),
  "gs": ("gcsfs", "gcp_storage_emulator"),
}
STEPS = 24
# The second process falls silent when it has sent two files of step 16.
HANG = """
import time
from gpt_jax.machine import clients, places
put, seen = places.put, []
def held(path, address):
  put(path, address)
  if "/checkpoints/16/" in address:
    seen.append(address)
    if len(seen) == 2:
      open({mark!r}, "w").close()
    if len(seen) >= 2:
      time.sleep(600)
places.put = held
"""


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request):
  """(scheme, proxy before a server that is new, variables for clients)."""
  scheme = request.param
  for name in PACKAGES[scheme]:
    if importlib.util.find_spec(name.split(".")[0]) is None:
      pytest.skip(f"{name} is not installed")
  start, names = {"s3": (_start_s3, _name_s3), "gs": (_start_gs, _name_gs)}[
    scheme
  ]
  port, stop = start()
  proxy = Proxy(port)
  names = names(f"http://127.0.0.1:{proxy.port}")
  with pytest.MonkeyPatch.context() as patch:
    for key, value in names.items():
      patch.setenv(key, value)
    clients.file_system.cache_clear()
    if scheme == "s3":
      clients.file_system("s3").mkdir("runs")
    yield scheme, proxy, names
  proxy.close()
  stop()
  clients.file_system.cache_clear()


def _start_s3():
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  return server.get_host_and_port()[1], server.stop


def _name_s3(url: str) -> dict[str, str]:
  return {
    "AWS_ENDPOINT_URL": url,
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_DEFAULT_REGION": "us-east-1",
  }


def _start_gs():
  from gcp_storage_emulator import server as emulator

  class Threads:
    """http.server, with a server that answers several clients at once."""

    HTTPServer = http.server.ThreadingHTTPServer

  emulator.server = Threads
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  server = emulator.create_server(
    "127.0.0.1", port, in_memory=True, default_bucket="runs"
  )
  server.start()
  return port, server.stop


def _name_gs(url: str) -> dict[str, str]:
  return {
    "STORAGE_EMULATOR_HOST": url,
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }


@pytest.fixture(scope="module")
def local_flags(tmp_path_factory, small_flags):
  folder = tmp_path_factory.mktemp("servers")
  return folder, small_flags(folder) + team_flags(STEPS)


@pytest.fixture
def flags(local_flags, server):
  """The flags of the run with text, set and workdir in the bucket; its root."""
  folder, files = local_flags
  root = f"{server[0]}://runs/one"
  return move_to(root, files, folder), root


@pytest.fixture(scope="module")
def team(nursery, tmp_path_factory):
  """Starts two processes, on disks of their own."""
  compiled = str(tmp_path_factory.mktemp("xla"))

  def start(name, *words, before="", **env):
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    own = env | {
      "XDG_CACHE_HOME": str(tmp_path_factory.mktemp(name)),
      "JAX_COMPILATION_CACHE_DIR": compiled,
      "GPT_JAX_NETWORK_SECONDS": "3",
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": "2",
    }
    return [
      nursery.start(
        "train",
        *words,
        before=before if index else "",
        env=own | {"JAX_PROCESS_ID": str(index)},
      )
      for index in range(2)
    ]

  return start


@pytest.fixture(scope="module")
def alone(team, local_flags):
  """The workdir of the run of two processes on one disk."""
  folder, files = local_flags
  for child in team("alone", *files, f"--workdir={folder / 'run'}"):
    ended = child.wait(240)
    assert ended.code == 0, ended.err
  return folder / "run"


@pytest.mark.slow  # four starts of two processes
def test_two_processes_go_on_from_a_bucket_bit_for_bit(
  server, team, flags, alone, tmp_path
):
  scheme, proxy, names = server
  remote, root = flags
  address, mark = f"{root}/run", tmp_path / "mark"
  words = [*remote, f"--workdir={address}"]
  first = team("first", *words, before=HANG.format(mark=str(mark)), **names)
  deadline = time.monotonic() + 240
  while not mark.exists():
    assert time.monotonic() < deadline
    assert all(child.is_running() for child in first), first[0].wait()
    time.sleep(0.05)
  # Process 0 has sent its part, with its note.
  note = f"{address}/steps/16.000001.00.0-of-2.json"
  while places.read_if_there(note) is None:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  for child in first:
    child.kill()
  assert [child.wait().code for child in first] == [-9, -9]
  assert any(k.startswith("16/") for k in places.find(f"{address}/checkpoints"))
  assert list(bucket.list_steps(address)[0]) == [8]
  second = [
    child.wait(240) for child in team("second", f"--workdir={address}", **names)
  ]
  assert [ended.code for ended in second] == [0, 0], second
  assert "going on from step 8" in second[0].out
  path = str(tmp_path / "metrics.jsonl")
  bucket.fetch_rows(address, path)
  there, here = (
    [metrics.without_time(row) for row in metrics.read_rows(p)]
    for p in (path, str(alone / "metrics.jsonl"))
  )
  assert there == here and len(here) >= STEPS
  steps, torn = bucket.list_steps(address)
  assert list(steps) == [STEPS] and not torn
  bucket.fetch_step(address, steps[STEPS], str(tmp_path / str(STEPS)))
  assert restore.list_steps(str(tmp_path)) == [STEPS]
  sums = lambda folder: integrity.read_meta(str(folder), STEPS)["checksum"]
  assert sums(tmp_path) == sums(alone / "checkpoints")
  assert 0 < proxy.most_listings_a_minute() <= 200
  print(f"{scheme}: {proxy.most_listings_a_minute()} listings in a minute")


@pytest.mark.wide
def test_a_failing_network_is_survived_or_said(server, monkeypatch):
  scheme, proxy, _ = server
  monkeypatch.setenv("GPT_JAX_NETWORK_SECONDS", "4")
  monkeypatch.setattr(places, "PATIENCE", 2.0)
  address = f"{scheme}://runs/net/x"
  places.write(address, b"x" * 100)
  asked = lambda method, path: method == "GET" and "x" in path
  count = []

  def once(what, method, path):
    if asked(method, path) and not count:
      count.append(path)
      return what
    return None

  for what in ("drop", "hang"):
    count.clear()
    proxy.fault = functools.partial(once, what)
    assert places.read(address) == b"x" * 100 and count
  proxy.fault = lambda method, path: "deny"
  tried = len(proxy.requests)
  with pytest.raises(places.Unreached, match="cannot be .*: permission denied"):
    places.find(address)
  with pytest.raises(places.Unreached, match="cannot be .*: permission denied"):
    places.write(address, b"y")
  assert len(proxy.requests) - tried < 8  # they are not sent again
  proxy.fault = lambda method, path: "drop"
  with pytest.raises(places.Unreached, match="cannot be written: .*; check"):
    places.write(address, b"y")
  proxy.fault = None
  with pytest.raises(places.Unreached, match=f"no bucket {scheme}://nobody"):
    places.find(f"{scheme}://nobody/x")
  with pytest.raises(places.Unreached, match=f"no bucket {scheme}://nobody"):
    places.write(f"{scheme}://nobody/x", b"x")


@pytest.mark.wide
def test_a_refused_connection_is_one_sentence(fork_verb, server, tmp_path):
  scheme, _, names = server
  gone = {key: re.sub(r":\d+$", ":9", value) for key, value in names.items()}
  started = time.monotonic()
  result = fork_verb(
    "gpt_jax.generate",
    f"--workdir={scheme}://runs/one/run",
    env=gone
    | {"GPT_JAX_NETWORK_SECONDS": "4", "XDG_CACHE_HOME": str(tmp_path)},
  )
  assert result.returncode == 2 and "Traceback" not in result.stderr
  assert f"{scheme}://runs/one/run/steps cannot be listed" in result.stderr
  # The refusal itself, not that tries of the library took too long.
  assert "no answer within" not in result.stderr
  assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_run_that_loses_its_network_says_what_is_saved(
  server, nursery, flags, tmp_path
):
  scheme, proxy, names = server
  remote, root = flags
  address = f"{root}/lost"
  env = names | {
    "XDG_CACHE_HOME": str(tmp_path),
    "GPT_JAX_NETWORK_SECONDS": "3",
  }
  words = [w for w in remote if "mesh" not in w]
  proxy.fault = lambda m, path: (
    "drop" if m in ("PUT", "POST") and "checkpoints/16/" in path else None
  )
  child = nursery.start("train", *words, f"--workdir={address}", env=env)
  first = child.wait(120)
  proxy.fault = None
  assert first.code in (0, 2) and "Traceback" not in first.err
  assert "the run goes on, and it is tried again" in first.out
  last = list(bucket.list_steps(address)[0])[-1]
  again = nursery.start("train", f"--workdir={address}", env=env).wait()
  assert again.code == 0, again.err
  assert list(bucket.list_steps(address)[0])[-1] == STEPS >= last
