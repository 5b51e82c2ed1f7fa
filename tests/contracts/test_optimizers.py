"""One battery for every optimizer. A new optimizer is a new word in RATES."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from directions import (
  DECAY,
  MATRICES,
  SIZES,
  SPECS,
  build,
  compiled,
  gap,
  layers_gap,
  optim_config,
  random_tree,
  run,
  state_layout,
)
from jax.sharding import NamedSharding

from gpt_jax import config, sharding, tree
from gpt_jax.config import InputError
from gpt_jax.parametrization import ParamSpec
from gpt_jax.training import optim, step

pytestmark = pytest.mark.battery

# Rates at which each learns the small problem below.
RATES = {
  "adamw": 3e-3,
  "adam": 3e-3,
  "lion": 1e-3,
  "adafactor": 3e-3,
  "sgd": 0.1,
  "muon": 3e-3,
}


def predict(params, ids):
  def layer(x, p):
    h = jnp.tanh(jnp.einsum("bd,dnh->bnh", x * p["scale"][None], p["q"]))
    x = x + jnp.einsum("bnh,nhd->bd", h, p["o"])
    weight = jax.nn.softmax(x @ p["router"])
    h = jnp.tanh(jnp.einsum("bd,edf->bef", x, p["expert_in"]))
    x = x + jnp.einsum("bef,efd,be->bd", h, p["expert_out"], weight)
    return x + jnp.tanh(x @ p["in"] + p["in_bias"][None]) @ p["out"], None

  x, _ = jax.lax.scan(layer, params["embed"]["tokens"][ids], params["blocks"])
  return x * params["final_norm"]["scale"][None]


@functools.cache
def make_training(word: str):
  """Returns train(rate) -> loss before and after 150 steps of regression."""
  ids = jnp.arange(SIZES["vocab"])
  ones = lambda t: tree.map_with_names(
    lambda name, x: jnp.ones_like(x) if "scale" in name else x, t
  )
  teacher, student = ones(random_tree(1)), ones(random_tree(2))
  targets = predict(teacher, ids)
  loss = lambda params: jnp.mean((predict(params, ids) - targets) ** 2)
  tx = optim.build_optimizer(optim_config(word, weight_decay=0.01), SPECS)

  @jax.jit
  def train(rate):
    def step(carry, _):
      params, state = carry
      direction, state = tx.update(jax.grad(loss)(params), state, params)
      params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
      return (params, state), None

    start = (student, tx.init(student))
    (params, _), _ = jax.lax.scan(step, start, length=150)
    return loss(student), loss(params)

  return train


@pytest.mark.parametrize("word", RATES)
def test_the_loss_of_a_small_problem_falls(word):
  before, after = make_training(word)(RATES[word])
  assert after < 0.1 * before


@pytest.mark.parametrize("word", RATES)
def test_the_loss_would_not_fall_with_the_sign_turned(word):
  before, after = make_training(word)(-RATES[word])
  assert not after < 0.1 * before


def test_the_battery_covers_every_word():
  assert set(RATES) == set(config.KEYS["optim.optimizer"].options)


def test_an_unknown_word_is_refused_with_the_valid_ones():
  with pytest.raises(InputError, match="adamw, adam, lion"):
    build("no such optimizer")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("word", RATES)
def test_directions_are_like_parameters_and_the_state_keeps_its_form(
  word, dtype
):
  params, tx = random_tree(1, dtype=dtype), build(word)
  state = jax.eval_shape(tx.init, params)
  direction, new_state = jax.eval_shape(tx.update, params, state, params)
  # Directions are computed in float32, whatever parameters are kept in.
  wanted = jax.eval_shape(
    lambda p: jax.tree.map(lambda x: x.astype(jnp.float32), p), params
  )
  for found, expected in ((direction, wanted), (new_state, state)):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert tree.describe_shapes(found) == tree.describe_shapes(expected)


@pytest.mark.parametrize("word", RATES)
def test_moments_in_bfloat16_take_half_and_still_descend(word):
  params = random_tree(1)
  kinds = {}
  for dtype in ("float32", "bfloat16"):
    section = optim_config(word, moment_dtype=dtype)
    tx = optim.build_optimizer(section, SPECS)
    state = tx.init(params)
    kinds[dtype] = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    direction, state = tx.update(random_tree(2), state, params)
    direction, state = tx.update(random_tree(2), state, params)
    if dtype == "float32":
      exact = direction
  assert jnp.dtype("bfloat16") in kinds["bfloat16"]
  assert jnp.dtype("bfloat16") not in kinds["float32"]
  flat = lambda t: jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)])
  a, b = flat(exact), flat(direction)
  assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.99


@pytest.mark.parametrize("word", RATES)
def test_directions_are_finite_for_gradients_of_any_size(word):
  params = random_tree(1)
  steps = [random_tree(2, scale=scale) for scale in (1e-9, 1.0, 1e9)]
  for direction in jax.tree.leaves(run(build(word), params, steps)):
    assert np.isfinite(direction).all() and direction.any()


def count_nonfinite(word: str, dtype: str) -> int:
  """Returns leaves that are not finite after updates that no float holds."""
  bad = optim_config(word, eps=0.0, weight_decay=1e38, moment_dtype=dtype)
  tx = optim.build_optimizer(bad, SPECS)
  params = random_tree(1, dtype=dtype)
  ema = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  now = params, tx.init(params), ema

  @jax.jit
  def run(now, grads):
    return step.update(tx, grads, now, jnp.float32(1e30), jnp.float32(0.9))

  zeros = random_tree(2, scale=0.0)
  for grads in (
    zeros,
    random_tree(2),
    random_tree(3, scale=step.MAX_GRAD_NORM / 100),
  ):
    now = run(now, grads)
  return sum(not jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(now))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("word", RATES)
def test_nothing_that_is_written_is_ever_not_finite(word, dtype):
  assert count_nonfinite(word, dtype) == 0


def test_what_is_written_unchecked_would_not_be_finite(monkeypatch):
  monkeypatch.setattr(step, "keep_finite", lambda new, old: new)
  assert count_nonfinite("adamw", "float32") > 0


def check_decay(word: str, tx) -> None:
  """Without a gradient, a direction is the decay and nothing else."""
  params, zeros = random_tree(1), random_tree(1, scale=0.0)
  weights = tree.flatten_with_names(params)
  for direction in run(tx, params, [zeros, zeros]):
    for name, found in tree.flatten_with_names(direction).items():
      rate = DECAY if name in MATRICES and word != "adam" else 0.0
      np.testing.assert_allclose(found, rate * weights[name], rtol=1e-6)


@pytest.mark.parametrize("word", RATES)
def test_matrices_are_decayed_and_norms_and_biases_are_not(word):
  check_decay(word, build(word))


@pytest.mark.parametrize("leaf", ["in_bias", "scale", "in"])
def test_a_wrong_mask_would_be_seen(leaf):
  role = {"in_bias": "embed", "scale": "embed", "in": "norm"}[leaf]
  wrong = dataclasses.replace(SPECS["blocks"][leaf], role=role)
  specs = SPECS | {"blocks": SPECS["blocks"] | {leaf: wrong}}
  with pytest.raises(AssertionError):
    check_decay("sgd", compiled("sgd", specs))


@pytest.mark.parametrize("word", RATES)
def test_stacked_layers_do_not_see_each_other(word):
  assert layers_gap(build(word)) < 1e-5


def experts_gap(tx) -> float:
  """Returns how much of the second expert's last gradient the first sees."""
  params, steps = random_tree(1), [random_tree(s) for s in (2, 3)]
  grown = {k: v for k, v in steps[1]["blocks"].items()}
  for name in ("expert_in", "expert_out"):
    grown[name] = grown[name].at[:, 1].multiply(10.0)
  before = run(tx, params, steps)
  after = run(tx, params, [steps[0], steps[1] | {"blocks": grown}])
  first = lambda ts: [
    [t["blocks"][name][:, 0] for name in ("expert_in", "expert_out")]
    for t in ts
  ]
  return gap(first(before), first(after))


