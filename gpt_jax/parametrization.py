"""What a parameter's role decides: how it starts, and how it is optimised.

Every parameter is declared once, in models/, with a shape, logical axes and a
role; the tables here say what follows from the role, so that another
parametrization is another table and no change to a model.

With m = model_dim / base_dim and n = num_layers / base_layers, for Adam:

| | standard | mup | completep |
|---|---|---|---|
| hidden, residual: std | s | s / sqrt(m) | s / sqrt(m) |
| router: std | s | s / m | s / m |
| residual: std, further | / sqrt(2 L) | / sqrt(2 L) | / sqrt(2 base_layers) |
| hidden, residual, router: rate | 1 | 1 / m | 1 / m |
| these: weight decay | 1 | m | m |
| eps, but of router | 1 | 1 / m | 1 / m |
| eps in blocks, further | 1 | 1 | 1 / n |
| attention scores | q.k / sqrt(H) | q.k sqrt(base H) / H | as mup |
| logits | 1 | 1 / m | 1 / m |
| what a sublayer adds | 1 | 1 | 1 / n |

mup is Yang et al. 2022 in the form that keeps the rate of embeddings and of
the output matrix and divides logits; completep is Dey et al. 2025 with alpha
= 1. At m = n = 1 all are one. Weight decay needs no rule of its own here: the
step decays by rate * weight_decay, where the rate is that of embeddings, so
that the m of the decay and the 1 / m of the rate have met already (optim.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig

ROLES = (
  "embed",  # token embeddings, and the output matrix when tied
  "position",  # learned positions
  "hidden",  # matrices that read the residual stream
  "residual",  # matrices that write to it
  "router",  # matrices that choose experts
  "unembed",  # the output matrix when not tied
  "norm",  # scales of norms: start at one
  "bias",  # start at zero
)

# Weight decay takes matrices only.
DECAYED = ("embed", "position", "hidden", "residual", "router", "unembed")
# Muon orthogonalises the matrices between two hidden widths.
ORTHOGONALISED = ("hidden", "residual")
# Matrices whose sums are over a width that grows with the model's.
SUMMING = ("hidden", "residual", "router")


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One parameter's declaration: logical axes, a name a dim, and its role.

  Attributes:
    rate: times the learning rate.
    eps: times optim.eps.
  """

  axes: tuple[str | None, ...]
  role: str
  rate: float = 1.0
  eps: float = 1.0

  def with_axes(self, axes: tuple[str | None, ...]) -> "ParamSpec":
    """Returns the declaration with other axes."""
    return dataclasses.replace(self, axes=axes)

  def stacked(self) -> "ParamSpec":
    """Returns the declaration of the same parameter over all layers."""
    return self.with_axes(("layers", *self.axes))


def width_ratio(model: ModelConfig) -> float:
  """Returns m, how many times as wide as its base a model is."""
  if model.parametrization == "standard":
    return 1.0
  assert model.base_dim is not None  # config/check.py sees to it
  return model.model_dim / model.base_dim


def depth_ratio(model: ModelConfig) -> float:
  """Returns n, how many times as deep as its base a model is."""
  if model.parametrization != "completep":
    return 1.0
  return model.num_layers / base_layers(model)


def base_layers(model: ModelConfig) -> int:
  assert model.base_layers is not None  # config/check.py sees to it
  return model.base_layers


def specify(
  axes: tuple[str | None, ...],
  role: str,
  model: ModelConfig,
  is_in_block: bool,
):
  """Returns the ParamSpec of a parameter, by the table above.

  A gradient is 1 / m of what it is at the base, since the logits' is, and in
  a block 1 / n, since what the block adds is; eps goes with it. The router's
  sums over the width what is 1 / m.
  """
  m, n = width_ratio(model), depth_ratio(model)
  rate = 1 / m if role in SUMMING else 1.0
  eps = 1.0 if role == "router" else 1 / m
  return ParamSpec(axes, role, rate, eps / n if is_in_block else eps)


def init_std(role: str, model: ModelConfig) -> float:
  """Returns the standard deviation that a role's weights start with.

  Weights that write to the residual stream start 1/sqrt(2 L) smaller, so that
  the stream's variance does not grow with depth (Radford et al. 2019, 2.3);
  where what they write is divided by the depth, it is the base's L.
  """
  std, m = model.init_std, width_ratio(model)
  if role == "unembed" and model.unembed_init_std is not None:
    return model.unembed_init_std
  if role == "residual":
    layers = model.num_layers
    if model.parametrization == "completep":
      layers = base_layers(model)
    std = std / (2 * layers) ** 0.5
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
  if spec.role == "norm":
    return jnp.ones(shape, dtype)
  if spec.role == "bias":
    return jnp.zeros(shape, dtype)
  scale = init_std(spec.role, model)
  return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def attention_multiplier(model: ModelConfig, head_dim: int) -> float:
  """Returns what q.k is multiplied by, for heads of this width."""
  if model.parametrization == "standard" or model.base_head_dim is None:
    return head_dim**-0.5
  return model.base_head_dim**0.5 / head_dim


def residual_multiplier(model: ModelConfig) -> float:
  """Returns what a sublayer's output is multiplied by before it is added."""
  return 1 / depth_ratio(model)


def readout_multiplier(model: ModelConfig) -> float:
  """Returns what the last norm's output is multiplied by before the logits."""
  return 1 / width_ratio(model)
