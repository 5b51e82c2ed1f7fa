"""LayerNorm and RMSNorm, with gradients that recompute instead of saving."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalize(x, scale, eps: float, is_centred: bool):
  """Returns LayerNorm (centred) or RMSNorm of x times a scale, as x's type.

  Its gradient reads x once more instead of what forward made on the way: two
  passes over the stream fewer than by differentiation.
  """
  return _normalize(x, scale, eps, is_centred)[0]


def _over(x, scale):
  """Returns a scale of the last dim in float32, of the rank of x."""
  return jax.lax.broadcast_to_rank(scale.astype(jnp.float32), x.ndim)


def _normalize(x, scale, eps, is_centred):
  wide = x.astype(jnp.float32)
  middle = wide.mean(-1, keepdims=True) if is_centred else jnp.float32(0)
  away = wide - middle
  rate = jax.lax.rsqrt((away * away).mean(-1, keepdims=True) + eps)
  y = away * rate * _over(x, scale)
  return y.astype(x.dtype), (x, scale, middle, rate)


def _normalize_backward(eps, is_centred, kept, dy):
  x, scale, middle, rate = kept
  y = (x.astype(jnp.float32) - middle) * rate
  dy = dy.astype(jnp.float32)
  # In float32 to the end, for a gradient of the scale is a sum over all rows.
  dscale = (dy * y).sum(tuple(range(x.ndim - 1)))
  dy = dy * _over(x, scale)
  dx = dy - y * (dy * y).mean(-1, keepdims=True)
  if is_centred:
    dx -= dy.mean(-1, keepdims=True)
  return (dx * rate).astype(x.dtype), dscale.astype(scale.dtype)


normalize.defvjp(_normalize, _normalize_backward)


def rms_normalize(x, scale, eps: float):
  """RMSNorm over the last dim with a given scale, for queries and keys."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
  return (y * _over(x, scale)).astype(x.dtype)
