"""A mixture of experts in place of the MLP: every token goes to A of E.

Dropless (MegaBlocks, Gale et al. 2022): experts have no capacity. The P = T * A
assignments of tokens to experts are sorted by expert, and a grouped matrix
product multiplies each run of rows by its expert's matrix. T counts the tokens
of all sequences here.

On a mesh, tokens are sharded over axis expert as over data and fsdp. Devices
along expert gather each other's tokens, each runs its own experts on all of
them, and the outputs are summed and scattered back (reduce-scatter).

Design choice: no all-to-all. To be exact it needs buffers for the worst case,
all tokens on one device, so it saves no memory. It moves A (n - 1) / n rows a
token where gathering moves n - 1, so gathering costs more for n > A devices
along expert.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.declare import declare
from gpt_jax.ops.activation import ACTIVATIONS, activate
from gpt_jax.ops.grouped import grouped, take_rows
from gpt_jax.ops.projection import project

# Logical dims of the experts' matrices.
READS, WRITES = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")


class MoE(nn.Module):
  """Token-choice experts (Shazeer et al. 2017), gated or not, without biases.

  The weights of a token's experts are their softmax probabilities over all
  experts, in float32, divided by their sum (Jiang et al. 2024). With A = 1 the
  weight is the probability itself (Fedus et al. 2021): it is the only gradient
  that the router gets.
  """

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD):
    """Returns (y_BTD, balance_B); see `balance_of`."""
    c, D, F = self.config, x_BTD.shape[-1], self.config.mlp_dim
    E, A = c.num_experts, c.experts_per_token
    w_router_DE = declare(
      self, "router", (D, E), ("embed", "experts"), "router"
    )
    w_in_EDF = declare(self, "in", (E, D, F), READS, "hidden")
    w_out_EFD = declare(self, "out", (E, F, D), WRITES, "residual")
    ws = {"in": w_in_EDF, "out": w_out_EFD}
    if config_lib.is_gated(c):
      ws["gate"] = declare(self, "gate", (E, D, F), READS, "hidden")

    scores_BTE = project(x_BTD.astype(jnp.float32), w_router_DE, c.grad_dtype)
    scores_BTE = sharding.constrain(
      scores_BTE, ("batch", "length", None), self.rules
    )
    p_BTE = jax.nn.softmax(scores_BTE, axis=-1)
    weight_BTA, ids_BTA = jax.lax.top_k(p_BTE, A)
    balance_B = balance_of(p_BTE, ids_BTA)
    if A > 1:
      weight_BTA /= weight_BTA.sum(-1, keepdims=True)
    y_BTD = run_experts(x_BTD, ids_BTA, weight_BTA, ws, c, self.rules)
    return y_BTD, balance_B


def balance_of(p_BTE, ids_BTA):
  """Returns balance_B float32: 1 where a sequence loads its experts evenly.

  E sum_e f_e P_e, f_e the fraction of places that expert e has and P_e its
  mean probability (Fedus et al. 2021, eq. 4 to 6). Over each sequence as a
  group (Lepikhin et al. 2020, 2.2), so that neither microbatches nor devices
  change it.
  """
  E = p_BTE.shape[-1]
  is_chosen_BTAE = ids_BTA[..., None] == jax.lax.broadcast_to_rank(
    jnp.arange(E), 4
  )
  f_BE = is_chosen_BTAE.mean((1, 2), dtype=jnp.float32)
  return E * (f_BE * p_BTE.mean(1)).sum(-1)


def run_experts(x_BTD, ids_BTA, weight_BTA, ws: dict, config, rules: str):
  """Returns y_BTD, the weighted sum of the outputs of each token's experts.

  Args:
    ids_BTA: int32, a token's experts.
    weight_BTA: float32.
    ws: the parameters: w_EDF "in", w_EFD "out" and, for swiglu, w_EDF "gate".
  """
  local = functools.partial(_run_local, config=config)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(x_BTD, ids_BTA, weight_BTA, ws)
  split = lambda axes, x: sharding.fitting_spec(axes, x.shape, rules)
  tokens = split(("batch", "length", None), x_BTD)
  specs = {
    name: split(WRITES if name == "out" else READS, ws[name]) for name in ws
  }
  used = lambda name: sharding.used_axes(rules, name)
  in_batch = tokens[0] if isinstance(tokens[0], tuple) else (tokens[0],)
  local = functools.partial(
    local,
    owners=used("experts"),
    is_gathered=set(used("experts")) <= set(in_batch),
    embed_axes=used("embed"),
    mlp_axes=used("mlp"),
  )
  # check_vma=False: outputs are equal along an axis because of the sums in
  # _run_local, which the checker cannot follow into `grouped`.
  return jax.shard_map(
    local,
    in_specs=(tokens, tokens, tokens, specs),
    out_specs=tokens,
    check_vma=False,
  )(x_BTD, ids_BTA, weight_BTA, ws)


def _run_local(
  x_BTD,
  ids_BTA,
  weight_BTA,
  ws,
  config,
  owners=(),
  is_gathered=False,
  embed_axes=(),
  mlp_axes=(),
):
  """Runs a device's experts on its tokens; returns y_BTD whole.

  Args:
    owners: mesh axes that the experts are split over.
    is_gathered: whether they split the tokens too.
    embed_axes: mesh axes that dim D of the matrices is split over.
    mlp_axes: mesh axes that dim F of them is split over.
  """
  c, shape, A = config, x_BTD.shape, ids_BTA.shape[-1]
  x_TD = x_BTD.reshape(-1, shape[-1])
  ids_TA, weight_TA = ids_BTA.reshape(-1, A), weight_BTA.reshape(-1, A)
  if owners and is_gathered:
    gather = lambda x: jax.lax.all_gather(x, owners, tiled=True)
    x_TD, ids_TA, weight_TA = gather(x_TD), gather(ids_TA), gather(weight_TA)

  # Sort by expert: the device's own experts first, in order, then the rest.
  E = ws["in"].shape[0]
  first = jax.lax.axis_index(owners) * E if owners else 0
  ids_P = ids_TA.reshape(-1) - first
  ids_P = jnp.where((ids_P >= 0) & (ids_P < E), ids_P, E)
  order_P = jnp.argsort(ids_P, stable=True)
  inverse_P = (
    jnp.zeros_like(order_P)
    .at[order_P]
    .set(jnp.arange(order_P.size), unique_indices=True)
  )
  sizes_E = (ids_P[:, None] == jnp.arange(E)[None]).sum(0, dtype=jnp.int32)

  times = lambda x, name, dim: grouped(
    x, ws[name], sizes_E, c.grad_dtype, dim, embed_axes
  )
  x_PD = take_rows(x_TD, order_P, inverse_P, A)
  sides = [checkpoint_name(times(x_PD, "in", 1), "mlp")]
  if config_lib.is_gated(c):
    sides.insert(0, checkpoint_name(times(x_PD, "gate", 1), "mlp"))
  h_PF = activate(ACTIVATIONS[c.mlp], *sides)
  y_PD = times(h_PF, "out", 2)
  y_TAD = take_rows(y_PD, inverse_P, order_P, 1).reshape(-1, A, shape[-1])
  y_TD = jnp.einsum(
    "TAD,TA->TD", y_TAD, weight_TA, preferred_element_type=jnp.float32
  ).astype(x_TD.dtype)

  if owners and is_gathered:
    y_TD = jax.lax.psum_scatter(y_TD, owners, tiled=True)
  summed = mlp_axes if is_gathered else (*owners, *mlp_axes)
  if summed:
    y_TD = jax.lax.psum(y_TD, summed)
  return y_TD.reshape(shape)
