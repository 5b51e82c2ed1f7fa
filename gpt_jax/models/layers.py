"""The pieces of a block: norms, MLP, dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import sharding, tree
from gpt_jax.config import ModelConfig
from gpt_jax.models.declare import declare
from gpt_jax.ops.activation import ACTIVATIONS, activate
from gpt_jax.ops.norm import normalize
from gpt_jax.ops.projection import project, shift


def dropout(x, rate: float, key, name: str):
  """Zeroes entries with probability `rate`; identity without a key."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(tree.key_for(key, name), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c, width = self.config, (x_BTD.shape[-1],)
    scale = declare(self, "scale", width, ("norm",), "norm")
    is_centred = c.norm == "layernorm"
    x_BTD = normalize(x_BTD, scale, c.norm_eps, is_centred)
    if is_centred and c.bias:
      bias = declare(self, "bias", width, ("norm",), "bias")
      x_BTD = shift(x_BTD, bias, c.grad_dtype)
    return x_BTD


class MLP(nn.Module):
  """Two projections with a nonlinearity between, or three with a gate."""

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD):
    c, D, F = self.config, x_BTD.shape[-1], self.config.mlp_dim
    w_in_DF = declare(self, "in", (D, F), ("embed", "mlp"), "hidden")
    w_out_FD = declare(self, "out", (F, D), ("mlp", "embed"), "residual")
    h_BTF = project(x_BTD, w_in_DF, c.grad_dtype)
    if c.bias:
      bias_F = declare(self, "in_bias", (F,), ("mlp",), "bias")
      h_BTF = shift(h_BTF, bias_F, c.grad_dtype)
    h_BTF = checkpoint_name(h_BTF, "mlp")
    sides = [h_BTF]
    if c.mlp == "swiglu":
      w_gate_DF = declare(self, "gate", (D, F), ("embed", "mlp"), "hidden")
      g_BTF = checkpoint_name(project(x_BTD, w_gate_DF, c.grad_dtype), "mlp")
      sides.insert(0, g_BTF)
    h_BTF = activate(ACTIVATIONS[c.mlp], *sides)
    h_BTF = sharding.constrain(h_BTF, ("batch", "length", "mlp"), self.rules)
    y_BTD = project(h_BTF, w_out_FD, c.grad_dtype)
    if c.bias:
      bias_D = declare(self, "out_bias", (D,), ("norm",), "bias")
      y_BTD = shift(y_BTD, bias_D, c.grad_dtype)
    return y_BTD
