"""The place of a process among others, as the environment tells it."""

import os
import subprocess
import sys

import pytest
from harness import ROOT

from gpt_jax.config import InputError
from gpt_jax.machine import runtime


@pytest.fixture
def environment(monkeypatch):
  """Sets exactly these variables; returns the place found."""
  names = [*runtime.EXPLICIT, "GPT_JAX_JOIN_SECONDS", "CUDA_VISIBLE_DEVICES"]
  names += [n for n in os.environ if n.startswith(("SLURM_", "TPU_"))]

  def find(**values):
    for name in names:
      monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
      monkeypatch.setenv(name, value)
    place = runtime.find_place()
    for name in values:
      monkeypatch.delenv(name)
    return place

  return find


def test_nothing_set_is_one_process_and_leaves_jax_alone(environment):
  assert environment() is None
  code = (
    "import sys; from gpt_jax.machine import processes; processes.join({});"
    "assert processes.share(lambda: 3) == 3 and 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
  "address, count, index, said",
  [
    ("h:1", "2", None, "JAX_NUM_PROCESSES set without JAX_PROCESS_ID"),
    ("h:1", "2", "2", "ids count from 0 to 1"),
    ("h:1", "two", "0", "JAX_NUM_PROCESSES is 'two'"),
    ("h:1", "0", "0", "JAX_NUM_PROCESSES is '0'"),
    ("h:1", "2", "-1", "JAX_PROCESS_ID is '-1'"),
    ("h", "2", "0", "must be HOST:PORT"),
    ("h:99999", "2", "0", "must be HOST:PORT"),
    (":1", "2", "0", "must be HOST:PORT"),
  ],
)
def test_wrong_variables_are_one_sentence(
  environment, address, count, index, said
):
  values = dict(zip(runtime.EXPLICIT, (address, count, index), strict=True))
  with pytest.raises(InputError, match=said):
    environment(**{k: v for k, v in values.items() if v is not None})


def test_the_explicit_variables_are_understood(environment):
  values = dict(zip(runtime.EXPLICIT, ("[::1]:12", "3", "2"), strict=True))
  place = environment(**values, GPT_JAX_JOIN_SECONDS="7")
  assert (place.host, place.port, place.count, place.index) == ("::1", 12, 3, 2)
  assert (place.join_seconds, place.local_devices) == (7.0, None)
  assert environment(**values | {runtime.EXPLICIT[1]: "3"}).index == 2
  alone = dict(zip(runtime.EXPLICIT, ("h:1", "1", "0"), strict=True))
  assert environment(**alone) is None


SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "node[07-08]",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}


def test_a_step_of_slurm_is_understood(environment):
  place = environment(**SLURM)
  assert (place.address, place.count, place.index) == ("node07:61441", 4, 3)
  assert place.local_devices == [1]
  # A machine's only task has all its GPUs, and one shown alone is number 0.
  one = {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
  assert environment(**SLURM | one).local_devices is None
  assert environment(**SLURM, CUDA_VISIBLE_DEVICES="5").local_devices is None
  # A batch script, or srun with one task, is one process.
  assert environment(**SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
  rest = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NUM_TASKS"}
  assert environment(**rest) is None
  del rest["SLURM_STEP_NODELIST"]
  with pytest.raises(InputError, match="SLURM_STEP_NODELIST is not set"):
    environment(**rest, SLURM_STEP_NUM_TASKS="4")


def test_the_hosts_of_a_tpu_are_understood(environment, monkeypatch):
  from jax._src.clusters import cloud_tpu_cluster

  # Where the variable is not set, jax asks the metadata server.
  get = os.environ.get
  monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", get)
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(runtime.glob, "glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.delenv("JAX_PLATFORMS")
  hosts = {"TPU_WORKER_HOSTNAMES": "localhost,other", "TPU_WORKER_ID": "1"}
  place = environment(**hosts)
  assert (place.address, place.count, place.index) == ("localhost:8482", 2, 1)
  assert environment(**hosts | {"TPU_WORKER_HOSTNAMES": "localhost"}) is None
  assert environment(**hosts, JAX_PLATFORMS="cpu") is None

  def fail(name):
    raise ConnectionError("no metadata server")

  monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", fail)
  with pytest.raises(InputError, match="hosts of this TPU cannot be found"):
    environment(**hosts)
