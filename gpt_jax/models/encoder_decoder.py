"""The encoder-decoder: a bidirectional encoder and a causal decoder.

Vaswani et al. 2017, and T5 (Raffel et al. 2020). The encoder's blocks are those
of the family encoder; the decoder's blocks attend to its output as well. Both
read one table of token embeddings.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import ModelConfig
from gpt_jax.models.context import build_contexts, build_cross
from gpt_jax.models.decoder import Decoder
from gpt_jax.models.layers import Embedding, Norm, build_read_out, start_stream
from gpt_jax.models.positions import declare_relative
from gpt_jax.models.stack import run_blocks
from gpt_jax.ops.visibility import TokenPositions


class EncoderDecoder(nn.Module):
  """Two stacks of blocks, built from the mechanisms of the config.

  Attributes:
    config: model section of the config, vocab_size filled in.
    rules: key of sharding.RULES.
    is_stacked: whether a stack holds all its layers in a leading dim.
    platform: cpu, gpu or tpu, which the attention kernel is chosen for.
  """

  STACKS: ClassVar = ("encoder", "blocks")
  OBJECTIVES: ClassVar = (
    "sequence_to_sequence",
    "span_corruption",
    "ul2",
    "classification",
  )
  can_generate: ClassVar = True
  has_types: ClassVar = False

  config: ModelConfig
  rules: str = "standard"
  is_stacked: bool = True
  platform: str = "cpu"

  prepare = staticmethod(Decoder.prepare)

  @nn.compact
  def __call__(
    self,
    tokens_BT,
    positions_BT=None,
    segments_BT=None,
    sources_BS=None,
    source_segments_BS=None,
    source_positions_BS=None,
    cache=None,
    start_B=None,
    only_B=None,
    key=None,
    order_1T=None,
    is_headless=False,
    needs_balance=False,
  ):
    """Returns logits_BTV float32, or (logits_BTV, cache) with a cache.

    Logits of vocabulary padding are -1e30; with a classification head the
    logits are layers.Classifier's.

    Args:
      tokens_BT: int32 ids below vocab_size, of the target.
      positions_BT: int32 below max_len; None is the index in the row.
      segments_BT: document of each token, which sees only its own; None: all
        are in document 0.
      sources_BS: int32 ids of the source; None where the cache holds it.
      source_segments_BS: document of each source token: only targets of that
        document see it, and padding has a document without targets. None: all
        targets see the whole source.
      source_positions_BS: as positions_BT.
      cache: an empty list over layers of (k_BKSH, v_BKSH), with sources_BS; or
        the cache that an earlier call returned. Needs is_stacked=False.
      start_B, only_B, key, order_1T, is_headless: as Decoder's.
      needs_balance: return (result, None): there are no experts.
    """
    c = self.config
    is_dropping = key is not None and c.dropout_rate > 0
    if sources_BS is None and self.is_initializing():
      sources_BS = tokens_BT
    if sources_BS is None and cache is None:
      raise ValueError("an encoder-decoder needs sources_BS, or their cache")
    embed, source_BSD = Embedding(c, name="embed"), None
    if sources_BS is not None:
      source_BSD = self._read_source(
        embed, sources_BS, source_positions_BS, source_segments_BS, key
      )
      if cache is not None and source_segments_BS is None:
        source_segments_BS = jnp.zeros_like(sources_BS)
    elif cache is not None:
      source_segments_BS = cache[0][-1]
    slots_BT = order_1T
    if slots_BT is None:
      slots_BT = jnp.arange(tokens_BT.shape[1])[None]
    if cache is not None:
      assert start_B is not None  # it comes with a cache
      slots_BT = slots_BT + start_B[:, None]
    if positions_BT is None:
      positions_BT = slots_BT
    contexts = self._contexts(
      TokenPositions(slots_BT, segments_BT),
      positions_BT,
      source_BSD,
      source_segments_BS,
      (cache, start_B, only_B),
      is_ordered=order_1T is None,
      is_dropping=is_dropping,
    )
    x_BTD = start_stream(self, embed(tokens_BT, positions_BT), key)
    x_BTD, cache, _ = run_blocks(self, x_BTD, contexts, cache, key)
    self.sow("taps", "residual_out", x_BTD)
    if c.norm_placement != "post":
      x_BTD = Norm(c, name="final_norm")(x_BTD)
    if only_B is not None:
      x_BTD = jnp.take_along_axis(x_BTD, only_B[:, None, None], axis=1)
    read_out = build_read_out(self, embed.table_VD, segments_BT, key)
    out = read_out(x_BTD, is_headless)
    if cache is not None:
      out = out, cache
    return (out, None) if needs_balance else out

  def _contexts(
    self,
    at: TokenPositions,
    positions_BT,
    source_BSD,
    source_segments_BS,
    cached: tuple,
    *,
    is_ordered: bool,
    is_dropping: bool,
  ):
    """Returns the contexts of the decoder's layers.

    Args:
      cached: (cache, start_B, only_B).
    """
    seen = at
    if source_segments_BS is None:  # queries see all of it
      seen = TokenPositions(at.slots_BT)
    elif at.segments_BT is None:
      B, T = len(source_segments_BS), at.slots_BT.shape[1]
      seen = TokenPositions(at.slots_BT, jnp.zeros((B, T), jnp.int32))
    cross = build_cross(
      self.config,
      self.platform,
      seen,
      source_BSD,
      source_segments_BS,
      is_cached=cached[0] is not None,
      is_dropping=is_dropping,
    )
    return build_contexts(
      self.config,
      self.platform,
      at,
      positions_BT,
      *cached,
      is_ordered=is_ordered,
      is_dropping=is_dropping,
      relative_XN=declare_relative(self, "relative"),
      cross=cross,
    )

  def _read_source(self, embed, sources_BS, positions_BS, segments_BS, key):
    """Returns source_BSD, the encoder's output."""
    c = self.config
    # Other dropout masks than the decoder's layers have.
    key = None if key is None else tree.key_for(key, "encoder")
    slots_BS = jnp.arange(sources_BS.shape[1])[None]
    if positions_BS is None:
      positions_BS = slots_BS
    contexts = build_contexts(
      config_lib.stack_config(c, "encoder"),
      self.platform,
      TokenPositions(slots_BS, segments_BS),
      positions_BS,
      is_ordered=True,
      is_dropping=key is not None and c.dropout_rate > 0,
      relative_XN=declare_relative(self, "encoder_relative"),
    )
    if c.source_embed == "own":
      own = Embedding(c, has_tokens=False, name="source_embed")
      embed = functools.partial(own, table_VD=embed.table_VD)
    x_BSD = start_stream(self, embed(sources_BS, positions_BS), key, "source")
    x_BSD, _, _ = run_blocks(self, x_BSD, contexts, key=key, name="encoder")
    if c.norm_placement != "post":
      x_BSD = Norm(c, name="encoder_norm")(x_BSD)
    return x_BSD