@pytest.mark.parametrize("word", RATES)
def test_experts_do_not_see_each_other(word):
  assert experts_gap(build(word)) < 1e-5


@pytest.mark.parametrize("word", ["adafactor", "muon"])
def test_experts_that_see_each_other_would_be_noticed(word):
  unnamed = lambda spec: ParamSpec(
    tuple("heads" if a == "experts" else a for a in spec.axes), spec.role
  )
  assert experts_gap(compiled(word, jax.tree.map(unnamed, SPECS))) > 1e-3


@pytest.mark.parametrize("word", ["adafactor", "muon"])
def test_layers_that_see_each_other_would_be_noticed(word):
  unnamed = lambda spec: ParamSpec(
    tuple(None if a == "layers" else a for a in spec.axes), spec.role
  )
  assert layers_gap(compiled(word, jax.tree.map(unnamed, SPECS))) > 1e-2


def check_layout(word: str, specs) -> None:
  for leaf, spec in state_layout(word, specs).values():
    if spec is not None:
      assert leaf.shape == tuple(SIZES[a] for a in spec.axes)


@pytest.mark.parametrize("word", RATES)
def test_state_specs_name_the_dims_of_each_state_leaf(word):
  check_layout(word, SPECS)


def test_specs_of_other_leaves_would_be_noticed():
  blocks = SPECS["blocks"]
  swapped = blocks | {"in": blocks["out"], "out": blocks["in"]}
  with pytest.raises(AssertionError):
    check_layout("adamw", SPECS | {"blocks": swapped})


