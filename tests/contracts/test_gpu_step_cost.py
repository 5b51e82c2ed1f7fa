"""A step for a GPU gets no dearer: its program is read, nothing is timed.

Twice: as it is asked for, which needs no GPU library and takes seconds; and
(slow) as XLA compiles it for an H100, where its GPU compiler is installed.
"""

import functools
import math
import re

import jax
import pytest
from test_step_cost import assert_no_dearer

from gpt_jax import cli, flops, objective
from gpt_jax import config as config_lib
from gpt_jax.lab.plan import aot, cost, gpus, hlo
from gpt_jax.machine import chips
from gpt_jax.training import build

B, T, V = 8, 512, 16384
# Bytes from which an array counts as large: an activation of these sizes.
LARGE = 2**21
SMALL = {
  "data.seq_len": T,
  "model.max_len": T,
  "model.num_layers": 1,
  "model.vocab_size": V,
  "train.global_batch_size": B,
  "train.num_loss_chunks": 8,
  "mesh.data": 1,
}
CASES = {
  "gpt2": ("bench.py:gpt2-gpu", {}),
  "llama": ("bench.py:llama-1b", {}),
  "documents": ("bench.py:gpt2-gpu", {"data.packing": "documents"}),
}
BYTES = {"bf16": 2, "f32": 4, "i32": 4}
# By version of jax: {case: (large activations whose dims change order, large
# ones in float32)}.
ASKED = {
  "0.10.2": {
    "gpt2": (20, 160),
    "llama": (20, 193),
    "documents": (16, 163),
  },
}
# By version of jax: {case: (FLOPs, bytes of HBM, bytes of temporaries, copies
# and transposes of large arrays)}.
COMPILED = {
  # llama's counts are the same at 2884186, which made the rows of 0.11.2.
  "0.10.2": {
    "gpt2": (494458109952, 4511911867, 260689192, 2),
    "llama": (2349347110912, 12078809818, 768276560, 4),
    "documents": (497679335424, 4544258747, 260692264, 2),
  },
  "0.11.2": {
    "gpt2": (494458109952, 4755181531, 276675880, 2),
    "llama": (2349347110912, 12280136442, 768342096, 2),
    "documents": (497679335424, 4787528411, 276678952, 2),
  },
}


def assemble(case: str, devices, **changes) -> build.Assembly:
  path, values = CASES[case]
  values = {k: str(v) for k, v in (SMALL | values | changes).items()}
  config = config_lib.freeze(cli.load_config(f"configs/{path}", values))
  return build.assemble(config, devices, "gpu")


@pytest.fixture(autouse=True)
def a_gpu_is_there(monkeypatch):
  """Lets programs with cuDNN and Triton be lowered where there is no GPU."""
  from jax._src.cudnn import fused_attention_stablehlo as library

  for name, value in (
    ("check_cudnn_version", 91100),
    ("check_compute_capability", True),
    ("is_cuda_compute_capability_equal", False),
  ):
    monkeypatch.setattr(library, name, lambda *_, value=value: value)
  try:  # since jax 0.12
    from jax._src.pallas.triton import gpu_info
  except ImportError:
    return
  h100 = gpu_info.get_gpu_info_from_version(gpu_info.GpuVersion.H100)
  monkeypatch.setitem(gpu_info.registry, "cpu", lambda: h100)


@functools.cache
def list_activations(case: str, **changes) -> list[tuple[str, list, str]]:
  """Returns (op, dims, dtype) of the activations that a step asks for."""
  built = assemble(case, jax.devices()[:1], **changes)
  batch = objective.abstract_batch(built.config, built.batch_place)
  with jax.set_mesh(built.mesh):
    step = jax.jit(built.make_step(), donate_argnums=0)
    traced = step.trace(built.abstract, batch)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  made = r"= \"?stablehlo\.(\w+).*[:>] (?:.*-> )?\(?tensor<([\dx]+)x(\w+)>"
  found = [
    (op, [int(n) for n in dims.split("x")], dtype)
    for op, dims, dtype in re.findall(made, text)
  ]
  return [one for one in found if T in one[1] or B * T in one[1]]


def count_asked(case: str, **changes) -> tuple[int, int]:
  large = [
    (op, dtype)
    for op, dims, dtype in list_activations(case, **changes)
    if math.prod(dims) * BYTES.get(dtype, 1) >= LARGE
  ]
  moved = sum(op == "transpose" for op, _ in large)
  return moved, sum(dtype == "f32" for _, dtype in large)


def has_square(case: str, **changes) -> bool:
  return any(
    dims.count(T) > 1 for _, dims, _ in list_activations(case, **changes)
  )


def has_logits(case: str, **changes) -> bool:
  return any(
    math.prod(dims) >= B * T * V
    for _, dims, _ in list_activations(case, **changes)
  )


@pytest.mark.parametrize("case", CASES)
def test_a_step_for_a_gpu_asks_for_no_more_than_it_did(case):
  found = count_asked(case)
  assert_no_dearer(case, found, ASKED, jax.__version__, "ASKED")
  assert not has_square(case) and not has_logits(case)


def test_what_a_step_must_not_hold_is_seen():
  dense = {"model.attention": "dense"}
  assert has_square("gpt2", **dense) and not has_logits("gpt2", **dense)
  assert count_asked("gpt2", **dense)[1] > count_asked("gpt2")[1]
  assert has_logits("gpt2", **{"train.num_loss_chunks": 1})


needs_compiler = pytest.mark.skipif(
  not (gpus.has_compiler() and gpus.has_cudnn()),
  reason="the GPU compiler, extra plan-gpu, is not installed",
)


def count_compiled(case: str, **changes) -> tuple[int, int, int, int]:
  """Returns what COMPILED has, of a step for one H100."""
  topology = chips.parse_topology("h100:1", 1)
  built = assemble(case, aot.find_devices(topology), **changes)
  compiled = aot.compile_step(built)
  module = hlo.parse(compiled.text)
  scores = flops.visible_part(built.config.model, T)
  found = cost.measure(module, 1, scores)
  moved = [
    one
    for computation in module.computations.values()
    for one in computation.instructions.values()
    if one.opcode in ("copy", "transpose") and one.bytes >= LARGE
  ]
  temporary = compiled.memory.temp_size_in_bytes
  return round(found.flops), round(found.hbm_bytes), temporary, len(moved)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_a_step_compiled_for_a_gpu_costs_no_more_than_it_did(case):
  found = count_compiled(case)
  assert_no_dearer(case, found, COMPILED, jax.__version__, "COMPILED")


@pytest.mark.slow
@needs_compiler
def test_a_step_compiled_for_a_gpu_with_all_scores_costs_more():
  dense = count_compiled("gpt2", **{"model.attention": "dense"})
  fused = count_compiled("gpt2")
  assert dense[1] > 1.05 * fused[1] and dense[2] > 1.05 * fused[2]
