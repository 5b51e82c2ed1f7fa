"""The decoder-only transformer: embed, blocks, final norm, unembed.

Parameters are stored stacked over layers, so that scanned and unrolled runs
share checkpoints; Model.apply unstacks them for the unrolled form.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import choose
from gpt_jax.models.attention import FUSED
from gpt_jax.models.block import Context
from gpt_jax.models.declare import declare
from gpt_jax.models.layers import Norm, dropout
from gpt_jax.models.positions import alibi_of, rope_of
from gpt_jax.models.stack import rematerialised
from gpt_jax.ops import quantized, visibility
from gpt_jax.ops.matmul import matmul
from gpt_jax.ops.projection import fuse_qkv
from gpt_jax.ops.visibility import TokenPositions
from gpt_jax.parametrization import readout_multiplier


class Decoder(nn.Module):
  """GPT (Radford et al. 2018, 2019), built from the mechanisms of the config.

  Attributes:
    config: model section of the config, vocab_size filled in.
    rules: value of sharding.RULES.
    is_stacked: whether "blocks" holds all layers in a leading dim.
    platform: cpu, gpu or tpu, which the attention kernel is chosen for.
  """

  STACKS: ClassVar = ("blocks",)
  OBJECTIVES: ClassVar = ("causal", "prefix_lm")
  can_generate: ClassVar = True

  config: ModelConfig
  rules: str = "standard"
  is_stacked: bool = True
  platform: str = "cpu"

  @staticmethod
  def prepare(params, specs):
    """Returns both with the projections of q, k and v fused into one."""
    fused = lambda ws: fuse_qkv(ws, axis=1)
    return _fuse(params, fused), _fuse(specs, lambda each: each[0])

  @nn.compact
  def __call__(
    self,
    tokens_BT,
    positions_BT=None,
    segments_BT=None,
    cache=None,
    start_B=None,
    only_B=None,
    key=None,
    order_1T=None,
    slots_BT=None,
    is_headless=False,
    needs_balance=False,
  ):
    """Returns logits_BTV float32, or (logits_BTV, cache) with a cache.

    Logits of vocabulary padding are -1e30.

    Args:
      tokens_BT: int32 ids below vocab_size.
      positions_BT: int32 below max_len; None is the index in the row.
      segments_BT: document of each token, which attends to its own alone; None
        where a row is one document.
      cache: list over layers of (k_BKSH, v_BKSH); needs is_stacked=False.
      start_B: int32, slot of each row's first token, with a cache.
      only_B: int32, the one token of each row whose logits are wanted; the
        result then has T = 1. None wants all.
      key: dropout key; None drops nothing.
      order_1T: index of each token in its row, where the rows are not in order
        (sharding over seq reorders them); None: they are.
      slots_BT: of tokens in rows that have prefixes (ops/visibility.py); None
        is the index of each token.
      is_headless: return (x_BTD, w_VD) in place of logits, their product.
      needs_balance: return (result, balance_B): the load balance of experts
        (moe.balance_of), summed over layers.
    """
    c = self.config
    T = tokens_BT.shape[1]
    is_prefixed, is_ordered = slots_BT is not None, order_1T is None
    order_BT = jnp.arange(T)[None] if is_ordered else order_1T
    if cache is not None:
      assert start_B is not None  # it comes with a cache
      order_BT = order_BT + start_B[:, None]
    if positions_BT is None:
      positions_BT = order_BT
    if not is_prefixed:
      slots_BT = order_BT
    contexts = {
      kind: self.context_of(
        kind,
        TokenPositions(slots_BT, segments_BT),
        positions_BT,
        cache,
        start_B,
        only_B,
        is_ordered=is_ordered and not is_prefixed,
        is_prefixed=is_prefixed,
        is_dropping=key is not None and c.dropout_rate > 0,
      )
      for kind in set(config_lib.layer_kinds(c))
    }
    embed = Embedding(c, name="embed")
    x_BTD = embed(tokens_BT, positions_BT)
    self.sow("taps", "embed_out", x_BTD)
    x_BTD = dropout(x_BTD, c.dropout_rate, key, "embed")
    x_BTD = sharding.constrain(
      x_BTD, ("batch", "residual_length", "residual"), self.rules
    )
    x_BTD, cache, balance_B = self.blocks(x_BTD, contexts, cache, key)
    self.sow("taps", "residual_out", x_BTD)
    if c.norm_placement == "pre":
      x_BTD = Norm(c, name="final_norm")(x_BTD)
    if only_B is not None:
      x_BTD = jnp.take_along_axis(x_BTD, only_B[:, None, None], axis=1)

    out = self.read_out(x_BTD, embed, is_headless)
    if cache is not None:
      out = out, cache
    return (out, balance_B) if needs_balance else out

  def read_out(self, x_BTD, embed: "Embedding", is_headless: bool):
    """Returns logits_BTV, or (x_BTD, w_VD) that they are the product of."""
    c = self.config
    readout = readout_multiplier(c)
    x_BTD = x_BTD if readout == 1 else readout * x_BTD
    w_VD = embed.table_VD
    if not c.tied_embeddings or self.has_variable("params", "unembed"):
      w_VD = unembedding(self)
    if is_headless:
      return x_BTD, w_VD
    logits_BTV = matmul("BTD,VD->BTV", x_BTD, w_VD, c.grad_dtype, jnp.float32)
    logits_BTV = sharding.constrain(
      logits_BTV, ("batch", "length", "vocab"), self.rules
    )
    return cap_logits(logits_BTV, jnp.arange(logits_BTV.shape[-1]), c)

  def context_of(
    self,
    kind: str,
    at: TokenPositions,
    positions_BT,
    cache,
    start_B,
    only_B,
    is_ordered: bool,
    is_prefixed: bool,
    is_dropping: bool,
  ) -> Context:
    """Returns what the layers of a kind read in this forward pass."""
    c, T = self.config, at.slots_BT.shape[1]
    keys, end_B = at, None
    if cache is not None:
      end_B = start_B + (T if only_B is None else only_B + 1)
      size = cache[config_lib.layer_kinds(c).index(kind)][0].shape[2]
      slots_BS = cache_lib.key_slots(kind, size, T, start_B, end_B)
      keys = TokenPositions(slots_BS)
    kernel = choose(
      c,
      self.platform,
      T,
      is_cached=cache is not None,
      is_dropping=is_dropping,
      is_prefixed=is_prefixed,
    )
    rule = visibility.rule_of(c, kind)
    mask_BTS = alibi_BKGTS = rope = None
    if kernel == "dense":
      mask_BTS = visibility.visible(rule, at, keys)
    if c.position == "rope":
      rope = rope_of(positions_BT, c, kind)
    if c.position == "alibi":
      alibi_BKGTS = alibi_of(
        at.slots_BT, keys.slots_BT, c.num_heads, config_lib.num_kv_heads(c)
      )
    return Context(
      kind=kind,
      rule=rule,
      kernel=kernel,
      platform=self.platform,
      slots_BT=at.slots_BT,
      is_ordered=is_ordered,
      segments_BT=at.segments_BT,
      mask_BTS=mask_BTS,
      rope=rope,
      alibi_BKGTS=alibi_BKGTS,
      start_B=start_B,
      end_B=end_B,
    )

  def blocks(self, x_BTD, contexts, cache, key):
    """Runs all blocks; returns (x_BTD, cache, balance_B)."""
    c = self.config
    kinds = config_lib.layer_kinds(c)
    block = rematerialised(c, self.is_stacked)
    if self.is_initializing():
      kinds = kinds[:1]  # all have the same parameters
    elif self.is_stacked:
      return self.scan_blocks(block, x_BTD, contexts, key)
    caches, balances = [], []
    for layer, kind in enumerate(kinds):
      x_BTD, (kept, balance_B) = block(c, self.rules, name=f"blocks_{layer}")(
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

  def scan_blocks(self, block, x_BTD, contexts, key):
    """Runs blocks whose parameters are stacked: a scan over their periods.

    Layers that are left over when the periods are done follow one by one.
    Returns (x_BTD, None, balance_B).
    """
    c = self.config
    kinds, period = config_lib.layer_kinds(c), config_lib.layer_period(c)
    stacked = self.get_variable("params", "blocks")
    has_taps = self.is_mutable_collection("taps")

    def one(x_BTD, layer, params, kind):
      module = block(c, self.rules, parent=None)
      args = x_BTD, layer, contexts[kind], None, key
      if not has_taps:
        x_BTD, (_, balance_B) = module.apply({"params": params}, *args)
        return x_BTD, (balance_B, None)
      (x_BTD, (_, balance_B)), kept = module.apply(
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
      self.put_variable("taps", "blocks", taps)
    return x_BTD, None, None if c.num_experts is None else balance_LB.sum(0)


def _fuse(tree: dict, join) -> dict:
  blocks = dict(tree["blocks"])
  attn = dict(blocks["attn"])
  attn[FUSED] = join([attn.pop(name) for name in "qkv"])
  blocks["attn"] = attn
  return {**tree, "blocks": blocks}


class Embedding(nn.Module):
  """Token embeddings, and learned positions where the config has them."""

  config: ModelConfig

  def setup(self):
    c, D = self.config, self.config.model_dim
    V = config_lib.padded_vocab_size(c)
    self.table_VD = declare(self, "tokens", (V, D), ("vocab", "embed"), "embed")
    if c.position == "learned":
      self.table_SD = declare(
        self, "positions", (c.max_len, D), ("positions", "embed"), "position"
      )

  def __call__(self, tokens_BT, positions_BT):
    # Cast after the lookup: the gradient of a token's row is a sum over all its
    # occurrences, which bfloat16 would round at every term.
    if isinstance(self.table_VD, quantized.Quantized):
      x_BTD = quantized.pick(self.table_VD, tokens_BT)
    else:
      x_BTD = self.table_VD[tokens_BT]
    if self.config.position == "learned":
      x_BTD = x_BTD + self.table_SD[positions_BT]
    return x_BTD.astype(self.config.compute_dtype)


def unembedding(module: Decoder):
  c = module.config
  V, D = config_lib.padded_vocab_size(c), c.model_dim
  return declare(module, "unembed", (V, D), ("vocab", "embed"), "unembed")


def cap_logits(logits_BTV, ids_V, config: ModelConfig):
  """Returns logits after the soft-cap, those of padded rows at -1e30.

  Args:
    ids_V: which token each logit is of; some tokens, or all.
  """
  if config.logit_softcap is not None:
    cap = config.logit_softcap
    logits_BTV = cap * jnp.tanh(logits_BTV / cap)
  if config_lib.padded_vocab_size(config) > config_lib.vocab_size(config):
    logits_BTV = jnp.where(ids_V < config.vocab_size, logits_BTV, -1e30)
  return logits_BTV
