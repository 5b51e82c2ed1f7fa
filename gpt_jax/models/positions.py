"""Positions inside attention: rotary angles, and ALiBi's biases."""

import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig

# Llama 3's rotary scaling: wavelengths over ORIGINAL_LEN / LOW are stretched,
# those under ORIGINAL_LEN / HIGH are kept (Dubey et al. 2024, appendix).
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0


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
  distance = slots_BT[..., None] - keys_1S[:, None]
  return -slopes_KG[None, :, :, None, None] * distance[:, None, None]


def rope_of(positions_BT, config: ModelConfig, kind: str = "global"):
  """Returns (cos, sin), each (B, T, 1, H/2) float32 (Su et al. 2021).

  H is the number of dims that are rotated.

  Args:
    kind: of the layer. Local layers with a base of their own are not scaled
      (Gemma 3, 2025): they see no distance that is longer than in training.
  """
  H, theta = config_lib.rope_dim(config), config.rope_theta
  scaling = config.rope_scaling
  word, numbers = scaling.mechanism, scaling.numbers
  if kind == "local" and config.local_rope_theta is not None:
    theta, word = config.local_rope_theta, "none"
  rate_H = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
  if word == "linear":  # Chen et al. 2023
    rate_H /= numbers[0]
  elif word == "llama3":
    factor, original = numbers
    turns = original * rate_H / (2 * jnp.pi)
    keep = (turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
    keep = jnp.clip(keep, 0.0, 1.0)
    rate_H = keep * rate_H + (1 - keep) * rate_H / factor
  positions_BT11 = positions_BT[..., None, None].astype(jnp.float32)
  angle = positions_BT11 * rate_H[None, None, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH, rope):
  """Turns pairs (i, i + H/2) of every head by its angle."""
  cos, sin = rope
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x_BTNH.dtype)
