"""What a parameter's role decides: how it starts, and how it is optimised.

Every parameter is declared once, in models/, with a shape, logical axes and a
role; the tables here say what follows from the role, so that another
parametrization is another table and no change to a model.
"""

import dataclasses

import jax
import jax.numpy as jnp

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


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One parameter's declaration: logical axes, a name a dim, and its role."""

  axes: tuple[str | None, ...]
  role: str

  def stacked(self) -> "ParamSpec":
    """Returns the declaration of the same parameter over all layers."""
    return ParamSpec(("layers", *self.axes), self.role)


def init_std(role: str, init_std: float, num_layers: int) -> float:
  """Returns the standard deviation that a role's weights start with.

  Weights that write to the residual stream start 1/sqrt(2 L) smaller, so that
  the stream's variance does not grow with depth (Radford et al. 2019, 2.3).
  """
  if role == "residual":
    return init_std / (2 * num_layers) ** 0.5
  return init_std


def init_param(key, spec: ParamSpec, shape, dtype, std: float, layers: int):
  """Returns an initial parameter of `shape`; normal, ones or zeros by role."""
  if spec.role == "norm":
    return jnp.ones(shape, dtype)
  if spec.role == "bias":
    return jnp.zeros(shape, dtype)
  scale = init_std(spec.role, std, layers)
  return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
