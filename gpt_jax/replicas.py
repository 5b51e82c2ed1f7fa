"""Silent data corruption: whether replicas of an array are still the same.

Devices that hold the same part of an array compute it independently, and all
of them should hold the same bits. A chip that miscomputes, or a memory that
loses a bit, raises nothing: training goes on with parameters that differ from
device to device. tree.checksum of each device's part finds it, and names the
device where most of the replicas agree.
"""

import collections

import jax
import numpy as np

from gpt_jax import processes, tree
from gpt_jax.exits import to_line


class Corrupt(Exception):
  """Replicas differ; the message is a sentence."""


# One compiled program for each shape, dtype and device.
_checksum = jax.jit(lambda x: tree.checksum([x])[0])


def check(state, step: int) -> None:
  """Raises Corrupt, in every process, where replicas of a leaf differ.

  To be called by all processes at the same step. Each device reads its parts
  once; the table of their checksums has 8 bytes per leaf and device.

  Args:
    state: tree of jax.Arrays.
    step: named in the sentence.
  """
  flat = tree.flatten_with_names(state)
  place = {device.id: i for i, device in enumerate(jax.devices())}
  table = np.zeros((len(flat), len(place), 2), np.uint32)
  rows = [
    (i, place[shard.device.id], _checksum(shard.data))
    for i, leaf in enumerate(flat.values())
    for shard in leaf.addressable_shards
  ]
  values = jax.device_get([row for *_, row in rows])
  for (i, k, _), value in zip(rows, values, strict=True):
    table[i, k] = value
  if processes.count() > 1:
    from jax.experimental import multihost_utils

    # What another process's devices hold is zero here.
    table = multihost_utils.process_allgather(table).sum(0, dtype=np.uint32)
  clauses = []
  for i, (name, leaf) in enumerate(flat.items()):
    for odd in _odd_devices(leaf, table[i], place):
      clauses.append(f"{name} on {odd.device_kind} {odd.id} {_process(odd)}")
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


def _odd_devices(leaf, rows, place: dict[int, int]) -> list:
  """Returns the devices whose part differs from that of most replicas."""
  groups = collections.defaultdict(list)
  shape = leaf.shape
  for device, index in leaf.sharding.devices_indices_map(shape).items():
    key = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    groups[key].append(device)
  odd = []
  for devices in groups.values():
    values = [rows[place[device.id]].tobytes() for device in devices]
    ((most, _),) = collections.Counter(values).most_common(1)
    odd += [d for d, v in zip(devices, values, strict=True) if v != most]
  return odd


def _process(device) -> str:
  return f"of process {device.process_index}"