@pytest.mark.parametrize(
  "word,copies",
  [("adamw", 2), ("adam", 2), ("lion", 1), ("sgd", 1), ("muon", None)],
)
def test_only_scalars_and_constants_are_without_spec(word, copies):
  layout = state_layout(word, SPECS)
  for name, (leaf, spec) in layout.items():
    assert (spec is None) == (leaf.size < 32), name
  if copies:
    held = sum(leaf.size for leaf, s in layout.values() if s is not None)
    assert held == copies * tree.count_elements(random_tree(1))


@pytest.mark.parametrize("word", ["adafactor", "muon"])
def test_a_state_over_eight_devices_gives_the_same_directions(word):
  sizes = dict(data=1, fsdp=4, expert=1, seq=1, tensor=2, rules="standard")
  mesh = sharding.make_mesh(config.MeshConfig(**sizes))
  place = lambda x, specs: jax.device_put(
    x, sharding.shardings_of(x, specs, "standard", mesh)
  )
  params, grads, tx = random_tree(1), random_tree(2), build(word)
  state = tx.init(params)
  expected, _ = tx.update(grads, state, params)
  layout = optim.state_specs(state, params, SPECS)
  split = place(state, layout)
  assert any(
    isinstance(leaf.sharding, NamedSharding)
    and not leaf.sharding.is_fully_replicated
    for leaf in jax.tree.leaves(split)
  )
  found, _ = tx.update(place(grads, SPECS), split, place(params, SPECS))
  assert gap(expected, jax.device_get(found)) < 1e-4


def clipped_norm(norm: float, max_norm: float | None) -> float:
  grads = {"w": jnp.full((3, 3), norm / 5), "b": jnp.full(4, norm * 0.4)}
  clipped = optim.clip_by_global_norm(grads, jnp.float32(norm), max_norm)
  assert tree.describe_shapes(clipped) == tree.describe_shapes(grads)
  return float(optax.tree.norm(clipped))


@pytest.mark.parametrize(
  "norm,max_norm,expected",
  [(5.0, 1.0, 1.0), (0.5, 1.0, 0.5), (5.0, None, 5.0), (5.0, 9.0, 5.0)],
)
def test_clipping_bounds_the_global_norm(norm, max_norm, expected):
  assert clipped_norm(norm, max_norm) == pytest.approx(expected, rel=1e-5)


def test_clipping_leaves_gradients_of_zero_at_zero():
  zeros = {"w": jnp.zeros(3, jnp.bfloat16)}
  clipped = optim.clip_by_global_norm(zeros, jnp.float32(0), 1.0)["w"]
  assert clipped.dtype == jnp.bfloat16 and (clipped == 0).all()
