"""A transformer block: sublayers, residual connections and norms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import sharding, tree
from gpt_jax.config import ModelConfig
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attention import Attention
from gpt_jax.models.cross import CrossAttention
from gpt_jax.models.latent import LatentAttention
from gpt_jax.models.layers import MLP, Norm, dropout
from gpt_jax.models.moe import MoE
from gpt_jax.parametrization import residual_multiplier


class Block(nn.Module):
  """Attention, then an MLP or experts, each with a residual and a norm.

  Where the context has a source, cross-attention comes between the two.

  Attributes:
    mlp_kind: one of config.MLP_KINDS.
  """

  config: ModelConfig
  rules: str
  mlp_kind: str = "dense"

  @nn.compact
  def __call__(self, x_BTD, layer, context, cache=None, key=None):
    """Returns (x_BTD, (cache, routing)).

    Args:
      layer: index of the layer, folded into the dropout key.

    routing is moe.MoE's; None without experts.
    """
    c = self.config
    x_BTD = checkpoint_name(x_BTD, "block")
    key = None if key is None else jax.random.fold_in(key, layer)
    form = Attention if c.kv_lora_rank is None else LatentAttention
    attn = form(c, self.rules, name="attn")
    if self.mlp_kind == "dense":
      dense = MLP(c, self.rules, name="mlp")
      mlp = lambda x: (dense(x), None)
    else:
      moe, is_cached = MoE(c, self.rules, name="moe"), cache is not None
      mlp = lambda x: moe(x, is_cached)
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
    has_source, source = context.cross is not None, None
    if has_source:
      cross = CrossAttention(c, self.rules, name="cross")
      norm_cross = Norm(c, name="norm_cross")
      cross_key = None if key is None else tree.key_for(key, "cross")
      if cache is not None:
        cache, source = cache_lib.split_source(cache)
      attend_source = lambda x: cross(
        whole(x), context.cross, source, cross_key
      )
    if c.norm_placement != "post":
      enter, close = lambda norm, x: norm(x), lambda norm, y: y
      if c.norm_placement == "sandwich":  # Gemma 2 (2024)
        close = lambda norm, y: Norm(c, name=f"{norm.name}_out")(y)
      if c.norm_placement == "output":  # OLMo 2 (2025)
        enter, close = close, enter
      normed_BTD = enter(norm_attn, x_BTD)
      if c.embed_norm:  # the residual stream starts normalised
        x_BTD = jnp.where(layer == 0, normed_BTD, x_BTD)
      start_BTD = x_BTD
      y, cache = attn(whole(normed_BTD), context, cache, key)
      y = close(norm_attn, y)
      self.sow("taps", "attn_out", y)
      x_BTD = pin(x_BTD + drop(y, "attn"))
      if has_source:
        y, source = attend_source(enter(norm_cross, x_BTD))
        y = close(norm_cross, y)
        x_BTD = pin(x_BTD + drop(y, "cross"))
      # Parallel: the MLP reads what attention reads (GPT-J, 2021).
      read_BTD = start_BTD if c.parallel_residual else x_BTD
      y, routing = mlp(whole(enter(norm_mlp, read_BTD)))
      y = close(norm_mlp, y)
      self.sow("taps", "mlp_out", y)
      x_BTD = pin(x_BTD + drop(y, "mlp"))
    else:
      y, cache = attn(whole(x_BTD), context, cache, key)
      self.sow("taps", "attn_out", y)
      x_BTD = pin(norm_attn(x_BTD + drop(y, "attn")))
      if has_source:
        y, source = attend_source(x_BTD)
        x_BTD = pin(norm_cross(x_BTD + drop(y, "cross")))
      y, routing = mlp(whole(x_BTD))
      self.sow("taps", "mlp_out", y)
      x_BTD = pin(norm_mlp(x_BTD + drop(y, "mlp")))
    if has_source and cache is not None:
      ids_BS = context.cross.keys.segments_BT
      cache = cache_lib.join_source(cache, source, ids_BS)
    return x_BTD, (cache, routing)
