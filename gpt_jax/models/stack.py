"""Stacks of layers: one tree, or one for each layer; and what remat saves."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

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
