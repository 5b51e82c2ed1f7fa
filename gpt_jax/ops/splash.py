"""Splash attention: the Pallas kernels for TPUs in jax.experimental.

The kernels are used unchanged. Which blocks of scores they visit is computed
here from the slots of the queries, a few thousand integers; the library derives
it from a mask, element by element: 17 billion elements at T = 131,072. Slots
may be traced values that differ between devices, so one implementation serves
whole rows, rows sharded over seq, and the turns of a ring.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as info,
)

from gpt_jax.config import InputError
from gpt_jax.ops import blockwise, visibility
from gpt_jax.ops.visibility import Rule, TokenPositions

# Width of a vector register; the kernels need multiples of it as lengths.
LANES = 128
# Sides of blocks: the largest that divides is used. 512 is common in published
# TPU training configs; for keys, 1024 halves the visits and still fits VMEM.
SIDES_Q, SIDES_K = (512, 256, 128), (1024, 512, 256, 128)


def whole(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: Rule, interpret: bool):
  """Returns y_BKGTH of whole rows in order, of any length."""
  T = q_BKGTH.shape[3]
  short = -T % LANES
  if short:
    # Padding comes last: a causal rule hides it, else its document id does.
    if segments_BT is None and not rule.is_causal:
      segments_BT = jnp.zeros((q_BKGTH.shape[0], T), jnp.int32)
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, short), (0, 0)])
    q_BKGTH, k_BKSH, v_BKSH = map(pad, (q_BKGTH, k_BKSH, v_BKSH))
    if segments_BT is not None:
      segments_BT = jnp.pad(
        segments_BT, ((0, 0), (0, short)), constant_values=-1
      )
  at = TokenPositions(jnp.arange(T + short)[None], segments_BT)
  attend = make(rule, at.slots_BT[0], 0, T + short, T + short, interpret)
  return _over_rows(attend, q_BKGTH, k_BKSH, v_BKSH, at, at)[:, :, :, :T]


def part(
  q_BKGTH,
  k_BKSH,
  v_BKSH,
  own: TokenPositions,
  all_: TokenPositions,
  rule,
  interpret,
):
  """Returns y_BKGTH of a device's own queries, with all keys gathered.

  Args:
    own: TokenPositions of T queries: two runs of consecutive slots, ascending.
    all_: TokenPositions of all keys, in runs of the same length.
  """
  T, S = q_BKGTH.shape[3], k_BKSH.shape[2]
  run = _check_run(T)
  order = jnp.argsort(all_.slots_BT[0, ::run])

  def sort(x, axis):
    shape = x.shape
    x = x.reshape(*shape[:axis], -1, run, *shape[axis + 1 :])
    return jnp.take(x, order, axis).reshape(shape)

  k_BKSH, v_BKSH = sort(k_BKSH, 2), sort(v_BKSH, 2)
  if all_.segments_BT is not None:
    all_ = TokenPositions(all_.slots_BT, sort(all_.segments_BT, 1))
  attend = make(rule, own.slots_BT[0], 0, S, run, interpret)
  return _over_rows(attend, q_BKGTH, k_BKSH, v_BKSH, own, all_)


def ring_inner(interpret: bool):
  """Returns (forward, backward) for ring.ring, as blockwise.tiles_* are."""
  return (
    functools.partial(_turn_forward, interpret=interpret),
    functools.partial(_turn_backward, interpret=interpret),
  )


def _turn_forward(q, k, v, q_at, k_at, rule, interpret):
  done = None
  for k_r, v_r, at in _runs(k, v, k_at):
    S = k_r.shape[2]
    slots_T, first = q_at.slots_BT[0], at.slots_BT[0, 0]
    attend = make(rule, slots_T, first, S, S, interpret, True)
    y, (lse,) = _over_rows(attend, q, k_r, v_r, q_at, at)
    # A query that sees none of these keys has y = 0/0 and lse = log(0).
    is_seen = lse > visibility.MASK_VALUE
    y = jnp.where(is_seen[..., None], y.astype(jnp.float32), 0)
    lse = jnp.where(is_seen, lse, visibility.MASK_VALUE)
    done = (y, lse) if done is None else blockwise.merge(*done, y, lse)
  return done


def _turn_backward(q, k, v, q_at, k_at, rule, y, dy, lse, interpret):
  """Returns what blockwise.tiles_backward does, by the library's kernels.

  Those are private: the public gradient would use the log-sum-exp of these keys
  alone, where a turn of the ring needs the log-sum-exp of all keys.
  """
  dq, dks, dvs = jnp.float32(0), [], []
  B, K, G, T, H = q.shape
  flat = lambda x: x.reshape(B, K * G, *x.shape[3:])
  for k_r, v_r, at in _runs(k, v, k_at):
    S = k_r.shape[2]
    slots_T, first = q_at.slots_BT[0], at.slots_BT[0, 0]
    attend = make(rule, slots_T, first, S, S, interpret)
    options = {k: v for k, v in attend.kwargs.items()}

    def row(q, k, v, y, lse, dy, q_ids, k_ids, attend=attend, options=options):
      ids = None if q_ids is None else library.SegmentIds(q_ids, k_ids)
      kept = q, k, v, ids, None, y, lse, attend.dq_mask_info
      return kernels._splash_attention_bwd(
        **options, res=(*kept, attend.dkv_mask_info), do=dy
      )[3:6]

    arrays = flat(q), k_r, v_r, flat(y), flat(lse), flat(dy)
    more, dk, dv = jax.vmap(row)(*arrays, q_at.segments_BT, at.segments_BT)
    dq += more.astype(jnp.float32)
    dks.append(dk)
    dvs.append(dv)
  join = lambda xs: jnp.concatenate(xs, 2).astype(jnp.float32)
  return dq.reshape(q.shape), join(dks), join(dvs)


def _runs(k, v, at: TokenPositions):
  """Yields (k, v, positions) of the two runs of a device's keys."""
  run = _check_run(k.shape[2])
  for keys in (slice(0, run), slice(run, 2 * run)):
    segments_BT = at.segments_BT
    if segments_BT is not None:
      segments_BT = segments_BT[:, keys]
    own = TokenPositions(at.slots_BT[:, keys], segments_BT)
    yield k[:, :, keys], v[:, :, keys], own


