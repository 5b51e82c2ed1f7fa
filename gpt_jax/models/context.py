"""The attention inputs that all layers of one kind share in a forward pass."""

import jax
import jax.numpy as jnp
from flax import struct

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import choose, choose_cross
from gpt_jax.models.positions import bias_of, rope_of
from gpt_jax.ops import visibility
from gpt_jax.ops.visibility import Rule, TokenPositions


class Context(struct.PyTreeNode):
  """Inputs of attention that all layers of one kind share in a forward pass.

  Attributes:
    kind: kind of the layers that read this, global or local; cross for
      cross-attention.
    rule: which keys a query sees.
    kernel: dense | blocks | splash | cudnn | flash (attend.choose).
    platform: cpu, gpu, tpu or attend.INTERPRETED.
    slots_BT: slot of each query, int32 (ops/visibility.py); B may be 1.
    is_ordered: whether slots are 0, 1, 2, ... in every row.
    segments_BT: document of each token, or None.
    mask_BTS: bool, which keys each query sees; only for the dense kernel, since
      it grows with the square of the length.
    rope: (cos, sin) for position="rope", else None.
    bias_BKGTS: score bias for position="alibi" or "relative", else None.
    start_B, end_B: int32, number of cached tokens of each row before and after
      the pass; None without a cache.
    filled: int32, number of slots used by the fullest row of the cache, where
      the caller gives it; attention then reads no further (attend.slotwise).
    keys: TokenPositions of the keys, where they are not the queries' own.
    source_BSD: encoder output, from which cross-attention projects keys and
      values; None where a cache holds them.
    cross: the Context of cross-attention, in layers that have it.
  """

  kind: str = struct.field(pytree_node=False)
  rule: Rule = struct.field(pytree_node=False)
  kernel: str = struct.field(pytree_node=False)
  platform: str = struct.field(pytree_node=False)
  slots_BT: jax.Array
  is_ordered: bool = struct.field(pytree_node=False)
  segments_BT: jax.Array | None = None
  mask_BTS: jax.Array | None = None
  rope: tuple | None = None
  bias_BKGTS: jax.Array | None = None
  start_B: jax.Array | None = None
  end_B: jax.Array | None = None
  filled: jax.Array | None = None
  keys: TokenPositions | None = None
  source_BSD: jax.Array | None = None
  cross: "Context | None" = None


def build_contexts(
  config: ModelConfig,
  platform: str,
  at: TokenPositions,
  positions_BT,
  cache=None,
  start_B=None,
  only_B=None,
  *,
  is_ordered: bool,
  is_prefixed: bool = False,
  is_dropping: bool = False,
  relative_XN=None,
  cross: Context | None = None,
  filled=None,
) -> dict[str, Context]:
  """Returns {kind: Context} for the kinds of layers that the config has.

  Args:
    platform: cpu, gpu, tpu or attend.INTERPRETED.
    at: slots and documents of the tokens.
    positions_BT: positions from which RoPE angles are computed.
    cache, start_B, only_B, filled: as in Decoder.__call__.
    is_ordered: whether slots are 0, 1, 2, ... in every row.
    is_prefixed: whether rows have prefixes, and so slots of their own.
    is_dropping: whether dropout applies to attention weights.
    relative_XN: from positions.declare_relative.
    cross: from build_cross, in layers with cross-attention.
  """
  c, T = config, at.slots_BT.shape[1]
  kernel = choose(
    c,
    platform,
    T,
    is_cached=cache is not None,
    is_dropping=is_dropping,
    is_prefixed=is_prefixed,
    is_packed=at.segments_BT is not None,
  )

  def one(kind: str) -> Context:
    keys, end_B = at, None
    if cache is not None:
      end_B = start_B + (T if only_B is None else only_B + 1)
      size = cache_lib.num_slots(
        cache[config_lib.layer_kinds(c).index(kind)][0]
      )
      slots_BS = cache_lib.key_slots(kind, size, T, start_B, end_B)
      keys = TokenPositions(slots_BS)
    rule = visibility.rule_of(c, kind)
    mask_BTS = rope = None
    if kernel == "dense":
      mask_BTS = visibility.visible(rule, at, keys)
    if c.position == "rope":
      rope = rope_of(positions_BT, c, kind)
    return Context(
      kind=kind,
      rule=rule,
      kernel=kernel,
      platform=platform,
      slots_BT=at.slots_BT,
      is_ordered=is_ordered,
      segments_BT=at.segments_BT,
      mask_BTS=mask_BTS,
      rope=rope,
      bias_BKGTS=bias_of(c, rule, at.slots_BT, keys.slots_BT, relative_XN),
      start_B=start_B,
      end_B=end_B,
      filled=filled,
      cross=cross,
    )

  return {kind: one(kind) for kind in set(config_lib.layer_kinds(c))}


def build_cross(
  config: ModelConfig,
  platform: str,
  queries: TokenPositions,
  source_BSD,
  segments_BS,
  *,
  is_cached: bool,
  is_dropping: bool,
) -> Context:
  """Returns the Context of cross-attention.

  A query sees all tokens of the source, or those of its own document.

  Args:
    queries: slots and documents of the tokens.
    source_BSD: the encoder's output; None where a cache holds its keys.
    segments_BS: document of each source token; None: a query sees them all.
    is_cached: whether the pass writes or reads a cache.
  """
  source = segments_BS if source_BSD is None else source_BSD
  T, S = queries.slots_BT.shape[1], source.shape[1]
  keys = TokenPositions(jnp.arange(S)[None], segments_BS)
  rule = Rule(is_causal=False, softcap=config.attn_softcap)
  kernel = choose_cross(config, platform, max(T, S), is_cached or is_dropping)
  mask_BTS = None
  if kernel == "dense":
    mask_BTS = visibility.visible(rule, queries, keys)
  return Context(
    kind="cross",
    rule=rule,
    kernel=kernel,
    platform=platform,
    slots_BT=queries.slots_BT,
    is_ordered=True,
    segments_BT=queries.segments_BT,
    mask_BTS=mask_BTS,
    keys=keys,
    source_BSD=source_BSD,
  )
