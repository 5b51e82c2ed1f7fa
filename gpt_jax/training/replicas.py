"""Silent data corruption: whether replicas of an array are still the same.

Devices that hold the same part of an array compute it independently, and all
of them should hold the same bits. A chip that miscomputes, or a memory that
flips a bit, raises no error: training goes on with parameters that differ from
device to device. Comparing the tree.checksum of each device's part finds this,
and names the faulty device where most of the replicas agree.
"""

import collections
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import tree
from gpt_jax.exits import to_line


class Corrupt(Exception):
  """Replicas differ; the message is a sentence."""


def check(state: Any, step: int) -> None:
  """Raises Corrupt, in every process, where replicas of a leaf differ.

  All processes must call it at the same step. Each device reads its parts once
  and sends 8 bytes per leaf.

  Args:
    state: tree of jax.Arrays; those that are on no mesh have no replicas.
    step: named in the message.
  """
  flat = {
    name: leaf
    for name, leaf in tree.flatten_with_names(state).items()
    if isinstance(leaf.sharding, NamedSharding)
  }
  # One at a time: simulated devices can deadlock with two programs in flight.
  tables = [jax.device_get(_sum(leaf.sharding)(leaf)) for leaf in flat.values()]
  clauses = [
    f"{name} on {device.device_kind} {device.id} of process "
    f"{device.process_index}"
    for (name, leaf), table in zip(flat.items(), tables, strict=True)
    for device in _odd_devices(leaf, table)
  ]
  if clauses:
    more = len(clauses) - 3
    raise Corrupt(
      to_line(
        f"replicas differ after step {step:,}: {'; '.join(clauses[:3])}"
        + (f"; and {more} more" if more > 0 else "")
        + "; a device or its memory is faulty: leave it out, and go on from a "
        "step saved before"
      )
    )


@functools.lru_cache
def _sum(sharding: NamedSharding):
  """Returns jitted f(leaf) -> uint32 checksums (devices of the mesh, 2)."""
  mesh = sharding.mesh
  local = jax.shard_map(
    lambda x: tree.checksum([x]),
    mesh=mesh,
    in_specs=sharding.spec,
    out_specs=P(mesh.axis_names),
    check_vma=False,
  )
  return jax.jit(local, out_shardings=NamedSharding(mesh, P()))


def _odd_devices(leaf, table) -> list:
  """Returns the devices whose part differs from that of most replicas."""
  row = {
    d.id: table[i].tobytes()
    for i, d in enumerate(leaf.sharding.mesh.devices.flat)
  }
  groups = collections.defaultdict(list)
  for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
    ends = zip(index, leaf.shape, strict=True)
    groups[tuple(s.indices(n)[:2] for s, n in ends)].append(device)
  odd = []
  for devices in groups.values():
    counts = collections.Counter(row[device.id] for device in devices)
    ((most, _),) = counts.most_common(1)
    odd += [device for device in devices if row[device.id] != most]
  return odd
