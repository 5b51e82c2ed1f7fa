"""Muon, AdamW, Adam and Adafactor are what was published of them."""

import jax
import numpy as np
import optax
import pytest
from directions import (
  DECAY,
  MATRICES,
  MUONS,
  SIZES,
  SPECS,
  build,
  gap,
  optim_config,
  random_tree,
  run,
  state_layout,
  with_layers,
)

from gpt_jax import tree


def test_muon_on_stacked_layers_is_muon_on_each_alone():
  params, steps, tx = random_tree(1), [random_tree(2)], build("muon")
  together = run(tx, params, steps)
  for i in range(SIZES["layers"]):
    only = lambda t, i=i: with_layers(lambda x: x[i : i + 1], t)
    alone = run(tx, only(params), [only(g) for g in steps])
    assert gap([only(d) for d in together], alone) < 1e-5


def adamw_gap(beta2: float) -> float:
  """Returns how far five steps are from AdamW (algorithm 2) in numpy.

  Loshchilov and Hutter 2019, with the decay times the rate.
  """
  c, tx, rate = optim_config("adamw"), build("adamw"), np.float32(1e-2)
  params = random_tree(1)
  expected = {
    k: np.float64(v) for k, v in tree.flatten_with_names(params).items()
  }
  m, v = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
  state = tx.init(params)
  for t in range(1, 6):
    grads = random_tree(10 + t)
    direction, state = tx.update(grads, state, params)
    params = jax.tree.map(
      lambda p, d: np.asarray(p) - rate * d, params, direction
    )
    for name, g in tree.flatten_with_names(grads).items():
      g = np.float64(g)
      m[name] = c.beta1 * m[name] + (1 - c.beta1) * g
      v[name] = beta2 * v[name] + (1 - beta2) * g * g
      step = (m[name] / (1 - c.beta1**t)) / (
        np.sqrt(v[name] / (1 - beta2**t)) + c.eps
      )
      decay = c.weight_decay * expected[name] * (name in MATRICES)
      expected[name] = expected[name] - rate * (step + decay)
  found = tree.flatten_with_names(params)
  return np.max([np.abs(found[k] - expected[k]).max() for k in expected])


def test_adamw_is_the_published_algorithm():
  assert adamw_gap(beta2=0.95) < 1e-6


def test_another_beta_would_be_noticed():
  assert adamw_gap(beta2=0.96) > 1e-5


def test_adam_is_that_of_optax():
  params, steps = random_tree(1), [random_tree(s) for s in (2, 3, 4)]
  c = optim_config("adam")
  theirs = optax.adam(1.0, c.beta1, c.beta2, c.eps)
  theirs = optax.GradientTransformation(
    jax.jit(theirs.init), jax.jit(theirs.update)
  )
  negated = jax.tree.map(np.negative, run(theirs, params, steps))
  assert gap(run(build("adam"), params, steps), negated) < 1e-6
  assert gap(run(build("lion"), params, steps), negated) > 1e-2


def singular_values(name: str, stacked) -> np.ndarray:
  """Returns those of each layer's matrix over 0.2 sqrt(its longer side)."""
  rows = {"q": 32, "o": 4 * 40}.get(name, 32 if name.endswith("in") else 48)
  experts = SIZES["experts"] if name.startswith("expert") else 1
  matrices = np.reshape(stacked, (2 * experts, rows, -1))
  longer = max(matrices.shape[1:])
  values = np.linalg.svd(matrices, compute_uv=False)
  return values / (0.2 * longer**0.5)


@pytest.mark.parametrize("name", MUONS)
def test_muon_returns_matrices_with_level_singular_values(name):
  params, steps = random_tree(1), [random_tree(2), random_tree(3)]
  for direction in run(build("muon"), params, steps):
    decay = DECAY * params["blocks"][name]
    values = singular_values(name, direction["blocks"][name] - decay)
    assert 0.6 < values.min() and values.max() < 1.3
  raw = singular_values(name, steps[0]["blocks"][name])
  assert raw.max() > 1.5 * raw.min() and raw.max() > 1.3


def test_muon_moves_matrices_as_far_as_adamw_in_rms():
  params, grads = random_tree(1), random_tree(2)
  (direction,) = run(build("muon"), params, [grads])
  for name in MUONS:
    update = direction["blocks"][name] - DECAY * params["blocks"][name]
    assert 0.15 < np.sqrt(np.mean(update**2)) < 0.25


def test_muon_treats_all_but_hidden_matrices_as_adamw():
  params, steps = random_tree(1), [random_tree(2), random_tree(3)]
  muon, adamw = (
    run(build(word), params, steps)[-1] for word in ("muon", "adamw")
  )
  rest = lambda t: {
    k: v
    for k, v in tree.flatten_with_names(t).items()
    if k.split("/")[-1] not in MUONS
  }
  assert gap(rest(muon), rest(adamw)) < 1e-6
  assert gap(muon, adamw) > 1e-2


def test_adafactor_keeps_factors_in_place_of_matrices():
  layout = state_layout("adafactor", SPECS)
  held = sum(leaf.size for leaf, _ in layout.values())
  assert held < 0.15 * tree.count_elements(random_tree(1))
  factors = {
    "/".join(name.split("/")[-3:]): spec.axes
    for name, (_, spec) in layout.items()
    if spec is not None and "/v_" in name
  }
  assert factors == {
    "v_row/embed/tokens": ("embed",),
    "v_col/embed/tokens": ("vocab",),
    "v_row/blocks/q": ("layers", "embed", "heads"),
    "v_col/blocks/q": ("layers", "heads", "head_dim"),
    "v_row/blocks/o": ("layers", "heads", "embed"),
    "v_col/blocks/o": ("layers", "heads", "head_dim"),
    "v_row/blocks/in": ("layers", "embed"),
    "v_col/blocks/in": ("layers", "mlp"),
    "v_row/blocks/out": ("layers", "embed"),
    "v_col/blocks/out": ("layers", "mlp"),
    "v_row/blocks/expert_in": ("layers", "experts", "embed"),
    "v_col/blocks/expert_in": ("layers", "experts", "mlp"),
    "v_row/blocks/expert_out": ("layers", "experts", "embed"),
    "v_col/blocks/expert_out": ("layers", "experts", "mlp"),
  }
