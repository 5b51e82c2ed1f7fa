"""Training adapters: what a step holds, computes and leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest
from test_step import batch_of, small_config

from gpt_jax import cli, metric_names, sharding, tree
from gpt_jax import config as config_lib
from gpt_jax import flops as ledger
from gpt_jax.config import AdapterConfig
from gpt_jax.training import build, step

STEPS = 6


def adapter_config(
  rank="attn=4,mlp=2",
  mesh=None,
  optimizer="adamw",
  kind="lora",
  base="full",
  **model,
):
  """A config of 8 rows and its base's sizes, which 8 devices divide."""
  config = small_config(init_from="/nowhere")
  replace = dataclasses.replace
  sizes = dict(num_heads=8, model_dim=64, mlp_dim=128, vocab_multiple=64)
  return replace(
    config,
    train=replace(config.train, global_batch_size=8),
    adapter=AdapterConfig(rank=rank, alpha=8.0, kind=kind, base=base),
    model=replace(config.model, **sizes | model),
    optim=replace(config.optim, optimizer=optimizer, learning_rate=1e-2),
    mesh=replace(config.mesh, **dict.fromkeys(sharding.AXES, 1) | (mesh or {})),
  )


def begin(config, devices: int = 1):
  """Returns (assembly, state); the base is the same at every call."""
  built = build.assemble(config, jax.devices()[:devices])
  now = built.init_learned()
  if built.model.adapter is not None:
    rng = np.random.default_rng(7)
    _, specs = built.model.abstract_params()
    draw = lambda like, spec: jax.device_put(
      (rng.normal(0, 0.02, like.shape) + (spec.role == "norm")).astype(
        like.dtype
      ),
      like.sharding,
    )
    placed = jax.tree.map(draw, built.abstract_base(), specs)
    now = now.replace(base=built.round_base(placed))
  return built, now


def run(config, devices: int = 1):
  """Returns (losses, last state, first state's base as numpy)."""
  built, now = begin(config, devices)
  base = jax.tree.map(np.asarray, now.base)
  train_step, losses = jax.jit(built.make_step(), donate_argnums=0), []
  with jax.set_mesh(built.mesh):
    for seed in range(STEPS):
      rows = np.random.default_rng(seed % 2).integers(0, 50, (8, 17))
      ids = rows.astype(np.int32)
      batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
      done = train_step(now, jax.device_put(batch, built.batch_place))
      now, found = jax.block_until_ready(done)
      losses.append(float(found[metric_names.LOSS]))
  return np.array(losses), now, base


def test_adapters_learn_and_their_base_stays_bit_for_bit():
  losses, after, base = run(adapter_config())
  assert losses[-1] < losses[1] - 0.05
  for name, x in tree.flatten_with_names(after.base).items():
    np.testing.assert_array_equal(x, tree.flatten_with_names(base)[name], name)
  b = tree.flatten_with_names(after.params)
  assert all(np.any(x) for name, x in b.items())


def test_state_optimizer_and_checkpoint_hold_adapters_alone():
  config = adapter_config("q=4")
  built, _ = begin(config)
  L, D, R = 2, 64, 4
  own = 4 * L * (D * R + R * D)  # bytes of float32, a and b
  assert tree.count_bytes(built.abstract.params) == own
  moments = tree.count_bytes(built.abstract.opt_state)
  assert moments == 2 * own + 4  # and the count of steps
  saved = built.abstract.without_frozen()
  assert tree.count_bytes(saved) == 3 * own + 4 + 3 * 4
  full = build.assemble(
    dataclasses.replace(
      config, adapter=AdapterConfig("none", 8.0, "lora", "full")
    ),
    jax.devices()[:1],
  )
  assert full.abstract.base is None
  assert tree.count_bytes(built.abstract.base) == tree.count_bytes(
    full.abstract.params
  )


