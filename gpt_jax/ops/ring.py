"""Ring attention (Liu et al. 2023): keys and values circulate over devices.

Each device keeps its queries. At each step it attends to one device's keys
while sending them on to the next. Partial outputs are merged by their
log-sum-exp. In backward the gradients of keys and values travel with them and
are back after one round. Memory on a device grows with its own tokens alone.

Under causality, with tokens in order, the last device would compute twice the
average and the first next to nothing. `sharding.zigzag` gives each device an
early and a late part, which balances them (as in Brandon et al. 2023 and the
Llama 3 report). Nothing here depends on the order: slots travel with the keys.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.ops import blockwise, visibility


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def ring(q_BKGTH, k_BKTH, v_BKTH, at, rule, axis: str, size: int, inner):
  """Returns y_BKGTH; inside shard_map, all arrays being a device's own.

  Args:
    at: visibility.TokenPositions of these tokens.
    axis, size: mesh axis that the rows are split over, and its size.
    inner: (forward, backward) with the signatures of blockwise.tiles_*.
  """
  return _forward(q_BKGTH, k_BKTH, v_BKTH, at, rule, axis, size, inner)[0]


def _pass_on(tree, axis: str, size: int):
  next_one = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, next_one), tree)


def _forward(q, k, v, at, rule, axis, size, inner):
  def turn(carry, _):
    y, lse, held = carry
    arriving = _pass_on(held, axis, size)  # sent while this one is read
    more = inner[0](q, held[0], held[1], at, held[2], rule)
    return (*blockwise.merge(y, lse, *more), arriving), None

  y = jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32)
  lse = jnp.full(q.shape[:-1], visibility.MASK_VALUE, jnp.float32)
  # One scan over all turns, though the last need not pass keys on: separate
  # first and last turns would compile every kernel three times.
  carry = (y, lse, (k, v, at))
  (y, lse, _), _ = jax.lax.scan(turn, carry, length=size)
  y = checkpoint_name(y.astype(q.dtype), "attn")
  lse = checkpoint_name(lse, "attn")
  return y, (q, k, v, at, y, lse)


def _backward(rule, axis, size, inner, saved, dy):
  q, k, v, at, y, lse = saved

  def turn(carry, _):
    dq, held, (dk, dv) = carry
    arriving = _pass_on(held, axis, size)
    k, v, k_at = held
    more_q, more_k, more_v = inner[1](q, k, v, at, k_at, rule, y, dy, lse)
    grads = _pass_on((dk + more_k, dv + more_v), axis, size)
    return (dq + more_q, arriving, grads), None

  zero = lambda x: jnp.zeros(x.shape, jnp.float32)
  carry = (zero(q), (k, v, at), (zero(k), zero(v)))
  (dq, _, (dk, dv)), _ = jax.lax.scan(turn, carry, length=size)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring.defvjp(_forward, _backward)