def _check_run(length: int) -> int:
  """Returns the length of the two runs that a device's tokens are in."""
  if length % (2 * LANES):
    raise InputError(
      f"each part of a row that mesh.seq splits has {length} tokens; splash "
      f"attention needs a multiple of {2 * LANES}: change data.seq_len or "
      "mesh.seq, or take attention='blocks'"
    )
  return length // 2


def _over_rows(attend, q, k, v, q_at: TokenPositions, k_at: TokenPositions):
  B, K, G, T, H = q.shape

  def row(q, k, v, q_ids, k_ids):
    ids = None if q_ids is None else library.SegmentIds(q_ids, k_ids)
    return attend(q, k, v, ids)

  out = jax.vmap(row)(
    q.reshape(B, K * G, T, H), k, v, q_at.segments_BT, k_at.segments_BT
  )
  return jax.tree.map(lambda x: x.reshape(B, K, G, *x.shape[2:]), out)


@functools.cache
def _mask_function(is_causal: bool, window: int | None):
  """Returns the kernels' mask function, cached so that they compile once."""

  def mask(q_slots, k_slots):
    parts = [q_slots >= k_slots] if is_causal else []
    if window is not None:
      parts.append(q_slots - k_slots < window)
      if not is_causal:
        parts.append(k_slots - q_slots < window)
    return functools.reduce(operator.and_, parts)

  return mask if is_causal or window is not None else None


