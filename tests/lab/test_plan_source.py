"""A step of two stacks is compiled for TPUs, on a machine without one."""

import json

import pytest
from test_plan import make_config, needs_libtpu

from gpt_jax import flops
from gpt_jax.lab.plan import aot, cost, hlo
from gpt_jax.machine import chips
from gpt_jax.training import build

# T5's form, whose two stacks are small.
T5 = dict(
  data__objective="span_corruption",
  model__family="encoder_decoder",
  model__norm="rmsnorm",
  model__position="relative",
  model__mlp="geglu_tanh",
  model__attn_scale=1.0,
  model__tied_embeddings=False,
  model__attention="auto",
)


@pytest.mark.slow
@needs_libtpu
def test_an_encoder_decoders_step_compiles_with_the_ledgers_flops(tpu_compiler):
  c = make_config(mesh__data=1, **T5)
  topology = chips.parse_topology("v5e:2x2", 1)
  built = build.assemble(c, aot.find_devices(topology), "tpu")
  module = hlo.parse(aot.compile_step(built).text)
  found = cost.measure(module, 4, 1.0)
  assert found.unknown_loops == []
  # Keys and values of a source are gathered and summed along these.
  assert {"all-reduce", "all-gather"} <= {x.kind for x in found.collectives}
  tokens = c.train.global_batch_size * c.data.seq_len
  assert 4 * found.flops == pytest.approx(
    flops.train_flops_of(c) * tokens, rel=0.02
  )
  other = make_config(model__num_encoder_layers=1, **T5)  # the control
  assert 4 * found.flops != pytest.approx(
    flops.train_flops_of(other) * tokens, rel=0.02
  )


@pytest.mark.slow
@needs_libtpu
def test_t5s_base_fits_eight_chips(run_verb, tmp_path):
  result = run_verb(
    "gpt_jax.lab.plan",
    "--config=configs/t5.py:base",
    "--topology=v5e:2x4",
    f"--out={tmp_path}",
    timeout=900,
    check=0,
  )
  assert result.stderr == ""
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert plan["basis"] == "compiled" and plan["memory"]["fits"]
  assert plan["unknown_loops"] == []
  assert plan["roofline"]["hfu"] > 0.1
