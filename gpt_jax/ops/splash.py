"""Splash attention, the Pallas kernels for TPUs that jax.experimental holds.

The kernels are taken as they are; which blocks of scores they visit is made
here from the slots of queries, in arithmetic on a few thousand integers. The
library derives it from a mask instead, by looking at every element: 17 thousand
million at T = 131,072. And slots may be traced values, which differ by device:
one form serves whole rows, rows split over seq, and the turns of a ring.
"""

import functools

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
from gpt_jax.ops import blockwise
from gpt_jax.ops.blockwise import Places, Rule

# Registers are this wide; lengths are whole multiples of it.
LANES = 128
# Sides of blocks, the largest that divides. 512 is what published TPU training
# configs use; twice that for keys halves the visits and still fits VMEM.
SIDES_Q, SIDES_K = (512, 256, 128), (1024, 512, 256, 128)


def whole(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: Rule, interpret: bool):
  """Returns y_BKGTH of whole rows in order, of any length."""
  T = q_BKGTH.shape[3]
  short = -T % LANES
  if short:  # what is added comes last, where no token sees it
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, short), (0, 0)])
    q_BKGTH, k_BKSH, v_BKSH = map(pad, (q_BKGTH, k_BKSH, v_BKSH))
    if segments_BT is not None:
      segments_BT = jnp.pad(
        segments_BT, ((0, 0), (0, short)), constant_values=-1
      )
  at = Places(jnp.arange(T + short), segments_BT)
  attend = make(rule, at.slots_T, 0, T + short, T + short, interpret)
  return _over_rows(attend, q_BKGTH, k_BKSH, v_BKSH, at, at)[:, :, :, :T]


def part(q_BKGTH, k_BKSH, v_BKSH, own: Places, all_: Places, rule, interpret):
  """Returns y_BKGTH of a device's own queries, with all keys gathered.

  Args:
    own: places of T queries: two runs of consecutive slots, ascending.
    all_: places of the keys in runs of the same length.
  """
  T, S = q_BKGTH.shape[3], k_BKSH.shape[2]
  run = _check_run(T)
  order = jnp.argsort(all_.slots_T[::run])

  def sort(x, axis):
    shape = x.shape
    x = x.reshape(*shape[:axis], -1, run, *shape[axis + 1 :])
    return jnp.take(x, order, axis).reshape(shape)

  k_BKSH, v_BKSH = sort(k_BKSH, 2), sort(v_BKSH, 2)
  if all_.segments_BT is not None:
    all_ = Places(all_.slots_T, sort(all_.segments_BT, 1))
  attend = make(rule, own.slots_T, 0, S, run, interpret)
  return _over_rows(attend, q_BKGTH, k_BKSH, v_BKSH, own, all_)


def ring_inner(interpret: bool):
  """Returns (forward, backward) for ring.ring, as blocks.tiles_* are."""
  return (
    functools.partial(_turn_forward, interpret=interpret),
    functools.partial(_turn_backward, interpret=interpret),
  )


def _turn_forward(q, k, v, q_at, k_at, rule, interpret):
  done = None
  for k_r, v_r, at in _runs(k, v, k_at):
    S = k_r.shape[2]
    attend = make(rule, q_at.slots_T, at.slots_T[0], S, S, interpret, True)
    y, (lse,) = _over_rows(attend, q, k_r, v_r, q_at, at)
    # Rows that see none of these keys: 0/0, and the logarithm of 0.
    is_seen = lse > blockwise.HIDDEN
    y = jnp.where(is_seen[..., None], y.astype(jnp.float32), 0)
    lse = jnp.where(is_seen, lse, blockwise.HIDDEN)
    done = (y, lse) if done is None else blockwise.merge(*done, y, lse)
  return done


def _turn_backward(q, k, v, q_at, k_at, rule, y, dy, lse, interpret):
  """As blocks.tiles_backward, by the library's own backward kernels.

  They are not public: its public gradient would take the softmax sum of these
  keys alone, where a turn of the ring needs that of all.
  """
  dq, dks, dvs = 0.0, [], []
  B, K, G, T, H = q.shape
  flat = lambda x: x.reshape(B, K * G, *x.shape[3:])
  for k_r, v_r, at in _runs(k, v, k_at):
    S = k_r.shape[2]
    attend = make(rule, q_at.slots_T, at.slots_T[0], S, S, interpret)
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


