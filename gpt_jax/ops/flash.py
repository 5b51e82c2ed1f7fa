"""Attention kernels for GPUs, in Pallas, for what cuDNN cannot do.

FlashAttention-2 (Dao 2023): algorithm 1 forward, algorithm 2 backward, the
latter as two kernels, one for dQ and one for dK and dV, so that neither adds to
an array that another program writes. Rows may hold several documents; scores
may have a soft-cap, heads any width.

Which tiles of scores a program visits is computed outside, from the rule and
from the least and largest document of each block: the first and the last tile
that may have a visible pair. So short documents in one row stay cheap.

Softmax runs in base 2, as the hardware does. Reference implementations:
blockwise.py, and numpy in lab/plan/attention.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gpt_jax.ops import blockwise, visibility
from gpt_jax.ops.visibility import MASK_VALUE, Rule, TokenPositions

LOG2E = math.log2(math.e)
# Side of the tiles.
TILE = 64
# Smallest size of each dim of a tensor-core matmul.
LEAST = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def flash(q_BTNH, k_BTKH, v_BTKH, segments_BT, rule: Rule, scale, interpret):
  """Returns y_BTNH of whole rows in order.

  Args:
    segments_BT: document of each token, or None; a token sees only its own.
    scale: what scores are multiplied by.
    interpret: run in Pallas' interpreter, on any platform.
  """
  args = q_BTNH, k_BTKH, v_BTKH, segments_BT, rule, scale, interpret
  return _forward(*args)[0]


def _forward(q, k, v, segments_BT, rule, scale, interpret):
  saved, T = (q, k, v, segments_BT), q.shape[1]
  q, k, v, padded_BT = _padded(rule, segments_BT, q, k, v)
  run = _caller(q, k, padded_BT, rule, interpret)
  y, lse_BNT = run(
    functools.partial(_forward_kernel, rule, scale, q.shape[-1]),
    "flash_forward",
    [("q", q), ("k", k), ("k", v)],
    [("q", q), ("stat", None)],
  )
  y = checkpoint_name(y[:, :T], "attn")
  lse_BNT = checkpoint_name(lse_BNT, "attn")
  return y, (*saved, y, lse_BNT)


def _backward(rule, scale, interpret, saved, dy):
  q, k, v, segments_BT, y, lse_BNT = saved
  T = q.shape[1]
  # delta = rowsum(dO * O) (algorithm 2, line 4).
  each = y.astype(jnp.float32) * dy.astype(jnp.float32)
  delta_BNT = each.sum(-1).swapaxes(1, 2)
  short = lse_BNT.shape[-1] - T
  delta_BNT = jnp.pad(delta_BNT, ((0, 0), (0, 0), (0, short)))
  q, k, v, padded_BT, dy = _padded(rule, segments_BT, q, k, v, dy)
  run = _caller(q, k, padded_BT, rule, interpret)
  H = q.shape[-1]
  stats = [("stat", lse_BNT), ("stat", delta_BNT)]
  (dq,) = run(
    functools.partial(_dq_kernel, rule, scale, H),
    "flash_dq",
    [("q", q), ("k", k), ("k", v), ("q", dy), *stats],
    [("q", q)],
  )
  dk, dv = run(
    functools.partial(_dkv_kernel, rule, scale, H),
    "flash_dkv",
    [("q", q), ("k", k), ("k", v), ("q", dy), *stats],
    [("k", k), ("k", v)],
    by_keys=True,
  )
  return dq[:, :T], dk[:, :T], dv[:, :T], None


flash.defvjp(_forward, _backward)


def _padded(rule: Rule, segments_BT, q, k, v, *more):
  """Returns (q, k, v, segments_BT or None, *more), T a multiple of the tile.

  Padding comes last: a causal rule hides it, else its document id does.
  """
  B, T = q.shape[:2]
  short = -T % TILE
  if not short:
    return q, k, v, segments_BT, *more
  pad = lambda x: jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0)))
  if segments_BT is None and not rule.is_causal:
    segments_BT = jnp.zeros((B, T), jnp.int32)
  if segments_BT is not None:
    widths = (0, 0), (0, short)
    segments_BT = jnp.pad(segments_BT, widths, constant_values=-1)
  return pad(q), pad(k), pad(v), segments_BT, *map(pad, more)


def visited(rule: Rule, segments_BT, length: int):
  """Returns bool visits_BIJ: which tiles (i, j) may have a visible pair.

  B is 1 where all rows agree. Not exact if document ids do not ascend in a row.
  """
  slots_IT = jnp.arange(length).reshape(-1, TILE)
  meets = functools.partial(visibility.any_visible, rule)
  over_keys = jax.vmap(meets, (None, 0))
  visits_BIJ = jax.vmap(over_keys, (0, None))(slots_IT, slots_IT)[None]
  if segments_BT is not None:
    ids_BIT = segments_BT.reshape(segments_BT.shape[0], -1, TILE)
    low_BI, high_BI = ids_BIT.min(-1), ids_BIT.max(-1)
    meet = low_BI[:, :, None] <= high_BI[:, None]
    visits_BIJ &= meet & meet.swapaxes(1, 2)
  return visits_BIJ


def _caller(q, k, segments_BT, rule: Rule, interpret: bool):
  """Returns run(kernel, name, inputs, outputs, by_keys=False).

  run launches a program for each tile of queries or, by_keys, of keys.
  """
  (B, T, N, H), K = q.shape, k.shape[2]
  G, wide = N // K, max(LEAST, pl.next_power_of_2(H))
  visits_BIJ = visited(rule, segments_BT, T)

  def run(kernel, name, inputs, outputs, by_keys=False):
    heads = G if by_keys else None
    # A program reads one tile of its own side and whole rows of the other.
    own, other = ("k", "q") if by_keys else ("q", "k")
    sizes = {own: TILE, other: T}
    at = {own: lambda i: i, other: lambda i: 0}
    head = (lambda h: h) if by_keys else (lambda h: h // G)
    specs = {
      "q": pl.BlockSpec(
        (None, sizes["q"], heads, wide), lambda i, h, b: (b, at["q"](i), h, 0)
      ),
      "k": pl.BlockSpec(
        (None, sizes["k"], None, wide),
        lambda i, h, b: (b, at["k"](i), head(h), 0),
      ),
      "stat": pl.BlockSpec(
        (None, heads, sizes["q"]), lambda i, h, b: (b, h, at["q"](i))
      ),
    }
    like = lambda kind, x: jax.ShapeDtypeStruct(
      (B, N, T) if x is None else x.shape,
      jnp.float32 if x is None else x.dtype,
    )
    visits = visits_BIJ.swapaxes(1, 2) if by_keys else visits_BIJ
    count = visits.shape[2]
    low = jnp.argmax(visits, 2).astype(jnp.int32)
    high = count - jnp.argmax(visits[:, :, ::-1], 2).astype(jnp.int32)
    row = (lambda b: b) if visits.shape[0] > 1 else (lambda b: 0)
    bound = pl.BlockSpec((None, None), lambda i, h, b: (row(b), i))
    arrays = [low, high, *(x for _, x in inputs)]
    in_specs = [bound, bound, *(specs[kind] for kind, _ in inputs)]
    if segments_BT is not None:
      arrays.append(segments_BT)
      in_specs.append(pl.BlockSpec((None, T), lambda i, h, b: (b, 0)))
    return pl.pallas_call(
      functools.partial(kernel, segments_BT is not None),
      grid=(T // TILE, K if by_keys else N, B),
      in_specs=in_specs,
      out_specs=[specs[kind] for kind, _ in outputs],
      out_shape=[like(*each) for each in outputs],
      # More warps where a tile's sums would not fit the registers of four.
      compiler_params=plgpu.CompilerParams(
        num_warps=4 if wide <= 128 else 8, num_stages=2
      ),
      interpret=interpret,
      name=name,
    )(*arrays)

  return run


def _dot(a, b):
  # Float32 stays float32: a tensor core would round it to 10 bits.
  precision = "highest" if a.dtype == jnp.float32 else None
  return jax.lax.dot(
    a, b, precision=precision, preferred_element_type=jnp.float32
  )


def _scores(rule: Rule, scale: float, q_TH, k_SH, q_at, k_at):
  """Returns (scores after the soft-cap, the same in base 2 and masked).

  Args:
    q_at, k_at: (slots, document ids or None) of the tile's tokens.
  """
  s_TS = blockwise.softcap(rule, _dot(q_TH, k_SH.T) * scale)
  row = lambda slots, ids: TokenPositions(
    slots[None], None if ids is None else ids[None]
  )
  mask = visibility.visible(rule, row(*q_at), row(*k_at)).reshape(s_TS.shape)
  return s_TS, jnp.where(mask, LOG2E * s_TS, MASK_VALUE)


def _tile(ref, index, width: int):
  """Returns tile `index` of a row's array, with zeros beyond the head width."""
  return _load(ref.at[pl.ds(index * TILE, TILE)], width)


