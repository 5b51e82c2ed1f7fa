"""The cache of keys and values that decoding reads.

In layers with cross-attention, a layer's tuple also holds, once the source has
been read, the source's (k_BKSH, v_BKSH) and the document of each of its tokens.

A local layer's cache is a ring buffer with as many slots as its window: token t
is stored at t mod S, over the token that leaves the window. Any other layer has
a slot for each token of the row.

For decoding many rows, k_BKSH may be a list of blocks of slots. A CPU copies a
slice of a larger array before the matmul, which took twice as long as the
attention itself (docs/serving.md); a block is read in place.
"""

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig

# Slot number of the empty places of a ring: no query sees it.
EMPTY = 2**30


def init_cache(config: ModelConfig, batch_size: int, num_slots: int, dtype):
  """Returns an empty cache: a list over layers, filled with zeros.

  A layer has (k_BKSH, v_BKSH), or (kv_B1SC,) with latent attention.
  """

  def empty(kind: str):
    S, window = num_slots, config.sliding_window
    if kind == "local" and window is not None:
      S = min(S, window)
    return tuple(
      jnp.zeros((batch_size, K, S, H), dtype)
      for K, H in config_lib.cached_dims(config)
    )

  return [empty(kind) for kind in config_lib.layer_kinds(config)]


def split(cache, size: int):
  """Returns the cache with the slots of global layers in blocks of `size`.

  Rings, and the one array of latent attention, are left whole.
  """
  S = max(num_slots(layer[0]) for layer in cache)

  def one(x_BKSH):
    starts = range(0, S, size)
    return [x_BKSH[:, :, start : start + size] for start in starts]

  is_split = lambda layer: len(layer) == 2 and num_slots(layer[0]) == S
  return [tuple(map(one, c)) if is_split(c) else c for c in cache]


def num_slots(x_BKSH) -> int:
  """Returns S of a cache's array, or of a list of its blocks."""
  blocks = x_BKSH if isinstance(x_BKSH, list) else [x_BKSH]
  return sum(x.shape[2] for x in blocks)


def key_slots(kind: str, size: int, num_new: int, start_B, end_B):
  """Returns slots_BS of the keys that `update` returns to attend to.

  Args:
    size: S of the layer's cache.
    num_new: T, the number of tokens written.
    start_B, end_B: int32, number of tokens of each row before and after.
  """
  if kind != "local":
    return jnp.arange(size)[None]
  if num_new == 1:
    return _ring_slots(size, end_B)
  new_BT = start_B[:, None] + jnp.arange(num_new)[None]
  return jnp.concatenate([_ring_slots(size, start_B), new_BT], axis=1)


def update(cache, new, kind: str, start_B, end_B):
  """Returns ((k_BKSH, v_BKSH) to attend to, the layer's cache afterwards).

  Args:
    cache: (k_BKSH, v_BKSH) of the layer.
    new: (k_BKTH, v_BKTH) of tokens start_B, start_B + 1, ...
    kind: the layer's kind.
    end_B: number of tokens of each row afterwards; the rest of `new` is
      padding.
  """
  new = contain(*new)
  if kind != "local":
    cache = tuple(
      _write(c, x, start_B) for c, x in zip(cache, new, strict=True)
    )
    return cache, cache
  kept = tuple(
    _write_ring(c, x, start_B, end_B) for c, x in zip(cache, new, strict=True)
  )
  if new[0].shape[2] == 1:  # the token that it overwrites has left the window
    return kept, kept
  join = lambda c, x: jnp.concatenate([c, x.astype(c.dtype)], axis=2)
  return tuple(map(join, cache, new)), kept


def contain(*new):
  """Returns new keys and values, with NaN or infinite values made harmless.

  A text gives a slot that it does not see weight 0, but 0 * NaN is NaN: what
  one text left behind would spoil all later texts of its row. So a value that
  is not finite becomes 0 and its key NaN: only queries that see the slot get
  NaN.

  Args:
    new: k_BKTH and v_BKTH; or kv_B1TC, whose last dims only keys have.
  """
  is_finite = jnp.isfinite(new[-1]).all(-1, keepdims=True)
  last = jnp.where(is_finite, new[-1], 0)
  if len(new) == 1:
    key = jnp.where(is_finite, last[..., -1:], jnp.nan)
    return (last.at[..., -1:].set(key),)
  return jnp.where(is_finite, new[0], jnp.nan), last


def split_source(cache: tuple):
  """Returns (own keys and values, the source's keys and values) of a layer.

  The latter are None before the source has been read.
  """
  return cache[:2], cache[2:4] or None


def join_source(own: tuple, source, segments_BS) -> tuple:
  """Returns a layer's cache with the keys and values of the source."""
  return (*own, *(x.astype(own[0].dtype) for x in source), segments_BS)


def _write(cache_BKSH, new_BKTH, start_B):
  """Returns the cache with new tokens, except in rows where they do not fit.

  dynamic_update_slice would write such tokens over the last slots.
  """
  if isinstance(cache_BKSH, list):
    return _write_blocks(cache_BKSH, new_BKTH, start_B)
  window = jax.lax.ScatterDimensionNumbers((0, 1, 2), (), (1,))
  write = lambda row_KSH, new_KTH, start: jax.lax.scatter(
    row_KSH,
    start[None],
    new_KTH.astype(row_KSH.dtype),
    window,
    mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
  )
  return jax.vmap(write)(cache_BKSH, new_BKTH, start_B)


def _write_blocks(blocks: list, new_BKTH, start_B) -> list:
  """Returns the blocks with each row's new tokens written to their slots."""
  B, _, T, _ = new_BKTH.shape
  new_BTKH, rows_B1 = new_BKTH.swapaxes(1, 2), jnp.arange(B)[:, None]
  slots_BT, found = start_B[:, None] + jnp.arange(T)[None], []
  for x_BKSH in blocks:
    size = x_BKSH.shape[2]
    at_BT = jnp.where(slots_BT < 0, size, slots_BT)  # -1 is the last slot
    new = new_BTKH.astype(x_BKSH.dtype)
    found.append(x_BKSH.at[rows_B1, :, at_BT].set(new, mode="drop"))
    slots_BT = slots_BT - size
  return found


def _ring_slots(size: int, end_B):
  """Returns slots_BS: which of the first end_B tokens each ring place holds."""
  last_B1 = end_B[:, None] - 1
  slots_BS = last_B1 - (last_B1 - jnp.arange(size)[None]) % size
  return jnp.where(slots_BS < 0, EMPTY, slots_BS)


def _write_ring(cache_BKSH, new_BKTH, start_B, end_B):
  slots_BS = _ring_slots(cache_BKSH.shape[2], end_B)
  index_BS = slots_BS - start_B[:, None]
  is_new_BS = (index_BS >= 0) & (slots_BS < EMPTY)
  index_BS = jnp.where(is_new_BS, index_BS, 0)
  pick = lambda new_KTH, index_S: new_KTH[:, index_S]
  new_BKSH = jax.vmap(pick)(new_BKTH, index_BS).astype(cache_BKSH.dtype)
  return jnp.where(is_new_BS[:, None, :, None], new_BKSH, cache_BKSH)
