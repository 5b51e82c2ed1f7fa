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
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.models import blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def ring(q_BKGTH, k_BKTH, v_BKTH, at, rule, axis: str, size: int, inner):
  """Returns y_BKGTH; inside shard_map, all arrays being a device's own.

  Args:
    at: blocks.Places of these tokens.
    axis, size: of the mesh, along which the rows are split.
    inner: (forward, backward) with the signatures of blocks.tiles_*.
  """
  return _forward(q_BKGTH, k_BKTH, v_BKTH, at, rule, axis, size, inner)[0]


def _pass_on(tree, axis: str, size: int):
  next_one = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, next_one), tree)


def _forward(q, k, v, at, rule, axis, size, inner):
  attend_to = lambda guest: inner[0](q, guest[0], guest[1], at, guest[2], rule)

  def turn(carry, _):
    y, lse, guest = carry
    coming = _pass_on(guest, axis, size)
    y, lse = blocks.merge(y, lse, *attend_to(guest))
    return (y, lse, coming), None

  guest = _pass_on((k, v, at), axis, size)
  y, lse = attend_to((k, v, at))  # its own first: there every query sees some
  if size > 2:
    carry = (y, lse, guest)
    (y, lse, guest), _ = jax.lax.scan(turn, carry, length=size - 2)
  y, lse = blocks.merge(y, lse, *attend_to(guest))
  y = checkpoint_name(y.astype(q.dtype), "attn")
  lse = checkpoint_name(lse, "attn")
  return y, (q, k, v, at, y, lse)


def _backward(rule, axis, size, inner, kept, dy):
  q, k, v, at, y, lse = kept

  def visit(dq, guest, grads):
    k, v, k_at = guest
    more_q, more_k, more_v = inner[1](q, k, v, at, k_at, rule, y, dy, lse)
    return dq + more_q, (grads[0] + more_k, grads[1] + more_v)

  def turn(carry, _):
    dq, guest, grads = carry
    coming = _pass_on(guest, axis, size)
    dq, grads = visit(dq, guest, grads)
    return (dq, coming, _pass_on(grads, axis, size)), None

  dq, *grads = inner[1](q, k, v, at, at, rule, y, dy, lse)
  guest, grads = _pass_on(((k, v, at), tuple(grads)), axis, size)
  if size > 2:
    carry = (dq, guest, grads)
    (dq, guest, grads), _ = jax.lax.scan(turn, carry, length=size - 2)
  dq, grads = visit(dq, guest, grads)
  dk, dv = _pass_on(grads, axis, size)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring.defvjp(_forward, _backward)