def _runs(k, v, at: Places):
  """Yields (k, v, places) of the two runs of a device's keys."""
  run = _check_run(k.shape[2])
  for keys in (slice(0, run), slice(run, 2 * run)):
    segments_BT = at.segments_BT
    if segments_BT is not None:
      segments_BT = segments_BT[:, keys]
    places = Places(at.slots_T[keys], segments_BT)
    yield k[:, :, keys], v[:, :, keys], places


def _check_run(length: int) -> int:
  """Returns the length of the two runs that a device's tokens are in."""
  if length % (2 * LANES):
    raise InputError(
      f"each part of a row that mesh.seq splits has {length} tokens; splash "
      f"attention needs a multiple of {2 * LANES}: change data.seq_len or "
      "mesh.seq, or take attention='blocks'"
    )
  return length // 2


def _over_rows(attend, q, k, v, q_at: Places, k_at: Places):
  B, K, G, T, H = q.shape

  def row(q, k, v, q_ids, k_ids):
    ids = None if q_ids is None else library.SegmentIds(q_ids, k_ids)
    return attend(q, k, v, ids)

  out = jax.vmap(row)(
    q.reshape(B, K * G, T, H), k, v, q_at.segments_BT, k_at.segments_BT
  )
  return jax.tree.map(lambda x: x.reshape(B, K, G, *x.shape[2:]), out)


@functools.cache
def _mask_function(window):
  """Returns the kernels' mask: of one identity, so that they compile once."""

  def mask(q_slots, k_slots):
    if window is None:
      return q_slots >= k_slots
    return (q_slots >= k_slots) & (q_slots - k_slots < window)

  return mask


def make(
  rule: Rule,
  slots_T,
  first_key,
  num_keys: int,
  run: int,
  interpret: bool,
  save_residuals: bool = False,
):
  """Returns the kernel of queries at `slots_T`.

  Args:
    slots_T: ascending, in runs of consecutive numbers; may be traced.
    first_key: slot of the first key; keys are consecutive.
    num_keys: S.
    run: length of a run.
  """
  T = slots_T.shape[0]
  pick = lambda sides, *lengths: next(
    s for s in sides if all(n % s == 0 for n in lengths)
  )
  size_q, size_k = pick(SIDES_Q, run), pick(SIDES_K, num_keys)
  # Relative to the keys, which the kernels count from 0.
  slots_T = jnp.asarray(slots_T - first_key, jnp.int32)
  first_Q = slots_T[::size_q]
  last_Q = slots_T[size_q - 1 :: size_q]
  num_q, num_k = T // size_q, num_keys // size_k

  # Forward and dq: of each block of queries, the blocks of keys low..high.
  high_Q = jnp.minimum(last_Q // size_k, num_k - 1)
  low_Q, width = jnp.zeros_like(high_Q), num_k
  if rule.window is not None:
    low_Q = jnp.maximum(first_Q - rule.window + 1, 0) // size_k
    width = min(num_k, -(-(size_q + rule.window) // size_k) + 1)
  steps_QK = low_Q[:, None] + jnp.arange(width)
  by_queries = _mask_info(steps_QK, high_Q[:, None], num_k, slots_T)

  # dkv: of each block of keys, the blocks of queries low..high.
  starts_K = jnp.arange(num_k) * size_k
  low_K = (last_Q[:, None] < starts_K).sum(0)
  high_K, height = jnp.full_like(low_K, num_q - 1), num_q
  if rule.window is not None:
    beyond_K = starts_K + size_k - 1 + rule.window
    high_K = (first_Q[:, None] < beyond_K).sum(0) - 1
    height = min(num_q, -(-(size_k + rule.window) // size_q) + 2)
  steps_QK = low_K + jnp.arange(height)[:, None]
  by_keys = _mask_info(steps_QK, high_K[None], num_q, slots_T)

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
    mask_function=_mask_function(rule.window),
    interpret=interpret,
  )


def _mask_info(steps, high, count: int, slots_T):
  """Returns the library's record of which blocks to visit.

  Args:
    steps: what each visit would read, low, low + 1, ...
    high: the last that is to be read; the visits after it stay there.
    count: of blocks.
  """
  is_read = (steps <= high) & (high >= 0)
  steps = jnp.clip(jnp.minimum(steps, high), 0, count - 1)
  return info.MaskInfo(
    data_next=steps.astype(jnp.int16)[None],
    mask_next=None,
    block_mask=is_read.astype(jnp.int8)[None],
    partial_mask_blocks=None,
    q_sequence=slots_T,
  )
