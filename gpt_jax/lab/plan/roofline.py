"""Bounds the speed of a step by compute, HBM, links and network at their peaks.

Ops run one after another. Each takes at least its FLOPs or its HBM bytes at the
published rates, whichever is longer. Traffic between chips may overlap with ops
completely. So no run is faster than this bound, if the table of chips is right.
"""

import dataclasses
import math

from gpt_jax.lab.plan.collectives import Collective
from gpt_jax.lab.plan.cost import Cost
from gpt_jax.machine.chips import Topology

# Predicted over measured speed, sorted: for the runs in published.py, and for
# those of bench.py on one H100 (docs/performance.md).
RATIOS = {
  "tpu": (1.07, 1.07, 1.11, 1.15, 1.17, 1.18, 1.19, 1.20, 1.21, 1.25)
  + (1.52, 1.63),
  "gpu": (1.44, 1.47, 1.51),
}


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind over one set of mesh axes.

  Attributes:
    axis: mesh axes joined by "+".
    count: times per step.
    bytes: bytes that one chip receives in a step, from its slice and others.
    ici_seconds: time at the rate of the links along those axes.
    dcn_seconds: time at the chip's share of the network between slices.
    link_seconds: ici_seconds times the number of links used.
  """

  kind: str
  axis: str
  count: int
  bytes: float
  ici_seconds: float
  dcn_seconds: float
  link_seconds: float


@dataclasses.dataclass(frozen=True)
class Terms:
  """Lower bounds of a step's seconds.

  Attributes:
    compute: all FLOPs at the peak rate.
    hbm: all HBM bytes at the peak rate.
    ops: the sum over ops of the larger of each op's two bounds.
    ici: traffic of the busiest links.
    dcn: traffic of the network between slices.
  """

  compute: float
  hbm: float
  ops: float
  ici: float
  dcn: float

  @property
  def step(self) -> float:
    return max(self.ops, self.hbm, self.ici, self.dcn)

  @property
  def rank(self) -> float:
    """Returns seconds to rank settings by: traffic overlaps only partly."""
    return self.step + 0.2 * (self.hbm + self.ici + self.dcn)

  @property
  def binding(self) -> str:
    """Returns the largest bound: "compute", "hbm", "ici" or "dcn"."""
    chip = "compute" if self.compute >= self.hbm else "hbm"
    terms = {chip: max(self.ops, self.hbm), "ici": self.ici, "dcn": self.dcn}
    return max(terms, key=lambda term: terms[term])


def bound(cost: Cost, traffic: list[Traffic], topology: Topology) -> Terms:
  """Returns the Terms of a step."""
  chip = topology.the_chip()
  peak = chip.tflops * 1e12 / chip.devices
  rate = chip.hbm_gbps * 1e9 / chip.devices
  ops = sum(
    op.count * max(op.flops / peak, op.bytes / rate)
    for op in cost.ops
    if not op.is_async
  )
  return Terms(
    compute=cost.flops / peak,
    hbm=cost.hbm_bytes / rate,
    ops=ops,
    ici=busiest_links(traffic, topology),
    dcn=sum(t.dcn_seconds for t in traffic),
  )


def busiest_links(traffic: list[Traffic], topology: Topology) -> float:
  """Returns the larger of two bounds in seconds: per axis, and over all links.

  The first is the time of the mesh axis with the most traffic. The second
  spreads all traffic evenly over the links of a chip.
  """
  by_axis = {}
  for t in traffic:
    by_axis[t.axis] = by_axis.get(t.axis, 0.0) + t.ici_seconds
  links = sum(links_along(n, topology) for n in topology.shape)
  spread = sum(t.link_seconds for t in traffic) / max(links, 1)
  return max([spread, *by_axis.values()])


def links_along(size: int, topology: Topology) -> int:
  """Returns the links of a chip along a torus dim of `size` chips.

  A ring gives each chip two. In a line, the chips at the ends have only one,
  which bounds the others too. On 2-D slices a dim of 16 is a ring; on 3-D
  slices all dims are rings if each is a multiple of 4
  (docs.cloud.google.com/tpu/docs/v5p, /v5e).
  """
  chip = topology.the_chip()
  if chip.torus_dims == 0:
    return 1
  if size == 1:
    return 0
  if chip.torus_dims == 2:
    return 2 if size == chip.wraps_at else 1
  is_torus = all(n % chip.wraps_at == 0 for n in topology.shape)
  return 2 if is_torus else 1


def measure_traffic(
  collectives: list[Collective], mesh, topology: Topology
) -> list[Traffic]:
  """Returns collectives summed by kind and mesh axis, the largest first."""
  found = {}
  for collective in collectives:
    axis, size, seconds = _one(collective, mesh, topology)
    if not axis:
      continue
    ici, dcn, links = seconds
    key = (collective.kind, axis)
    old = found.get(key, (0, 0.0, 0.0, 0.0, 0.0))
    n = collective.count
    new = (n, n * size, n * ici, n * dcn, n * ici * links)
    found[key] = tuple(a + b for a, b in zip(old, new, strict=True))
  rows = [Traffic(*key, *values) for key, values in found.items()]
  return sorted(rows, key=lambda t: -t.bytes)


def axes_of(members, mesh) -> str:
  """Returns the mesh axes along which device indices differ, "data+fsdp"."""
  sizes = list(mesh.shape.values())
  places = [_unravel(i, sizes) for i in members]
  names = [
    axis
    for k, axis in enumerate(mesh.shape)
    if len({place[k] for place in places}) > 1
  ]
  return "+".join(names)


def _unravel(index: int, sizes) -> tuple[int, ...]:
  place = []
  for size in reversed(sizes):
    place.append(index % size)
    index //= size
  return tuple(reversed(place))


def _one(collective: Collective, mesh, topology: Topology):
  """Returns (axes, bytes a chip receives, (ici, dcn seconds, links))."""
  if collective.slices:
    # sharding.make_mesh lets only `data` cross slices.
    part = (collective.slices - 1) / collective.slices
    part *= {"all-reduce": 2, "collective-permute": 2}.get(collective.kind, 1)
    size = part * collective.bytes
    dcn = topology.the_chip().devices * size / _dcn(topology)
    return "data", size, (0.0, dcn, 0)
  devices = mesh.devices.flat
  if collective.kind == "collective-permute":
    pairs = [p for p in collective.groups if p[0] != p[1]]
    if not pairs:
      return "", 0.0, (0.0, 0.0, 0)
    # All pairs of a permute differ along the same axis, so one is enough.
    axis = axes_of(pairs[0], mesh)
    slice_of = lambda i: _place(devices[i], topology)[0]
    is_cross = any(slice_of(a) != slice_of(b) for a, b in pairs)
    rate, links = _rate(pairs[0], devices, topology)
    if is_cross:
      return axis, collective.bytes, (0.0, collective.bytes / _dcn(topology), 0)
    return axis, collective.bytes, (collective.bytes / rate, 0.0, links)
  group = collective.groups[0]
  axis = axes_of(group, mesh)
  chips = {_place(devices[i], topology) for i in group}
  slices = len({c[0] for c in chips})
  inside = len(chips) // slices
  # Devices of one chip in different groups share its links.
  share = topology.the_chip().devices * len(chips) / len(group)
  size = collective.bytes
  if collective.kind == "all-to-all":
    near = size * (inside - 1) / (inside * slices)
    far = size * (slices - 1) / slices
  else:
    twice = 2 if collective.kind == "all-reduce" else 1
    near = twice * size * (inside - 1) / inside
    far = twice * size * (slices - 1) / slices / inside
  rate, links = _rate(group, devices, topology)
  ici = share * near / rate if near else 0.0
  if collective.kind == "all-to-all" and near and topology.the_chip().shapes:
    # Half of all data must cross the middle of the longest ring or line.
    longest = max(_extents(group, devices, topology))
    way = 8 if links_along(longest, topology) == 2 else 4
    ici = max(ici, size * longest / (way * topology.the_chip().link_gbps * 1e9))
  dcn = share * far / _dcn(topology) if far else 0.0
  return axis, near + far, (ici, dcn, links)


def _dcn(topology: Topology) -> float:
  return topology.the_chip().dcn_gbps * 1e9


def _place(device, topology: Topology) -> tuple[int, tuple[int, ...]]:
  """Returns (slice, coordinates of its chip there); a GPU's slice is a host."""
  if topology.platform == "gpu":
    host, place = divmod(device.id, topology.num_chips // topology.num_slices)
    return host, (place, 0, 0)
  return getattr(device, "slice_index", None) or 0, tuple(device.coords)


def _extents(members, devices, topology: Topology) -> list[int]:
  """Returns the number of chips of a group along each torus dim."""
  places = [_place(devices[i], topology) for i in members]
  coords = [place for slice_, place in places if slice_ == places[0][0]]
  return [len(set(column)) for column in zip(*coords, strict=True)]


def _rate(members, devices, topology: Topology) -> tuple[float, int]:
  """Returns (bytes/s that a chip can receive from its group, links)."""
  link = topology.the_chip().link_gbps * 1e9
  shape = [*topology.shape, 1, 1][:3]
  links = sum(
    links_along(size, topology)
    for count, size in zip(
      _extents(members, devices, topology), shape, strict=True
    )
    if count > 1
  )
  # Two devices of one chip need no links.
  return (link * links, links) if links else (math.inf, 0)
