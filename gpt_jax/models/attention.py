"""Attention: positions, masks, grouped queries, the cache of keys and values.

Heads come before time, (B, K, G, T, H): matrix products over trailing dims are
what every back end does best. Causality is by slot, the index of a token in
its row, never by position, which restarts where packed documents do.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.attend import attend
from gpt_jax.models.layers import (
  declare,
  project,
  project_together,
  project_wide,
  rms_normalize,
  shift,
)
from gpt_jax.parametrization import attention_multiplier

# Queries', keys' and values' matrices side by side, as decoding keeps them.
WIDE = "qkv"
# Llama 3's rotary scaling: wavelengths over ORIGINAL_LEN / LOW are stretched,
# those under ORIGINAL_LEN / HIGH are kept (Dubey et al. 2024, appendix).
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0


class Attention(nn.Module):
  """Causal self-attention with grouped queries (Ainslie et al. 2023)."""

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
    if self.has_variable("params", WIDE):
      q_BTNH, k_BTKH, v_BTKH = project_wide(
        x_BTD,
        self.get_variable("params", WIDE),
        [(N, H), (K, H), (K, H)],
        c.grad_dtype,
      )
    else:
      w_q_DNH = declare(self, "q", (D, N, H), ("embed", *n), "hidden")
      w_k_DKH = declare(self, "k", (D, K, H), ("embed", *k), "hidden")
      w_v_DKH = declare(self, "v", (D, K, H), ("embed", *k), "hidden")
      q_BTNH, k_BTKH, v_BTKH = project_together(
        x_BTD, [w_q_DNH, w_k_DKH, w_v_DKH], c.grad_dtype
      )
    if c.bias:
      add = lambda x, name, shape, axes: shift(
        x, declare(self, name, shape, axes, "bias"), c.grad_dtype
      )
      q_BTNH = add(q_BTNH, "q_bias", (N, H), n)
      k_BTKH = add(k_BTKH, "k_bias", (K, H), k)
      v_BTKH = add(v_BTKH, "v_bias", (K, H), k)
    if c.qk_norm:  # Henry et al. 2020
      q_scale = declare(self, "q_norm", (H,), ("head_dim",), "norm")
      k_scale = declare(self, "k_norm", (H,), ("head_dim",), "norm")
      q_BTNH = rms_normalize(q_BTNH, q_scale, c.norm_eps)
      k_BTKH = rms_normalize(k_BTKH, k_scale, c.norm_eps)
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
      k_BKSH = write_slots(cache[0], k_BKSH, context.start_B)
      v_BKSH = write_slots(cache[1], v_BKSH, context.start_B)
      cache = (k_BKSH, v_BKSH)
    if context.kernel == "dense":  # the others place keys themselves
      keys = ("batch", "kv_heads", "key_length", "head_dim")
      k_BKSH = sharding.constrain(k_BKSH, keys, self.rules)
      v_BKSH = sharding.constrain(v_BKSH, keys, self.rules)

    if cache is None and self.is_mutable_collection("taps"):
      top = largest_score(q_BKGTH, k_BKSH, context, c)
      self.sow("taps", "score_max", top)
    y_BKGTH = attend(q_BKGTH, k_BKSH, v_BKSH, context, c, self.rules, key)
    y_BTNH = y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    y_BTNH = y_BTNH.astype(x_BTD.dtype)  # a cache may be wider
    w_o_NHD = declare(
      self, "o", (N, H, D), ("heads", "head_dim", "embed"), "residual"
    )
    y_BTD = project(y_BTNH, w_o_NHD, c.grad_dtype, num_in=2)
    if c.bias:
      bias_D = declare(self, "o_bias", (D,), ("norm",), "bias")
      y_BTD = shift(y_BTD, bias_D, c.grad_dtype)
    return y_BTD, cache


def mask_of(slots_BT, keys_1S, window, segments_BT):
  """Returns mask_BTS: which slots a query may see (B is 1 where all agree).

  Args:
    slots_BT: index of each query in its row, int32 (1 or B, T).
    keys_1S: slots of the keys at hand.
    window: number of last slots that are seen, or None for all.
    segments_BT: document of each slot, where documents are packed; S == T.
  """
  mask_BTS = keys_1S <= slots_BT[..., None]
  if window is not None:
    mask_BTS &= keys_1S > slots_BT[..., None] - window
  if segments_BT is not None:
    mask_BTS &= segments_BT[:, :, None] == segments_BT[:, None, :]
  return mask_BTS


def largest_score(q_BKGTH, k_BKSH, context, config: ModelConfig):
  """Returns the largest score that is not masked, before any soft-cap.

  A few queries at a time, since all scores may be too many.
  """
  T = q_BKGTH.shape[3]
  scale = attention_multiplier(config, q_BKGTH.shape[-1])
  segments_BT = context.segments_BT

  def one(i):
    q_BKGH = jax.lax.dynamic_index_in_dim(q_BKGTH, i, 3, False)
    s_BKGS = jnp.einsum(
      "BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32
    )
    slot_B1 = jax.lax.dynamic_index_in_dim(context.slots_BT, i, 1)
    mask_BS = mask_of(slot_B1, context.slots_BT, config.sliding_window, None)
    mask_BS = mask_BS[:, 0]
    if segments_BT is not None:
      own_B1 = jax.lax.dynamic_index_in_dim(segments_BT, i, 1)
      mask_BS &= own_B1 == segments_BT
    return jnp.where(mask_BS[:, None, None], s_BKGS, -jnp.inf).max()

  return scale * jax.lax.map(one, jnp.arange(T), batch_size=64).max()


def alibi_of(slots_BT, keys_1S, num_heads: int, num_kv_heads: int):
  """Returns the linear biases (B, K, G, T, S): -slope times the distance.

  Slopes are 2^(-8 i / n) for n heads; where n is no power of two, those of the
  power below, then every other one of the power above (Press et al. 2021).
  """
  power = 2 ** (num_heads.bit_length() - 1)
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  finer = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
  slopes += finer[: num_heads - power]
  slopes_KG = jnp.array(slopes).reshape(num_kv_heads, -1)
  distance = slots_BT[..., None] - keys_1S
  return -slopes_KG[None, :, :, None, None] * distance[:, None, None]


def rope_of(positions_BT, config: ModelConfig):
  """Returns (cos, sin), each (B, T, 1, H/2) float32 (Su et al. 2021)."""
  H = config_lib.head_dim(config)
  rate_H = config.rope_theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
  word, numbers = config_lib.rope_scaling(config)
  if word == "linear":  # Chen et al. 2023
    rate_H /= numbers[0]
  elif word == "llama3":
    factor, original = numbers
    turns = original * rate_H / (2 * jnp.pi)
    keep = (turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
    keep = jnp.clip(keep, 0.0, 1.0)
    rate_H = keep * rate_H + (1 - keep) * rate_H / factor
  angle = positions_BT[..., None, None].astype(jnp.float32) * rate_H
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH, rope):
  """Turns pairs (i, i + H/2) of every head by its angle."""
  cos, sin = rope
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x_BTNH.dtype)


def write_slots(cache_BKSH, new_BKTH, start_B):
  """Returns the cache with T new slots of each row written from start_B."""
  write = lambda row, new, start: jax.lax.dynamic_update_slice(
    row, new.astype(row.dtype), (0, start, 0)
  )
  return jax.vmap(write)(cache_BKSH, new_BKTH, start_B)
