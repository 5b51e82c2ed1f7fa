"""The table of chips is whole, and names what it knows."""

import pytest

from gpt_jax.config import InputError
from gpt_jax.machine import chips


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_every_chip_has_every_rate_and_a_source(chip):
  rates = (chip.tflops, chip.hbm_bytes, chip.hbm_gbps, chip.link_gbps)
  assert min(*rates, chip.dcn_gbps, chip.host_chips) > 0
  assert all(s.startswith("https://") for s in chip.sources) and chip.sources
  assert bool(chip.torus_dims) == bool(chip.shapes)
  for kind in chip.kinds:
    assert chips.peak_flops(kind) is not None


@pytest.mark.parametrize(
  "text, slices, count",
  [
    ("v5e:16x16", 1, 256),
    ("v5p:8x8x8", 1, 512),
    ("v5p:8x8x16", 2, 2048),
    ("h100:8", 1, 8),
    ("h200:8x4", 1, 32),
    ("cpu:8", 1, 8),
  ],
)
def test_a_topology_has_so_many_chips(text, slices, count):
  assert chips.parse_topology(text, slices).num_chips == count


def test_two_devices_are_one_ironwood_chip():
  topology = chips.parse_topology("tpu7x:4x4x4", 1)
  assert (topology.num_chips, topology.num_devices) == (64, 128)
  assert chips.peak_flops("TPU7x") * 2 == 2307e12


@pytest.mark.parametrize(
  "text, slices, said",
  [
    ("v5q:8x8x8", 1, "known are: v4|v5p|tpu7x:2x2x1|"),
    ("v5p:8x8", 1, "v5p has slices of 2x2x1, "),
    ("v5e:3x5", 1, "16x16"),
    ("h100:9", 1, "h100:N or h100:8xHOSTS"),
    ("cpu:x", 1, "cpu:N"),
    ("", 1, "cpu:N"),
    ("v5e:2x4", 0, "--slices is 0"),
    ("h100:8x2", 2, "h100:8xHOSTS"),
  ],
)
def test_an_unknown_topology_is_refused_with_those_there_are(
  text, slices, said
):
  with pytest.raises(InputError) as refused:
    chips.parse_topology(text, slices)
  assert said in str(refused.value)


def test_an_unknown_device_has_no_peak():
  assert chips.peak_flops("TPU v99") is None
  assert chips.peak_flops("TPU v5 lite") == 197e12