def _load(ref, width: int):
  is_real = (jnp.arange(ref.shape[-1]) < width)[None]
  return plgpu.load(ref, mask=is_real, other=0)


def _store(ref, value, width: int):
  is_real = (jnp.arange(ref.shape[-1]) < width)[None]
  plgpu.store(ref, value.astype(ref.dtype), mask=is_real)


def _at(index, ids):
  """Returns (slots, document ids or None) of the tokens of tile `index`."""
  slots_T = index * TILE + jnp.arange(TILE)
  return slots_T, None if ids is None else ids[pl.ds(index * TILE, TILE)]


def _forward_kernel(rule, scale, width, is_packed, low, high, q, k, v, *rest):
  """Algorithm 1: m, l and O of a tile of queries over its tiles of keys."""
  ids, y, lse = rest if is_packed else (None, *rest)
  i = pl.program_id(0)
  q_TH, q_at = _load(q, width), _at(i, ids)

  def add(j, carry):
    m, l, o_TH = carry
    k_SH, v_SH = _tile(k, j, width), _tile(v, j, width)
    _, s_TS = _scores(rule, scale, q_TH, k_SH, q_at, _at(j, ids))
    new_m = jnp.maximum(m, s_TS.max(1))
    # Before a row's first visible key m is MASK_VALUE and what was added is
    # arbitrary; the factor of that key makes it exactly zero.
    p_TS, factor = jnp.exp2(s_TS - new_m[:, None]), jnp.exp2(m - new_m)
    o_TH = o_TH * factor[:, None] + _dot(p_TS.astype(v_SH.dtype), v_SH)
    return new_m, l * factor + p_TS.sum(1), o_TH

  start = jnp.full(TILE, MASK_VALUE), jnp.zeros(TILE), jnp.zeros(q_TH.shape)
  start = jax.tree.map(lambda x: x.astype(jnp.float32), start)
  m, l, o_TH = jax.lax.fori_loop(low[...], high[...], add, start)
  _store(y, o_TH / l[:, None], width)
  lse[...] = m + jnp.log2(l)


