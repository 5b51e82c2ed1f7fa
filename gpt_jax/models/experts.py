"""Runs the experts that a router chose, on one device or over axis expert.

Without a capacity, dropless (MegaBlocks, Gale et al. 2022): the P = T * A
assignments of tokens to experts are sorted by expert, and a grouped matmul
multiplies each run of rows by its expert's matrix. T counts the tokens of all
sequences here.

On a mesh, tokens are sharded over axis expert as over data and fsdp. Devices
along expert gather each other's tokens, each runs its own experts on all of
them, and the outputs are summed and scattered back (reduce-scatter).

Design choice: no all-to-all without a capacity. To be exact it needs buffers
for the worst case, all tokens on one device, so it saves no memory. It moves
A (n - 1) / n rows per token where gathering moves n - 1, so gathering costs
more if there are n > A devices along expert.

With a capacity (GShard, Lepikhin et al. 2020) an expert has a buffer of C slots
for each sequence, filled in token order; an expert whose buffer is full drops
the token. All buffers have the same size, so devices along expert exchange them
by all-to-all. Design choice: slots are filled in token order, never all first
choices before the second ones: that would let later tokens affect earlier ones.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.ops.activation import ACTIVATIONS, activate
from gpt_jax.ops.grouped import grouped, take_rows, take_some

# Logical axes of the experts' matrices.
READS, WRITES = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")


def capacity_of(config: ModelConfig, length: int) -> int | None:
  """Returns C, the tokens of a sequence that an expert takes; None: all."""
  c = config
  if c.expert_capacity_factor is None:
    return None
  assert c.num_experts is not None  # by config/check.py
  even = c.experts_per_token * length / c.num_experts
  return min(length, math.ceil(c.expert_capacity_factor * even))


def run_experts(
  x_BTD, ids_BTA, weight_BTA, ws: dict, config, rules: str, capacity=None
):
  """Returns y_BTD, the weighted sum of the outputs of each token's experts.

  Args:
    ids_BTA: int32, the experts chosen for each token.
    weight_BTA: float32, their weights.
    ws: the parameters: w_EDF "in", w_EFD "out" and, with a gate, w_EDF "gate".
    capacity: C; None drops no token.
  """
  local = functools.partial(_run_all, config=config)
  if capacity is not None:
    local = functools.partial(_run_limited, config=config, capacity=capacity)
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
  # check_vma=False: the sums in `local` replicate outputs along an axis, which
  # the checker cannot follow into `grouped`.
  return jax.shard_map(
    local,
    in_specs=(tokens, tokens, tokens, specs),
    out_specs=tokens,
    check_vma=False,
  )(x_BTD, ids_BTA, weight_BTA, ws)


def _run_all(
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
  """Runs a device's experts on its tokens; returns y_BTD, summed over devices.

  Args:
    owners: mesh axes that the experts are split over.
    is_gathered: whether tokens are split over the same axes, and so gathered.
    embed_axes: mesh axes that dim D of the matrices is split over.
    mlp_axes: mesh axes that dim F of the matrices is split over.
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

  x_PD = take_rows(x_TD, order_P, inverse_P, A)
  y_PD = _feed(x_PD, ws, sizes_E, c, embed_axes)
  y_PD = take_rows(y_PD, inverse_P, order_P, 1)
  y_TD = _weigh(y_PD, weight_TA, x_TD.dtype)

  if owners and is_gathered:
    y_TD = jax.lax.psum_scatter(y_TD, owners, tiled=True)
  summed = mlp_axes if is_gathered else (*owners, *mlp_axes)
  if summed:
    y_TD = jax.lax.psum(y_TD, summed)
  return y_TD.reshape(shape)


def _feed(x, ws: dict, sizes_E, config, embed_axes: tuple):
  """Returns the experts' outputs for rows x, in groups as in `grouped`."""
  times = lambda x, name, dim: grouped(
    x, ws[name], sizes_E, config.grad_dtype, dim, embed_axes
  )
  sides = [checkpoint_name(times(x, "in", 1), "mlp")]
  if "gate" in ws:
    sides.insert(0, checkpoint_name(times(x, "gate", 1), "mlp"))
  return times(activate(ACTIVATIONS[config.mlp], *sides), "out", 2)


def _run_limited(
  x_BTD,
  ids_BTA,
  weight_BTA,
  ws,
  config,
  capacity,
  owners=(),
  is_gathered=False,
  embed_axes=(),
  mlp_axes=(),
):
  """As _run_all, with C slots for each sequence in each expert's buffer."""
  B, T, D = x_BTD.shape
  A, E, C = ids_BTA.shape[-1], config.num_experts, capacity
  # An assignment's slot in the buffers (E, B, C); past their end if dropped.
  is_chosen_BTE = (ids_BTA[..., None] == jnp.arange(E)[None, None, None]).any(2)
  before_BTE = jnp.cumsum(is_chosen_BTE, 1) - is_chosen_BTE
  rank_BTA = jnp.take_along_axis(before_BTE, ids_BTA, axis=2)
  row_BTA = jnp.arange(B)[:, None, None]
  slot_BTA = (ids_BTA * B + row_BTA) * C + rank_BTA
  P, S = slot_BTA.size, E * B * C
  slot_P = jnp.where(
    (rank_BTA < C).reshape(-1), slot_BTA.reshape(-1), S + jnp.arange(P)
  )
  place_S = (
    jnp.full(S, P)
    .at[slot_P]
    .set(jnp.arange(P), mode="drop", unique_indices=True)
  )
  x_TD = x_BTD.reshape(-1, D)
  x_ECD = take_some(x_TD, place_S, slot_P, A).reshape(E, B * C, D)

  num_own = ws["in"].shape[0]
  if owners and is_gathered:
    swap = lambda x, here, there: jax.lax.all_to_all(
      x, owners, here, there, tiled=True
    )
    y_ECD = swap(_feed(swap(x_ECD, 0, 1), ws, None, config, embed_axes), 1, 0)
  else:
    first = jax.lax.axis_index(owners) * num_own if owners else 0
    own = jax.lax.dynamic_slice_in_dim(x_ECD, first, num_own)
    y_ECD = jax.lax.dynamic_update_slice_in_dim(
      jnp.zeros_like(x_ECD), _feed(own, ws, None, config, embed_axes), first, 0
    )
  y_PD = take_some(y_ECD.reshape(-1, D), slot_P, place_S, 1)
  y_TD = _weigh(y_PD, weight_BTA.reshape(-1, A), x_TD.dtype)
  summed = mlp_axes if is_gathered else (*owners, *mlp_axes)
  if summed:
    y_TD = jax.lax.psum(y_TD, summed)
  return y_TD.reshape(B, T, D)


def _weigh(y_PD, weight_TA, dtype):
  y_TAD = y_PD.reshape(*weight_TA.shape, -1)
  return jnp.einsum(
    "TAD,TA->TD", y_TAD, weight_TA, preferred_element_type=jnp.float32
  ).astype(dtype)
