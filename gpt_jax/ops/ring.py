"""Ring attention: keys and values go round, no device ever holds them all.

Each device keeps its queries and sees one device's keys at a time, while those
are on their way to the next (Liu et al. 2023). Partial results are merged by
the logarithms of their softmax sums. In backward the gradients of keys and
values travel with them, and are home after one round. What a device holds is
in proportion to its own tokens, whatever the size of the ring.

With tokens in order the last device would have twice the average to do and the
first next to nothing; `sharding.zigzag` gives each an early and a late part,
which is the same for all (Brandon et al. 2023 and the Llama 3 report have the
idea). Nothing here depends on the order: slots travel with the keys.
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
    axis, size: of the mesh, along which the rows are split.
    inner: (forward, backward) with the signatures of blockwise.tiles_*.
  """
  return _forward(q_BKGTH, k_BKTH, v_BKTH, at, rule, axis, size, inner)[0]


def _pass_on(tree, axis: str, size: int):
  next_one = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, next_one), tree)


def _forward(q, k, v, at, rule, axis, size, inner):
  def turn(carry, _):
    y, lse, guest = carry
    coming = _pass_on(guest, axis, size)  # on its way while this one is read
    more = inner[0](q, guest[0], guest[1], at, guest[2], rule)
    return (*blockwise.merge(y, lse, *more), coming), None

  y = jnp.zeros(q.shape, jnp.float32)
  lse = jnp.full(q.shape[:-1], visibility.MASK_VALUE, jnp.float32)
  # One loop of all turns, the last pass of which only brings the keys home:
  # a turn of its own for either end would compile every kernel three times.
  carry = (y, lse, (k, v, at))
  (y, lse, _), _ = jax.lax.scan(turn, carry, length=size)
  y = checkpoint_name(y.astype(q.dtype), "attn")
  lse = checkpoint_name(lse, "attn")
  return y, (q, k, v, at, y, lse)


def _backward(rule, axis, size, inner, kept, dy):
  q, k, v, at, y, lse = kept

  def turn(carry, _):
    dq, guest, (dk, dv) = carry
    coming = _pass_on(guest, axis, size)
    k, v, k_at = guest
    more_q, more_k, more_v = inner[1](q, k, v, at, k_at, rule, y, dy, lse)
    grads = _pass_on((dk + more_k, dv + more_v), axis, size)
    return (dq + more_q, coming, grads), None

  zero = lambda x: jnp.zeros(x.shape, jnp.float32)
  carry = (zero(q), (k, v, at), (zero(k), zero(v)))
  (dq, _, (dk, dv)), _ = jax.lax.scan(turn, carry, length=size)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring.defvjp(_forward, _backward)
