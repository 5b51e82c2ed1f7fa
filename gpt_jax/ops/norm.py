"""LayerNorm and RMSNorm, with gradients that recompute instead of saving."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalize(x, scale, eps: float, is_centred: bool):
  """Returns LayerNorm (centred) or RMSNorm of x times a scale, in x's dtype.

  Over the last dim: y = (x - mean) * rstd * scale, with rstd = 1 / sqrt(var +
  eps). Backward recomputes y from x, mean and rstd, which saves two passes over
  the residual stream against automatic differentiation.
  """
  return _normalize(x, scale, eps, is_centred)[0]


def _over(x, scale):
  """Returns the scale in float32, broadcast to the rank of x."""
  return jax.lax.broadcast_to_rank(scale.astype(jnp.float32), x.ndim)


def _normalize(x, scale, eps, is_centred):
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True) if is_centred else jnp.float32(0)
  centered = x32 - mean
  rstd = jax.lax.rsqrt((centered * centered).mean(-1, keepdims=True) + eps)
  y = centered * rstd * _over(x, scale)
  return y.astype(x.dtype), (x, scale, mean, rstd)


def _normalize_backward(eps, is_centred, saved, dy):
  x, scale, mean, rstd = saved
  y = (x.astype(jnp.float32) - mean) * rstd
  dy32 = dy.astype(jnp.float32)
  # Summed in float32: the scale's gradient is a sum over all rows.
  dscale = jax.lax.platform_dependent(
    dy32,
    y,
    (dy, x, mean, rstd),
    cuda=lambda dy32, y, again: recompute_dscale(*again),
    default=lambda dy32, y, again: (dy32 * y).sum(tuple(range(y.ndim - 1))),
  )
  dy = dy32 * _over(x, scale)
  dx = dy - y * (dy * y).mean(-1, keepdims=True)
  if is_centred:
    dx -= dy.mean(-1, keepdims=True)
  return (dx * rstd).astype(x.dtype), dscale.astype(scale.dtype)


def recompute_dscale(dy, x, mean, rstd):
  """Returns the scale's gradient, with dy * y recomputed from saved arrays.

  Otherwise a GPU writes dy * y in float32, to read it again for this sum over
  rows and for the sums over columns, which are separate kernels.
  """
  dy, x = jax.lax.optimization_barrier((dy, x))
  y = (x.astype(jnp.float32) - mean) * rstd
  return (dy.astype(jnp.float32) * y).sum(tuple(range(x.ndim - 1)))


normalize.defvjp(_normalize, _normalize_backward)


def rms_normalize(x, scale, eps: float):
  """Returns RMSNorm of queries or keys over the dims of the scale."""
  y, dims = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
  y = y * jax.lax.rsqrt((y * y).mean(dims, keepdims=True) + eps)
  return (y * _over(x, scale)).astype(x.dtype)