@pytest.mark.parametrize("base", ["full", "int4"])
def test_a_base_that_is_rounded_leaf_by_leaf_is_what_it_is_as_a_whole(base):
  config = adapter_config(mesh={"fsdp": 2, "tensor": 4}, base=base)
  built, now = begin(config, 8)
  plain = dataclasses.replace(
    config, adapter=dataclasses.replace(config.adapter, base="full")
  )
  whole = begin(plain, 8)[1].base
  convert = built.make_rounding()
  found = tree.map_with_names(lambda name, leaf: convert(name, leaf), whole)
  assert jax.tree.structure(found) == jax.tree.structure(now.base)
  for one, like in zip(*map(jax.tree.leaves, (found, now.base)), strict=True):
    assert one.sharding == like.sharding and one.dtype == like.dtype
    np.testing.assert_array_equal(one, like)


def test_a_step_computes_no_gradient_of_the_base():
  def flops(rank):
    config = adapter_config(rank)
    built = build.assemble(config, jax.devices()[:1])
    return built.lower_step().compile().cost_analysis()["flops"]

  assert flops("attn=1,mlp=1") < 0.75 * flops("none")


def test_the_ledger_counts_no_gradient_of_the_base():
  config = adapter_config()
  full = dataclasses.replace(
    config, adapter=AdapterConfig("none", 8.0, "lora", "full")
  )
  weights = sum(ledger.count_parameters(config.model).values()) - 16 * 64
  for count in (ledger.train_flops_of, ledger.masked_flops_of):
    assert count(full) - count(config) == 2 * weights


@pytest.mark.parametrize("word", ["adafactor", "lion", "muon"])
def test_every_optimizer_moves_adapters(word):
  _, after, _ = run(adapter_config("attn=2", optimizer=word))
  named = tree.flatten_with_names(after.params)
  assert all(np.isfinite(x).all() for x in named.values())
  assert all(np.any(x) for name, x in named.items() if name.endswith("lora_b"))


@pytest.mark.wide
@pytest.mark.parametrize("word", ["int8", "int4"])
def test_adapters_of_a_rounded_base_learn_the_same_over_devices(word):
  config = adapter_config(base=word)
  losses, after, base = run(config)
  assert losses[-1] < losses[0]
  same = jax.tree.map(np.array_equal, base, jax.device_get(after.base))
  assert all(jax.tree.leaves(same))
  mesh = dict(fsdp=8) if word == "int8" else dict(fsdp=2, tensor=2, seq=2)
  spread, after, _ = run(adapter_config(mesh=mesh, base=word), devices=8)
  np.testing.assert_allclose(spread, losses, rtol=1e-5)
  values = after.base["blocks"]["mlp"]["in"].values_GFC
  shard = values.sharding.shard_shape(values.shape)
  assert np.prod(shard) * (8 if word == "int8" else 4) == values.size


@pytest.fixture(scope="module")
def alone():
  return run(adapter_config())[0]


@pytest.mark.parametrize(
  "mesh", [dict(fsdp=8), dict(tensor=8), dict(fsdp=2, tensor=2, seq=2)], ids=str
)
def test_adapters_learn_the_same_on_any_mesh(mesh, alone):
  losses, after, _ = run(adapter_config(mesh=mesh), devices=8)
  np.testing.assert_allclose(losses, alone, rtol=1e-5)
  if mesh.get("fsdp") == 8:  # neither adapters nor their base are whole
    for part in (after.params, after.base):
      q = tree.flatten_with_names(part)
      shards = {k: v.sharding.shard_shape(v.shape) for k, v in q.items()}
      small = next(k for k in shards if k.endswith(("attn/q", "q/lora_a")))
      assert shards[small][1] == 8


@pytest.mark.parametrize("scan", [True, False])
def test_microbatches_and_unrolled_layers_learn_the_same(scan, alone):
  config = adapter_config(scan_layers=scan)
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, num_microbatches=2)
  )
  np.testing.assert_allclose(run(config)[0], alone, rtol=1e-5)


