"""Steps compiled for GPUs that are not here: costs, places, refusals.

The texts are made by hand in the compiler's form; the slow test compiles.
"""

import dataclasses
import json

import pytest

from gpt_jax import cli, sharding
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.plan import (
  analytic,
  aot,
  cost,
  gpus,
  hlo,
  planner,
  published,
  remedy,
  roofline,
)
from gpt_jax.machine import chips

TEXT = """
HloModule small, is_scheduled=true

%sliced (p.0: bf16[4,8,64], p.1: bf16[64,32], p.2: s32[]) -> (f32[8,32], \
s8[999]) {
  %p.0 = bf16[4,8,64]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %part = bf16[1,8,64]{2,1,0} dynamic-slice(%p.0, %p.2, %zero.1, %zero.1), \
dynamic_slice_sizes={1,8,64}
  %rows = bf16[8,64]{1,0} bitcast(%part)
  %p.1 = bf16[64,32]{1,0} parameter(1)
  ROOT %call.1 = (f32[8,32]{1,0}, s8[999]{0}) custom-call(%rows, %p.1), \
custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"beta":0,\
"dot_dimension_numbers":{"lhs_batch_dimensions":[],\
"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}

%updated (p.3: bf16[4,8,64], p.4: s32[], p.5: bf16[8,64]) -> bf16[4,8,64] {
  %p.3 = bf16[4,8,64]{2,1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  %p.5 = bf16[8,64]{1,0} parameter(2)
  %layer = bf16[1,8,64]{2,1,0} bitcast(%p.5)
  %zero.2 = s32[] constant(0)
  ROOT %new = bf16[4,8,64]{2,1,0} dynamic-update-slice(%p.3, %layer, %p.4, \
%zero.2, %zero.2)
}

ENTRY %main (a: bf16[8,64], b: bf16[64,32], x: bf16[4,8,64], q: \
bf16[2,16,3,32]) -> f32[8,32] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %x = bf16[4,8,64]{2,1,0} parameter(2)
  %q = bf16[2,16,3,32]{3,2,1,0} parameter(3)
  %i = s32[] constant(1)
  %whole = (f32[8,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"beta":0,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %of_slice = (f32[8,32]{1,0}, s8[999]{0}) fusion(%x, %b, %i), kind=kCustom, \
calls=%sliced
  %forward = (bf16[2,3,16,32]{3,1,2,0}, f32[2,3,16]{2,1,0}, u8[256]{0}) \
custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["2", "3", "16", "16"]}}}
  %backward = (bf16[2,3,16,32]{3,1,2,0}, u8[9999]{0}) custom-call(%q, %q, \
%q), custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["2", "3", "16", "16"]}}}
  %kept = ((bf16[4,8,64]{2,1,0}, s32[], bf16[8,64]{1,0}), \
bf16[4,8,64]{2,1,0}, u32[]) fusion-start(%x, %i, %a), kind=kLoop, \
calls=%updated
  %unknown = f32[8,32]{1,0} custom-call(%a), custom_call_target="Sharding"
  ROOT %out = f32[8,32]{1,0} get-tuple-element(%whole), index=0
}
"""


def costs(causal: float = 1.0) -> dict[str, cost.Op]:
  measured = cost.measure(hlo.parse(TEXT), 1, causal)
  return {op.name: op for op in measured.ops}


def test_a_product_of_the_library_counts_as_a_product():
  ops = costs()
  product = 2 * 8 * 64 * 32
  assert ops["whole"].flops == ops["of_slice"].flops == product
  weights, out = 2 * 64 * 32, 4 * 8 * 32
  # Its workspace is no traffic; of a stack one layer and its index are read.
  assert ops["whole"].bytes == 2 * 8 * 64 + weights + out
  assert ops["of_slice"].bytes == ops["whole"].bytes + 4
  # A layer that is written into a stack beside other work: that layer alone.
  assert ops["kept"].bytes == 2 * (2 * 8 * 64) + 4 and ops["kept"].is_async
  assert ops["unknown"].flops == ops["unknown"].bytes == 0


def test_attention_of_the_library_counts_visible_scores():
  scores = 2 * 3 * 16 * 16
  ops = costs(causal=0.5)
  assert ops["forward"].flops == 0.5 * 2 * (2 * scores * 32)
  assert ops["backward"].flops == 0.5 * 5 * (2 * scores * 32)
  array = 2 * (2 * 16 * 3 * 32)
  assert ops["forward"].bytes == 3 * array + array + 4 * 2 * 3 * 16


@dataclasses.dataclass(frozen=True)
class Device:
  id: int


@dataclasses.dataclass(frozen=True)
class Mesh:
  shape: dict
  devices: object


class Flat:
  def __init__(self, devices: list):
    self.flat = devices


def traffic(groups: tuple, topology_name: str, kind: str = "all-gather"):
  topology = chips.parse_topology(topology_name, 1)
  devices = Flat([Device(i) for i in range(topology.num_devices)])
  mesh = Mesh({"data": topology.num_devices}, devices)
  collective = roofline.Collective(kind, 1, 8e9, groups, "")
  (row,) = roofline.measure_traffic([collective], mesh, topology)
  return row