def _score_gradient(rule, scale, scores, lse_T, delta_T, dp_TS):
  """Returns (P, dS) of a tile (algorithm 2, lines 11 to 14)."""
  s_TS, masked_TS = scores
  p_TS = jnp.exp2(masked_TS - lse_T[:, None])
  ds_TS = scale * p_TS * (dp_TS - delta_T[:, None])
  return p_TS, blockwise.softcap_gradient(rule, s_TS, ds_TS)


def _dq_kernel(
  rule, scale, width, is_packed, low, high, q, k, v, dy, lse, delta, *rest
):
  """dQ of a tile of queries: the sum of dS K over its tiles of keys."""
  ids, dq = rest if is_packed else (None, *rest)
  i = pl.program_id(0)
  q_TH, dy_TH, q_at = _load(q, width), _load(dy, width), _at(i, ids)
  lse_T, delta_T = lse[...], delta[...]

  def add(j, dq_TH):
    k_SH, v_SH = _tile(k, j, width), _tile(v, j, width)
    scores = _scores(rule, scale, q_TH, k_SH, q_at, _at(j, ids))
    dp_TS = _dot(dy_TH, v_SH.T)
    _, ds_TS = _score_gradient(rule, scale, scores, lse_T, delta_T, dp_TS)
    return dq_TH + _dot(ds_TS.astype(k_SH.dtype), k_SH)

  zero = jnp.zeros(q_TH.shape, jnp.float32)
  _store(dq, jax.lax.fori_loop(low[...], high[...], add, zero), width)


def _dkv_kernel(
  rule, scale, width, is_packed, low, high, q, k, v, dy, lse, delta, *rest
):
  """dK and dV of a tile of keys, over its queries of every head in turn."""
  ids, dk, dv = rest if is_packed else (None, *rest)
  j = pl.program_id(0)
  k_SH, v_SH, num_heads = _load(k, width), _load(v, width), q.shape[1]
  k_at = _at(j, ids)

  def add(g, i, carry):
    dk_SH, dv_SH = carry
    rows = pl.ds(i * TILE, TILE)
    q_TH, dy_TH = (_load(x.at[rows, g], width) for x in (q, dy))
    scores = _scores(rule, scale, q_TH, k_SH, _at(i, ids), k_at)
    dp_TS = _dot(dy_TH, v_SH.T)
    p_TS, ds_TS = _score_gradient(
      rule, scale, scores, lse[g, rows], delta[g, rows], dp_TS
    )
    dv_SH += _dot(p_TS.astype(dy_TH.dtype).T, dy_TH)
    return dk_SH + _dot(ds_TS.astype(q_TH.dtype).T, q_TH), dv_SH

  def add_head(g, carry):
    one = functools.partial(add, g)
    return jax.lax.fori_loop(low[...], high[...], one, carry)

  zero = jnp.zeros(k_SH.shape, jnp.float32)
  dk_SH, dv_SH = jax.lax.fori_loop(0, num_heads, add_head, (zero, zero))
  _store(dk, dk_SH, width)
  _store(dv, dv_SH, width)
