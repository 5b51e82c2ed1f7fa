"""Positions: sinusoids, RoPE angles, and score biases by distance."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.models.declare import declare
from gpt_jax.ops.visibility import Rule

# Llama 3's rotary scaling: wavelengths over ORIGINAL_LEN / LOW are stretched,
# those under ORIGINAL_LEN / HIGH are unchanged (Dubey et al. 2024, appendix).
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
YARN_FAST, YARN_SLOW = 32.0, 1.0


def sinusoids(positions_BT, width: int, in_halves: bool = False):
  """Returns x_BTD float32: interleaved sines and cosines of positions.

  Dims 2 i and 2 i + 1 are the sine and cosine of position / 10000^(2 i / D)
  (Vaswani et al. 2017, section 3.5).

  Args:
    in_halves: use dims i and D/2 + i instead, as in the code of that paper.
  """
  # In float64: the error of a frequency is multiplied by the position.
  rate_H = (10_000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)
  angle_BTH = positions_BT[..., None].astype(jnp.float32) * rate_H[None, None]
  both = jnp.sin(angle_BTH), jnp.cos(angle_BTH)
  if in_halves:
    return jnp.concatenate(both, axis=-1)
  pairs = jnp.stack(both, axis=-1)
  return pairs.reshape(*positions_BT.shape, width)


def bias_of(config: ModelConfig, rule: Rule, slots_BT, keys_BS, table_XN=None):
  """Returns the bias of the scores, (B, K, G, T, S), or None.

  Args:
    slots_BT, keys_BS: slots of queries and of keys; B may be 1.
    table_XN: from declare_relative, where model.position is relative.
  """
  N, K = config.num_heads, config_lib.num_kv_heads(config)
  if config.position == "alibi":
    return alibi_of(slots_BT, keys_BS, N, K, rule.is_causal)
  if config.position != "relative":
    return None
  assert table_XN is not None  # the family declares it
  distance_BTS = keys_BS[:, None] - slots_BT[..., None]
  bias_BTSN = relative_of(table_XN, distance_BTS, rule.is_causal)
  bias_BNTS = jnp.moveaxis(bias_BTSN, 3, 1)
  return bias_BNTS.reshape(len(bias_BNTS), K, N // K, *bias_BNTS.shape[2:])


def declare_relative(module: nn.Module, name: str):
  """Returns a stack's table_XN, a bias for each bucket and head, or None.

  All layers of the stack share it (Raffel et al. 2020, section 2.1).
  """
  if module.config.position != "relative":
    return None
  shape = config_lib.RELATIVE_BUCKETS, module.config.num_heads
  return declare(module, name, shape, (None, "heads"), "position")


def relative_of(table_XN, distance_BTS, is_causal: bool):
  """Returns float32 bias_BTSN, the table row of each distance's bucket.

  Args:
    distance_BTS: the key's slot minus the query's slot.
  """
  reach = config_lib.RELATIVE_REACH
  buckets_R = buckets_of(np.arange(-reach, reach + 1), is_causal)
  by_distance_RN = table_XN[buckets_R].astype(jnp.float32)
  return by_distance_RN[jnp.clip(distance_BTS, -reach, reach) + reach]


def buckets_of(distances, is_causal: bool) -> np.ndarray:
  """Returns the bucket of each distance (key minus query), as in T5's code.

  Half of the buckets hold one distance each; the others widen logarithmically
  up to RELATIVE_REACH (Raffel et al. 2020, section 2.1). Without causality,
  keys after the query use the upper half of the buckets. The margin of 1e-9
  keeps a distance on the border of two buckets in the upper one.
  """
  distances = np.asarray(distances)
  count = config_lib.RELATIVE_BUCKETS // (1 if is_causal else 2)
  away = np.maximum(-distances, 0) if is_causal else np.abs(distances)
  exact = count // 2
  whole = math.log(config_lib.RELATIVE_REACH / exact)
  part = np.log(np.maximum(away, 1) / exact) / whole
  wide = exact + np.floor(part * (count - exact) + 1e-9).astype(np.int64)
  bucket = np.where(away < exact, away, np.minimum(wide, count - 1))
  return bucket if is_causal else bucket + count * (distances > 0)


def alibi_of(
  slots_BT, keys_1S, num_heads: int, num_kv_heads: int, is_causal: bool = True
):
  """Returns the linear biases (B, K, G, T, S): -slope times the distance.

  Slopes are 2^(-8 i / n) for n heads; if n is not a power of two, those of the
  power below, then every other one of the power above (Press et al. 2021).
  """
  power = 2 ** (num_heads.bit_length() - 1)
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  finer = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
  slopes += finer[: num_heads - power]
  slopes_KG = jnp.array(slopes).reshape(num_kv_heads, -1)
  distance = slots_BT[..., None] - keys_1S[:, None]
  if not is_causal:
    distance = jnp.abs(distance)
  return -slopes_KG[None, :, :, None, None] * distance[:, None, None]


def rope_of(positions_BT, config: ModelConfig, kind: str = "global"):
  """Returns (cos, sin), each (B, T, 1, H/2) float32 (Su et al. 2021).

  H is the number of dims that are rotated.

  Args:
    kind: the layer's kind. Local layers with a base of their own are not scaled
      (Gemma 3, 2025): their distances are no longer than in training.
  """
  H, theta = config_lib.rope_dim(config), config.rope_theta
  scaling = config.rope_scaling
  word, numbers, mscale = scaling.mechanism, scaling.numbers, 1.0
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
  elif word == "yarn":
    factor, original, mscale = numbers
    keep_H = yarn_part(H, theta, original)
    rate_H = keep_H * rate_H + (1 - keep_H) * rate_H / factor
  elif word == "longrope":  # Ding et al. 2024, for one range of lengths
    mscale, *factors = numbers
    rate_H /= jnp.array(factors, jnp.float32)
  positions_BT11 = positions_BT[..., None, None].astype(jnp.float32)
  angle = positions_BT11 * rate_H[None, None, None]
  if mscale == 1:
    return jnp.cos(angle), jnp.sin(angle)
  return mscale * jnp.cos(angle), mscale * jnp.sin(angle)


def yarn_part(width: int, theta: float, original: float):
  """Returns how much of each frequency YaRN leaves unscaled, from 0 to 1.

  1 for those that turn YARN_FAST times or more in the original length, 0 for
  those that turn less than YARN_SLOW times, and a ramp between, whose ends are
  whole dims (Peng et al. 2023, section 3.2, and their code).
  """
  place = lambda turns: (
    width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
  )
  low = max(math.floor(place(YARN_FAST)), 0)
  high = min(math.ceil(place(YARN_SLOW)), width - 1)
  span = max(high - low, 0.001)
  ramp = (jnp.arange(width // 2, dtype=jnp.float32) - low) / span
  return 1 - jnp.clip(ramp, 0.0, 1.0)


def rotate(x_BTNH, rope):
  """Rotates pairs (i, i + H/2) of every head by their angles.

  With fewer angles than pairs, only the first dims rotate (GPT-NeoX, 2022).
  """
  cos, sin = rope
  width = 2 * cos.shape[-1]
  x_BTNr, rest = x_BTNH[..., :width], x_BTNH[..., width:]
  a, b = jnp.split(x_BTNr.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  turned = turned.astype(x_BTNH.dtype)
  if not rest.shape[-1]:
    return turned
  return jnp.concatenate([turned, rest], axis=-1)
