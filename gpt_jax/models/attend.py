"""Which attention kernel runs, and how it runs on a mesh.

| kernel | runs on | does not support |
|---|---|---|
| dense | all | long rows: it stores all scores |
| blocks | all, tuned for CPUs | score biases, dropout of attention weights |
| splash | TPU | what blocks does not, cross-attention |
| cudnn | GPU | what splash does not, packing, soft-caps, float32, axis seq |
| flash | GPU | what cudnn does not, but it has packing and soft-caps |

The compiler cannot partition a kernel, so on a mesh it runs in shard_map: rows
over the batch axes, heads over tensor, and the sequence over seq, where keys
are all-gathered or passed around a ring (ring.py). In cross-attention, keys are
always gathered.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.models.cache import num_slots
from gpt_jax.models.layers import dropout
from gpt_jax.ops import blockwise
from gpt_jax.ops.ring import ring
from gpt_jax.ops.visibility import MASK_VALUE, TokenPositions
from gpt_jax.parametrization import attention_multiplier

# Row length from which blocks is faster than dense on a CPU (configs/LOG.md).
MIN_BLOCKS_LEN = 64
# Number of cache slots that `slotwise` reads at a time, where the caller says
# how far the cache is filled.
SLOTS = 128
# Platform name for kernels in Pallas' interpreter, which tests run on a CPU.
INTERPRETED = "interpreted"


def check(config: ModelConfig, platform: str) -> None:
  """Raises InputError unless the named kernel runs on the platform."""
  word = config.attention
  if word == "splash" and platform not in ("tpu", INTERPRETED):
    raise InputError(
      f"model.attention is splash, a TPU kernel, and this is a {platform}; "
      "leave it auto"
    )
  is_gpu = platform == "gpu" or (word, platform) == ("flash", INTERPRETED)
  if word in ("cudnn", "flash") and not is_gpu:
    raise InputError(
      f"model.attention is {word}, a GPU kernel, and this is a {platform}; "
      "leave it auto"
    )


def choose(
  config: ModelConfig,
  platform: str,
  length: int,
  is_cached: bool = False,
  is_dropping: bool = False,
  is_prefixed: bool = False,
  is_packed: bool = False,
) -> str:
  """Returns the kernel of one forward pass.

  Args:
    platform: cpu, gpu, tpu or INTERPRETED.
    length: T of the rows.
    is_cached: whether keys come from a cache, which only dense reads.
    is_dropping: whether dropout applies to attention weights.
    is_prefixed: whether rows have prefixes, and so slots of their own.
    is_packed: whether rows hold several documents.

  Raises:
    InputError: model.attention is cudnn and the rows are packed.
  """
  if is_cached or is_dropping or config_lib.has_score_bias(config):
    return "dense"
  if config.attention != "auto":
    fault = config_lib.cudnn_fault(config, is_packed)
    if config.attention == "cudnn" and is_packed and fault:
      raise InputError(f"model.attention is cudnn, which {fault}")
    return config.attention
  if platform in ("tpu", INTERPRETED) and not is_prefixed:
    return "splash"
  is_split = sharding.axis_size("seq") > 1
  if platform == "gpu" and not is_split and not is_prefixed:
    if not config_lib.cudnn_fault(config, is_packed):
      return "cudnn"
    return "dense" if config_lib.flash_fault(config) else "flash"
  if is_split or length >= MIN_BLOCKS_LEN:
    return "blocks"
  return "dense"


def choose_cross(
  config: ModelConfig, platform: str, length: int, needs_dense: bool
) -> str:
  """Returns the kernel of cross-attention, dense or blocks.

  Args:
    length: the longer of queries and source.
    needs_dense: keys come from a cache, or attention weights are dropped.
  """
  if needs_dense or config.attention == "dense":
    return "dense"
  is_short = platform == "cpu" and length < MIN_BLOCKS_LEN
  if config.attention == "auto" and is_short and sharding.axis_size("seq") == 1:
    return "dense"
  return "blocks"


def attend(
  q_BKGTH, k_BKSH, v_BKSH, context, config: ModelConfig, rules: str, key=None
):
  """Returns y_BKGTH: softmax attention, in the dtype of q, saved as "attn".

  "attn" is a checkpoint name (model.remat). The last dim of y is the head width
  of v, which may differ from that of q and k.

  Args:
    context: Context of the forward pass, which names the kernel.
    rules: key of sharding.RULES.
    key: dropout key, or None.
  """
  scale = attention_multiplier(config, config_lib.head_dim(config))
  is_filled = context.filled is not None and context.kind == "global"
  if is_filled and num_slots(k_BKSH) % SLOTS == 0:
    return slotwise(scale * q_BKGTH, k_BKSH, v_BKSH, context)
  if context.kernel == "dense":
    y_BKGTH = dense(scale * q_BKGTH, k_BKSH, v_BKSH, context, config, key)
    return checkpoint_name(y_BKGTH, "attn")
  local = functools.partial(
    _local if context.keys is None else _local_cross,
    scale=scale,
    kernel=context.kernel,
    rule=context.rule,
    is_ordered=context.is_ordered,
    interpret=context.platform == INTERPRETED,
  )
  at = TokenPositions(context.slots_BT, context.segments_BT)
  arrays = q_BKGTH, k_BKSH, v_BKSH, at, context.keys
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(*arrays, axis=None, key_axis=None, size=1)
  return _spread(local, *arrays, config.seq_attention, rules, mesh)


def dense(q_BKGTH, k_BKSH, v_BKSH, context, config: ModelConfig, key=None):
  """Returns y_BKGTH from all scores at once (float32 softmax); q is scaled."""
  p_BKGTS = weigh(q_BKGTH, k_BKSH, context).astype(v_BKSH.dtype)
  p_BKGTS = dropout(p_BKGTS, config.dropout_rate, key, "weights")
  return jnp.einsum("BKGTS,BKSH->BKGTH", p_BKGTS, v_BKSH)


def weigh(q_BKGTH, k_BKSH, context):
  """Returns p_BKGTS float32, the attention weights; q is already scaled."""
  s_BKGTS = blockwise.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH)
  s_BKGTS = blockwise.softcap(context.rule, s_BKGTS)
  if context.bias_BKGTS is not None:
    s_BKGTS += context.bias_BKGTS
  s_BKGTS = jnp.where(context.mask_BTS[:, None, None], s_BKGTS, MASK_VALUE)
  return jax.nn.softmax(s_BKGTS, axis=-1)


def slotwise(q_BKGTH, k_BKSH, v_BKSH, context):
  """Attention to a cache, SLOTS slots at a time, as far as it is filled.

  FlashAttention-2's forward (Dao 2023, algorithm 1) with one block of queries.
  All blocks have the same shape, and a block that no query sees leaves every
  bit of the result unchanged. So the result depends neither on the cache's
  length nor on how full other rows are. q is already scaled.

  Args:
    k_BKSH, v_BKSH: lists of blocks; or arrays, read SLOTS slots at a time.
  """
  B, K, G, T, _ = q_BKGTH.shape
  row = lambda value, H: jnp.full((B, K, G, T, H), value, jnp.float32)

  def one(carry, k_BKSH, v_BKSH, start):
    m_BKGT1, l_BKGT1, y_BKGTH = carry
    size = k_BKSH.shape[2]
    part = lambda x, dim: jax.lax.dynamic_slice_in_dim(x, start, size, dim)
    s_BKGTS = blockwise.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH)
    s_BKGTS = blockwise.softcap(context.rule, s_BKGTS)
    if context.bias_BKGTS is not None:
      s_BKGTS += part(context.bias_BKGTS, 4)
    mask_BTS = part(context.mask_BTS, 2)
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, MASK_VALUE)
    new_BKGT1 = jnp.maximum(m_BKGT1, s_BKGTS.max(-1, keepdims=True))
    p_BKGTS = jnp.exp(s_BKGTS - new_BKGT1)
    old_BKGT1 = jnp.exp(m_BKGT1 - new_BKGT1)
    own_BKGTH = blockwise.einsum(
      "BKGTS,BKSH->BKGTH", p_BKGTS.astype(v_BKSH.dtype), v_BKSH
    )
    l_BKGT1 = old_BKGT1 * l_BKGT1 + p_BKGTS.sum(-1, keepdims=True)
    return new_BKGT1, l_BKGT1, old_BKGT1 * y_BKGTH + own_BKGTH

  def sliced(i, carry):
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, i * SLOTS, SLOTS, 2)
    return one(carry, part(k_BKSH), part(v_BKSH), i * SLOTS)

  H = (v_BKSH[0] if isinstance(v_BKSH, list) else v_BKSH).shape[-1]
  carry = row(MASK_VALUE, 1), row(0.0, 1), row(0.0, H)
  if isinstance(k_BKSH, list):
    start, skip = 0, lambda carry: carry
    for k, v in zip(k_BKSH, v_BKSH, strict=True):
      read = functools.partial(one, k_BKSH=k, v_BKSH=v, start=start)
      if start:
        carry = jax.lax.cond(context.filled > start, read, skip, carry)
      else:
        carry = read(carry)
      start += k.shape[2]
  else:
    count = (context.filled + SLOTS - 1) // SLOTS
    carry = jax.lax.fori_loop(0, count, sliced, carry)
  _, l_BKGT1, y_BKGTH = carry
  return (y_BKGTH / l_BKGT1).astype(q_BKGTH.dtype)


def _spread(local, q, k, v, at, keys, how: str, rules: str, mesh):
  """Runs `local` in shard_map, split over rows, heads and the sequence."""
  B, K, G, T, _ = q.shape
  table = sharding.RULES[rules]
  split = lambda name: tuple(a for a in table[name] if mesh.shape[a] > 1)
  count = lambda name: math.prod(mesh.shape[a] for a in split(name))
  fits = lambda name, size: split(name) if size % count(name) == 0 else ()
  batch, heads, length = fits("batch", B), split("heads"), fits("length", T)
  key_length = fits("length", k.shape[2])
  if K % count("heads"):
    # Key heads do not divide over the devices: repeat them for each query head.
    heads = fits("heads", K * G)
    k, v = (jnp.repeat(x, G, axis=1) for x in (k, v))
    q = q.reshape(B, K * G, 1, *q.shape[3:])
  (axis,), (key_axis,) = length or (None,), key_length or (None,)
  own = functools.partial(
    local, axis=axis, key_axis=key_axis, size=count("length"), how=how
  )
  k_spec, q_spec = P(batch, heads, key_length), P(batch, heads, None, length)
  whole = lambda ids: P() if ids.shape[0] == 1 else P(batch)
  at_spec, keys_spec = jax.tree.map(whole, (at, keys))
  y = jax.shard_map(
    own,
    in_specs=(q_spec, k_spec, k_spec, at_spec, keys_spec),
    out_specs=q_spec,
    check_vma=False,
  )(q, k, v, at, keys)
  return y.reshape(B, K, G, T, -1)


def _local_cross(
  q,
  k,
  v,
  at: TokenPositions,
  keys: TokenPositions,
  *,
  scale: float,
  rule,
  axis,
  key_axis,
  **_,
):
  """Cross-attention of a device's own queries; returns their y.

  Args:
    at, keys: TokenPositions of the whole target and source rows.
    axis, key_axis: mesh axes that target and source are split over, or None.
  """
  if axis is not None:
    at = _own_part(at, axis, q.shape[3])
  if key_axis is not None:
    gather = lambda x: jax.lax.all_gather(x, key_axis, axis=2, tiled=True)
    k, v = gather(k), gather(v)
  return blockwise.tiles(scale * q, k, v, at, keys, rule)


def _own_part(whole: TokenPositions, axis, length: int) -> TokenPositions:
  start = jax.lax.axis_index(axis) * length
  cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, -1)
  return jax.tree.map(cut, whole)


def _local(
  q,
  k,
  v,
  whole: TokenPositions,
  keys: None,
  *,
  scale: float,
  kernel: str,
  rule,
  is_ordered: bool,
  interpret: bool,
  axis,
  key_axis,
  size: int,
  how: str = "gather",
):
  """Attention of a device's own queries; returns their y.

  Args:
    whole: TokenPositions of the whole rows, for queries and keys alike.
    axis, size: mesh axis that the sequence is split over, and its size; None
      and 1 if it is not split.
    how: gather | ring.
  """
  if kernel == "splash":
    from gpt_jax.ops import splash  # Pallas takes half a second to import

  if kernel in ("cudnn", "flash") and is_ordered and axis is None:
    short = q.shape[-1] - v.shape[-1]
    if short:  # these kernels need values as wide as keys
      v = jnp.pad(v, [(0, 0)] * 3 + [(0, short)])
    if kernel == "cudnn":
      y = cudnn(q, k, v, rule, scale)
    else:
      y = flash(q, k, v, whole.segments_BT, rule, scale, interpret)
    return y[..., :-short] if short else y
  q = scale * q
  T = q.shape[3]
  if axis is None:
    if kernel == "splash" and is_ordered:
      return splash.whole(q, k, v, whole.segments_BT, rule, interpret)
    if is_ordered and T <= blockwise.MAX_STRIPS_LEN:
      return blockwise.strips(q, k, v, whole.segments_BT, rule)
    return blockwise.tiles(q, k, v, whole, whole, rule)
  own = _own_part(whole, axis, T)
  if how == "ring":
    inner = blockwise.tiles_forward, blockwise.tiles_backward
    if kernel == "splash":
      inner = splash.ring_inner(interpret)
    return ring(q, k, v, own, rule, axis, size, inner)
  k, v = (jax.lax.all_gather(x, axis, axis=2, tiled=True) for x in (k, v))
  if kernel == "splash":
    return splash.part(q, k, v, own, whole, rule, interpret)
  return blockwise.tiles(q, k, v, own, whole, rule)


def cudnn(q_BKGTH, k_BKSH, v_BKSH, rule, scale: float):
  """Runs cuDNN attention on whole rows in order; takes q unscaled."""
  window = None
  if rule.window is not None:
    before = rule.window - 1
    window = (before, 0 if rule.is_causal else before)
  y_BTNH = jax.nn.dot_product_attention(
    _heads_last(q_BKGTH),
    k_BKSH.swapaxes(1, 2),
    v_BKSH.swapaxes(1, 2),
    scale=scale,
    is_causal=rule.is_causal,
    local_window_size=window,
    implementation="cudnn",
  )
  y_BKGTH = y_BTNH.swapaxes(1, 2).reshape(q_BKGTH.shape)
  return checkpoint_name(y_BKGTH, "attn")


def flash(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule, scale, interpret=False):
  """Runs our GPU kernels on whole rows in order; takes q unscaled."""
  from gpt_jax.ops import flash  # Pallas takes half a second to import

  y_BTNH = flash.flash(
    _heads_last(q_BKGTH),
    k_BKSH.swapaxes(1, 2),
    v_BKSH.swapaxes(1, 2),
    segments_BT,
    rule,
    scale,
    interpret,
  )
  return y_BTNH.swapaxes(1, 2).reshape(q_BKGTH.shape)


def _heads_last(q_BKGTH):
  B, K, G, T, H = q_BKGTH.shape
  return q_BKGTH.reshape(B, K * G, T, H).swapaxes(1, 2)
