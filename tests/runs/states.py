"""States to save and to compare, and damage to what was saved."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.config import CheckpointConfig
from gpt_jax.runs import checkpoint

SECTION = CheckpointConfig(
  every_steps=10, keep_last=2, keep_every_steps=None, resume="auto"
)


class State(struct.PyTreeNode):
  step: jax.Array
  params: dict
  opt_state: tuple


def make_mesh(*shape: int) -> Mesh:
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  names = ("data", "fsdp")[: len(shape)]
  return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))


ROWS = P("data")
# Rows so wide that a shard is a value of its own in the data file.
WIDE = 2000


def make_state(value=1.0, mesh=None, spec=ROWS, width=24, dtype="float32"):
  """Returns a state whose leaves differ, placed by `spec` where 2-D."""
  mesh = mesh or make_mesh(8)
  place = lambda x: jax.device_put(
    x, NamedSharding(mesh, spec if x.ndim == 2 else P())
  )
  w = value * (1 + jnp.arange(16 * width, dtype=dtype).reshape(16, width))
  params = {"mlp": {"in": w, "out": w * 3}, "norm": jnp.ones(5, dtype) * value}
  return jax.tree.map(
    place, State(jnp.int32(value), params, optax.adam(0.1).init(params))
  )


def abstract_of(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def keeper_of(folder, say=print, **changes):
  section = dataclasses.replace(SECTION, **changes)
  return checkpoint.Checkpointer(folder, section, {"who": "a test"}, say)


def save(folder, *steps, state=None, **changes):
  """Saves step N with values N, or `state` under every step."""
  keeper = keeper_of(folder, **changes)
  for step in steps:
    keeper.save(step, make_state(step) if state is None else state, force=True)
  keeper.close()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def flip_bit(folder, step, values):
  """Flips a bit in the stored bytes of one row of values; returns undo."""
  needle = np.asarray(values).tobytes()
  (path, at), *rest = [
    (path, path.read_bytes().index(needle))
    for path in pathlib.Path(folder, str(step)).rglob("*")
    if path.is_file() and needle in path.read_bytes()
  ]
  before = path.read_bytes()
  assert not rest and before.count(needle) == 1
  after = bytearray(before)
  after[at + len(needle) // 2] ^= 1
  path.write_bytes(bytes(after))
  return lambda: path.write_bytes(before)


def truncate_data(step):
  for path in step.glob("state/**/d/*"):
    os.truncate(path, path.stat().st_size // 2)


def change_meta(step):
  path = step / "meta" / "metadata"
  path.write_text(path.read_text().replace("float32[5]", "float32[7]"))
