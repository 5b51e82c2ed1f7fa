"""Devices that hold the same part of an array, and one of them does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.training import replicas

MESH = Mesh(
  np.array(jax.devices()).reshape(4, 2),
  ("data", "fsdp"),
  axis_types=(AxisType.Auto,) * 2,
)


def make(spec, dtype="float32", odd=None):
  """Returns an array [6, 8]; a bit is flipped on device number `odd`."""
  place = NamedSharding(MESH, spec)
  whole = np.asarray(jnp.arange(48, dtype=dtype).reshape(6, 8))
  parts = []
  for device, index in place.devices_indices_map(whole.shape).items():
    part = whole[index].copy()
    if device.id == odd:
      part.reshape(-1).view(np.uint8)[5] ^= 1
    parts.append(jax.device_put(part, device))
  return jax.make_array_from_single_device_arrays(whole.shape, place, parts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@pytest.mark.parametrize("spec", [P(), P("fsdp"), P(None, "fsdp")])
def test_a_replica_that_differs_is_named(spec, dtype):
  # As in the loop, within the mesh.
  with jax.set_mesh(MESH):
    assert_named(spec, dtype)


def assert_named(spec, dtype):
  good = {"a": {"w": make(spec, dtype)}, "b": make(P())}
  replicas.check(good, 7)
  state = good | {"a": {"w": make(spec, dtype, odd=5)}}
  with pytest.raises(replicas.Corrupt) as caught:
    replicas.check(state, 1234)
  assert str(caught.value).startswith(
    "replicas differ after step 1,234: a/w on cpu 5 of process 0; a device or "
  )


def test_parts_that_only_one_device_holds_are_compared_with_nothing():
  place = NamedSharding(MESH, P(("data", "fsdp")))
  state = {"w": jax.device_put(jnp.arange(16.0), place)}
  replicas.check(state, 1)


def test_arrays_on_no_mesh_have_no_replicas():
  state = {"n": jnp.int32(3), "w": jax.device_put(1.0, jax.devices()[3])}
  replicas.check(state, 1)


@pytest.mark.wide
def test_a_healthy_run_is_checked_and_goes_on(call_verb, small_run, tmp_path):
  result = call_verb(
    "train",
    *small_run,
    "--config.mesh.data=4",
    "--config.mesh.fsdp=2",
    "--config.train.num_steps=6",
    "--config.train.check_replicas_every_steps=2",
    f"--workdir={tmp_path / 'run'}",
  )
  assert (result.returncode, result.stderr) == (0, "")


def test_a_run_with_a_faulty_device_ends_with_a_code_of_its_own(
  call_verb, small_run, tmp_path, monkeypatch
):
  seen = []

  def check(state, step):
    seen.append(step)
    if step == 4:
      raise replicas.Corrupt("replicas differ after step 4: x on cpu 5")

  monkeypatch.setattr(replicas, "check", check)
  result = call_verb(
    "train",
    *small_run,
    "--config.train.check_replicas_every_steps=2",
    f"--workdir={tmp_path / 'run'}",
  )
  assert seen == [2, 4] and result.returncode == 5
  assert "replicas differ after step 4: x on cpu 5" in result.stdout
