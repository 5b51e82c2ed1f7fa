"""Finds the collectives in compiled HLO.

A collective may be one instruction, part of a fusion, split over several
fusions or, between slices, a send to the multi-slice runtime.
"""

import dataclasses
import re

from gpt_jax.lab.plan import hlo

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)
# {transfer type of a send to the multi-slice runtime: its collective}.
_BETWEEN = {
  "ALL_REDUCE": "all-reduce",
  "ALL_GATHER": "all-gather",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective.

  Attributes:
    kind: one of KINDS.
    count: times per step.
    bytes: of the whole array, after a gather or before a reduction; of what
      one device sends in an all-to-all or a permute.
    groups: lists of device indices that exchange; for a permute (source,
      target) pairs.
    op_name: the operation in the program that it comes from.
    slices: number of slices that exchange over the network; each device
      exchanges with its counterparts in the others. 0 for a collective within
      a slice, whose devices are in `groups`.
  """

  kind: str
  count: float
  bytes: float
  groups: tuple
  op_name: str
  slices: int = 0


def is_in(computation) -> bool:
  """Returns whether a computation has a collective."""
  return any(
    i.opcode.removesuffix("-start") in KINDS
    for i in computation.instructions.values()
  )


def find(module, computation, instruction, num_devices: int):
  """Yields (kind, key, (bytes, groups, op_name)) of an instruction.

  The TPU compiler splits a collective over several fusions that share a
  channel; all of them get the same key. A fusion that takes a slice of an
  all-reduce counts as a reduce-scatter.
  """
  opcode = instruction.opcode
  if opcode in hlo.FUSIONS:
    called = instruction.called("calls")
    inner = module.computations.get(called)
    if inner is not None:
      is_scatter = "all-reduce-scatter" in called
      for part in inner.instructions.values():
        for kind, key, entry in find(module, inner, part, num_devices):
          if kind == "all-reduce" and is_scatter:
            kind = "reduce-scatter"
          yield kind, key, entry
    return
  if opcode == "send" and "_xla_megascale" in instruction.attributes:
    yield _between_slices(computation, instruction)
    return
  kind = opcode.removesuffix("-start")
  if kind not in KINDS:
    return
  sources = [computation.instructions[n] for n in instruction.operands]
  size = sum(s.bytes for s in sources)
  if kind == "collective-permute":
    pairs = hlo.read_pairs(instruction.attribute("source_target_pairs"))
    groups, size = tuple(pairs), sources[0].bytes
  else:
    text = instruction.attributes
    listed = re.search(
      r"replica_groups=(mesh\[.*?\](?:, device_ids=\(.*?\))? \{.*?\}|"
      r"\[[^ ]*|\{\{.*?\}\}|\{\})",
      text,
    )
    assert listed, f"no groups of devices in: {text}"
    groups = hlo.read_groups(listed[1].rstrip(","), num_devices)
    if kind == "all-gather":
      size *= len(groups[0])
    groups = tuple(tuple(group) for group in groups)
  channel = instruction.attribute("channel_id")
  key = channel if "chain_id" in instruction.attributes else instruction.name
  yield kind, key, (size, groups, instruction.op_name)


def _between_slices(computation, instruction):
  """Returns (kind, key, entry) of a send to counterparts in other slices.

  The runtime writes the targets as {1,2}x{0:3}: the slices, counted from 1,
  and the devices in each.
  """
  marks = instruction.attributes
  word = re.search(r'_xla_megascale_transfer_type="(\w+)"', marks)
  kind = _BETWEEN[word[1]] if word else "collective-permute"
  named = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x', marks)
  slices = 2
  if named:
    first, _, last = named[1].partition(":")
    listed = len(named[1].split(","))
    slices = int(last) - int(first) + 1 if last.isdigit() else listed
  size = computation.instructions[instruction.operands[0]].bytes
  if kind == "all-gather":
    size *= slices
  entry = (size, (), instruction.op_name, slices)
  return kind, instruction.name, entry
