"""The decoder-only transformer: embed, blocks, final norm, unembed.

Parameters are always stacked over layers, so that scanned and unrolled runs
share checkpoints; the unrolled form takes them apart at the door.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.attend import choose
from gpt_jax.models.attention import alibi_of, mask_of, rope_of
from gpt_jax.models.layers import Norm, declare, dropout
from gpt_jax.models.transformer import Context, rematerialised
from gpt_jax.ops import quantized
from gpt_jax.ops.matmul import product
from gpt_jax.parametrization import readout_multiplier


class Decoder(nn.Module):
  """GPT (Radford et al. 2018, 2019), one implementation by mechanism.

  Attributes:
    config: model section of the config, vocab_size filled in.
    rules: word of sharding.RULES.
    is_stacked: whether "blocks" holds all layers in leading dims.
    platform: cpu, gpu or tpu, what attention's kernel is chosen for.
  """

  config: ModelConfig
  rules: str = "standard"
  is_stacked: bool = True
  platform: str = "cpu"

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
    slots_1T=None,
    is_headless=False,
    needs_balance=False,
  ):
    """Returns logits_BTV float32, and with it what else is asked for.

    That is (logits_BTV, cache) where a cache is given.

    Padded vocabulary rows come out as -1e30.

    Args:
      tokens_BT: int32 ids below vocab_size.
      positions_BT: int32 below max_len; None counts from the first slot.
      segments_BT: document of each token; attention stays inside. None: one.
      cache: list over layers of (k_BKSH, v_BKSH); needs is_stacked=False.
      start_B: int32, slot of each row's first token, with a cache.
      only_B: int32, the one token of each row whose logits are wanted; the
        result then has T = 1. None wants all.
      key: dropout key; None drops nothing.
      slots_1T: index of each token in its row, where the rows are not in order
        (sharding over seq reorders them); None: they are.
      needs_balance: return (result, balance_B) of a model with experts: the
        sum over layers of moe.balance_of.
      is_headless: return (x_BTD, w_VD) instead, what the logits are the
        product of; w_VD as it is kept.
    """
    c = self.config
    T = tokens_BT.shape[1]
    slots_BT = jnp.arange(T)[None] if slots_1T is None else slots_1T
    if cache is not None:
      slots_BT = slots_BT + start_B[:, None]
    if positions_BT is None:
      positions_BT = slots_BT
    S = T if cache is None else cache[0][0].shape[2]
    kernel = choose(
      c,
      self.platform,
      T,
      is_cached=cache is not None,
      is_dropping=key is not None and c.dropout_rate > 0,
    )
    keys_1S = jnp.arange(S)[None] if slots_1T is None else slots_1T
    mask_BTS = None
    if kernel == "dense":
      mask_BTS = mask_of(slots_BT, keys_1S, c.sliding_window, segments_BT)
    context = Context(
      kernel=kernel,
      platform=self.platform,
      slots_BT=slots_BT,
      is_ordered=slots_1T is None,
      segments_BT=segments_BT,
      mask_BTS=mask_BTS,
      rope=rope_of(positions_BT, c) if c.position == "rope" else None,
      alibi_BKGTS=alibi_of(
        slots_BT, keys_1S, c.num_heads, config_lib.num_kv_heads(c)
      )
      if c.position == "alibi"
      else None,
      start_B=start_B,
    )

    embed = Embedding(c, name="embed")
    x_BTD = embed(tokens_BT, positions_BT)
    self.sow("taps", "embed_out", x_BTD)
    x_BTD = dropout(x_BTD, c.dropout_rate, key, "embed")
    x_BTD = sharding.constrain(
      x_BTD, ("batch", "residual_length", "residual"), self.rules
    )
    x_BTD, cache, balance_B = self.blocks(x_BTD, context, cache, key)
    self.sow("taps", "residual_out", x_BTD)
    if c.norm_placement == "pre":
      x_BTD = Norm(c, name="final_norm")(x_BTD)
    if only_B is not None:
      x_BTD = jnp.take_along_axis(x_BTD, only_B[:, None, None], axis=1)

    readout = readout_multiplier(c)
    x_BTD = x_BTD if readout == 1 else readout * x_BTD
    w_VD = embed.table_VD
    if not c.tied_embeddings or self.has_variable("params", "unembed"):
      w_VD = unembedding(self)
    finish = lambda out: (out, balance_B) if needs_balance else out
    if is_headless:
      return finish((x_BTD, w_VD))
    logits_BTV = product("BTD,VD->BTV", x_BTD, w_VD, c.grad_dtype, jnp.float32)
    logits_BTV = sharding.constrain(
      logits_BTV, ("batch", "length", "vocab"), self.rules
    )
    logits_BTV = cap_logits(logits_BTV, jnp.arange(logits_BTV.shape[-1]), c)
    return finish(logits_BTV if cache is None else (logits_BTV, cache))

  def blocks(self, x_BTD, context, cache, key):
    """Runs all blocks; returns (x_BTD, cache, balance_B)."""
    c = self.config
    block = rematerialised(c, self.is_stacked)
    if self.is_stacked:
      scan = nn.scan(
        block,
        variable_axes={"params": 0, "taps": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=c.num_layers,
      )(c, self.rules, name="blocks")
      layers = jnp.arange(c.num_layers)
      x_BTD, (_, balance_LB) = scan(x_BTD, layers, context, None, key)
      has_experts = c.num_experts is not None
      return x_BTD, None, balance_LB.sum(0) if has_experts else None
    caches, balances = [], []
    for layer in range(c.num_layers):
      x_BTD, (kept, balance_B) = block(c, self.rules, name=f"blocks_{layer}")(
        x_BTD, layer, context, None if cache is None else cache[layer], key
      )
      caches.append(kept)
      balances.append(balance_B)
    balance_B = None if c.num_experts is None else sum(balances)
    return x_BTD, None if cache is None else caches, balance_B


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
    # Rows are picked as they are kept and cast then: the gradient of a token
    # is a sum over all its places, which bfloat16 would round at every term.
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
  if config_lib.padded_vocab_size(config) > config.vocab_size:
    logits_BTV = jnp.where(ids_V < config.vocab_size, logits_BTV, -1e30)
  return logits_BTV


def init_cache(config: ModelConfig, batch_size: int, num_slots: int, dtype):
  """Returns an empty cache: a list over layers of (k_BKSH, v_BKSH) zeros."""
  K, H = config_lib.num_kv_heads(config), config_lib.head_dim(config)
  shape = (batch_size, K, num_slots, H)
  empty = lambda: jnp.zeros(shape, dtype)
  return [(empty(), empty()) for _ in range(config.num_layers)]


def abstract_decoder(config: ModelConfig):
  """Returns the boxed abstract parameters (leaves Declared), without memory."""
  # The kernel makes no parameters; this one asks nothing of the platform.
  model = Decoder(dataclasses.replace(config, attention="dense"))
  tokens = jnp.zeros((1, 1), jnp.int32)
  init = lambda key: model.init(key, tokens)["params"]
  return jax.eval_shape(init, jax.random.key(0))