def test_hosts_of_gpus_exchange_over_nvlink_and_the_network():
  inside = traffic((tuple(range(8)),), "h100:8")
  assert inside.bytes == 7e9
  assert inside.ici_seconds == pytest.approx(7e9 / 450e9)
  assert inside.dcn_seconds == 0
  both = traffic((tuple(range(16)),), "h100:8x2")
  # A GPU gets seven eighths within its host, and its share of the other half.
  assert both.ici_seconds == pytest.approx(7e9 / 450e9)
  assert both.dcn_seconds == pytest.approx(8e9 / 2 / 8 / 50e9)
  across = traffic(((0, 8), (1, 9)), "h100:8x2")
  assert across.ici_seconds == 0
  assert across.dcn_seconds == pytest.approx(4e9 / 50e9)
  pairs = traffic(((0, 8), (8, 0)), "h100:8x2", "collective-permute")
  assert (pairs.ici_seconds, pairs.dcn_seconds) == (0, 8e9 / 50e9)


def load(name: str, **keys) -> config_lib.Config:
  return config_lib.freeze(cli.load_config(f"configs/{name}", keys))


def test_without_cudnn_attention_is_compiled_as_flash_and_said(monkeypatch):
  monkeypatch.setattr(gpus, "has_cudnn", lambda: False)
  config = load("bench.py:gpt2-gpu")
  changed, remark = gpus.choose_attention(config)
  assert changed.model.attention == "flash"
  assert remark.startswith("attention is compiled with model.attention=flash")
  asked = load("bench.py:gpt2-gpu", **{"model.attention": "cudnn"})
  with pytest.raises(InputError, match="cudnn, and cuDNN is not installed"):
    gpus.choose_attention(asked)
  # cuDNN has no float32: the step would not use it.
  plain = load("bench.py:gpt2-gpu", **{"model.compute_dtype": "float32"})
  assert gpus.choose_attention(plain) == (plain, "")
  packed = load("bench.py:gpt2-gpu", **{"data.packing": "documents"})
  assert gpus.choose_attention(packed) == (packed, "")
  monkeypatch.setattr(gpus, "has_cudnn", lambda: True)
  assert gpus.choose_attention(config) == (config, "")


def test_without_the_compiler_a_plan_is_estimated_and_says_how(monkeypatch):
  monkeypatch.setattr(gpus, "has_compiler", lambda: False)
  topology = chips.parse_topology("h100:1", 1)
  assert not aot.can_compile(topology)
  plan = planner.make(load("bench.py:gpt2-gpu"), topology)
  assert plan["basis"] == "estimated"
  assert "the GPU compiler is not installed here" in plan["remark"]
  assert "[plan-gpu]" in plan["remark"]


def test_a_step_that_no_card_holds_is_sent_to_more_of_them(monkeypatch):
  monkeypatch.setattr(gpus, "has_compiler", lambda: False)
  where = lambda text: chips.parse_topology(text, 1)
  names = lambda text: [t.name for t in remedy.list_larger(None, where(text))]
  assert names("h100:4")[:3] == ["h100:8", "h100:8x2", "h100:8x4"]
  assert names("b200:8x64") == ["b200:8x128"]
  config = load("llama.py:70b", **{"train.global_batch_size": "64"})
  plan = planner.make(config, where("h100:8"))
  assert not plan["memory"]["fits"]
  found = remedy.find(plan, config, where("h100:8"), planner.make, print)
  assert found["flags"].startswith("--topology=h100:8x")
  assert found["bytes"] < plan["memory"]["available"]


def test_runs_that_are_published_have_a_config_and_need_the_compiler(
  monkeypatch,
):
  monkeypatch.setattr(gpus, "has_compiler", lambda: False)
  rows = [n for n, r in published.ROWS.items() if r.topology[0] in "hb"]
  assert len(rows) >= 5
  for name in rows:
    config = load(f"published_gpu.py:{name}")
    mesh, where = (
      config.mesh,
      chips.parse_topology(published.ROWS[name].topology, 1),
    )
    sizes = sharding.mesh_sizes(mesh, where.num_devices)
    assert config.train.global_batch_size % (sizes[0] * sizes[1]) == 0
  with pytest.raises(InputError, match="CUDA plugin"):
    published.compare(rows[0])


@pytest.mark.slow
@pytest.mark.skipif(
  not gpus.has_compiler(),
  reason="the GPU compiler, extra plan-gpu, is not installed",
)
def test_a_step_compiled_for_a_gpu_does_what_the_ledger_counts(call_verb):
  words = ["--config=configs/bench.py:gpt2-gpu", "--topology=h100:2", "--json"]
  words += ["--config.model.num_layers=2", "--config.mesh.data=2"]
  result = call_verb("lab.plan", *words)
  plan = json.loads(result.stdout)
  config = load("bench.py:gpt2-gpu", **{"model.num_layers": "2"})
  topology = chips.parse_topology("h100:2", 1)
  counted = analytic.hardware_flops(config, topology)
  done = plan["hardware_flops"] / plan["tokens_per_step"]
  assert plan["basis"] == "compiled"
  assert 1 <= done / counted < 1.1
  assert plan["roofline"]["hfu"] <= 1
  (row,) = [r for r in plan["collectives"] if r["kind"] == "all-reduce"]
  assert row["axis"] == "data"
