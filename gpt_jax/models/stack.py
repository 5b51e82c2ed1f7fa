"""Stacks of layers, scanned or unrolled, and their remat policy."""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.models.block import Block
from gpt_jax.models.declare import Declared
from gpt_jax.ops.matmul import MATMUL

# Blocks that predict tokens beyond the next are named future_0, future_1, ...
FUTURE = "future"


def rematerialised(config: ModelConfig, is_scanned: bool) -> type[Block]:
  """Returns the Block class, rematerialized by the policy of model.remat."""
  word, names = config.remat.policy, config.remat.names
  if word == "none":
    return Block
  policies = jax.checkpoint_policies
  policy = {
    "full": lambda: None,
    "dots": lambda: policies.save_from_both_policies(
      policies.dots_saveable, policies.save_only_these_names(MATMUL)
    ),
    "save": lambda: policies.save_only_these_names(*names),
    "offload": lambda: policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(names),
      offload_src="device",
      offload_dst="pinned_host",
    ),
  }[word]()
  # Unrolled, CSE would undo the recomputation.
  return nn.remat(Block, policy=policy, prevent_cse=not is_scanned)


def run_blocks(
  module: nn.Module,
  x_BTD,
  contexts: dict,
  cache=None,
  key=None,
  name: str = "blocks",
):
  """Runs all blocks of a family's stack; returns (x_BTD, cache, routing).

  routing is moe.MoE's, with a leading dim over layers that have experts; None
  without experts.

  Args:
    module: has config, rules and is_stacked, and calls this in its __call__.
    contexts: from context.build_contexts, for this forward pass.
    cache: list over layers, or None; needs is_stacked=False.
    key: dropout key, or None.
    name: one of the module's STACKS.
  """
  c = config_lib.stack_config(module.config, name)
  kinds, mlps = config_lib.layer_kinds(c), config_lib.mlp_kinds(c)
  places = layer_places(c, name)
  block = rematerialised(c, module.is_stacked)
  layers = range(c.num_layers)
  if module.is_initializing():
    # Initialise one layer of each stack: the others have the same shapes.
    layers = [layer for layer in layers if places[layer][1] == 0]
  elif module.is_stacked:
    return _scan_blocks(module, c, places, block, x_BTD, contexts, key)
  caches, routings = [], []
  for layer in layers:
    stack, at = places[layer]
    own = block(c, module.rules, mlps[layer], name=f"{stack}_{at}")
    x_BTD, (kept, routing) = own(
      x_BTD,
      layer,
      contexts[kinds[layer]],
      None if cache is None else cache[layer],
      key,
    )
    caches.append(kept)
    routings += [] if routing is None else [routing]
  routing = None
  if routings:
    routing = jax.tree.map(lambda *x: jnp.stack(x), *routings)
  return x_BTD, None if cache is None else caches, routing


def look_ahead(module: nn.Module, x_BTD, contexts: dict, key=None) -> list:
  """Returns the outputs of the blocks that predict tokens beyond the next.

  Each is one more layer, without experts, on top of the same trunk, for the
  token after the next, the one after that, and so on (Gloeckle et al. 2024).

  Args:
    x_BTD: output of the last layer; the others as run_blocks'.
  """
  c = module.config
  block = rematerialised(c, is_scanned=False)
  context = contexts[config_lib.layer_kinds(c)[-1]]
  outs = []
  for i in range(c.num_future_tokens - 1):
    own = block(c, module.rules, "dense", name=f"{FUTURE}_{i}")
    outs.append(own(x_BTD, c.num_layers + i, context, None, key)[0])
  return outs


def _scan_blocks(module, c, places, block, x_BTD, contexts, key):
  """Runs blocks with stacked parameters, by a scan over periods of layers.

  Layers before the first period and after the last (config.layer_cycle) run one
  by one. Returns (x_BTD, None, routing).
  """
  kinds, mlps = config_lib.layer_kinds(c), config_lib.mlp_kinds(c)
  start, period = config_lib.layer_cycle(c)
  num_periods = (c.num_layers - start) // period
  end = start + num_periods * period
  stacks = {name: module.get_variable("params", name) for name, _ in places}
  outs = {name: [] for name in stacks}
  has_taps = module.is_mutable_collection("taps")
  sizes = collections.Counter(name for name, _ in places[start:][:period])

  def one(x_BTD, layer, params, like):
    """Runs a layer that has the attention and MLP kinds of layer `like`."""
    own = block(c, module.rules, mlps[like], parent=None)
    args = x_BTD, layer, contexts[kinds[like]], None, key
    if not has_taps:
      x_BTD, (_, routing) = own.apply({"params": params}, *args)
      return x_BTD, (routing, None)
    (x_BTD, (_, routing)), kept = own.apply(
      {"params": params}, *args, mutable=["taps"]
    )
    return x_BTD, (routing, kept["taps"])

  def alone(x_BTD, layer):
    name, at = places[layer]
    own = jax.tree.map(lambda p: p[at], stacks[name])
    x_BTD, out = one(x_BTD, layer, own, layer)
    outs[name].append(jax.tree.map(lambda x: x[None], out))
    return x_BTD

  def cycle(x_BTD, layer_and_parts):
    first, parts = layer_and_parts
    found = {name: [] for name in parts}
    for i in range(period):
      name, _ = places[start + i]
      own, at = parts[name], len(found[name])
      if sizes[name] > 1:
        own = jax.tree.map(lambda p, at=at: p[at], own)
      layer = first + i if i else first
      x_BTD, out = one(x_BTD, layer, own, start + i)
      found[name].append(out)
    return x_BTD, {name: _join(jnp.stack, each) for name, each in found.items()}

  for layer in range(start):
    x_BTD = alone(x_BTD, layer)
  firsts = dict(reversed(places[start : start + period]))
  parts = {
    name: _periods(stacks[name], at, sizes[name], num_periods)
    for name, at in firsts.items()
  }
  x_BTD, found = jax.lax.scan(
    cycle, x_BTD, (jnp.arange(start, end, period), parts)
  )
  for name, out in found.items():
    if sizes[name] > 1:
      out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    outs[name].append(out)
  for layer in range(end, c.num_layers):
    x_BTD = alone(x_BTD, layer)
  routing = None
  for name, each in outs.items():
    own, taps = _join(jnp.concatenate, each)
    routing = own if routing is None else routing
    if has_taps:
      module.put_variable("taps", name, taps)
  return x_BTD, None, routing