def test_rates_by_path_reach_adapters():
  config = adapter_config()
  frozen = dataclasses.replace(config.optim, rates="lora_a=0,blocks/mlp=0")
  config = dataclasses.replace(config, optim=frozen)
  built, start = begin(config)
  assert "nu/blocks/attn/q/lora_b" in str(tree.describe_shapes(start.opt_state))
  _, after, _ = run(config)
  old, new = (tree.flatten_with_names(t) for t in (start.params, after.params))
  moved = {name for name in old if not np.array_equal(old[name], new[name])}
  assert moved == {f"blocks/attn/{m}/lora_b" for m in "qkvo"}


def test_telemetry_reads_the_adapted_model():
  built, now = begin(adapter_config())
  ids = batch_of(0)
  found = built.make_watch()(
    now, {k: np.tile(v, (2, 1)) for k, v in ids.items()}
  )
  assert float(found["telemetry/grad_norm/lora_b"]) > 0
  assert float(found["telemetry/attn_rms/00"]) > 0
  assert "telemetry/grad_norm/hidden" not in found


@pytest.mark.wide
def test_magnitudes_learn_and_any_mesh_agrees():
  losses, after, base = run(adapter_config(kind="dora"))
  assert losses[-1] < losses[1] - 0.05
  named = tree.flatten_with_names(after.params)
  assert all(
    np.all(x != 1) for name, x in named.items() if name.endswith("magnitude")
  )
  mesh = dict(fsdp=2, tensor=2, seq=2)
  parts, _, _ = run(adapter_config(kind="dora", mesh=mesh), devices=8)
  np.testing.assert_allclose(parts, losses, rtol=1e-5)


def test_a_state_for_timing_has_a_base_too():
  built = build.assemble(adapter_config("q=2"), jax.devices()[:1])
  now = built.init_state()
  like = tree.describe_shapes(built.abstract)
  assert tree.describe_shapes(now) == like
  assert np.any(now.base["blocks"]["mlp"]["in"])


def test_where_layers_have_several_stacks_one_may_have_no_adapter():
  more = dict(layer_pattern="dense+moe", num_experts=4, scan_layers=False)
  config = adapter_config("moe=2", kind="dora", **more)
  train = dataclasses.replace(config.train, num_microbatches=2)
  config = dataclasses.replace(config, train=train)
  built = build.assemble(config, jax.devices()[:1])
  batch = {k: np.tile(v, (2, 1)) for k, v in batch_of(0).items()}
  now = built.abstract
  gradient = step.make_gradient(built.model, config)
  found, _ = jax.eval_shape(gradient, now.params, batch, None, now.base)
  assert tree.describe_shapes(found) == tree.describe_shapes(now.params)
  stacks = [name for name in now.base if name.startswith("blocks")]
  assert len(stacks) == 2 and len(now.params) == 1


def test_adapters_of_a_bfloat16_base_are_float32():
  losses, after, _ = run(adapter_config(param_dtype="bfloat16"))
  assert losses[-1] < losses[1] - 0.05
  types = lambda part: {str(x.dtype) for x in jax.tree.leaves(part)}
  assert types(after.base) == {"bfloat16"}
  assert types((after.params, after.opt_state)) == {"float32", "int32"}


@pytest.mark.slow  # compiles two steps of GPT-2: half a minute
def test_adapters_of_gpt2_take_a_quarter_of_the_memory_of_full_tuning():
  def peak(rank):
    values = cli.load_config("configs/gpt2.py:124m", {})
    values.data.seq_len = 128
    values.train.update(global_batch_size=8, num_microbatches=2)
    values.train.update(num_loss_chunks=4, init_from="/nowhere")
    values.model.update(remat="full", scan_layers=True, compute_dtype="float32")
    values.adapter.rank = rank
    built = build.assemble(config_lib.freeze(values), jax.devices()[:1])
    found = built.lower_step().compile().memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes

  assert peak("attn=8") < peak("none") / 4
