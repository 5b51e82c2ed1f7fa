"""Seconds follow from bytes, links and rates as worked out by hand."""

import types

import pytest

from gpt_jax.lab.plan import collectives, cost, roofline
from gpt_jax.machine import chips


class FakeMesh:
  """A mesh whose devices stand in the order of a torus, last dim fastest."""

  def __init__(self, shape: dict[str, int], torus, slices: int = 1):
    places = [
      (s, (x, y, z))
      for s in range(slices)
      for x in range(torus[0])
      for y in range(torus[1])
      for z in range(torus[2])
    ]
    flat = [
      types.SimpleNamespace(slice_index=s, coords=list(c)) for s, c in places
    ]
    self.shape = shape
    self.devices = types.SimpleNamespace(flat=flat)


def rows_of(kind, groups, size, mesh, topology):
  one = collectives.Collective(kind, 3, size, groups, "")
  return roofline.measure_traffic([one], mesh, topology)


V5E = chips.parse_topology("v5e:16x16", 1)
LINK = 50e9
SQUARE = FakeMesh({"fsdp": 16, "tensor": 16}, (16, 16, 1))
ROW = (tuple(range(16)),)
ALL = (tuple(range(256)),)


@pytest.mark.parametrize(
  "kind, groups, axis, seconds",
  [
    ("all-gather", ROW, "tensor", 15 / 16 / (2 * LINK)),
    ("reduce-scatter", ROW, "tensor", 15 / 16 / (2 * LINK)),
    ("all-reduce", ROW, "tensor", 2 * 15 / 16 / (2 * LINK)),
    ("all-gather", ALL, "fsdp+tensor", 255 / 256 / (4 * LINK)),
    ("all-to-all", ROW, "tensor", 16 / 8 / LINK),
    ("collective-permute", ((0, 16), (16, 32)), "fsdp", 1 / (2 * LINK)),
  ],
)
def test_a_collective_takes_its_bytes_over_its_links(
  kind, groups, axis, seconds
):
  (row,) = rows_of(kind, groups, 1e9, SQUARE, V5E)
  assert (row.axis, row.count) == (axis, 3)
  assert row.ici_seconds == pytest.approx(3e9 * seconds)
  assert row.dcn_seconds == 0


def test_a_line_has_half_the_links_of_a_ring():
  line = chips.parse_topology("v5e:8x8", 1)
  assert roofline.links_along(8, line) == 1
  assert roofline.links_along(16, V5E) == 2
  cube = chips.parse_topology("v5p:4x4x8", 1)
  flat = chips.parse_topology("v5p:2x4x4", 1)
  assert [roofline.links_along(4, t) for t in (cube, flat)] == [2, 1]


def test_between_slices_a_chip_carries_its_part_of_the_gradients():
  two = chips.parse_topology("v5e:2x2", 2)
  mesh = FakeMesh({"data": 2, "fsdp": 4}, (2, 2, 1), slices=2)
  (row,) = rows_of("all-reduce", ((0, 4), (1, 5)), 1e9, mesh, two)
  assert (row.axis, row.ici_seconds) == ("data", 0)
  assert row.dcn_seconds == pytest.approx(3 * 1e9 / 3.125e9)
  whole = (tuple(range(8)),)
  (row,) = rows_of("all-reduce", whole, 1e9, mesh, two)
  assert row.axis == "data+fsdp"
  assert row.dcn_seconds == pytest.approx(3 * 0.25e9 / 3.125e9)
  assert row.ici_seconds == pytest.approx(3 * 2 * 0.75e9 / (2 * LINK))


def test_two_devices_of_a_chip_share_its_links():
  topology = chips.parse_topology("tpu7x:2x2x1", 1)
  mesh = FakeMesh({"fsdp": 4, "tensor": 2}, (2, 2, 1))
  mesh.devices.flat = [d for d in mesh.devices.flat for _ in range(2)]
  apart = ((0, 2, 4, 6), (1, 3, 5, 7))
  (row,) = rows_of("all-gather", apart, 1e9, mesh, topology)
  assert row.ici_seconds == pytest.approx(3 * 2 * 0.75e9 / (2 * 100e9))
  (row,) = rows_of("all-gather", (tuple(range(8)),), 1e9, mesh, topology)
  assert row.ici_seconds == pytest.approx(3 * 0.75e9 / (2 * 100e9))
  (row,) = rows_of("all-gather", ((0, 1), (2, 3)), 1e9, mesh, topology)
  assert (row.axis, row.ici_seconds) == ("tensor", 0)


def make_ops(*rows):
  return [cost.Op("", "", n, f, b, False) for n, f, b in rows]


def test_each_op_takes_the_longer_of_compute_and_memory():
  ops = make_ops((2, 197e12, 0.0), (1, 0.0, 819e9), (1, 197e12, 819e9))
  terms = roofline.bound(cost.Cost(ops, [], []), [], V5E)
  assert (terms.compute, terms.hbm) == (3.0, 2.0)
  assert terms.ops == terms.step == 4.0
  assert terms.binding == "compute"


def test_what_is_slowest_binds():
  traffic = rows_of("all-gather", ROW, 1e12, SQUARE, V5E)
  terms = roofline.bound(
    cost.Cost(make_ops((1, 197e12, 0.0)), [], []), traffic, V5E
  )
  assert terms.binding == "ici"
  assert terms.step == terms.ici > terms.ops == 1.0


def test_an_axis_between_heads_alone_is_named_alone():
  mesh = types.SimpleNamespace(shape={"data": 2, "fsdp": 3, "tensor": 2})
  assert roofline.axes_of((0, 1), mesh) == "tensor"
  assert roofline.axes_of((0, 2, 4), mesh) == "fsdp"
  assert roofline.axes_of((0, 6), mesh) == "data"
  assert roofline.axes_of(range(12), mesh) == "data+fsdp+tensor"


def test_what_goes_to_other_slices_takes_the_network():
  two = chips.parse_topology("v5e:2x2", 2)
  one = collectives.Collective("all-reduce", 1, 1e9, (), "", 2)
  mesh = FakeMesh({"data": 2, "fsdp": 4}, (2, 2, 1), slices=2)
  (row,) = roofline.measure_traffic([one], mesh, two)
  assert (row.axis, row.ici_seconds) == ("data", 0)
  assert row.dcn_seconds == pytest.approx(1e9 / 3.125e9)
