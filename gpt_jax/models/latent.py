"""Latent attention (MLA): keys and values are projected from one small vector.

DeepSeek-V2 (Liu et al. 2024, 2.1): a token's keys and values are up-projections
of a compressed vector of width R = kv_lora_rank, and decoding caches this
vector instead of them. Rotated keys could not be absorbed as below, so RoPE has
dims of its own: the last qk_rope_head_dim of a head, whose key is projected
from the residual stream and is the same for all heads.

Design choice: training projects keys and values, which every kernel takes;
decoding absorbs the up-projections into queries and outputs instead (2.1.2):
(W_uk c).q = c.(W_uk^T q), so that all heads read the cache as one key head of
width R + qk_rope_head_dim, and no key or value is ever computed.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import attend
from gpt_jax.models.attention import FUSED, largest_score
from gpt_jax.models.declare import declare
from gpt_jax.models.positions import rotate
from gpt_jax.ops.norm import rms_normalize
from gpt_jax.ops.projection import project, project_each, project_fused


class LatentAttention(nn.Module):
  """Causal self-attention with a compressed vector for keys and values.

  Dims: R is the vector's width, r = qk_rope_head_dim, and C = R + r the width
  of a cache entry. H is the width of a head's queries and keys (r rotated dims
  and P = H - r others), V the width of its values. There are no biases.
  """

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD, context, cache=None, key=None):
    """Returns (y_BTD, cache).

    Args:
      x_BTD: normalised residual stream.
      context: Context of this forward pass.
      cache: (kv_B1SC,) to append to and read, or None.
      key: dropout key, or None.
    """
    c, D, N = self.config, x_BTD.shape[-1], self.config.num_heads
    R, V = c.kv_lora_rank, config_lib.value_dim(c)
    P = config_lib.head_dim(c) - config_lib.rope_dim(c)
    up = ("latent", "heads", "head_dim")
    w_k_RNP = declare(self, "k_up", (R, N, P), up, "hidden")
    w_v_RNV = declare(self, "v_up", (R, N, V), up, "hidden")
    q_BTNH, kv_BTC = self.read(x_BTD, context)
    kv_B1SC = kv_BTC[:, None]
    if cache is not None:
      (kv_B1SC,), cache = cache_lib.update(
        cache, (kv_B1SC,), context.kind, context.start_B, context.end_B
      )
    arguments = context, c, self.rules, key
    if cache is not None and is_absorbed(c, x_BTD.shape[1]):
      y_BTNR = attend_absorbed(q_BTNH, kv_B1SC, w_k_RNP, *arguments)
      y_BTNV = jnp.einsum("BTNR,RNV->BTNV", y_BTNR, w_v_RNV.astype(x_BTD.dtype))
    else:
      k_BNSH, v_BNSV = self.expand(
        kv_B1SC[:, 0].astype(x_BTD.dtype), w_k_RNP, w_v_RNV, context
      )
      q_BN1TH = q_BTNH.swapaxes(1, 2)[:, :, None]
      if cache is None and self.is_mutable_collection("taps"):
        top = largest_score(q_BN1TH, k_BNSH, context, c)
        self.sow("taps", "score_max", top)
      y_BN1TV = attend(q_BN1TH, k_BNSH, v_BNSV, *arguments)
      y_BTNV = y_BN1TV[:, :, 0].swapaxes(1, 2)
    w_o_NVD = declare(
      self, "o", (N, V, D), ("heads", "head_dim", "embed"), "residual"
    )
    return project(y_BTNV, w_o_NVD, c.grad_dtype, num_in=2), cache

  def read(self, x_BTD, context):
    """Returns (q_BTNH, kv_BTC), their last r dims rotated."""
    c, D, N = self.config, x_BTD.shape[-1], self.config.num_heads
    R, Q, r = c.kv_lora_rank, c.q_lora_rank, config_lib.rope_dim(c)
    assert R is not None  # else it is not this form of attention
    heads = N, config_lib.head_dim(c)
    outs = [heads if Q is None else (Q,), (R + r,)]
    if self.has_variable("params", FUSED):
      fused = self.get_variable("params", FUSED)
      q, kv_BTC = project_fused(x_BTD, fused, outs, c.grad_dtype)
    else:
      # The compressed vectors are replicated over axis tensor.
      name, axes = "q_down", (None,)
      if Q is None:
        name, axes = "q", ("heads", "head_dim")
      ws = [
        declare(self, name, (D, *outs[0]), ("embed", *axes), "hidden"),
        declare(self, "kv_down", (D, R + r), ("embed", None), "hidden"),
      ]
      q, kv_BTC = project_each(x_BTD, ws, c.grad_dtype, context.platform)
    if Q is not None:
      scale_Q = declare(self, "q_norm", (Q,), ("norm",), "norm")
      axes = ("embed", "heads", "head_dim")
      w_up_QNH = declare(self, "q_up", (Q, *heads), axes, "hidden")
      q = project(rms_normalize(q, scale_Q, c.norm_eps), w_up_QNH, c.grad_dtype)
    scale_R = declare(self, "kv_norm", (R,), ("norm",), "norm")
    kv_BTR = rms_normalize(kv_BTC[..., :R], scale_R, c.norm_eps)
    rope_BT1r = rotate(kv_BTC[..., None, R:], context.rope)
    q_rope_BTNr = rotate(q[..., -r:], context.rope)
    q_BTNH = jnp.concatenate([q[..., :-r], q_rope_BTNr], axis=-1)
    kv_BTC = jnp.concatenate([kv_BTR, rope_BT1r[:, :, 0]], axis=-1)
    # Save these, not keys and values: they are smaller, and backward recomputes
    # keys and values from them.
    return checkpoint_name(q_BTNH, "qkv"), checkpoint_name(kv_BTC, "qkv")

  def expand(self, kv_BSC, w_k_RNP, w_v_RNV, context):
    """Returns (k_BNSH, v_BNSV), projected from compressed vectors."""
    c, R = self.config, self.config.kv_lora_rank
    k_BSNP, v_BSNV = project_each(
      kv_BSC[..., :R], [w_k_RNP, w_v_RNV], c.grad_dtype, context.platform
    )
    rope_BSNr = jnp.broadcast_to(
      kv_BSC[:, :, None, R:], (*k_BSNP.shape[:3], kv_BSC.shape[-1] - R)
    )
    k_BNSH = jnp.concatenate([k_BSNP, rope_BSNr], axis=-1).swapaxes(1, 2)
    v_BNSV = v_BSNV.swapaxes(1, 2)
    if context.kernel == "dense":  # other kernels shard keys themselves
      keys = ("batch", "kv_heads", "key_length", "head_dim")
      k_BNSH = sharding.constrain(k_BNSH, keys, self.rules)
      v_BNSV = sharding.constrain(v_BNSV, keys, self.rules)
    return k_BNSH, v_BNSV


def attend_absorbed(q_BTNH, kv_B1SC, w_k_RNP, context, config, rules, key):
  """Returns y_BTNR: attention whose keys and values are the compressed vectors.

  Values are read C wide, and the last r dims of the result are dropped: slicing
  the cache would copy it.
  """
  R, _, P = w_k_RNP.shape
  w_k_RNP = w_k_RNP.astype(q_BTNH.dtype)
  q_BTNR = jnp.einsum("BTNP,RNP->BTNR", q_BTNH[..., :P], w_k_RNP)
  q_BTNC = jnp.concatenate([q_BTNR, q_BTNH[..., P:]], axis=-1)
  q_B1NTC = q_BTNC.swapaxes(1, 2)[:, None]
  y_B1NTC = attend(q_B1NTC, kv_B1SC, kv_B1SC, context, config, rules, key)
  return y_B1NTC[:, 0, :, :, :R].swapaxes(1, 2).astype(q_BTNH.dtype)


def is_absorbed(config: ModelConfig, num_new: int) -> bool:
  """Returns whether absorbed attention is cheaper for num_new tokens.

  Absorbed, each head and cached token costs num_new * 2 C multiplications
  instead of num_new * (H + V), and saves R (P + V) for the key and the value.
  """
  H, V = config_lib.head_dim(config), config_lib.value_dim(config)
  R, r = config.kv_lora_rank, config_lib.rope_dim(config)
  assert R is not None  # else attention is not latent
  return num_new * (2 * (R + r) - H - V) <= R * (H - r + V)
