"""Block-wise causal attention in JAX: scores exist a block at a time.

Flash attention's algebra (Dao et al. 2022): forward keeps the logarithm of each
row's softmax sum, from which backward makes the weights again. Two forms of
one function. `strips` is for whole rows in order: unrolled, what causality and
window hide is left out at trace time, and a few heads at a time go through, so
that scores stay in a CPU's cache. `tiles_forward` and `tiles_backward` are for
tokens in any order, and for lengths that no unrolling can hold: loops that
skip a hidden pair of blocks when they meet it. Statistics are float32; queries
come scaled.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

HIDDEN = -1e30
# Longest rows that are unrolled; length from which blocks are larger; scores
# of one block of rows that fit a core's cache (configs/LOG.md).
MAX_STRIPS_LEN = 4096
LONG = 512
SMALL_BLOCK, LARGE_BLOCK = 64, 128
CACHED_SCORES = 2**18
# Side of a tile, and the slots of added queries, which see nothing, and of
# added keys, which nothing sees.
TILE = 512
BEFORE, AFTER = -1, 2**30


class Rule(typing.NamedTuple):
  """What is static about scores.

  Attributes:
    window: number of last slots that a query sees, or None for all.
    softcap: scores pass cap * tanh(score / cap), or None.
  """

  window: int | None
  softcap: float | None


class Places(typing.NamedTuple):
  """Where tokens are: index in the row, and document.

  Attributes:
    slots_T: int32, the same for all rows.
    segments_BT: int32, or None where a row is one document.
  """

  slots_T: jax.Array
  segments_BT: jax.Array | None


def einsum(equation: str, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def visible(rule: Rule, q_slots_T, k_slots_S):
  """Returns mask_TS by slots alone."""
  distance_TS = q_slots_T[:, None] - k_slots_S[None]
  mask_TS = distance_TS >= 0
  if rule.window is not None:
    mask_TS &= distance_TS < rule.window
  return mask_TS


def cap(rule: Rule, scores):
  if rule.softcap is None:
    return scores
  return rule.softcap * jnp.tanh(scores / rule.softcap)


def uncap(rule: Rule, capped, d_capped):
  """Returns the gradient of scores of that of capped scores."""
  if rule.softcap is None:
    return d_capped
  return d_capped * (1 - jnp.square(capped / rule.softcap))


# Whole rows in order, unrolled. Z is rows times key heads.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def strips(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: Rule):
  """Returns y_BKGTH of rows in order; T == S <= MAX_STRIPS_LEN."""
  return _strips_forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule)[0]


def block_of(length: int) -> int:
  return SMALL_BLOCK if length <= LONG else LARGE_BLOCK


def _seen(rule: Rule, start: int, stop: int) -> slice:
  """Returns the keys that queries start:stop may see."""
  low = 0 if rule.window is None else max(0, start - rule.window + 1)
  return slice(low, stop)


def _seers(rule: Rule, start: int, stop: int, length: int) -> slice:
  """Returns the queries that may see keys start:stop."""
  if rule.window is None:
    return slice(start, length)
  return slice(start, min(length, stop - 1 + rule.window))


def _strip_mask(rule: Rule, rows: slice, keys: slice, segments_ZT):
  """Returns (mask_1TS or mask_ZTS) of queries `rows` and `keys`."""
  mask = visible(
    rule, jnp.arange(rows.start, rows.stop), jnp.arange(keys.start, keys.stop)
  )[None]
  if segments_ZT is not None:
    mask &= segments_ZT[:, rows, None] == segments_ZT[:, None, keys]
  return mask


def _strips_forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule):
  def some(q_ZGTH, k_ZSH, v_ZSH, segments_ZT=None):
    T = q_ZGTH.shape[2]
    block, ys, lses = block_of(T), [], []
    for start in range(0, T, block):
      rows = slice(start, min(start + block, T))
      keys = _seen(rule, rows.start, rows.stop)
      s_ZGTS = einsum("ZGTH,ZSH->ZGTS", q_ZGTH[:, :, rows], k_ZSH[:, keys])
      mask = _strip_mask(rule, rows, keys, segments_ZT)[:, None]
      s_ZGTS = jnp.where(mask, cap(rule, s_ZGTS), HIDDEN)
      top_ZGT1 = s_ZGTS.max(-1, keepdims=True)
      p_ZGTS = jnp.exp(s_ZGTS - top_ZGT1)
      sum_ZGT1 = p_ZGTS.sum(-1, keepdims=True)
      y_ZGTH = einsum(
        "ZGTS,ZSH->ZGTH", p_ZGTS.astype(v_ZSH.dtype), v_ZSH[:, keys]
      )
      ys.append((y_ZGTH / sum_ZGT1).astype(q_ZGTH.dtype))
      lses.append((top_ZGT1 + jnp.log(sum_ZGT1))[..., 0])
    return jnp.concatenate(ys, 2), jnp.concatenate(lses, 2)

  y, lse = _in_parts(some, segments_BT, q_BKGTH, k_BKSH, v_BKSH)
  y_BKGTH = checkpoint_name(y.reshape(q_BKGTH.shape), "attn")
  lse_BKGT = checkpoint_name(lse.reshape(q_BKGTH.shape[:-1]), "attn")
  return y_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, segments_BT, y_BKGTH, lse_BKGT)


def _strips_backward(rule, kept, dy_BKGTH):
  """Goes by blocks of keys, with scores transposed.

  So every product but one contracts the last dim of its left side, the form
  that is twice as fast on a CPU; the gradient of queries is gathered
  transposed for the same reason.
  """

  def some(q_ZGTH, k_ZSH, v_ZSH, dy_ZGTH, lse_ZGT, away_ZGT, segments_ZT=None):
    Z, G, T, H = q_ZGTH.shape
    block, dks, dvs = block_of(T), [], []
    k_ZHS = k_ZSH.swapaxes(1, 2)
    dq_ZGHT = jnp.zeros((Z, G, H, T), jnp.float32)
    for start in range(0, T, block):
      keys = slice(start, min(start + block, T))
      rows = _seers(rule, keys.start, keys.stop, T)
      q, dy = q_ZGTH[:, :, rows], dy_ZGTH[:, :, rows]
      s_ZGST = cap(rule, einsum("ZSH,ZGTH->ZGST", k_ZSH[:, keys], q))
      mask = _strip_mask(rule, rows, keys, segments_ZT).swapaxes(1, 2)[:, None]
      p_ZGST = jnp.exp(s_ZGST - lse_ZGT[:, :, None, rows])
      p_ZGST = jnp.where(mask, p_ZGST, 0)
      dvs.append(einsum("ZGST,ZGTH->ZSH", p_ZGST.astype(dy.dtype), dy))
      dp_ZGST = einsum("ZSH,ZGTH->ZGST", v_ZSH[:, keys], dy)
      ds_ZGST = p_ZGST * (dp_ZGST - away_ZGT[:, :, None, rows])
      ds_ZGST = uncap(rule, s_ZGST, ds_ZGST).astype(q.dtype)
      dks.append(einsum("ZGST,ZGTH->ZSH", ds_ZGST, q))
      more = einsum("ZHS,ZGST->ZGHT", k_ZHS[:, :, keys], ds_ZGST)
      dq_ZGHT = dq_ZGHT.at[..., rows].add(more)
    dq_ZGTH = dq_ZGHT.swapaxes(2, 3).astype(q_ZGTH.dtype)
    dk_ZSH = jnp.concatenate(dks, 1).astype(k_ZSH.dtype)
    return dq_ZGTH, dk_ZSH, jnp.concatenate(dvs, 1).astype(v_ZSH.dtype)

  q, k, v, segments_BT, y, lse = kept
  away = away_of(y, dy_BKGTH)
  dq, dk, dv = _in_parts(some, segments_BT, q, k, v, dy_BKGTH, lse, away)
  return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), None


strips.defvjp(_strips_forward, _strips_backward)


def away_of(y_BKGTH, dy_BKGTH):
  """Returns sum over H of y dy: what a softmax's gradient is taken from.

  As a product with ones: a CPU's compiler would draw a sum into the product
  of scores that it is taken from, eight times as slow (configs/LOG.md).
  """
  each = y_BKGTH.astype(jnp.float32) * dy_BKGTH.astype(jnp.float32)
  ones_H = jnp.ones(each.shape[-1], jnp.float32)
  return jnp.einsum("BKGTH,H->BKGT", each, ones_H, precision="highest")


def _in_parts(some, segments_BT, *arrays):
  """Applies `some` to a few (row, key head) pairs at a time."""
  B, K, G, T = arrays[0].shape[:4]
  arrays = [x.reshape(B * K, *x.shape[2:]) for x in arrays]
  if segments_BT is not None:
    arrays.append(jnp.repeat(segments_BT, K, axis=0))
  most = max(1, CACHED_SCORES // (G * T * min(T, block_of(T))))
  size = max(z for z in range(1, B * K + 1) if B * K % z == 0 and z <= most)
  if size == B * K:
    return some(*arrays)
  parts = [x.reshape(-1, size, *x.shape[1:]) for x in arrays]
  done = jax.lax.map(lambda part: some(*part), parts)
  return jax.tree.map(lambda x: x.reshape(B * K, *x.shape[2:]), done)


# Tokens in any order, by loops.


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def tiles(q_BKGTH, k_BKSH, v_BKSH, q_at: Places, k_at: Places, rule: Rule):
  """Returns y_BKGTH; each query's own slot must be among the keys."""
  return _tiles_forward(q_BKGTH, k_BKSH, v_BKSH, q_at, k_at, rule)[0]


