"""Attention: projections, positions, grouped queries.

Arrays are (B, K, G, T, H), heads before time: every backend is fastest at
matmuls over trailing dims. The causal mask compares slots (the index of a token
in its row), never positions, which restart at each packed document.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import attend, weigh
from gpt_jax.models.declare import declare
from gpt_jax.models.positions import rotate
from gpt_jax.ops import visibility
from gpt_jax.ops.norm import rms_normalize
from gpt_jax.ops.projection import (
  project,
  project_each,
  project_fused,
  shift,
)
from gpt_jax.ops.visibility import TokenPositions
from gpt_jax.parametrization import attention_multiplier

# Name of the matrix into which decoding fuses READERS, the matrices that read
# the residual stream.
FUSED = "qkv"
READERS = ("q", "q_down", "k", "v", "kv_down")


class Attention(nn.Module):
  """Self-attention with grouped queries (Ainslie et al. 2023)."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD, context, cache=None, key=None):
    """Returns (y_BTD, cache).

    Args:
      x_BTD: normalised residual stream.
      context: Context of this forward pass.
      cache: (k_BKSH, v_BKSH) to append to and read, or None.
      key: dropout key, or None.
    """
    c, D = self.config, x_BTD.shape[-1]
    N, K, H = c.num_heads, config_lib.num_kv_heads(c), config_lib.head_dim(c)
    n, k = ("heads", "head_dim"), ("kv_heads", "head_dim")
    if self.has_variable("params", FUSED):
      q_BTNH, k_BTKH, v_BTKH = project_fused(
        x_BTD,
        self.get_variable("params", FUSED),
        [(N, H), (K, H), (K, H)],
        c.grad_dtype,
      )
    else:
      w_q_DNH = declare(self, "q", (D, N, H), ("embed", *n), "hidden")
      w_k_DKH = declare(self, "k", (D, K, H), ("embed", *k), "hidden")
      w_v_DKH = declare(self, "v", (D, K, H), ("embed", *k), "hidden")
      q_BTNH, k_BTKH, v_BTKH = project_each(
        x_BTD, [w_q_DNH, w_k_DKH, w_v_DKH], c.grad_dtype, context.platform
      )
    if c.bias or c.qkv_bias:
      add = lambda x, name, shape, axes: shift(
        x, declare(self, name, shape, axes, "bias"), c.grad_dtype
      )
      q_BTNH = add(q_BTNH, "q_bias", (N, H), n)
      k_BTKH = add(k_BTKH, "k_bias", (K, H), k)
      v_BTKH = add(v_BTKH, "v_bias", (K, H), k)
    if c.qk_norm:
      q_BTNH = normalize_heads(self, "q_norm", q_BTNH, n)
      k_BTKH = normalize_heads(self, "k_norm", k_BTKH, k)
    if c.position == "rope":
      q_BTNH = rotate(q_BTNH, context.rope)
      k_BTKH = rotate(k_BTKH, context.rope)
    q_BTNH, k_BTKH, v_BTKH = (
      checkpoint_name(x, "qkv") for x in (q_BTNH, k_BTKH, v_BTKH)
    )

    B, T = x_BTD.shape[:2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    if cache is not None:
      (k_BKSH, v_BKSH), cache = cache_lib.update(
        cache, (k_BKSH, v_BKSH), context.kind, context.start_B, context.end_B
      )
    if context.kernel == "dense":  # other kernels shard keys themselves
      keys = ("batch", "kv_heads", "key_length", "head_dim")
      k_BKSH, v_BKSH = jax.tree.map(
        lambda x: sharding.constrain(x, keys, self.rules), (k_BKSH, v_BKSH)
      )

    if cache is None and self.is_mutable_collection("taps"):
      top = largest_score(q_BKGTH, k_BKSH, context, c)
      self.sow("taps", "score_max", top)
    y_BKGTH = attend(q_BKGTH, k_BKSH, v_BKSH, context, c, self.rules, key)
    if self.is_mutable_collection("heads"):  # only dense attention has weights
      scale = attention_multiplier(c, H)
      p_BKGTS = weigh(scale * q_BKGTH, k_BKSH, context)
      self.sow("heads", "parts", (q_BKGTH, k_BKSH, v_BKSH, p_BKGTS))
    return project_out(self, y_BKGTH, x_BTD), cache


class Point(nn.Module):
  """Returns its input; names an activation that Run.logits may edit."""

  def __call__(self, x):
    return x


def normalize_heads(module: nn.Module, name: str, x_BTNH, axes):
  """Returns queries or keys after RMSNorm, per head or over all heads together.

  Per head as in Henry et al. 2020; over all heads as in OLMo 2 (2025).

  Args:
    module: declares the scale.
    axes: logical axes of heads and head width.
  """
  num_dims = 1 if module.config.qk_norm_over == "head" else 2
  shape = x_BTNH.shape[-num_dims:]
  scale = declare(module, name, shape, axes[-num_dims:], "norm")
  return rms_normalize(x_BTNH, scale, module.config.norm_eps)


def project_out(module: nn.Module, y_BKGTH, x_BTD):
  """Returns y_BTD, what the heads add to the residual stream.

  Args:
    module: declares the matrix and the bias.
    x_BTD: the sublayer's input; y_BTD has its shape and dtype.
  """
  c, (B, T, D) = module.config, x_BTD.shape
  N, H = c.num_heads, y_BKGTH.shape[-1]
  y_BTNH = y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
  y_BTNH = y_BTNH.astype(x_BTD.dtype)  # a cache may have a wider dtype
  y_BTNH = Point(name="heads")(y_BTNH)
  w_o_NHD = declare(
    module, "o", (N, H, D), ("heads", "head_dim", "embed"), "residual"
  )
  y_BTD = project(y_BTNH, w_o_NHD, c.grad_dtype, num_in=2)
  if c.bias:
    bias_D = declare(module, "o_bias", (D,), ("norm",), "bias")
    y_BTD = shift(y_BTD, bias_D, c.grad_dtype)
  return y_BTD


def largest_score(q_BKGTH, k_BKSH, context, config: ModelConfig):
  """Returns the largest score that is not masked, before any soft-cap.

  Computed 64 queries at a time: all scores may not fit in memory.
  """
  T = q_BKGTH.shape[3]
  scale = attention_multiplier(config, config_lib.head_dim(config))
  segments_BT = context.segments_BT

  def one(i):
    q_BKGH = jax.lax.dynamic_index_in_dim(q_BKGTH, i, 3, False)
    s_BKGS = jnp.einsum(
      "BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32
    )
    slot_B1 = jax.lax.dynamic_index_in_dim(context.slots_BT, i, 1)
    own_B1 = None
    if segments_BT is not None:
      own_B1 = jax.lax.dynamic_index_in_dim(segments_BT, i, 1)
    query = TokenPositions(slot_B1, own_B1)
    keys = TokenPositions(context.slots_BT, segments_BT)
    mask_BS = visibility.visible(context.rule, query, keys)[:, 0]
    return jnp.where(mask_BS[:, None, None], s_BKGS, -jnp.inf).max()

  return scale * jax.lax.map(one, jnp.arange(T), batch_size=64).max()