def _periods(stack, first: int, size: int, num_periods: int):
  """Returns a stack's layers by period: arrays (num_periods, size, ...).

  With one layer per period there is no dim for size.

  Args:
    first: index in the stack of the first period's first layer.
    size: number of the stack's layers in a period.
  """

  def split(p):
    whole = num_periods * size
    p = p if len(p) == whole else p[first : first + whole]
    return p if size == 1 else p.reshape(-1, size, *p.shape[1:])

  return jax.tree.map(split, stack)


def _join(how, trees: list):
  """Joins trees leaf by leaf with how(leaves); one tree stays as it is."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: how(leaves), *trees)


def layer_places(config: ModelConfig, name: str = "blocks"):
  """Returns [(stack, index in the stack)] of each layer's parameters."""
  places, sizes = [], {}
  for stack in config_lib.layer_stacks(config, name):
    places.append((stack, sizes.setdefault(stack, 0)))
    sizes[stack] += 1
  return places


def merge_stacks(trees: dict, config: ModelConfig, name: str = "blocks"):
  """Merges the {stack: tree} of one of STACKS into a tree over all layers.

  The trees have the same structure.
  """
  places = layer_places(config_lib.stack_config(config, name), name)
  own = {stack: trees[stack] for stack, _ in places}
  if len(own) == 1:
    return trees[places[0][0]]
  pick = lambda at, *each: dict(zip(own, each, strict=True))[at[0]][at[1]]
  join = lambda *each: jnp.stack([pick(at, *each) for at in places])
  return jax.tree.map(join, *own.values())


def stack_layers(params: dict, stacks) -> dict:
  """Undoes unstack_layers; stacks that are still stacked stay so."""
  rest = dict(params)
  for name in stacks:
    if name not in rest:
      each = []
      while f"{name}_{len(each)}" in rest:
        each.append(rest.pop(f"{name}_{len(each)}"))
      rest[name] = jax.tree.map(lambda *x: jnp.stack(x), *each)
  return rest


def unstack_layers(params: dict, stacks) -> dict:
  """Returns params with each stack as trees "<stack>_0", "<stack>_1", ...

  The unrolled forward pass reads this form; params already in it are returned
  unchanged. Uses lax.split, whose transpose is one concatenation: indexing
  would make backward add L padded copies.

  Args:
    stacks: names of stacks, such as "blocks".
  """
  rest = dict(params)
  for name in stacks:
    if name not in rest:
      continue
    stacked = rest.pop(name)
    length = jax.tree.leaves(stacked)[0].shape[0]
    parts = jax.tree.map(
      lambda x, n=length: [p.squeeze(0) for p in jax.lax.split(x, (1,) * n)],
      stacked,
    )
    for layer in range(length):
      rest[f"{name}_{layer}"] = jax.tree.map(
        lambda pieces, i=layer: pieces[i],
        parts,
        is_leaf=lambda x: isinstance(x, list),
      )
  return rest


@functools.cache
def abstract_params(module, config: ModelConfig):
  """Returns a family's boxed abstract parameters, stacked (leaves Declared).

  Cached: tracing a model is the slowest part of building a run. The
  caller must not change the tree.

  Args:
    module: the family's; it makes one layer of each stack at initialisation.
  """
  # No kernel has parameters, and dense runs on any platform.
  plain = dataclasses.replace(config, attention="dense")
  tokens = jnp.zeros((1, 1), jnp.int32)
  init = lambda key: module(plain, is_stacked=False).init(key, tokens)
  boxed = dict(jax.eval_shape(init, jax.random.key(0))["params"])

  def stacked(box, size):
    shape = (size, *box.value.shape)
    value = jax.ShapeDtypeStruct(shape, box.value.dtype)
    return box.replace(value=value, spec=box.spec.stacked())

  is_box = lambda x: isinstance(x, Declared)
  for name, size in stack_sizes(module, config).items():
    one = boxed.pop(f"{name}_0")
    boxed[name] = jax.tree.map(
      lambda box, n=size: stacked(box, n), one, is_leaf=is_box
    )
  return boxed


def stack_sizes(module, config: ModelConfig) -> dict[str, int]:
  """Returns {stack: number of its layers} of a family's module."""
  names = [
    stack
    for name in module.STACKS
    for stack in config_lib.layer_stacks(
      config_lib.stack_config(config, name), name
    )
  ]
  return dict(collections.Counter(names))