def _tiles_forward(q, k, v, q_at, k_at, rule):
  y, lse = tiles_forward(q, k, v, q_at, k_at, rule)
  y = checkpoint_name(y.astype(q.dtype), "attn")
  lse = checkpoint_name(lse, "attn")
  return y, (q, k, v, q_at, k_at, y, lse)


def _tiles_backward(rule, kept, dy):
  q, k, v, q_at, k_at, y, lse = kept
  dq, dk, dv = tiles_backward(q, k, v, q_at, k_at, rule, y, dy, lse)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


tiles.defvjp(_tiles_forward, _tiles_backward)


def merge(y, lse, more_y, more_lse):
  """Returns (y, lse) of the union of two disjoint sets of keys, float32."""
  top = jnp.maximum(lse, more_lse)
  a, b = jnp.exp(lse - top), jnp.exp(more_lse - top)
  total = a + b
  y = (y * a[..., None] + more_y * b[..., None]) / total[..., None]
  return y, top + jnp.log(total)


def tiles_forward(q, k, v, q_at: Places, k_at: Places, rule: Rule):
  """Returns (y_BKGTH float32, lse_BKGT); a row without keys has lse HIDDEN.

  Args:
    q: q_BKGTH, scaled.
    k: k_BKSH; v: v_BKSH.
    q_at, k_at: places of queries and of keys.
  """
  T, S = q.shape[3], k.shape[2]
  q, q_at, size = _padded(q, 3, q_at, T, BEFORE)
  k, k_at, width = _padded(k, 2, k_at, S, AFTER)
  v = _padded(v, 2, k_at, S, AFTER)[0]

  def rows(_, i):
    q_i, at_i = _part(q, 3, q_at, i, size)
    zero = jnp.zeros(q_i.shape, jnp.float32)
    start = (zero, jnp.zeros(q_i.shape[:-1], jnp.float32) + HIDDEN)

    def add(j, carry):
      k_j, at_j = _part(k, 2, k_at, j, width)
      v_j, _ = _part(v, 2, k_at, j, width)

      def seen():
        s = cap(rule, einsum("BKGTH,BKSH->BKGTS", q_i, k_j))
        mask = _tile_mask(rule, at_i, at_j)
        s = jnp.where(mask, s, HIDDEN)
        top = s.max(-1)
        p = jnp.where(mask, jnp.exp(s - top[..., None]), 0)
        total = p.sum(-1)
        y = einsum("BKGTS,BKSH->BKGTH", p.astype(v.dtype), v_j)
        y /= jnp.maximum(total, 1e-30)[..., None]
        lse = jnp.where(total > 0, top + jnp.log(total), HIDDEN)
        return merge(*carry, y, lse)

      return jax.lax.cond(
        is_seen(rule, at_i.slots_T, at_j.slots_T), seen, lambda: carry
      )

    return None, jax.lax.fori_loop(0, k.shape[2] // width, add, start)

  _, (y, lse) = jax.lax.scan(rows, None, jnp.arange(q.shape[3] // size))
  y = jnp.moveaxis(y, 0, 3).reshape(q.shape)[:, :, :, :T]
  return y, jnp.moveaxis(lse, 0, 3).reshape(q.shape[:-1])[..., :T]


def tiles_backward(q, k, v, q_at, k_at, rule, y, dy, lse):
  """Returns (dq, dk, dv) float32 of these keys' part in all that rows see.

  Args:
    y, lse: y_BKGTH and lse_BKGT over all keys, of which these may be some.
    dy: gradient of y.
  """
  away = away_of(y, dy)
  T, S = q.shape[3], k.shape[2]
  more = [_padded(x, 3, q_at, T, BEFORE)[0] for x in (dy, lse, away)]
  q, q_at, size = _padded(q, 3, q_at, T, BEFORE)
  v = _padded(v, 2, k_at, S, AFTER)[0]
  k, k_at, width = _padded(k, 2, k_at, S, AFTER)

  def keys(dq, j):
    k_j, at_j = _part(k, 2, k_at, j, width)
    v_j, _ = _part(v, 2, k_at, j, width)

    def add(i, carry):
      q_i, at_i = _part(q, 3, q_at, i, size)
      dy_i, lse_i, away_i = (_part(x, 3, q_at, i, size)[0] for x in more)

      def seen():
        s = cap(rule, einsum("BKGTH,BKSH->BKGTS", q_i, k_j))
        mask = _tile_mask(rule, at_i, at_j)
        p = jnp.where(mask, jnp.exp(s - lse_i[..., None]), 0)
        dv_j = einsum("BKGTS,BKGTH->BKSH", p.astype(dy.dtype), dy_i)
        dp = einsum("BKGTH,BKSH->BKGTS", dy_i, v_j)
        ds = uncap(rule, s, p * (dp - away_i[..., None])).astype(q.dtype)
        dk_j = einsum("BKGTS,BKGTH->BKSH", ds, q_i)
        return einsum("BKGTS,BKSH->BKGTH", ds, k_j), dk_j, dv_j

      # The whole of dq stays out of the branches, which would copy it.
      nothing = lambda: (jnp.zeros(q_i.shape, jnp.float32), zero, zero)
      dq_i, dk_j, dv_j = jax.lax.cond(
        is_seen(rule, at_i.slots_T, at_j.slots_T), seen, nothing
      )
      dq, dk, dv = carry
      dq_i += jax.lax.dynamic_slice_in_dim(dq, i * size, size, 3)
      dq = jax.lax.dynamic_update_slice_in_dim(dq, dq_i, i * size, 3)
      return dq, dk + dk_j, dv + dv_j

    zero = jnp.zeros(k_j.shape, jnp.float32)
    dq, dk_j, dv_j = jax.lax.fori_loop(
      0, q.shape[3] // size, add, (dq, zero, zero)
    )
    return dq, (dk_j, dv_j)

  dq = jnp.zeros(q.shape, jnp.float32)
  dq, parts = jax.lax.scan(keys, dq, jnp.arange(k.shape[2] // width))
  dk, dv = (jnp.moveaxis(x, 0, 2).reshape(k.shape)[:, :, :S] for x in parts)
  return dq[:, :, :, :T], dk, dv


def is_seen(rule: Rule, q_slots_T, k_slots_S):
  """Returns whether any of these queries may see any of these keys.

  By the extremes of both, so that it costs nothing; tiles of contiguous slots
  make it exact.
  """
  first, last = q_slots_T.min(), q_slots_T.max()
  if rule.window is None:
    return last >= k_slots_S.min()
  lowest, highest = k_slots_S.min(), k_slots_S.max()
  return (last >= lowest) & (first - highest < rule.window)


def _tile_mask(rule: Rule, q_at: Places, k_at: Places):
  mask = visible(rule, q_at.slots_T, k_at.slots_T)[None]
  if q_at.segments_BT is not None:
    mask &= q_at.segments_BT[:, :, None] == k_at.segments_BT[:, None]
  return mask[:, None, None]


def tile_of(length: int) -> int:
  """Returns the side of tiles, a divisor of lengths that TILE divides."""
  return min(TILE, 1 << max(3, math.ceil(math.log2(length))))


def _padded(x, axis: int, at: Places, length: int, slot: int):
  """Returns (x, places, tile), the length a multiple of the tile.

  Args:
    slot: of what is added.
  """
  tile = tile_of(length)
  short = -length % tile
  if not short:
    return x, at, tile
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, short)
  x = jnp.pad(x, widths)
  if at.slots_T.shape[0] == length:
    pad = lambda a, v: jnp.pad(
      a, [(0, 0)] * (a.ndim - 1) + [(0, short)], constant_values=v
    )
    segments_BT = at.segments_BT
    if segments_BT is not None:
      segments_BT = pad(segments_BT, -1)
    at = Places(pad(at.slots_T, slot), segments_BT)
  return x, at, tile


def _part(x, axis: int, at: Places, index, size: int):
  """Returns part `index` of x and of its places."""
  cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(
    a, index * size, size, axis
  )
  segments_BT = at.segments_BT
  if segments_BT is not None:
    segments_BT = cut(segments_BT, 1)
  return cut(x, axis), Places(cut(at.slots_T, 0), segments_BT)
