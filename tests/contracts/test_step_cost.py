"""A step gets no dearer: its costs are counted, not timed.

Twice: as it is asked for, before any compiler, which takes a second; and
(slow) as a TPU's compiler makes it, the same program on every machine.
"""

import importlib.metadata
import pathlib
import re

import jax
import pytest

from gpt_jax import cli, flops
from gpt_jax import config as config_lib
from gpt_jax.lab.plan import aot, cost, hlo
from gpt_jax.machine import chips
from gpt_jax.training import build

ROOT = pathlib.Path(__file__).parents[2]
# An array that is made in a step counts as large from here.
LARGE = 2**21
SMALL = {
  "data.seq_len": 512,
  "model.max_len": 512,
  "model.num_layers": 2,
  "model.scan_layers": True,
  "model.remat": "none",
  "model.compute_dtype": "bfloat16",
  "train.global_batch_size": 8,
  "train.num_microbatches": 1,
  "mesh.data": 1,
  "mesh.fsdp": 4,
}
CASES = {
  "gpt2": ("gpt2.py:124m", {"model.vocab_size": 8192}),
  "llama": ("llama.py:laptop", {"model.vocab_size": 4096}),
  "experts": ("moe.py:laptop", {"model.vocab_size": 4096}),
}
# By version of jax that counted them: {case: (FLOPs, bytes, op by op)}.
ASKED = {
  "0.10.2": {
    "gpt2": (331079155712, 20221952000),
    "llama": (78569308160, 6614916608),
    "experts": (50179305472, 8165102080),
  },
  "0.12.0.1": {
    "gpt2": (331079155712, 20221947904),
    "llama": (78569308160, 6614913536),
    "experts": (50179305472, 8165097472),
  },
}
# By version of libtpu: {case: (FLOPs, bytes of HBM, large arrays)}, a device.
COMPILED = {
  "0.0.42.1": {
    "gpt2": (133680857088, 495592236, 77),
    "llama": (33017561088, 59336284, 0),
    "experts": (19163774976, 451301916, 81),
  },
  "0.0.50.1": {
    "gpt2": (132875550720, 406446904, 83),
    "llama": (32614907904, 55141976, 0),
    "experts": (18761121792, 505558588, 92),
  },
}
# What another release of a library may add to a count by itself.
SLACK = 1.001
MEANT = (
  "More of anything is a step that got slower: look at what the change makes. "
  "If it is meant, or the library is new, this is the row to put here, with a "
  "line in configs/LOG.md that says what it gained:"
)


def nearest_row(table: dict, version: str) -> tuple[str, dict]:
  """Returns (version, row) of the release next to `version`, the later of two.

  The first part of a version in which two releases differ weighs most.
  """

  def distance(known: str):
    numbers = lambda v: [*map(int, re.findall(r"\d+", v)), 0, 0, 0][:3]
    a, b = numbers(known), numbers(version)
    return [abs(m - n) for m, n in zip(a, b, strict=True)], [-m for m in a]

  known = min(table, key=distance)
  return known, table[known]


def dearer(found: tuple[int, ...], known: tuple[int, ...], slack=1.0):
  """Returns the counts of `found` that are above those that are known."""
  pairs = zip(found, known, strict=True)
  return [(new, old) for new, old in pairs if new > old * slack]


def assert_no_dearer(case: str, found, table: dict, version: str, name: str):
  known, row = nearest_row(table, version)
  slack = 1.0 if version == known else SLACK
  assert not dearer(found, row[case], slack), (
    f"the step of {case} counted {row[case]} with {known} and counts {found} "
    f'with {version}. {MEANT} {name}["{version}"]["{case}"] = {found}'
  )


def test_cheaper_passes_dearer_fails_and_the_nearest_release_judges():
  assert not dearer((9, 20), (10, 20)) and dearer((9, 21), (10, 20))
  assert not dearer((10_005, 1), (10_000, 1), SLACK)
  assert dearer((10_020, 1), (10_000, 1), SLACK)
  judge = lambda version: nearest_row(ASKED, version)[0]
  assert [judge(v) for v in ("0.10.2", "0.10.9")] == ["0.10.2"] * 2
  assert [judge(v) for v in ("0.11.1", "0.12.0.1")] == ["0.12.0.1"] * 2
  with pytest.raises(AssertionError, match="a step that got slower"):
    found = tuple(n + n // 500 for n in ASKED["0.12.0.1"]["llama"])
    assert_no_dearer("llama", found, ASKED, "0.12.0.1", "ASKED")


def assemble(case: str, devices, platform: str, **changes):
  path, values = CASES[case]
  values = {k: str(v) for k, v in (SMALL | values | changes).items()}
  config = config_lib.freeze(cli.load_config(f"{ROOT}/configs/{path}", values))
  return build.assemble(config, devices, platform)


def count_asked(case: str, **changes) -> tuple[int, int]:
  """Returns (FLOPs, bytes) of a step before it is compiled, all devices."""
  built = assemble(case, jax.devices()[:4], "cpu", **changes)
  found = built.lower_step().cost_analysis()
  return round(found["flops"]), round(found["bytes accessed"])


@pytest.mark.parametrize("case", CASES)
def test_a_step_asks_for_no_more_than_it_did(case):
  found = count_asked(case)
  assert_no_dearer(case, found, ASKED, jax.__version__, "ASKED")


def test_a_step_that_keeps_float32_asks_for_more():
  wide = {"model.compute_dtype": "float32"}
  assert count_asked("experts", **wide)[1] > 1.05 * count_asked("experts")[1]


def count_compiled(case: str, **changes) -> tuple[int, int, int]:
  """Returns (FLOPs, bytes of HBM, arrays of LARGE bytes that are made)."""
  topology = chips.parse_topology("v5e:2x2", 1)
  built = assemble(case, aot.find_devices(topology), "tpu", **changes)
  module = hlo.parse(aot.compile_step(built).text)
  scores = flops.visible_part(built.config.model, built.config.data.seq_len)
  found = cost.measure(module, topology.num_devices, scores)
  return round(found.flops), round(found.hbm_bytes), count_large(module)


def count_large(module: hlo.Module) -> int:
  """Returns how many large arrays a step makes, those of a loop once."""
  waiting, count = [module.entry], 0
  while waiting:
    computation = module.computations[waiting.pop()]
    for one in computation.instructions.values():
      if one.opcode == "while":
        waiting.append(one.called("body"))
      elif one.opcode in ("call", "conditional"):
        waiting += [n for n in module.computations if f"%{n}" in one.attributes]
      elif one.opcode not in cost.FREE:
        count += sum(a.bytes >= LARGE and a.space == 0 for a in one.arrays)
  return count


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_step_costs_no_more_than_it_did(case, tpu_compiler):
  pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is absent")
  version = importlib.metadata.version("libtpu")
  found = count_compiled(case)
  assert_no_dearer(case, found, COMPILED, version, "COMPILED")


@pytest.mark.slow
def test_a_compiled_step_that_recomputes_costs_more(tpu_compiler):
  pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is absent")
  again = count_compiled("llama", **{"model.remat": "full"})
  assert again[0] > 1.1 * count_compiled("llama")[0]