def make(
  rule: Rule,
  slots_T,
  first_key,
  num_keys: int,
  run: int,
  interpret: bool,
  save_residuals: bool = False,
):
  """Returns the kernel for queries at `slots_T`.

  Args:
    slots_T: ascending, in runs of consecutive numbers; may be traced.
    first_key: slot of the first key; keys are consecutive.
    num_keys: S.
    run: length of a run of slots_T.
    save_residuals: return the log-sum-exp as well.
  """
  T = slots_T.shape[0]
  pick = lambda sides, *lengths: next(
    s for s in sides if all(n % s == 0 for n in lengths)
  )
  size_q, size_k = pick(SIDES_Q, run), pick(SIDES_K, num_keys)
  mask_function = _mask_function(rule.is_causal, rule.window)
  # Relative to the keys, which the kernels count from 0.
  slots_T = jnp.asarray(slots_T - first_key, jnp.int32)
  ids_T = None if mask_function is None else slots_T
  first_Q = slots_T[::size_q]
  last_Q = slots_T[size_q - 1 :: size_q]
  num_q, num_k = T // size_q, num_keys // size_k

  sizes = size_q, size_k, num_q, num_k
  steps_QK, high_Q = _visited_keys(rule, first_Q, last_Q, *sizes)
  by_queries = _mask_info(steps_QK, high_Q[:, None], num_k, ids_T)
  steps_QK, high_K = _visiting_queries(rule, first_Q, last_Q, *sizes)
  by_keys = _mask_info(steps_QK, high_K[None], num_q, ids_T)

  compute = min(size_k, SIDES_Q[0])
  return kernels.SplashAttentionKernel(
    by_queries,
    by_queries,
    by_keys,
    block_sizes=library.BlockSizes(
      block_q=size_q,
      block_kv=size_k,
      block_kv_compute=compute,
      block_q_dkv=size_q,
      block_kv_dkv=size_k,
      block_kv_dkv_compute=compute,
      block_q_dq=size_q,
      block_kv_dq=size_k,
    ),
    is_mqa=False,
    save_residuals=save_residuals,
    mask_value=kernels.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=rule.softcap,
    residual_checkpoint_name=None if save_residuals else "attn",
    mask_function=mask_function,
    interpret=interpret,
  )


def _visited_keys(rule, first_Q, last_Q, size_q, size_k, num_q, num_k):
  """Returns (steps_QK, high_Q) of forward and dq.

  Each block of queries visits the blocks of keys low, low + 1, ... high.
  """
  low_Q, high_Q = jnp.zeros_like(first_Q), jnp.full_like(last_Q, num_k - 1)
  width, reach = num_k, rule.window
  if rule.is_causal:
    high_Q = jnp.minimum(last_Q // size_k, num_k - 1)
  if reach is not None:
    low_Q = jnp.maximum(first_Q - reach + 1, 0) // size_k
    sides = 1 if rule.is_causal else 2
    width = min(num_k, -(-(size_q + sides * reach) // size_k) + 1)
    if not rule.is_causal:
      high_Q = jnp.minimum((last_Q + reach - 1) // size_k, num_k - 1)
  return low_Q[:, None] + jnp.arange(width)[None], high_Q


def _visiting_queries(rule, first_Q, last_Q, size_q, size_k, num_q, num_k):
  """Returns (steps_QK, high_K) of dkv.

  Each block of keys is visited by the blocks of queries low, low + 1, ... high.
  """
  reach, starts_K = rule.window, jnp.arange(num_k) * size_k
  # Slots below 0 are those of queries before the first key.
  first_K = starts_K if rule.is_causal else jnp.full_like(starts_K, -(2**30))
  if reach is not None and not rule.is_causal:
    first_K = starts_K - reach + 1
  low_K = (last_Q[:, None] < first_K[None]).sum(0)
  high_K, height = jnp.full_like(low_K, num_q - 1), num_q
  if reach is not None:
    beyond_K = starts_K + size_k - 1 + reach
    high_K = (first_Q[:, None] < beyond_K[None]).sum(0) - 1
    sides = 1 if rule.is_causal else 2
    height = min(num_q, -(-(size_k + sides * reach) // size_q) + 2)
  return low_K[None] + jnp.arange(height)[:, None], high_K


def _mask_info(steps, high, count: int, ids_T):
  """Returns the library's record of which blocks to visit.

  Args:
    steps: index of the block that each visit reads: low, low + 1, ...
    high: the last block to read; later visits stay there and are masked.
    count: number of blocks.
    ids_T: slots of the queries, for a mask function; None without one.
  """
  is_read = (steps <= high) & (high >= 0)
  steps = jnp.clip(jnp.minimum(steps, high), 0, count - 1)
  return info.MaskInfo(
    data_next=steps.astype(jnp.int16)[None],
    mask_next=None,
    block_mask=is_read.astype(jnp.int8)[None],
    partial_mask_blocks=None,
    q_sequence=ids_T,
  )
