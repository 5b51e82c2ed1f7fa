"""Experts: what is computed equals its definition, and compiles for a TPU."""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import flops, sharding
from gpt_jax.config import InputError
from gpt_jax.lab.plan import aot
from gpt_jax.machine import chips, runtime
from gpt_jax.models import build_model, moe
from gpt_jax.ops import grouped

B, T, D, F, E, A = 2, 12, 16, 24, 5, 2


def model_config(**changes) -> config_lib.ModelConfig:
  config = base.get_config()
  small = dict(
    num_layers=2,
    model_dim=D,
    num_heads=2,
    mlp_dim=F,
    max_len=T,
    vocab_size=30,
    num_experts=E,
    mlp="swiglu",
  )
  config.model.update(small | changes)
  config.data.seq_len = T
  return config_lib.freeze(config).model


def draws(seed: int, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(0, 1, s), jnp.float32) for s in shapes]


def groups(num_rows: int, num_in: int, experts=range(E)):
  """Returns sizes_E: num_in of num_rows rows drawn over some experts."""
  ids = np.random.default_rng(num_rows).choice(list(experts), num_in)
  return jnp.asarray(np.bincount(ids, minlength=E), jnp.int32)


SIZES = {
  "all rows": (300, groups(300, 300)),
  "some rows in no group": (300, groups(300, 190)),
  "empty groups": (200, groups(200, 150, experts=(1, 4))),
  "no rows": (40, groups(40, 0)),
  "one token": (2, groups(2, 2)),
}


def grouped_and_gradients(function, num_rows, sizes_E):
  x, w, dy = draws(0, (num_rows, D), (E, D, F), (num_rows, F))
  y, pull = jax.vjp(lambda x, w: function(x, w, sizes_E), x, w)
  return y, *pull(dy)


def by_loop(x_PD, w_EDF, sizes_E):
  """The definition: each row with its group's matrix, zero beyond."""
  group_P = (jnp.cumsum(sizes_E)[None] <= jnp.arange(len(x_PD))[:, None]).sum(1)
  one_PE = jax.nn.one_hot(group_P, E)
  return jnp.einsum("PD,EDF,PE->PF", x_PD, w_EDF, one_PE)


