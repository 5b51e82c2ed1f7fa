"""The bidirectional transformer: embed, blocks, final norm, unembed.

Its blocks are the decoder's without the causal mask: all tokens of a document
see each other. It predicts masked tokens, each at its own position.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.models.context import build_contexts
from gpt_jax.models.layers import (
  Embedding,
  Norm,
  Pooler,
  build_read_out,
  start_stream,
)
from gpt_jax.models.positions import declare_relative
from gpt_jax.models.stack import run_blocks
from gpt_jax.ops.visibility import TokenPositions


class Encoder(nn.Module):
  """BERT (Devlin et al. 2019), built from the mechanisms of the config.

  ModernBERT's form (Warner et al. 2024) is the same with other options.

  Attributes:
    config: model section of the config, vocab_size filled in.
    rules: key of sharding.RULES.
    is_stacked: whether "blocks" holds all layers in a leading dim.
    platform: cpu, gpu or tpu, which the attention kernel is chosen for.
  """

  STACKS: ClassVar = ("blocks",)
  OBJECTIVES: ClassVar = ("masked_lm", "classification")
  can_generate: ClassVar = False
  has_types: ClassVar = True

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
    types_BT=None,
    key=None,
    is_headless=False,
    needs_balance=False,
  ):
    """Returns logits_BTV float32; those of vocabulary padding are -1e30.

    With a classification head the logits are layers.Classifier's.

    Args:
      tokens_BT: int32 ids below vocab_size.
      positions_BT: int32 below max_len; None is the index in the row.
      segments_BT: document of each token; a token attends only to its own. None
        where a row is one document.
      types_BT: int32 below num_token_types; None is 0.
      key: dropout key; None drops nothing.
      is_headless: return (x_BTD, w_VD) in place of their product, the logits.
      needs_balance: return (result, routing), as Decoder.
    """
    c = self.config
    slots_BT = jnp.arange(tokens_BT.shape[1])[None]
    if positions_BT is None:
      positions_BT = slots_BT
    contexts = build_contexts(
      c,
      self.platform,
      TokenPositions(slots_BT, segments_BT),
      positions_BT,
      is_ordered=True,
      is_dropping=key is not None and c.dropout_rate > 0,
      relative_XN=declare_relative(self, "relative"),
    )
    embed = Embedding(c, name="embed")
    x_BTD = start_stream(self, embed(tokens_BT, positions_BT, types_BT), key)
    x_BTD, _, routing = run_blocks(self, x_BTD, contexts, key=key)
    self.sow("taps", "residual_out", x_BTD)
    if c.norm_placement != "post":
      x_BTD = Norm(c, name="final_norm")(x_BTD)
    pooled_B1D = Pooler(c, name="pooler")(x_BTD) if c.pooler else None
    read_out = build_read_out(
      self, embed.table_VD, segments_BT, key, pooled_B1D
    )
    out = read_out(x_BTD, is_headless)
    return (out, routing) if needs_balance else out
