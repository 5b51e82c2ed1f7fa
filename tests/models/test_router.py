"""Every router against a loop over experts; the balance of their loads."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import cli, metric_names, objective, sharding, tree
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.plan import aot
from gpt_jax.machine import chips
from gpt_jax.models import build_model, experts, moe
from gpt_jax.runs import checkpoint, plot
from gpt_jax.training import build, optim, state, step

ROOT = pathlib.Path(__file__).parents[2]
B, T, D, F, E = 2, 24, 16, 12, 6
ROUTERS = {
  "softmax": {},
  "softmax, one": dict(experts_per_token=1),
  "sigmoid": dict(router_score="sigmoid"),
  "sigmoid, one": dict(router_score="sigmoid", experts_per_token=1),
  "sigmoid, biases": dict(
    router_score="sigmoid", router_bias_rate=0.1, experts_per_token=3
  ),
  "softmax, biases": dict(router_bias_rate=0.1),
  "groups": dict(router_groups=3, router_groups_per_token=1),
  "sigmoid, biases, groups": dict(
    router_score="sigmoid",
    router_bias_rate=0.1,
    experts_per_token=3,
    router_groups=3,
    router_groups_per_token=2,
  ),
  "capacity": dict(expert_capacity_factor=0.8),
  "capacity, sigmoid, biases": dict(
    expert_capacity_factor=0.6,
    router_score="sigmoid",
    router_bias_rate=0.1,
    experts_per_token=3,
  ),
  "shared": dict(num_shared_experts=2),
  "shared, gelu, z": dict(
    num_shared_experts=1, mlp="gelu", router_z_weight=0.1
  ),
}


def make_config(**changes) -> config_lib.Config:
  config = base.get_config()
  config.model.update(
    dict(
      num_layers=2,
      model_dim=D,
      num_heads=2,
      mlp_dim=40,
      expert_mlp_dim=F,
      max_len=T,
      vocab_size=30,
      num_experts=E,
      mlp="swiglu",
    )
    | changes
  )
  config.data.seq_len = T
  config.optim.warmup_steps = 0
  config.train.update(num_steps=5, global_batch_size=4)
  return config_lib.freeze(config)


def draws(seed: int, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(0, 0.5, s), jnp.float32) for s in shapes]


def scores(params, x_TD, c: config_lib.ModelConfig):
  logits_TE = x_TD @ params["router"]
  if c.router_score == "sigmoid":
    return jax.nn.sigmoid(logits_TE)
  return jax.nn.softmax(logits_TE)


def choose(params, x_BTD, c: config_lib.ModelConfig, is_limited: bool = True):
  """Returns [[(experts of a token, those with a place for it)]]."""
  A, C, found = c.experts_per_token, T, []
  if is_limited and c.expert_capacity_factor is not None:
    C = int(np.ceil(c.expert_capacity_factor * A * T / E))
  for x_TD in x_BTD:
    rank_TE = np.asarray(scores(params, x_TD, c))
    rank_TE = rank_TE + np.asarray(params.get("bias", 0.0))
    taken, row = dict.fromkeys(range(E), 0), []
    for rank_E in rank_TE:
      each = E // c.router_groups
      best = lambda g, r=rank_E, n=each: -max(r[g * n : g * n + n])
      groups = sorted(range(c.router_groups), key=best)
      groups = groups[: c.router_groups_per_token]
      able = [e for e in range(E) if e // each in groups]
      chosen = sorted(able, key=lambda e, r=rank_E: -r[e])[:A]
      row.append((chosen, [e for e in chosen if taken[e] < C]))
      for e in chosen:
        taken[e] += 1
    found.append(row)
  return found


def naive(params, x_BTD, c: config_lib.ModelConfig, chosen):
  """A loop over sequences, tokens and experts."""
  act = functools.partial(jax.nn.gelu, approximate=False)

  def mlp(ws, x_TD):
    h = x_TD @ ws["in"]
    h = jax.nn.silu(x_TD @ ws["gate"]) * h if "gate" in ws else act(h)
    return h @ ws["out"]

  out = []
  for x_TD, row in zip(x_BTD, chosen, strict=True):
    p_TE, y_TD = scores(params, x_TD, c), jnp.zeros_like(x_TD)
    of_experts = [
      mlp({k: params[k][e] for k in ("in", "out", "gate") if k in params}, x_TD)
      for e in range(E)
    ]
    for t, (own, placed) in enumerate(row):
      total = sum(p_TE[t, e] for e in own) if len(own) > 1 else 1.0
      for e in placed:
        y_TD = y_TD.at[t].add(p_TE[t, e] / total * of_experts[e][t])
    if c.num_shared_experts:
      y_TD += mlp(params["shared"], x_TD)
    out.append(y_TD)
  return jnp.stack(out)


def layer(name: str):
  """Returns (apply, params, x_BTD, config) of one MoE."""
  c = make_config(**ROUTERS[name]).model
  sides = ("in", "gate") if c.mlp == "swiglu" else ("in",)
  shapes = {"router": (D, E), "out": (E, F, D)} | {k: (E, D, F) for k in sides}
  params = dict(zip(shapes, draws(1, *shapes.values()), strict=True))
  if c.router_bias_rate:
    params["bias"] = draws(2, (E,))[0]
  if c.num_shared_experts:
    wide = c.num_shared_experts * F
    shapes = {"out": (wide, D)} | {k: (D, wide) for k in sides}
    params["shared"] = dict(
      zip(shapes, draws(3, *shapes.values()), strict=True)
    )
  module = moe.MoE(c, "standard")
  apply = lambda p, x, *args: module.apply({"params": p}, x, *args)
  return apply, params, draws(4, (B, T, D))[0], c


@pytest.mark.battery
@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_equals_a_loop_over_experts(name):
  apply, params, x, c = layer(name)
  chosen = choose(params, x, c)
  summed = lambda f: jax.jit(
    jax.value_and_grad(lambda p, x: jnp.sin(f(p, x)).sum(), (0, 1))
  )
  with jax.default_matmul_precision("highest"):
    ours = jax.jit(apply)(params, x)[0]
    theirs = jax.jit(lambda p, x: naive(p, x, c, chosen))(params, x)
    scale = float(jnp.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
    _, grads = summed(lambda p, x: apply(p, x)[0])(params, x)
    _, wanted = summed(lambda p, x: naive(p, x, c, chosen))(params, x)
  for one, other in zip(
    jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True
  ):
    most = float(jnp.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * most + 1e-7)
  # The control: another router is not equal.
  other = dict(router_score="softmax" if "sigmoid" in name else "sigmoid")
  if "capacity" in name:
    other = dict(expert_capacity_factor=None)
  c = dataclasses.replace(c, **other)
  wrong = naive(params, x, c, choose(params, x, c))
  assert float(jnp.abs(ours - wrong).max()) > 1e-3 * scale


def test_what_is_over_the_capacity_is_counted():
  apply, params, x, c = layer("capacity")
  routing = jax.jit(apply)(params, x)[1]
  C = experts.capacity_of(c, T)
  over = np.maximum(routing["count_BE"] - C, 0).sum(-1) / (
    T * c.experts_per_token
  )
  assert over.min() > 0
  np.testing.assert_allclose(routing["dropped_B"], over, rtol=1e-5)
  # Tokens that follow cached ones are never dropped.
  cached = jax.jit(apply, static_argnums=2)(params, x, True)
  np.testing.assert_allclose(
    cached[0],
    naive(params, x, c, choose(params, x, c, is_limited=False)),
    rtol=1e-4,
    atol=1e-5,
  )
  assert "dropped_B" not in cached[1]


def test_the_z_loss_is_the_square_of_the_logarithm_of_the_denominator():
  apply, params, x, _ = layer("shared, gelu, z")
  z_BT = np.log(np.exp(np.asarray(x @ params["router"], np.float64)).sum(-1))
  routing = apply(params, x)[1]
  np.testing.assert_allclose(routing["z_B"], (z_BT**2).mean(1), rtol=1e-5)


def make_run(c: config_lib.Config):
  model = build_model(c.model)
  params, specs = model.abstract_params()
  tx = optim.build_optimizer(c.optim, specs)
  schedule = optim.build_schedule(c.optim, c.train.num_steps)
  return model, tx, jax.jit(step.make_train_step(model, tx, schedule, c))


def begin(c: config_lib.Config, params=None):
  model, tx, train_step = make_run(c)
  params = state.init_params(model, 0) if params is None else params
  zero = jnp.int32(0)
  ema = params if c.train.ema_decay is not None else None
  return train_step, state.TrainState(
    zero, params, tx.init(params), zero, zero, ema
  )


def batch_of(seed: int):
  ids = np.random.default_rng(seed).integers(0, 30, (4, T + 1)).astype(np.int32)
  return {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


@pytest.mark.battery
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [False, True])
def test_one_expert_is_the_dense_model_bit_for_bit(dtype, scan):
  same = dict(
    expert_mlp_dim=None, compute_dtype=dtype, scan_layers=scan, mlp="swiglu"
  )
  dense = make_config(num_experts=None, **same)
  lone = make_config(num_experts=1, experts_per_token=1, **same)
  params = state.init_params(build_model(dense.model), 0)
  router = state.init_params(build_model(lone.model), 0)["blocks"]["moe"]
  blocks = dict(params["blocks"])
  own = {name: w_LDF[:, None] for name, w_LDF in blocks.pop("mlp").items()}
  blocks["moe"] = own | {"router": router["router"]}
  one_step, one = begin(dense, params)
  other_step, other = begin(lone, params | {"blocks": blocks})
  for seed in range(3):
    one, a = one_step(one, batch_of(seed))
    other, b = other_step(other, batch_of(seed))
    assert float(a[metric_names.LOSS]) == float(b[metric_names.LOSS])
    assert float(a[metric_names.GRAD_NORM]) == float(b[metric_names.GRAD_NORM])
  for name in ("in", "out", "gate"):
    np.testing.assert_array_equal(
      one.params["blocks"]["mlp"][name],
      other.params["blocks"]["moe"][name][:, 0],
    )
  np.testing.assert_array_equal(
    one.params["embed"]["tokens"], other.params["embed"]["tokens"]
  )
  moved = one.params["blocks"]["mlp"]["in"] - params["blocks"]["mlp"]["in"]
  assert float(jnp.abs(moved).max()) > 1e-4  # the control: it learned


BIASED = dict(
  router_score="sigmoid", router_bias_rate=0.25, layer_pattern="dense+moe"
)


@pytest.mark.battery
@pytest.mark.parametrize(
  "optimizer", ["adamw", "adam", "lion", "adafactor", "sgd", "muon"]
)
def test_biases_move_by_load_alone(optimizer):
  c = make_config(**BIASED)
  c = dataclasses.replace(
    c, optim=dataclasses.replace(c.optim, optimizer=optimizer)
  )
  train_step, now = begin(c)
  model = build_model(c.model)
  for seed in range(2):
    batch, old = batch_of(seed), now
    _, routing = model.apply(old.params, batch["tokens"], needs_balance=True)
    count_LE = np.asarray(routing["count_BE"].sum(1))
    load_LE = count_LE / count_LE.mean(-1, keepdims=True)
    now, found = train_step(old, batch)
    bias = lambda s: np.asarray(s.params["blocks_moe"]["moe"]["bias"])
    wanted = bias(old) + 0.25 * np.sign(1 - load_LE)
    np.testing.assert_array_equal(bias(now), wanted.astype(np.float32))
    assert np.abs(bias(now) - bias(old)).max() == 0.25  # the control
    loads = (load_LE.max(), load_LE.min())
    names = (metric_names.EXPERT_LOAD_MAX, metric_names.EXPERT_LOAD_MIN)
    met = [float(found[f"{name}/01"]) for name in names]
    np.testing.assert_allclose(met, loads, rtol=1e-6)
    assert f"{names[0]}/00" not in found  # a dense layer


@pytest.mark.wide
@pytest.mark.parametrize("axes", [{}, dict(data=2, expert=2)])
def test_biases_go_on_from_a_checkpoint_on_any_mesh(axes, tmp_path):
  c = make_config(**BIASED | dict(expert_capacity_factor=1.5))
  keeper = checkpoint.Checkpointer(str(tmp_path), c.checkpoint, {})

  def run(axes, steps, now=None):
    sizes = dict.fromkeys(sharding.AXES, 1) | axes
    here = dataclasses.replace(
      c, mesh=config_lib.MeshConfig(**sizes, rules="standard")
    )
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(here.mesh, devices)
    model, tx, train_step = make_run(here)
    place = sharding.batch_sharding(mesh, "standard")
    if now is None:
      now = state.init_state(model, tx, here, mesh)
    else:
      now, _ = keeper.restore(state.abstract_state(model, tx, here, mesh))
    with jax.set_mesh(mesh):
      for seed in steps:
        batch = jax.device_put(batch_of(seed), place)
        now, _ = jax.block_until_ready(train_step(now, batch))
    return now

  straight, half = run({}, range(4)), run({}, range(2))
  keeper.save(2, half, force=True)
  keeper.wait()
  after = run(axes, range(2, 4), now=half)
  keeper.close()
  for name, leaf in tree.flatten_with_names(straight.params).items():
    other = tree.flatten_with_names(after.params)[name]
    if not axes or name.endswith("moe/bias"):
      np.testing.assert_array_equal(leaf, other, name)
    np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)
  bias = lambda s: np.asarray(s.params["blocks_moe"]["moe"]["bias"])
  assert np.abs(bias(after) - bias(half)).max() > 0  # the control


def test_an_update_that_is_skipped_moves_no_bias():
  c = make_config(**BIASED)
  train_step, now = begin(c)
  bad = jax.tree.map(lambda p: p, now.params)
  bad["embed"]["tokens"] = bad["embed"]["tokens"].at[3].set(jnp.nan)
  after, _ = train_step(now.replace(params=bad), batch_of(0))
  bias = lambda s: np.asarray(s.params["blocks_moe"]["moe"]["bias"])
  np.testing.assert_array_equal(bias(after), bias(now))
  assert int(after.num_skipped) == 1


@pytest.mark.wide
def test_microbatches_move_biases_as_the_whole_batch_does():
  whole, parts = make_config(**BIASED), make_config(**BIASED)
  parts = dataclasses.replace(
    parts, train=dataclasses.replace(parts.train, num_microbatches=2)
  )
  afters = []
  for c in (whole, parts):
    train_step, now = begin(c)
    now, found = train_step(now, batch_of(0))
    afters.append((now.params["blocks_moe"]["moe"]["bias"], found))
  np.testing.assert_array_equal(afters[0][0], afters[1][0])
  name = f"{metric_names.EXPERT_LOAD_MAX}/01"
  np.testing.assert_allclose(afters[0][1][name], afters[1][1][name], rtol=1e-6)


@pytest.mark.wide
def test_weights_of_the_router_are_in_what_is_minimised():
  quiet = make_config(router_balance_weight=0.0)
  loud = make_config(router_balance_weight=0.5, router_z_weight=0.25)
  params = state.init_params(build_model(quiet.model), 0)

  def minimised(c):
    minimise = objective.make_objective(build_model(c.model), c)
    batch = batch_of(0)
    return minimise(params, batch, None, objective.count_totals(batch))

  low, plain = minimised(quiet)
  high, found = minimised(loud)
  assert metric_names.ROUTER_Z_LOSS not in plain
  layers = loud.model.num_layers
  extra = 0.5 * found[metric_names.BALANCE_LOSS]
  extra += 0.25 * found[metric_names.ROUTER_Z_LOSS]
  np.testing.assert_allclose(high - low, layers * extra, rtol=1e-4)


def test_the_picture_of_loads_has_a_line_for_each_layer():
  rows = [
    {"step": s, f"{name}/{layer:02}": value}
    for s in (1, 2)
    for name, value in (
      (metric_names.EXPERT_LOAD_MAX, 2.0),
      (metric_names.EXPERT_LOAD_MIN, 0.5),
    )
    for layer in (1, 3)
  ]
  svg = plot.draw_loads(rows)
  assert svg.count("<polyline") == 4 and "layer 3" in svg
  assert plot.draw_loads([{"step": 1}]) is None


@pytest.mark.parametrize(
  "section, changes, words",
  [
    ("data", dict(packing="documents"), "is 2 and data.packing is documents"),
    ("mesh", dict(seq=2), "is 2, which counts whole.*mesh.seq is 2; it must"),
    ("model", dict(num_experts=None), "factor is 2.0 and model.num_experts"),
  ],
)
def test_a_capacity_that_cannot_be_is_refused(section, changes, words):
  config = base.get_config()
  config.model.update(num_experts=4, expert_capacity_factor=2.0)
  config_lib.freeze(config)
  config[section].update(changes)
  with pytest.raises(InputError, match=words):
    config_lib.freeze(config)


@pytest.mark.wide
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU compiler, is not installed",
)
@pytest.mark.parametrize("factor", [1.5, None])
def test_a_tpu_exchanges_buffers_and_copies_no_experts(factor, tpu_compiler):
  config = cli.load_config(f"{ROOT}/configs/moe.py:fine", {})
  config.model.update(
    num_layers=2,
    layer_pattern="dense+moe",
    vocab_size=512,
    compute_dtype="bfloat16",
    expert_capacity_factor=factor,
  )
  config.train.global_batch_size = 16
  config.mesh.update(data=1, expert=8)
  devices = aot.find_devices(chips.parse_topology("v5e:2x4", 1))
  built = build.assemble(config_lib.freeze(config), devices, "tpu")
  text = aot.compile_step(built).text
  own, whole = "[8,384,128]", "[64,384,128]"
  assert own in text and whole not in text
  assert whole.replace(",384,128", ",128,384") not in text
  # The control: without a capacity devices gather each other's tokens.
  assert ("all-to-all" in text) == (factor is not None)