def largest_gap(ours, theirs) -> float:
  pairs = zip(ours, theirs, strict=True)
  return max(float(jnp.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("case", SIZES)
def test_a_grouped_product_is_each_row_with_its_own_matrix(case):
  ours = lambda x, w, s: grouped.grouped(x, w, s, "float32", 1, ())
  assert (
    largest_gap(
      grouped_and_gradients(jax.jit(ours), *SIZES[case]),
      grouped_and_gradients(by_loop, *SIZES[case]),
    )
    < 1e-4
  )


def test_a_grouped_product_with_other_groups_would_be_seen():
  rows, sizes_E = SIZES["all rows"]
  moved = sizes_E.at[0].add(1).at[1].add(-1)
  ours = lambda x, w, s: grouped.grouped(x, w, s, "float32", 1, ())
  for a, b in zip(
    grouped_and_gradients(ours, rows, moved),
    grouped_and_gradients(by_loop, rows, sizes_E),
    strict=True,
  ):
    assert float(jnp.abs(a - b).max()) > 0.1


@pytest.mark.parametrize("case", SIZES)
def test_blocks_and_ragged_dot_agree(case):
  rows, sizes_E = SIZES[case]
  x, w, dy = draws(1, (rows, D), (E, D, F), (rows, F))
  n = int(sizes_E.sum())
  np.testing.assert_allclose(
    jax.jit(grouped.times_by_blocks)(x, w, sizes_E)[:n],
    jax.lax.ragged_dot(x, w, sizes_E)[:n],
    rtol=1e-4,
    atol=1e-4,
  )
  (dw,) = jax.vjp(lambda w: jax.lax.ragged_dot(x, w, sizes_E), w)[1](dy)
  outer = jax.jit(grouped.outer_by_blocks, static_argnums=(3, 4))
  for most in (grouped.CPU_BLOCK, grouped.BLOCK):
    np.testing.assert_allclose(
      outer(x, dy, sizes_E, "float32", most), dw, rtol=1e-4, atol=1e-4
    )


def test_numbers_in_rows_of_no_group_go_nowhere():
  rows, sizes_E = SIZES["some rows in no group"]
  x, w = draws(0, (rows, D), (E, D, F))
  bad = x.at[int(sizes_E.sum()) :].set(jnp.nan)
  ours = lambda x, w: grouped.grouped(x, w, sizes_E, "float32", 1, ())
  y, pull = jax.vjp(ours, bad, w)
  dx, dw = pull(jnp.ones_like(y))
  assert all(np.isfinite(a).all() for a in (y, dx, dw))


def naive(params, x_BTD, lone: bool):
  """Every expert on every token, those that are not chosen times zero."""
  p_BTE = jax.nn.softmax(x_BTD @ params["router"])
  least = jnp.sort(p_BTE)[..., -1 if lone else -A, None]
  kept_BTE = jnp.where(p_BTE >= least, p_BTE, 0)
  if not lone:
    kept_BTE /= kept_BTE.sum(-1, keepdims=True)
  h = jnp.einsum("BTD,EDF->BTEF", x_BTD, params["in"])
  h *= jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", x_BTD, params["gate"]))
  return jnp.einsum("BTEF,EFD,BTE->BTD", h, params["out"], kept_BTE)


@functools.cache
def layer(experts_per_token: int = A):
  """Returns (apply, params, x_BTD) of one MoE."""
  config = model_config(experts_per_token=experts_per_token)
  module = moe.MoE(config, "standard")
  shapes = dict(router=(D, E), out=(E, F, D)) | {
    name: (E, D, F) for name in ("in", "gate")
  }
  params = dict(zip(shapes, draws(2, *shapes.values()), strict=True))
  params = {k: 0.5 * v for k, v in params.items()}
  apply = jax.jit(lambda p, x: module.apply({"params": p}, x))
  return apply, params, draws(3, (B, T, D))[0]


@pytest.mark.parametrize("lone", [False, True])
def test_the_layer_and_its_gradients_equal_the_naive_ones(lone):
  apply, params, x = layer(1 if lone else A)
  with jax.default_matmul_precision("highest"):
    score = lambda f: jax.grad(lambda p, x: jnp.sin(f(p, x)).sum(), (0, 1))
    ours = lambda p, x: apply(p, x)[0]
    theirs = lambda p, x: naive(p, x, lone)
    np.testing.assert_allclose(
      ours(params, x), theirs(params, x), rtol=1e-4, atol=1e-4
    )
    a, b = score(ours)(params, x), score(theirs)(params, x)
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    assert np.abs(other).max() > 1e-2
  other = naive(params, x, not lone)
  assert not np.allclose(ours(params, x), other, atol=1e-2)  # the control


def test_a_token_is_computed_as_it_would_be_alone():
  apply, params, x = layer()
  together = apply(params, x)[0]
  # All others to one expert: with a capacity, some would be dropped.
  crowd = jnp.broadcast_to(x[:1, :1], x.shape).at[0, 5].set(x[0, 5])
  np.testing.assert_allclose(
    apply(params, crowd)[0][0, 5], together[0, 5], rtol=1e-4, atol=1e-5
  )


def test_balance_is_one_where_even_and_e_where_all_go_to_one():
  even = jnp.full((1, E, E), 1 / E)
  each = jnp.arange(E)[None, :, None]
  balance = lambda p, ids: moe.balance_of(p, moe.count_of(ids, E))
  np.testing.assert_allclose(balance(even, each), 1.0, rtol=1e-6)
  crowd = jax.nn.one_hot(jnp.zeros((1, T), int), E)
  lone = jnp.zeros((1, T, 1), int)
  np.testing.assert_allclose(balance(crowd, lone), E, rtol=1e-6)


def test_balance_pulls_tokens_off_a_crowded_expert():
  apply, params, x = layer()
  crowded = params | {"router": params["router"] * 0.1}
  x = jnp.abs(x)
  crowded["router"] = crowded["router"].at[:, 0].add(0.2)
  balance = lambda p: apply(p, x)[1]["balance_B"].mean()
  start = float(balance(crowded))
  grad = jax.jit(jax.grad(balance))
  for _ in range(100):
    crowded = jax.tree.map(lambda p, g: p - 0.1 * g, crowded, grad(crowded))
  assert start > 1.5 and float(balance(crowded)) < 1.2


def test_each_sequence_has_its_own_balance():
  apply, params, x = layer()
  balance = lambda x: apply(params, x)[1]["balance_B"]
  both, alone = balance(x), [balance(x[i : i + 1])[0] for i in range(B)]
  np.testing.assert_allclose(both, alone, rtol=1e-6)
  assert abs(float(both[0] - both[1])) > 1e-3


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU compiler, is not installed",
)
def test_gradients_compile_for_a_tpu_slice_with_its_kernel(tpu_compiler):
  config = model_config(model_dim=128, mlp_dim=256, num_experts=8)
  config = dataclasses.replace(config, compute_dtype="bfloat16")
  axes = dict.fromkeys(sharding.AXES, 1) | dict(expert=4, fsdp=2)
  devices = aot.find_devices(chips.parse_topology("v5e:2x4", 1))
  mesh = sharding.make_mesh(
    config_lib.MeshConfig(**axes, rules="standard"), devices
  )
  shapes, specs = build_model(config).abstract_params()
  placed = sharding.shardings_of(shapes, specs, "standard", mesh)
  # One layer of the stack.
  params = {
    name: jax.ShapeDtypeStruct(
      leaf.shape[1:],
      leaf.dtype,
      sharding=NamedSharding(mesh, P(*placed["blocks"]["moe"][name].spec[1:])),
    )
    for name, leaf in shapes["blocks"]["moe"].items()
  }
  x_BTD = jax.ShapeDtypeStruct(
    (16, 64, 128),
    jnp.bfloat16,
    sharding=sharding.batch_sharding(mesh, "standard"),
  )
  module = moe.MoE(config, "standard")
  score = lambda p, x: module.apply({"params": p}, x)[0].sum()
  with jax.set_mesh(mesh), runtime.hush_stderr():
    lowered = jax.jit(jax.grad(score, (0, 1))).lower(params, x_BTD)
    text = lowered.compile().as_text()
  kernels = re.findall(r"%ragged-dot-none[.\d]* = ", text)
  assert len(kernels) == 6  # three products, and the gradient of rows of each
  # Own experts alone, 2 of 8.
  assert "[2,128,256]" in text and "[8,128,256]" not in text
  assert "reduce-scatter" in text


def test_active_parameters_are_those_of_a_model_of_so_many_experts():
  model = model_config()
  fewer = dataclasses.replace(model, num_experts=A)
  router = model.num_layers * D * (E - A)
  count = lambda f, m: sum(f(m).values())
  met = count(flops.count_active_parameters, model)
  assert met == router + count(flops.count_parameters, fewer)
  assert met < count(flops.count_parameters, model)
  per_token = lambda m: flops.train_flops_per_token(m, T)
  assert per_token(model) == per_token(fewer) + 6 * router


@pytest.mark.parametrize(
  "section, changes, words",
  [
    ("model", dict(experts_per_token=6), "experts_per_token is 6.*at most"),
    ("model", dict(router_groups=2), "router_groups is 2; it must divide.*5"),
    (
      "model",
      dict(router_groups=5, router_groups_per_token=1),
      "is 1 of 5 groups with 1 experts each; it must be at most 5, and they",
    ),
    (
      "model",
      dict(num_experts=None, router_groups_per_token=1),
      "router_groups_per_token is 1 and.*None",
    ),
    ("mesh", dict(expert=2), "mesh.expert is 2; it must divide.*5"),
    ("model", dict(layer_pattern="dense"), "'dense', all dense; name moe"),
    ("model", dict(num_experts=None, layer_pattern="moe"), "None; set it to"),
    ("model", dict(num_experts=None, num_shared_experts=1), "is 1 and.*None"),
  ],
)
def test_experts_that_cannot_be_are_refused(section, changes, words):
  config = base.get_config()
  config.model.num_experts = E
  config_lib.freeze(config)
  config[section].update(changes)
  with pytest.raises(InputError, match=words):
    config_lib.freeze(config)


def test_a_model_without_experts_has_no_balance():
  tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
  for num_experts in (None, E):
    model = build_model(model_config(num_experts=num_experts))
    apply = functools.partial(model.apply, needs_balance=True)
    params, _ = model.abstract_params()
    logits, routing = jax.eval_shape(apply, params, tokens)
    assert logits.shape[:2] == (B, T)
    if num_experts is None:
      assert routing is None
    else:
      assert routing["balance_B"].shape == (2, B)
