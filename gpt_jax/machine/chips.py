"""The table of chips: peak rates, memory, and the slices on offer.

Every published rate that the project uses is here, with its source. Where two
documents differ, the faster figure is used, so that a time computed from it is
a lower bound.
"""

import dataclasses
import math

from gpt_jax.config import InputError

# Slice shapes on offer, smallest first.
_SHAPES_2D = tuple("2x2 2x4 4x4 4x8 8x8 8x16 16x16".split())
_SHAPES_3D = tuple(
  "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 "
  "16x16x24".split()
)
_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_BOOK = "https://jax-ml.github.io/scaling-book/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip; the rates are peaks of a whole chip.

  Attributes:
    word: its name in a topology, "v5p".
    kinds: its names as jax's device_kind.
    devices: jax devices per chip.
    tflops: dense bfloat16, TFLOP/s.
    hbm_bytes: capacity.
    hbm_gbps: HBM bandwidth, GB/s.
    link_gbps: GB/s one way of one link to a neighbour. For a GPU: of all its
      NVLinks together.
    torus_dims: dims of the torus of links; 0 where a switch joins all chips of
      a host.
    wraps_at: a torus dim wraps around (is a ring) if its size is a multiple of
      this; in a 2-D slice, if it is equal to this.
    host_chips: chips per host.
    dcn_gbps: a chip's share of its host's network, GB/s one way.
    shapes: slice shapes on offer; () where any number of hosts will do.
    sources: URLs.
  """

  word: str
  kinds: tuple[str, ...]
  devices: int
  tflops: float
  hbm_bytes: int
  hbm_gbps: float
  link_gbps: float
  torus_dims: int
  wraps_at: int
  host_chips: int
  dcn_gbps: float
  shapes: tuple[str, ...]
  sources: tuple[str, ...]

  @property
  def platform(self) -> str:
    return "tpu" if self.shapes else "gpu"


def _tpu(word, kinds, tflops, hbm_gib, hbm, link, host, dcn, devices=1):
  is_flat = word in ("v5e", "v6e")
  return Chip(
    word=word,
    kinds=kinds,
    devices=devices,
    tflops=tflops,
    hbm_bytes=int(hbm_gib * 2**30),
    hbm_gbps=hbm,
    link_gbps=link,
    torus_dims=2 if is_flat else 3,
    wraps_at=16 if is_flat else 4,
    host_chips=host,
    dcn_gbps=dcn,
    shapes=_SHAPES_2D if is_flat else _SHAPES_3D,
    sources=(_DOCS + word, _BOOK + "tpus"),
  )


def _gpu(word, kinds, tflops, hbm_gb, hbm, link, dcn, page=None):
  return Chip(
    word=word,
    kinds=kinds,
    devices=1,
    tflops=tflops,
    hbm_bytes=hbm_gb * 10**9,
    hbm_gbps=hbm,
    link_gbps=link,
    torus_dims=0,
    wraps_at=0,
    host_chips=8,
    dcn_gbps=dcn,
    shapes=(),
    sources=(_NVIDIA + (page or word), _BOOK + "gpus"),
  )


# A TPU's HBM, in GiB, is what its compiler lets a program use, a little less
# than the data sheet's capacity. The DCN of v5e and v6e is the pod's (6.4 and
# 25.6 Tbps) over 256 chips.
CHIPS = {
  chip.word: chip
  for chip in (
    _tpu("v4", ("TPU v4",), 275, 30.5, 1228, 50, 4, 6.25, devices=2),
    _tpu("v5e", ("TPU v5 lite",), 197, 15.75, 819, 50, 8, 3.125),
    _tpu("v5p", ("TPU v5", "TPU v5p"), 459, 95.74, 2765, 100, 4, 6.25),
    _tpu("v6e", ("TPU v6 lite",), 918, 31.25, 1640, 100, 8, 12.5),
    _tpu("tpu7x", ("TPU7x",), 2307, 189.5, 7380, 100, 4, 12.5, devices=2),
    _gpu("a100", ("NVIDIA A100-SXM4-80GB",), 312, 80, 2039, 300, 25),
    _gpu("h100", ("NVIDIA H100 80GB HBM3",), 989, 80, 3350, 450, 50),
    _gpu("h200", ("NVIDIA H200",), 989, 141, 4800, 450, 50),
    _gpu("b200", ("NVIDIA B200",), 2250, 180, 8000, 900, 50, "dgx-b200"),
  )
}
# Peak TFLOP/s per jax device, where the planner has no entry for the device or
# counts it differently.
_OTHER_TFLOPS = {
  "TPU v4": 275.0,  # at run time one device is both cores of a chip
  "NVIDIA A100-SXM4-40GB": 312.0,
  "TPU v3": 61.5,  # one of the chip's two cores
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """The devices of a plan: TPU slices of one shape, GPU hosts, or a CPU.

  Attributes:
    name: as the user gave it, "v5p:8x8x8".
    chip: None for a CPU.
    shape: chips along each dim of the torus; for GPUs (per host, hosts).
    num_slices: slices joined by the data-center network; for GPUs, hosts.
  """

  name: str
  chip: Chip | None
  shape: tuple[int, ...]
  num_slices: int

  def the_chip(self) -> Chip:
    """Returns the chip; for callers that never plan for a CPU."""
    assert self.chip is not None, f"{self.name} is a CPU"
    return self.chip

  @property
  def num_chips(self) -> int:
    if self.chip is not None and self.chip.platform == "gpu":
      return math.prod(self.shape)
    return math.prod(self.shape) * self.num_slices

  @property
  def num_devices(self) -> int:
    return self.num_chips * (self.chip.devices if self.chip else 1)

  @property
  def platform(self) -> str:
    return self.chip.platform if self.chip else "cpu"


def peak_flops(device_kind: str) -> float | None:
  """Returns the dense bfloat16 FLOP/s of a jax device, None if unknown."""
  if device_kind in _OTHER_TFLOPS:
    return _OTHER_TFLOPS[device_kind] * 1e12
  chip = find_chip(device_kind)
  return None if chip is None else chip.tflops * 1e12 / chip.devices


def find_chip(device_kind: str) -> Chip | None:
  """Returns the chip of a jax device, None if unknown."""
  return next((c for c in CHIPS.values() if device_kind in c.kinds), None)


def parse_topology(text: str, num_slices: int) -> Topology:
  """Returns the Topology of "v5p:8x8x8", "h100:8", "h100:8x4", "cpu:8".

  Raises:
    InputError: there is no such topology; the sentence lists those there are.
  """
  word, _, size = text.partition(":")
  if num_slices < 1:
    raise InputError(f"--slices is {num_slices}; it must be 1 or more")
  if word not in CHIPS and word != "cpu":
    raise InputError(
      f"unknown topology {text!r}; known are: {list_topologies()}"
    )
  try:
    shape = tuple(int(n) for n in size.split("x"))
  except ValueError:
    shape = ()
  chip = CHIPS[word] if word != "cpu" else None
  if chip is not None and chip.shapes:
    if size not in chip.shapes:
      raise InputError(
        f"unknown topology {text!r}; {word} has slices of "
        f"{', '.join(chip.shapes)}"
      )
    return Topology(text, chip, shape, num_slices)
  is_sized = 0 < len(shape) <= (1 if chip is None else 2) and min(shape) > 0
  if not is_sized or (chip and shape[0] > chip.host_chips):
    form = "cpu:N" if chip is None else f"{word}:N or {word}:8xHOSTS"
    most = "" if chip is None else f", N at most {chip.host_chips}"
    raise InputError(f"unknown topology {text!r}; it must be {form}{most}")
  if num_slices > 1:
    raise InputError(
      f"--slices={num_slices} is for TPUs; give several GPU hosts in the "
      "topology, h100:8xHOSTS"
    )
  if chip is None:
    return Topology(text, None, shape, 1)
  return Topology(text, chip, shape, shape[1] if len(shape) > 1 else 1)


def list_topologies() -> str:
  """Returns one line with every known topology."""
  groups = {}
  for chip in CHIPS.values():
    groups.setdefault(chip.shapes, []).append(chip.word)
  parts = []
  for shapes, words in groups.items():
    sizes = "|".join(shapes) if shapes else "N|8xHOSTS"
    parts.append(f"{'|'.join(words)}:{sizes}")
  return ", ".join([*parts, "cpu:N"])
