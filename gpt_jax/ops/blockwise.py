"""Block-wise attention in JAX: scores exist one block at a time.

The algebra is FlashAttention-2's (Dao 2023, algorithms 1 and 2): forward saves
L = m + log(l), the log-sum-exp of each row of scores, and backward recomputes
P = exp(S - L) from it. Two forms of one function:

  strips  whole rows in order, unrolled: pairs of blocks that the rule hides
          are left out at trace time, and a few heads are computed at a time so
          that their scores stay in a CPU's cache
  tiles   tokens in any order and of any length, in loops that skip a hidden
          pair of blocks at run time

Softmax statistics are float32. Queries are already scaled.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.ops import visibility
from gpt_jax.ops.visibility import (
  KEY_PADDING,
  MASK_VALUE,
  QUERY_PADDING,
  Rule,
  TokenPositions,
  any_visible,
  slots_visible,
  visible_keys,
  visible_queries,
)

# Longest rows that are unrolled; longest rows that take small blocks; number of
# scores that fit a core's cache (configs/LOG.md).
MAX_STRIPS_LEN = 4096
LONG = 512
SMALL_BLOCK, LARGE_BLOCK = 64, 128
CACHED_SCORES = 2**18
# Side of a tile.
TILE = 512


def einsum(equation: str, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def softcap(rule: Rule, scores):
  """Returns cap * tanh(scores / cap), or the scores where there is no cap."""
  if rule.softcap is None:
    return scores
  return rule.softcap * jnp.tanh(scores / rule.softcap)


def softcap_gradient(rule: Rule, capped, d_capped):
  """Returns the gradient of scores: d_capped * (1 - tanh^2)."""
  if rule.softcap is None:
    return d_capped
  return d_capped * (1 - jnp.square(capped / rule.softcap))


# Strips: whole rows in order, unrolled. Z = B * K, sequences times key heads.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def strips(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: Rule):
  """Returns y_BKGTH of rows in order; T == S <= MAX_STRIPS_LEN."""
  return _strips_forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule)[0]


def block_of(length: int) -> int:
  return SMALL_BLOCK if length <= LONG else LARGE_BLOCK


def _strip_mask(rule: Rule, rows: slice, keys: slice, segments_ZT):
  """Returns (mask_1TS or mask_ZTS) of queries `rows` and `keys`."""
  slots = lambda part: jnp.arange(part.start, part.stop)[None]
  mask = slots_visible(rule, slots(rows), slots(keys))
  if segments_ZT is not None:
    mask &= segments_ZT[:, rows, None] == segments_ZT[:, None, keys]
  return mask


def _strips_forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule):
  def some(q_ZGTH, k_ZSH, v_ZSH, segments_ZT=None):
    T = q_ZGTH.shape[2]
    block, ys, lses = block_of(T), [], []
    for start in range(0, T, block):
      rows = slice(start, min(start + block, T))
      keys = visible_keys(rule, rows.start, rows.stop, T)
      # S = Q K^T; P = exp(S - m); O = P V / l; L = m + log(l).
      s_ZGTS = einsum("ZGTH,ZSH->ZGTS", q_ZGTH[:, :, rows], k_ZSH[:, keys])
      mask = _strip_mask(rule, rows, keys, segments_ZT)[:, None]
      s_ZGTS = jnp.where(mask, softcap(rule, s_ZGTS), MASK_VALUE)
      m_ZGT1 = s_ZGTS.max(-1, keepdims=True)
      p_ZGTS = jnp.exp(s_ZGTS - m_ZGT1)
      l_ZGT1 = p_ZGTS.sum(-1, keepdims=True)
      y_ZGTH = einsum(
        "ZGTS,ZSH->ZGTH", p_ZGTS.astype(v_ZSH.dtype), v_ZSH[:, keys]
      )
      ys.append((y_ZGTH / l_ZGT1).astype(q_ZGTH.dtype))
      lses.append((m_ZGT1 + jnp.log(l_ZGT1))[..., 0])
    return jnp.concatenate(ys, 2), jnp.concatenate(lses, 2)

  y, lse = _in_parts(some, segments_BT, q_BKGTH, k_BKSH, v_BKSH)
  y_BKGTH = checkpoint_name(y.reshape(*q_BKGTH.shape[:-1], -1), "attn")
  lse_BKGT = checkpoint_name(lse.reshape(q_BKGTH.shape[:-1]), "attn")
  return y_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, segments_BT, y_BKGTH, lse_BKGT)


def _strips_backward(rule, saved, dy_BKGTH):
  """FlashAttention-2's backward (Dao 2023, algorithm 2), by blocks of keys.

  Scores are transposed, so that every matmul but one contracts the last dim of
  its left operand, the form that is twice as fast on a CPU; dQ is accumulated
  transposed for the same reason.
  """

  def some(q_ZGTH, k_ZSH, v_ZSH, dy_ZGTH, lse_ZGT, delta_ZGT, segments_ZT=None):
    Z, G, T, H = q_ZGTH.shape
    block, dks, dvs = block_of(T), [], []
    k_ZHS = k_ZSH.swapaxes(1, 2)
    dq_ZGHT = jnp.zeros((Z, G, H, T), jnp.float32)
    for start in range(0, T, block):
      keys = slice(start, min(start + block, T))
      rows = visible_queries(rule, keys.start, keys.stop, T)
      q, dy = q_ZGTH[:, :, rows], dy_ZGTH[:, :, rows]
      s_ZGST = softcap(rule, einsum("ZSH,ZGTH->ZGST", k_ZSH[:, keys], q))
      mask = _strip_mask(rule, rows, keys, segments_ZT).swapaxes(1, 2)[:, None]
      # P = exp(S - L); dV = P^T dO; dP = dO V^T; dS = P * (dP - delta);
      # dK = dS^T Q; dQ += dS K.
      p_ZGST = jnp.exp(s_ZGST - lse_ZGT[:, :, None, rows])
      p_ZGST = jnp.where(mask, p_ZGST, 0)
      dvs.append(einsum("ZGST,ZGTH->ZSH", p_ZGST.astype(dy.dtype), dy))
      dp_ZGST = einsum("ZSH,ZGTH->ZGST", v_ZSH[:, keys], dy)
      ds_ZGST = p_ZGST * (dp_ZGST - delta_ZGT[:, :, None, rows])
      ds_ZGST = softcap_gradient(rule, s_ZGST, ds_ZGST).astype(q.dtype)
      dks.append(einsum("ZGST,ZGTH->ZSH", ds_ZGST, q))
      more = einsum("ZHS,ZGST->ZGHT", k_ZHS[:, :, keys], ds_ZGST)
      dq_ZGHT = dq_ZGHT.at[..., rows].add(more)
    dq_ZGTH = dq_ZGHT.swapaxes(2, 3).astype(q_ZGTH.dtype)
    dk_ZSH = jnp.concatenate(dks, 1).astype(k_ZSH.dtype)
    return dq_ZGTH, dk_ZSH, jnp.concatenate(dvs, 1).astype(v_ZSH.dtype)

  q, k, v, segments_BT, y, lse = saved
  delta = delta_of(y, dy_BKGTH)
  dq, dk, dv = _in_parts(some, segments_BT, q, k, v, dy_BKGTH, lse, delta)
  return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), None


strips.defvjp(_strips_forward, _strips_backward)


def delta_of(y_BKGTH, dy_BKGTH):
  """Returns delta = rowsum(dO * O) (FlashAttention-2, algorithm 2, line 4).

  Computed as a matmul with ones: XLA on a CPU would fuse a plain sum into the
  matmul of scores, which then takes eight times as long (configs/LOG.md).
  """
  each = y_BKGTH.astype(jnp.float32) * dy_BKGTH.astype(jnp.float32)
  ones_H = jnp.ones(each.shape[-1], jnp.float32)
  return jnp.einsum("BKGTH,H->BKGT", each, ones_H, precision="highest")


def _in_parts(some, segments_BT, *arrays):
  """Maps `some` over Z = B * K, a few (sequence, key head) pairs at a time."""
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


# Tiles: tokens in any order, in loops.


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def tiles(
  q_BKGTH,
  k_BKSH,
  v_BKSH,
  q_at: TokenPositions,
  k_at: TokenPositions,
  rule: Rule,
):
  """Returns y_BKGTH of tokens in any order.

  Args:
    q_at, k_at: TokenPositions; each query must see some key.
  """
  return _tiles_forward(q_BKGTH, k_BKSH, v_BKSH, q_at, k_at, rule)[0]


def _tiles_forward(q, k, v, q_at, k_at, rule):
  y, lse = tiles_forward(q, k, v, q_at, k_at, rule)
  y = checkpoint_name(y.astype(q.dtype), "attn")
  lse = checkpoint_name(lse, "attn")
  return y, (q, k, v, q_at, k_at, y, lse)


def _tiles_backward(rule, saved, dy):
  q, k, v, q_at, k_at, y, lse = saved
  dq, dk, dv = tiles_backward(q, k, v, q_at, k_at, rule, y, dy, lse)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


tiles.defvjp(_tiles_forward, _tiles_backward)


def merge(y, lse, more_y, more_lse):
  """Returns (y, lse) over the union of two disjoint sets of keys, float32."""
  top = jnp.maximum(lse, more_lse)
  a, b = jnp.exp(lse - top), jnp.exp(more_lse - top)
  total = a + b
  y = (y * a[..., None] + more_y * b[..., None]) / total[..., None]
  return y, top + jnp.log(total)


def tiles_forward(
  q, k, v, q_at: TokenPositions, k_at: TokenPositions, rule: Rule
):
  """Returns (y_BKGTH float32, lse_BKGT); a row without keys has lse MASK_VALUE.

  Args:
    q: q_BKGTH, scaled.
    k: k_BKSH; v: v_BKSH.
    q_at, k_at: TokenPositions of queries and of keys.
  """
  T, S = q.shape[3], k.shape[2]
  q, q_at, size = _padded(q, 3, q_at, T, QUERY_PADDING)
  k, k_at, width = _padded(k, 2, k_at, S, KEY_PADDING)
  v = _padded(v, 2, k_at, S, KEY_PADDING)[0]

  def rows(_, i):
    q_i, at_i = _part(q, 3, q_at, i, size)
    zero = jnp.zeros((*q_i.shape[:-1], v.shape[-1]), jnp.float32)
    start = (zero, jnp.zeros(q_i.shape[:-1], jnp.float32) + MASK_VALUE)

    def add(j, carry):
      k_j, at_j = _part(k, 2, k_at, j, width)
      v_j, _ = _part(v, 2, k_at, j, width)

      def visit():
        s = softcap(rule, einsum("BKGTH,BKSH->BKGTS", q_i, k_j))
        mask = _tile_mask(rule, at_i, at_j)
        s = jnp.where(mask, s, MASK_VALUE)
        top = s.max(-1)
        p = jnp.where(mask, jnp.exp(s - top[..., None]), 0)
        total = p.sum(-1)
        y = einsum("BKGTS,BKSH->BKGTH", p.astype(v.dtype), v_j)
        y /= jnp.maximum(total, 1e-30)[..., None]
        lse = jnp.where(total > 0, top + jnp.log(total), MASK_VALUE)
        return merge(*carry, y, lse)

      return jax.lax.cond(
        any_visible(rule, at_i.slots_BT, at_j.slots_BT),
        visit,
        lambda: carry,
      )

    return None, jax.lax.fori_loop(0, k.shape[2] // width, add, start)

  _, (y, lse) = jax.lax.scan(rows, None, jnp.arange(q.shape[3] // size))
  y = jnp.moveaxis(y, 0, 3).reshape(*q.shape[:-1], -1)[:, :, :, :T]
  return y, jnp.moveaxis(lse, 0, 3).reshape(q.shape[:-1])[..., :T]


def tiles_backward(q, k, v, q_at, k_at, rule, y, dy, lse):
  """Returns (dq, dk, dv) float32, the contributions of these keys.

  Args:
    y, lse: y_BKGTH and lse_BKGT over all keys; k and v may be a part of them.
    dy: gradient of y.
  """
  delta = delta_of(y, dy)
  T, S = q.shape[3], k.shape[2]
  more = [_padded(x, 3, q_at, T, QUERY_PADDING)[0] for x in (dy, lse, delta)]
  q, q_at, size = _padded(q, 3, q_at, T, QUERY_PADDING)
  v = _padded(v, 2, k_at, S, KEY_PADDING)[0]
  k, k_at, width = _padded(k, 2, k_at, S, KEY_PADDING)

  def keys(dq, j):
    k_j, at_j = _part(k, 2, k_at, j, width)
    v_j, _ = _part(v, 2, k_at, j, width)

    def add(i, carry):
      q_i, at_i = _part(q, 3, q_at, i, size)
      dy_i, lse_i, delta_i = (_part(x, 3, q_at, i, size)[0] for x in more)

      def visit():
        s = softcap(rule, einsum("BKGTH,BKSH->BKGTS", q_i, k_j))
        mask = _tile_mask(rule, at_i, at_j)
        p = jnp.where(mask, jnp.exp(s - lse_i[..., None]), 0)
        dv_j = einsum("BKGTS,BKGTH->BKSH", p.astype(dy.dtype), dy_i)
        dp = einsum("BKGTH,BKSH->BKGTS", dy_i, v_j)
        ds = softcap_gradient(rule, s, p * (dp - delta_i[..., None])).astype(
          q.dtype
        )
        dk_j = einsum("BKGTS,BKGTH->BKSH", ds, q_i)
        return einsum("BKGTS,BKSH->BKGTH", ds, k_j), dk_j, dv_j

      # dq stays out of the branches of cond, which would copy all of it.
      nothing = lambda: (jnp.zeros(q_i.shape, jnp.float32), *zeros)
      dq_i, dk_j, dv_j = jax.lax.cond(
        any_visible(rule, at_i.slots_BT, at_j.slots_BT),
        visit,
        nothing,
      )
      dq, dk, dv = carry
      dq_i += jax.lax.dynamic_slice_in_dim(dq, i * size, size, 3)
      dq = jax.lax.dynamic_update_slice_in_dim(dq, dq_i, i * size, 3)
      return dq, dk + dk_j, dv + dv_j

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_j, v_j))
    dq, dk_j, dv_j = jax.lax.fori_loop(0, q.shape[3] // size, add, (dq, *zeros))
    return dq, (dk_j, dv_j)

  dq = jnp.zeros(q.shape, jnp.float32)
  dq, parts = jax.lax.scan(keys, dq, jnp.arange(k.shape[2] // width))
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*k.shape[:3], x.shape[-1])
  dk, dv = (join(x)[:, :, :S] for x in parts)
  return dq[:, :, :, :T], dk, dv


def _tile_mask(rule: Rule, q_at: TokenPositions, k_at: TokenPositions):
  return visibility.visible(rule, q_at, k_at)[:, None, None]


def tile_of(length: int) -> int:
  """Returns the side of the tiles for rows of this length."""
  return min(TILE, 1 << max(3, math.ceil(math.log2(length))))


def _padded(x, axis: int, at: TokenPositions, length: int, slot: int):
  """Returns (x, positions, tile), the length a multiple of the tile.

  Args:
    slot: slot number of the padding.
  """
  tile = tile_of(length)
  short = -length % tile
  if not short:
    return x, at, tile
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, short)
  x = jnp.pad(x, widths)
  if at.slots_BT.shape[1] == length:
    pad = lambda a, v: jnp.pad(a, [(0, 0), (0, short)], constant_values=v)
    segments_BT = at.segments_BT
    if segments_BT is not None:
      segments_BT = pad(segments_BT, -1)
    at = TokenPositions(pad(at.slots_BT, slot), segments_BT)
  return x, at, tile


def _part(x, axis: int, at: TokenPositions, index, size: int):
  """Returns part `index` of x and of its positions."""
  cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(
    a, index * size, size, axis
  )
  return cut(x, axis), jax.tree.map(lambda a: cut(a, 1), at)
