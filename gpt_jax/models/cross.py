"""Cross-attention: queries from a target, keys and values from a source.

Vaswani et al. 2017, section 3.2.3: the second sublayer of a decoder's block
attends to the encoder's output. Nothing here depends on positions. Decoding
projects the source's keys and values once, in the prompt's forward pass, and
then reads them from its cache.
"""

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.attend import attend
from gpt_jax.models.attention import normalize_heads, project_out
from gpt_jax.models.declare import declare
from gpt_jax.ops.projection import project, project_each, shift


class CrossAttention(nn.Module):
  """Attention to the encoder's output, with grouped queries."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD, context, cached=None, key=None):
    """Returns (y_BTD, (k_BKSH, v_BKSH) of the source).

    Args:
      x_BTD: normalised residual stream of the decoder.
      context: build_cross's Context of this forward pass.
      cached: (k_BKSH, v_BKSH) that an earlier call returned; None projects
        them from context.source_BSD.
      key: dropout key, or None.
    """
    c, D = self.config, x_BTD.shape[-1]
    N, K, H = c.num_heads, config_lib.num_kv_heads(c), config_lib.head_dim(c)
    w_q_DNH = declare(
      self, "q", (D, N, H), ("embed", "heads", "head_dim"), "hidden"
    )
    q_BTNH = project(x_BTD, w_q_DNH, c.grad_dtype)
    if c.bias or c.qkv_bias:
      axes = ("heads", "head_dim")
      bias_NH = declare(self, "q_bias", (N, H), axes, "bias")
      q_BTNH = shift(q_BTNH, bias_NH, c.grad_dtype)
    if c.qk_norm:
      axes = ("heads", "head_dim")
      q_BTNH = normalize_heads(self, "q_norm", q_BTNH, axes)
    q_BTNH = checkpoint_name(q_BTNH, "qkv")
    B, T = x_BTD.shape[:2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = cached or self.read(context, D, K, H)
    y_BKGTH = attend(q_BKGTH, k_BKSH, v_BKSH, context, c, self.rules, key)
    return project_out(self, y_BKGTH, x_BTD), (k_BKSH, v_BKSH)

  def read(self, context, D: int, K: int, H: int):
    """Returns (k_BKSH, v_BKSH) of the source."""
    c, axes = self.config, ("kv_heads", "head_dim")
    ws = [
      declare(self, name, (D, K, H), ("embed", *axes), "hidden")
      for name in ("k", "v")
    ]
    k_BSKH, v_BSKH = project_each(
      context.source_BSD, ws, c.grad_dtype, context.platform
    )
    if c.bias or c.qkv_bias:
      bias = lambda name: declare(self, name, (K, H), axes, "bias")
      k_BSKH = shift(k_BSKH, bias("k_bias"), c.grad_dtype)
      v_BSKH = shift(v_BSKH, bias("v_bias"), c.grad_dtype)
    if c.qk_norm:
      k_BSKH = normalize_heads(self, "k_norm", k_BSKH, axes)
    k_BKSH, v_BKSH = (
      checkpoint_name(x, "qkv").swapaxes(1, 2) for x in (k_BSKH, v_BSKH)
    )
    if context.kernel == "dense":  # other kernels shard keys themselves
      keys = ("batch", "kv_heads", "key_length", "head_dim")
      k_BKSH = sharding.constrain(k_BKSH, keys, self.rules)
      v_BKSH = sharding.constrain(v_BKSH, keys, self.rules)
    return k_BKSH, v_BKSH
