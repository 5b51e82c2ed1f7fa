"""A full disk and a kill while saving leave the steps before."""

import os
import subprocess
import sys

import jax
import pytest
from harness import ROOT
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from states import abstract_of, assert_same, keeper_of, make_mesh, make_state

from gpt_jax.config import InputError

# Python prints these.
pytestmark = [
  pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.usefixtures("quiet"),
]


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a disk of 3 MB."""
  path = tmp_path / "disk"
  path.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path],
    capture_output=True,
    text=True,
  )
  if mounted.returncode:
    pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
  yield path
  subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_keeps_the_older_step_and_says_so(small_disk):
  folder = str(small_disk / "checkpoints")
  keeper = keeper_of(folder)
  keeper.save(10, make_state(10), force=True)
  keeper.wait()
  ballast = small_disk / "ballast"
  ballast.write_bytes(bytes(2_600_000))
  wide = make_state(width=4000)
  keeper.save(20, wide, force=True)
  with pytest.raises(InputError) as caught:
    keeper.wait()
  assert str(caught.value) == (
    f"the disk of {folder} is full: step 20 was not saved, step 10 is safe; "
    "make room and go on with the same command"
  )
  assert keeper.steps() == [10]
  abstract = abstract_of(make_state())
  assert_same(keeper.restore(abstract)[0], make_state(10))
  # The next save, which waits for this one, says so too.
  keeper.save(20, wide, force=True)
  with pytest.raises(InputError, match="step 20 was not saved"):
    keeper.save(30, wide, force=True)
  ballast.unlink()
  keeper.save(30, make_state(30), force=True)
  keeper.close()
  assert keeper.steps() == [10, 30]
  assert sorted(os.listdir(folder)) == ["10", "30"]


# Imports once and forks runs from there, each killed while it saves.
KILLED_RUNS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from gpt_jax.machine import runtime
runtime.start()
import jax, jax.numpy as jnp
from gpt_jax.runs import checkpoint, storage, restore
from gpt_jax.config import CheckpointConfig

folder, num_kills = sys.argv[2], 5

def run():
  keeper = checkpoint.Checkpointer(folder, CheckpointConfig(1, 2, None, ""), {})
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = {"step": jnp.int32(0), "w": jnp.zeros(300_000)}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
  if checkpoint.choose_resume(folder, "auto") == "restore":
    state, meta = keeper.restore(abstract)
    assert (state["w"] == state["step"]).all() and state["step"] == meta["step"]
    print("resumed", meta["step"], flush=True)
  while True:
    state = jax.tree.map(lambda x: x + 1, state)
    keeper.save(int(state["step"]), state)

print("orbax", int("orbax" in sys.modules))
storage.import_orbax()
print("orbax", int("orbax" in sys.modules), flush=True)
for kill in range(num_kills):
  before = set(os.listdir(folder)) if os.path.isdir(folder) else set()
  child = os.fork()
  if not child:
    try:
      run()
    finally:
      os._exit(1)
  deadline = time.time() + 60
  num_seen = 0
  while num_seen < 3 and time.time() < deadline:
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    num_seen += any("tmp" in n for n in names - before)
    before |= names
    time.sleep(0.0005)
  time.sleep(0.01 * kill)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  print("left", sum("tmp" in n for n in os.listdir(folder)), flush=True)
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
  """(folder of checkpoints, [(word, number)] that the runs said)."""
  folder = str(tmp_path_factory.mktemp("killed") / "checkpoints")
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", KILLED_RUNS, ROOT, folder],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "XLA_FLAGS": ""},
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  return folder, [(word, int(number)) for word, number in lines]


def test_runs_killed_while_saving_go_on_consistently(killed_runs):
  folder, said = killed_runs
  resumed = [n for word, n in said if word == "resumed"]
  assert len(resumed) == 4 and resumed == sorted(set(resumed))
  # The kills did fall into saves: some left an unfinished one behind.
  assert any(n for word, n in said if word == "left")
  place = NamedSharding(make_mesh(8), P())
  shape = lambda s, d: jax.ShapeDtypeStruct(s, d, sharding=place)
  abstract = {"step": shape((), "int32"), "w": shape((300_000,), "float32")}
  state, meta = keeper_of(folder).restore(abstract)
  assert meta["step"] == state["step"] > resumed[-1]
  assert (state["w"] == state["step"]).all()


def test_the_module_does_not_import_orbax_by_itself(killed_runs):
  _, said = killed_runs
  assert [n for word, n in said if word == "orbax"] == [0, 1]
