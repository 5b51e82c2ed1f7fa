"""A mixture of experts in place of the MLP: a token goes to A of E experts.

A router scores the experts; models/experts.py runs the chosen ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import ModelConfig
from gpt_jax.models.declare import declare
from gpt_jax.models.experts import READS, WRITES, capacity_of, run_experts
from gpt_jax.models.layers import MLP, feed_forward
from gpt_jax.ops.projection import project


class MoE(nn.Module):
  """Token-choice experts (Shazeer et al. 2017), gated or not, without biases.

  The weights of a token's experts are their scores, in float32, divided by
  their sum (Jiang et al. 2024) or as they are, times a scale (DeepSeek-V2,
  2024). Scores are softmax probabilities over all experts or sigmoids
  (DeepSeek-V3, 2024, eq. 13 to 15). With A = 1 the weight is the score itself
  (Fedus et al. 2021): it is the only gradient that the router gets. Shared
  experts, to which all tokens go, are one MLP as wide as they are together
  (DeepSeekMoE, Dai et al. 2024, eq. 9).
  """

  config: ModelConfig
  rules: str

  @nn.compact
  def __call__(self, x_BTD, is_cached: bool = False):
    """Returns (y_BTD, routing).

    Args:
      is_cached: whether x follows cached tokens. No token is dropped then,
        since the cached tokens' load on the experts is not known.

    routing is a dict of arrays with a value for each sequence:
      balance_B  `balance_of`
      count_BE   int32, number of the sequence's tokens that each expert gets
      z_B        mean over tokens of log(sum(exp(router's logits)))^2, with
                 model.router_z_weight (Zoph et al. 2022, eq. 5)
      dropped_B  fraction of the sequence's assignments over capacity, with
                 model.expert_capacity_factor
    """
    c, D = self.config, x_BTD.shape[-1]
    E, F = c.num_experts, config_lib.expert_mlp_dim(c)
    w_router_DE = declare(
      self, "router", (D, E), ("embed", "experts"), "router"
    )
    w_in_EDF = declare(self, "in", (E, D, F), READS, "hidden")
    w_out_EFD = declare(self, "out", (E, F, D), WRITES, "residual")
    ws = {"in": w_in_EDF, "out": w_out_EFD}
    if config_lib.is_gated(c):
      ws["gate"] = declare(self, "gate", (E, D, F), READS, "hidden")
    bias_E = None
    if c.router_bias_rate:
      bias_E = declare(self, "bias", (E,), ("experts",), "balance")

    read_BTD = x_BTD
    if E == 1 and c.router_score == "softmax":
      # The only expert's weight is always 1, so the router has no gradient.
      # Without this, bfloat16 would round at other points than a dense model.
      read_BTD = jax.lax.stop_gradient(x_BTD)
    read_BTD = read_BTD.astype(jnp.float32)
    logits_BTE = project(read_BTD, w_router_DE, c.grad_dtype)
    logits_BTE = sharding.constrain(
      logits_BTE, ("batch", "length", None), self.rules
    )
    ids_BTA, weight_BTA, routing = route(logits_BTE, bias_E, c)
    capacity = None if is_cached else capacity_of(c, x_BTD.shape[1])
    if capacity is not None:
      over_B = jnp.maximum(routing["count_BE"] - capacity, 0).sum(-1)
      routing["dropped_B"] = over_B / (x_BTD.shape[1] * c.experts_per_token)
    if E == 1 and capacity is None:
      only = {name: w_1DF[0] for name, w_1DF in ws.items()}
      y_BTD = feed_forward(x_BTD, only, {}, c, self.rules)
      if c.router_score != "softmax" or c.router_scale != 1:
        y_BTD = (y_BTD * weight_BTA).astype(x_BTD.dtype)
    else:
      y_BTD = run_experts(
        x_BTD, ids_BTA, weight_BTA, ws, c, self.rules, capacity
      )
    if c.num_shared_experts:
      width = c.num_shared_experts * F
      shared = MLP(c, self.rules, width, has_bias=False, name="shared")
      y_BTD += shared(x_BTD)
    return y_BTD, routing


def route(logits_BTE, bias_E, config: ModelConfig):
  """Returns (ids_BTA int32, weight_BTA float32, routing) of tokens.

  Args:
    logits_BTE: float32, of the router.
    bias_E: added to the scores that choose experts, not to weights; or None.
  """
  c, A = config, config.experts_per_token
  if c.router_score == "sigmoid":
    p_BTE = jax.nn.sigmoid(logits_BTE)
    share_BTE = p_BTE / p_BTE.sum(-1, keepdims=True)
  else:
    p_BTE = share_BTE = jax.nn.softmax(logits_BTE, axis=-1)
  rank_BTE = p_BTE if bias_E is None else p_BTE + bias_E[None, None]
  if c.router_groups_per_token is not None:
    most = c.router_groups_per_token
    rank_BTE = keep_groups(rank_BTE, c.router_groups, most)
  if rank_BTE is p_BTE:
    weight_BTA, ids_BTA = jax.lax.top_k(p_BTE, A)
  else:
    _, ids_BTA = jax.lax.top_k(jax.lax.stop_gradient(rank_BTE), A)
    weight_BTA = jnp.take_along_axis(p_BTE, ids_BTA, axis=-1)
  count_BE = count_of(ids_BTA, logits_BTE.shape[-1])
  routing = {
    "balance_B": balance_of(share_BTE, count_BE),
    "count_BE": count_BE,
  }
  if c.router_z_weight:
    z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
    routing["z_B"] = jnp.square(z_BT).mean(1)
  if A > 1 and c.router_normalized:
    weight_BTA /= weight_BTA.sum(-1, keepdims=True)
  if c.router_scale != 1:
    weight_BTA *= c.router_scale
  return ids_BTA, weight_BTA, routing


def keep_groups(rank_BTE, num_groups: int, most: int):
  """Returns the scores with -inf outside of a token's `most` best groups.

  A group's score is that of its best expert (DeepSeek-V2, 2024, 2.2.2).
  """
  G, (B, T, E) = num_groups, rank_BTE.shape
  best_BTG = rank_BTE.reshape(B, T, G, E // G).max(-1)
  _, kept_BTX = jax.lax.top_k(best_BTG, most)
  groups = jax.lax.broadcast_to_rank(jnp.arange(G), 4)
  is_kept_BTG = (kept_BTX[..., None] == groups).any(2)
  is_kept_BTE = jnp.repeat(is_kept_BTG, E // G, axis=-1)
  return jnp.where(is_kept_BTE, rank_BTE, -jnp.inf)


def count_of(ids_BTA, num_experts: int):
  """Returns count_BE int32, the number of tokens that each expert gets."""
  is_chosen_BTAE = ids_BTA[..., None] == jax.lax.broadcast_to_rank(
    jnp.arange(num_experts), 4
  )
  return is_chosen_BTAE.sum((1, 2), dtype=jnp.int32)


def balance_of(p_BTE, count_BE):
  """Returns balance_B float32: 1 where a sequence loads its experts evenly.

  E * sum_e f_e P_e, with f_e the fraction of assignments that go to expert e
  and P_e its mean probability (Fedus et al. 2021, eq. 4 to 6). Computed for
  each sequence as a group (Lepikhin et al. 2020, 2.2), so that neither
  microbatches nor devices change it.
  """
  f_BE = count_BE / count_BE.sum(-1, keepdims=True)
  return p_BTE.shape[-1] * (f_BE * p_BTE.mean(1)).sum(-1)
