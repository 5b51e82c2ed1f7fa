"""Rules by a parameter's role: initialization, learning rate, eps, decay.

Every parameter is declared once, in models/, with a shape, logical axes and a
role. The rules here follow from the role, so that a new parametrization is
another column of this table and needs no change to a model.

With m = model_dim / base_dim and n = num_layers / base_layers, for Adam:

| | standard | mup | completep |
|---|---|---|---|
| hidden, residual: std | s | s / sqrt(m) | s / sqrt(m) |
| router: std | s | s / m | s / m |
| residual: std, also | / sqrt(2 L) | / sqrt(2 L) | / sqrt(2 base_layers) |
| hidden, residual, router: rate | 1 | 1 / m | 1 / m |
| hidden, residual, router: weight decay | 1 | m | m |
| eps, except router's | 1 | 1 / m | 1 / m |
| eps in blocks, also | 1 | 1 | 1 / n |
| attention scores | q.k / sqrt(H) | q.k sqrt(base H) / H | as mup |
| logits | 1 | 1 / m | 1 / m |
| output of a sublayer | 1 | 1 | 1 / n |

mup is Yang et al. 2022, in the form that keeps the rate of embeddings and of
the output matrix and divides the logits; completep is Dey et al. 2025 with
alpha = 1. At m = n = 1 all three are equal. Weight decay needs no rule here: a
step decays by weight_decay times the unscaled rate, in which the factor m of
the decay and 1 / m of the rate cancel (optim.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig

ROLES = (
  "embed",  # token embeddings, and the output matrix when tied
  "position",  # learned positions, and relative position biases
  "hidden",  # matrices that read the residual stream
  "residual",  # matrices that write to the residual stream
  "router",  # matrices that choose experts
  "unembed",  # the output matrix when not tied
  "norm",  # scales of norms: start at one
  "bias",  # start at zero
  "balance",  # biases that balance experts: no optimizer moves them
  "lora_a",  # of an adapter: reads its matrix's input
  "lora_b",  # of an adapter: adds to its matrix's output, starts at zero
)

# Roles that start at a constant; the others are drawn.
CONSTANT = {"norm": 1.0, "bias": 0.0, "balance": 0.0, "lora_b": 0.0}
# Weight decay applies to matrices only.
DECAYED = (
  "embed",
  "position",
  "hidden",
  "residual",
  "router",
  "unembed",
  "lora_a",
  "lora_b",
)
# Muon orthogonalizes the matrices between two hidden widths.
ORTHOGONALISED = ("hidden", "residual")
# Matrices whose input width grows with the model.
SUMMING = ("hidden", "residual", "router")


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """The declaration of a parameter.

  Attributes:
    axes: a logical name for each dim.
    role: one of ROLES.
    rate: multiplies the learning rate.
    eps: multiplies optim.eps.
    factor: multiplies the update, decay included (optim.rates); 0 freezes.
    std: standard deviation of the initial weights; None: by role (init_std).
  """

  axes: tuple[str | None, ...]
  role: str
  rate: float = 1.0
  eps: float = 1.0
  factor: float = 1.0
  std: float | None = None

  def with_axes(self, axes: tuple[str | None, ...]) -> "ParamSpec":
    """Returns the declaration with other axes."""
    return dataclasses.replace(self, axes=axes)

  def stacked(self) -> "ParamSpec":
    """Returns the declaration with a leading axis of layers."""
    return self.with_axes(("layers", *self.axes))


def width_ratio(model: ModelConfig) -> float:
  """Returns m, the model's width over its base's; 1 under standard."""
  if model.parametrization == "standard":
    return 1.0
  assert model.base_dim is not None  # by config/check.py
  return model.model_dim / model.base_dim


def depth_ratio(model: ModelConfig) -> float:
  """Returns n, the model's depth over its base's; 1 without completep."""
  if model.parametrization != "completep":
    return 1.0
  return model.num_layers / base_layers(model)


def base_layers(model: ModelConfig) -> int:
  assert model.base_layers is not None  # by config/check.py
  return model.base_layers


def specify(
  axes: tuple[str | None, ...],
  role: str,
  model: ModelConfig,
  is_in_block: bool,
):
  """Returns the ParamSpec of a parameter, by the table above.

  eps scales as the gradient does: by 1 / m, like the logits, and in a block by
  1 / n too, like the block's output. The router's gradient sums terms of 1 / m
  over the width, so it does not shrink.
  """
  m, n = width_ratio(model), depth_ratio(model)
  rate = 1 / m if role in SUMMING else 1.0
  eps = 1.0 if role == "router" else 1 / m
  return ParamSpec(axes, role, rate, eps / n if is_in_block else eps)


def init_std(spec: ParamSpec, model: ModelConfig) -> float:
  """Returns the standard deviation of a parameter's initial weights.

  Weights that write to the residual stream are scaled by 1/sqrt(2 L), so that
  its variance does not grow with depth (Radford et al. 2019, 2.3); in an
  encoder-decoder, whose blocks attend to a source too, by 1/sqrt(3 L).
  completep, which scales their output with depth, uses the base's L.
  """
  if spec.std is not None:
    return spec.std
  role, std, m = spec.role, model.init_std, width_ratio(model)
  if role == "unembed" and model.unembed_init_std is not None:
    return model.unembed_init_std
  if role == "residual":
    layers = model.num_layers
    if model.parametrization == "completep":
      layers = base_layers(model)
    std = std / (config_lib.num_sublayers(model) * layers) ** 0.5
  if role == "router":
    return std / m
  return std / m**0.5 if role in SUMMING else std


def init_param(
  key: jax.Array,
  spec: ParamSpec,
  shape: Sequence[int],
  dtype: Any,
  model: ModelConfig,
):
  """Returns an initial parameter of `shape`; normal, ones or zeros by role."""
  if spec.role in CONSTANT:
    return jnp.full(shape, CONSTANT[spec.role], dtype)
  scale = init_std(spec, model)
  return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def attention_multiplier(model: ModelConfig, head_dim: int) -> float:
  """Returns the factor of q.k for heads of this width."""
  if model.attn_scale is not None:
    return model.attn_scale
  if model.parametrization == "standard" or model.base_head_dim is None:
    return head_dim**-0.5
  return model.base_head_dim**0.5 / head_dim


def residual_multiplier(model: ModelConfig) -> float:
  """Returns the factor of a sublayer's output, applied before the addition."""
  return 1 / depth_ratio(model)


def readout_multiplier(model: ModelConfig) -> float:
  """Returns the factor of the final norm's output, which scales the logits."""
  scale = model.model_dim**-0.5 if model.scaled_readout else 1.0
  return scale / width_ratio(model)
