"""Parameters with a role each, gradients for them, and optimizers run on both.

Laid out as a model's: stacked over layers, several dims to a matrix, all sizes
different.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from gpt_jax import config, tree
from gpt_jax.parametrization import ParamSpec
from gpt_jax.training import optim

DECAY = 0.3
SIZES = dict(
  vocab=64,
  embed=32,
  layers=2,
  heads=4,
  head_dim=40,
  mlp=48,
  norm=32,
  experts=3,
)
DECLARED = {
  "embed": {"tokens": (("vocab", "embed"), "embed")},
  "blocks": {
    "q": (("layers", "embed", "heads", "head_dim"), "hidden"),
    "o": (("layers", "heads", "head_dim", "embed"), "residual"),
    "in": (("layers", "embed", "mlp"), "hidden"),
    "in_bias": (("layers", "mlp"), "bias"),
    "out": (("layers", "mlp", "embed"), "residual"),
    "scale": (("layers", "norm"), "norm"),
    "router": (("layers", "embed", "experts"), "router"),
    "expert_in": (("layers", "experts", "embed", "mlp"), "hidden"),
    "expert_out": (("layers", "experts", "mlp", "embed"), "residual"),
  },
  "final_norm": {"scale": (("norm",), "norm")},
}
SPECS = {
  group: {name: ParamSpec(*d) for name, d in leaves.items()}
  for group, leaves in DECLARED.items()
}
MUONS = ("q", "o", "in", "out", "expert_in", "expert_out")
MATRICES = (
  "embed/tokens",
  "blocks/router",
  *(f"blocks/{name}" for name in MUONS),
)


def optim_config(word: str, **changes) -> config.OptimConfig:
  return dataclasses.replace(
    config.freeze(base.get_config()).optim,
    optimizer=word,
    **{"weight_decay": DECAY} | changes,
  )


def compiled(word: str, specs) -> optax.GradientTransformation:
  tx = optim.build_optimizer(optim_config(word), specs)
  return optax.GradientTransformation(jax.jit(tx.init), jax.jit(tx.update))


@functools.cache
def build(word: str) -> optax.GradientTransformation:
  """Returns the optimizer of SPECS, compiled once for all tests."""
  return compiled(word, SPECS)


def random_tree(seed: int, scale: float = 0.2, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  draw = lambda spec: jnp.asarray(
    scale * rng.standard_normal([SIZES[a] for a in spec.axes]), dtype
  )
  return jax.tree.map(draw, SPECS)


def run(tx, params, grads_list):
  """Returns the directions of each step at fixed parameters."""
  state, directions = tx.init(params), []
  for grads in grads_list:
    direction, state = tx.update(grads, state, params)
    directions.append(jax.tree.map(np.asarray, direction))
  return directions


def gap(one, other) -> float:
  leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return np.max([np.abs(np.subtract(a, b)).max() for a, b in leaves])


def with_layers(change, t):
  """Returns the tree with `change` made to each stacked leaf."""
  return t | {"blocks": jax.tree.map(change, t["blocks"])}


def layers_gap(tx) -> float:
  """Returns how much of the second layer's last gradient the first sees."""
  params, steps = random_tree(1), [random_tree(s) for s in (2, 3)]
  grow = lambda g: g.at[1].multiply(10.0)
  first = lambda ts: [with_layers(lambda x: x[0], t) for t in ts]
  before = run(tx, params, steps)
  after = run(tx, params, [steps[0], with_layers(grow, steps[1])])
  return gap(first(before), first(after))


def state_layout(word: str, specs):
  """Returns {state leaf: (its ShapeDtypeStruct, its spec)}."""
  params = jax.eval_shape(lambda: random_tree(1))
  state = jax.eval_shape(build(word).init, params)
  found = optim.state_specs(state, params, specs)
  pairs = jax.tree.map(lambda leaf, spec: [(leaf, spec)], state, found)
  is_pair = lambda x: isinstance(x, list)
  leaves, _ = jax.tree_util.tree_flatten_with_path(pairs, is_leaf=is_pair)
  return {tree.path_name(path): pair[0] for path, pair in leaves}
