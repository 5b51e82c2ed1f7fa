"""Stacks of layers: one tree, or one for each layer; and what remat saves."""

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


def rematerialised(config: ModelConfig, is_scanned: bool) -> type[Block]:
  """Returns the block; backward recomputes what model.remat says."""
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
  # Unrolled, the compiler would find the first computation and keep it.
  return nn.remat(Block, policy=policy, prevent_cse=not is_scanned)


def run_blocks(module: nn.Module, x_BTD, contexts: dict, cache=None, key=None):
  """Runs all blocks of a family's module; returns (x_BTD, cache, balance_B).

  Args:
    module: has config, rules and is_stacked, and calls this in its __call__.
    contexts: context.build_contexts of the forward pass.
    cache: list over layers, or None; needs is_stacked=False.
    key: dropout key, or None.
  """
  c = module.config
  kinds = config_lib.layer_kinds(c)
  block = rematerialised(c, module.is_stacked)
  if module.is_initializing():
    kinds = kinds[:1]  # all have the same parameters
  elif module.is_stacked:
    return _scan_blocks(module, block, x_BTD, contexts, key)
  caches, balances = [], []
  for layer, kind in enumerate(kinds):
    x_BTD, (kept, balance_B) = block(c, module.rules, name=f"blocks_{layer}")(
      x_BTD,
      layer,
      contexts[kind],
      None if cache is None else cache[layer],
      key,
    )
    caches.append(kept)
    balances.append(balance_B)
  balance_B = None if c.num_experts is None else sum(balances)
  return x_BTD, None if cache is None else caches, balance_B


def _scan_blocks(module, block, x_BTD, contexts, key):
  """Runs blocks whose parameters are stacked: a scan over their periods.

  Layers that are left over when the periods are done follow one by one.
  Returns (x_BTD, None, balance_B).
  """
  c = module.config
  kinds, period = config_lib.layer_kinds(c), config_lib.layer_period(c)
  stacked = module.get_variable("params", "blocks")
  has_taps = module.is_mutable_collection("taps")

  def one(x_BTD, layer, params, kind):
    layer_module = block(c, module.rules, parent=None)
    args = x_BTD, layer, contexts[kind], None, key
    if not has_taps:
      x_BTD, (_, balance_B) = layer_module.apply({"params": params}, *args)
      return x_BTD, (balance_B, None)
    (x_BTD, (_, balance_B)), kept = layer_module.apply(
      {"params": params}, *args, mutable=["taps"]
    )
    return x_BTD, (balance_B, kept["taps"])

  def some(x_BTD, layers_and_params):
    layers, params = layers_and_params
    outs = []
    for i, kind in enumerate(kinds[:period]):
      own = jax.tree.map(lambda p, i=i: p[i], (layers, params))
      x_BTD, out = one(x_BTD, *own, kind)
      outs.append(out)
    return x_BTD, jax.tree.map(lambda *x: jnp.stack(x), *outs)

  layers, whole = jnp.arange(c.num_layers), c.num_layers // period * period
  if period == 1:
    run = lambda x_BTD, own: one(x_BTD, *own, kinds[0])
    x_BTD, outs = jax.lax.scan(run, x_BTD, (layers, stacked))
  else:
    group = lambda p: p[:whole].reshape(-1, period, *p.shape[1:])
    x_BTD, outs = jax.lax.scan(
      some, x_BTD, jax.tree.map(group, (layers, stacked))
    )
    outs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
  for layer in range(whole, c.num_layers):
    own = jax.tree.map(lambda p, i=layer: p[i], (layers, stacked))
    x_BTD, out = one(x_BTD, *own, kinds[layer])
    outs = jax.tree.map(lambda x, y: jnp.append(x, y[None], 0), outs, out)
  balance_LB, taps = outs
  if has_taps:
    module.put_variable("taps", "blocks", taps)
  return x_BTD, None, None if c.num_experts is None else balance_LB.sum(0)


def stack_layers(params: dict, stacks) -> dict:
  """Returns what unstack_layers was given; what is stacked stays."""
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

  The unrolled forward pass reads this form, and takes it as it is. A split,
  whose transpose is one concatenation, keeps backward from adding L padded
  copies.

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

  Cached: tracing a model takes longer than all else of assembling a run. The
  caller must not change the tree.

  Args:
    module: the family's; it makes one layer of each stack at initialisation.
  """
  # The kernel makes no parameters; this one asks nothing of the platform.
  plain = dataclasses.replace(config, attention="dense")
  tokens = jnp.zeros((1, 1), jnp.int32)
  init = lambda key: module(plain, is_stacked=False).init(key, tokens)
  boxed = dict(jax.eval_shape(init, jax.random.key(0))["params"])

  def stacked(box):
    shape = (config.num_layers, *box.value.shape)
    value = jax.ShapeDtypeStruct(shape, box.value.dtype)
    return box.replace(value=value, spec=box.spec.stacked())

  is_box = lambda x: isinstance(x, Declared)
  for name in module.STACKS:
    one = boxed.pop(f"{name}_0")
    boxed[name] = jax.tree.map(stacked, one, is_leaf=is_box)
  return boxed
