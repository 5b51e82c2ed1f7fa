"""The block, and what a forward pass shares between its blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.attention import Attention
from gpt_jax.models.layers import MLP, Norm, dropout
from gpt_jax.models.moe import MoE
from gpt_jax.ops.matmul import PRODUCT
from gpt_jax.parametrization import residual_multiplier


class Context(struct.PyTreeNode):
  """What every block of one forward pass reads.

  Attributes:
    kernel: dense | blocks | splash | cudnn, what attends (attend.choose).
    platform: what it runs on.
    slots_BT: index of each query in its row, int32; B may be 1.
    is_ordered: whether slots are 0, 1, 2, ...
    segments_BT: document of each token, or None.
    mask_BTS: bool, which slots each query sees; for "dense" alone, since it
      grows with the square of the length.
    rope: (cos, sin) for position="rope", else None.
    alibi_BKGTS: score biases for position="alibi", else None.
    start_B: int32, first slot that is written, with a cache, else None.
  """

  kernel: str = struct.field(pytree_node=False)
  platform: str = struct.field(pytree_node=False)
  slots_BT: jax.Array
  is_ordered: bool = struct.field(pytree_node=False)
  segments_BT: jax.Array | None = None
  mask_BTS: jax.Array | None = None
  rope: tuple | None = None
  alibi_BKGTS: jax.Array | None = None
  start_B: jax.Array | None = None


class Block(nn.Module):
  """Attention and MLP, or experts, each around a residual, with norms."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD, layer, context, cache=None, key=None):
    """Returns (x_BTD, (cache, balance_B)).

    Args:
      layer: the index that dropout is keyed by.

    balance_B is that of the experts (moe.balance_of), None without experts.
    """
    c = self.config
    x_BTD = checkpoint_name(x_BTD, "block")
    key = None if key is None else jax.random.fold_in(key, layer)
    attn = Attention(c, self.rules, name="attn")
    if c.num_experts is None:
      dense = MLP(c, self.rules, name="mlp")
      mlp = lambda x: (dense(x), None)
    else:
      mlp = MoE(c, self.rules, name="moe")
    norm_attn, norm_mlp = Norm(c, name="norm_attn"), Norm(c, name="norm_mlp")
    branch = residual_multiplier(c)
    drop = lambda x, name: dropout(
      x if branch == 1 else branch * x, c.dropout_rate, key, name
    )
    place = lambda x, length: sharding.constrain(
      x, ("batch", length, "residual"), self.rules
    )
    pin = lambda x: place(x, "residual_length")
    whole = lambda x: place(x, "length")
    if c.norm_placement == "pre":
      y, cache = attn(whole(norm_attn(x_BTD)), context, cache, key)
      self.sow("taps", "attn_out", y)
      x_BTD = pin(x_BTD + drop(y, "attn"))
      y, balance_B = mlp(whole(norm_mlp(x_BTD)))
      self.sow("taps", "mlp_out", y)
      x_BTD = pin(x_BTD + drop(y, "mlp"))
    else:
      y, cache = attn(whole(x_BTD), context, cache, key)
      self.sow("taps", "attn_out", y)
      x_BTD = pin(norm_attn(x_BTD + drop(y, "attn")))
      y, balance_B = mlp(whole(x_BTD))
      self.sow("taps", "mlp_out", y)
      x_BTD = pin(norm_mlp(x_BTD + drop(y, "mlp")))
    return x_BTD, (cache, balance_B)


def rematerialised(config: ModelConfig, is_scanned: bool) -> type[Block]:
  """Returns the block with backward recomputing what model.remat says."""
  word, names = config_lib.remat_policy(config)
  if word == "none":
    return Block
  policies = jax.checkpoint_policies
  policy = {
    "full": lambda: None,
    "dots": lambda: policies.save_from_both_policies(
      policies.dots_saveable, policies.save_only_these_names(PRODUCT)
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


def stack_layers(params: dict, num_layers: int) -> dict:
  """Returns what unstack_layers was given."""
  rest = dict(params)
  each = [rest.pop(f"blocks_{layer}") for layer in range(num_layers)]
  rest["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *each)
  return rest


def unstack_layers(params: dict, num_layers: int) -> dict:
  """Returns params with "blocks" taken apart into "blocks_0", "blocks_1", ...

  The unrolled forward pass reads this form. A split, whose transpose is one
  concatenation, keeps backward from adding L padded copies.
  """
  rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
  parts = jax.tree.map(
    lambda x: [
      piece.squeeze(0) for piece in jax.lax.split(x, (1,) * num_layers)
    ],
    params["blocks"],
  )
  for layer in range(num_layers):
    rest[f"blocks_{layer}"] = jax.tree.map(
      lambda pieces, i=layer: pieces[i],
      parts,
      is_leaf=lambda x: isinstance(x, list),
    )
  return rest
