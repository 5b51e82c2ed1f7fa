"""The decoder-only transformer: embed, blocks, final norm, unembed.

Parameters are stored stacked over layers, so that scanned and unrolled runs
share checkpoints; Model.apply unstacks them for the unrolled form.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.models.attention import FUSED, READERS
from gpt_jax.models.context import build_contexts
from gpt_jax.models.layers import Embedding, Norm, build_read_out, start_stream
from gpt_jax.models.positions import declare_relative
from gpt_jax.models.stack import FUTURE, look_ahead, run_blocks
from gpt_jax.ops import quantized
from gpt_jax.ops.factored import Factored
from gpt_jax.ops.projection import fuse_qkv
from gpt_jax.ops.visibility import TokenPositions


class Decoder(nn.Module):
  """GPT (Radford et al. 2018, 2019), built from the mechanisms of the config.

  Attributes:
    config: model section of the config, vocab_size filled in.
    rules: key of sharding.RULES.
    is_stacked: whether "blocks" holds all layers in a leading dim.
    platform: cpu, gpu or tpu, which the attention kernel is chosen for.
  """

  STACKS: ClassVar = ("blocks",)
  OBJECTIVES: ClassVar = (
    "causal",
    "prefix_lm",
    "fill_in_the_middle",
    "span_corruption",
    "ul2",
    "sequence_to_sequence",
    "classification",
    "chat",
    "dpo",
    "ipo",
    "kto",
    "orpo",
    "grpo",
  )
  can_generate: ClassVar = True
  has_types: ClassVar = False

  config: ModelConfig
  rules: str = "standard"
  is_stacked: bool = True
  platform: str = "cpu"

  @staticmethod
  def prepare(params, specs):
    """Returns (params, specs) in the form that decoding reads.

    READERS, the matrices that read the residual stream, are fused into one
    unless they are factored. Blocks that predict tokens beyond the next are
    left out.
    """
    is_rounded = lambda ws: isinstance(ws[0], quantized.Quantized)
    fused = lambda ws: (
      quantized.fuse(ws) if is_rounded(ws) else fuse_qkv(ws, axis=1)
    )
    own = lambda t: {k: v for k, v in t.items() if not k.startswith(FUTURE)}
    params, specs = own(params), own(specs)
    is_factored = lambda x: isinstance(x, Factored)
    leaves = jax.tree.leaves(params, is_leaf=is_factored)
    if any(map(is_factored, leaves)):  # factors are not fused
      return params, specs
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
    needs_future=False,
    filled=None,
  ):
    """Returns logits_BTV float32, or (logits_BTV, cache) with a cache.

    Logits of padding ids are -1e30; for classes, see layers.Classifier.

    Args:
      tokens_BT: int32 ids below vocab_size.
      positions_BT: int32 below max_len; None is the index in the row.
      segments_BT: document of each token; None where a row is one document.
      cache: list over layers of (k_BKSH, v_BKSH); needs is_stacked=False.
      start_B: int32, slot of each row's first token, with a cache.
      only_B: int32, the one token of each row whose logits are wanted; the
        result then has T = 1. None wants all.
      key: dropout key; None drops nothing.
      order_1T: index of each token in its row, where sharding over seq has
        reordered the tokens; None: they are in order.
      slots_BT: slots of tokens, in rows that have prefixes (ops/visibility.py);
        None is the index of each token.
      is_headless: return (x_BTD, w_VD) in place of their product, the logits.
      needs_balance: return (result, routing), as stack.run_blocks does.
      needs_future: return (result, futures): futures lists the same result for
        each block that predicts a token beyond the next.
      filled: int32, number of slots used by the fullest row; None reads all.
    """
    c = self.config
    is_prefixed, is_ordered = slots_BT is not None, order_1T is None
    order_BT = jnp.arange(tokens_BT.shape[1])[None] if is_ordered else order_1T
    if start_B is not None:
      order_BT = order_BT + start_B[:, None]
    positions_BT = order_BT if positions_BT is None else positions_BT
    slots_BT = slots_BT if is_prefixed else order_BT
    contexts = build_contexts(
      c,
      self.platform,
      TokenPositions(slots_BT, segments_BT),
      positions_BT,
      cache,
      start_B,
      only_B,
      is_ordered=is_ordered and not is_prefixed,
      is_prefixed=is_prefixed,
      is_dropping=key is not None and c.dropout_rate > 0,
      relative_XN=declare_relative(self, "relative"),
      filled=filled,
    )
    embed = Embedding(c, name="embed")
    x_BTD = start_stream(self, embed(tokens_BT, positions_BT), key)
    x_BTD, cache, routing = run_blocks(self, x_BTD, contexts, cache, key)
    self.sow("taps", "residual_out", x_BTD)
    xs = [x_BTD]
    if needs_future or self.is_initializing():
      xs += look_ahead(self, x_BTD, contexts, key)
    if c.norm_placement != "post":
      xs = list(map(Norm(c, name="final_norm"), xs))
    if only_B is not None:
      xs[0] = jnp.take_along_axis(xs[0], only_B[:, None, None], axis=1)
    read_out = build_read_out(self, embed.table_VD, segments_BT, key)
    out = read_out(xs[0], is_headless)
    if cache is not None:
      out = out, cache
    if needs_balance:
      out = out, routing
    if needs_future:
      out = out, [read_out(x, is_headless) for x in xs[1:]]
    return out


def _fuse(tree: dict, join) -> dict:
  fused = dict(tree)
  for stack in tree:
    if isinstance(tree[stack], dict) and "attn" in tree[stack]:
      attn = dict(tree[stack]["attn"])
      names = [name for name in READERS if name in attn]
      attn[FUSED] = join([attn.pop(name) for name in names])
      fused[stack] = {**tree[stack], "attn": attn}
  return fused
