"""The ledger: parameters by role, FLOPs per token, cache bytes.

All figures are arithmetic on a config, independent of the compiler. Each FLOPs
figure names its convention; MFU uses PaLM's, as published tables do.
"""

import dataclasses

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.ops import visibility

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Convention:
  """What published figures of N and FLOPs per token include.

  Attributes:
    has_embed: N includes embeddings, of learned positions too.
    has_head: N includes the unembedding; if tied, it counts once.
    attention: part of the T x T scores whose FLOPs are included: 0, 1/2 or 1.
  """

  has_embed: bool
  has_head: bool
  attention: float


CONVENTIONS = {
  # Hoffmann et al. 2022, section 3.3, after Kaplan et al. 2020.
  "6N": Convention(True, True, 0.0),
  "6N-no-embed": Convention(False, False, 0.0),  # Kaplan et al. 2020, table 1
  "6N-no-embed+head": Convention(False, True, 0.0),
  "6N-no-embed+attention": Convention(False, False, 1.0),
  "6N+attention": Convention(False, True, 1.0),  # train_flops_per_token
  "6N+attention-causal": Convention(False, True, 0.5),
}


def count_parameters(model: ModelConfig) -> dict[str, int]:
  """Returns {role: number of parameters}, without vocabulary padding."""
  D, L, V = model.model_dim, count_blocks(model), config_lib.vocab_size(model)
  reads, writes, norms = count_attention(model)
  num_moe = config_lib.mlp_kinds(model).count("moe")
  E, F = model.num_experts or 0, sum_mlp_dims(model, model.num_experts or 0)
  has_norm_bias = model.bias and model.norm == "layernorm"
  is_post = model.norm_placement == "post"
  # Without norms after the sums there is one at the end.
  num_norms = 2 * L + (model.embed_norm if is_post else 1)
  num_norms += 2 * L if model.norm_placement == "sandwich" else 0
  has_transform = model.head == "transform"
  num_norms += has_transform
  has_biases = model.bias and model.kv_lora_rank is None
  biases = L * (reads // D + D) if has_biases else 0
  biases += (L - num_moe) * (model.mlp_dim + D) if model.bias else 0
  biases += (V + (D if model.bias else 0)) if has_transform else 0
  num_positions = model.max_len if model.position == "learned" else 0
  hidden = L * reads + D * F * (1 + config_lib.is_gated(model))
  return {
    "embed": V * D,
    "position": (num_positions + (model.num_token_types or 0)) * D,
    "hidden": hidden + (D * D if has_transform else 0),
    "residual": L * writes + D * F,
    "router": num_moe * D * E,
    "unembed": 0 if model.tied_embeddings else V * D,
    "norm": num_norms * D + L * norms,
    "balance": num_moe * E * (model.router_bias_rate > 0),
    "bias": biases + (num_norms * D if has_norm_bias else 0),
  }


def count_blocks(model: ModelConfig) -> int:
  """Returns the number of layers, those that predict further tokens too."""
  return model.num_layers + model.num_future_tokens - 1


def sum_mlp_dims(model: ModelConfig, num_experts: int) -> int:
  """Returns the widths of all layers' MLPs together, with so many experts."""
  num_moe = config_lib.mlp_kinds(model).count("moe")
  each = num_experts + model.num_shared_experts
  dense = (count_blocks(model) - num_moe) * model.mlp_dim
  return dense + num_moe * each * config_lib.expert_mlp_dim(model)


def count_attention(model: ModelConfig) -> tuple[int, int, int]:
  """Returns one layer's parameters: (hidden, residual, norm)."""
  D, N, H = model.model_dim, model.num_heads, config_lib.head_dim(model)
  R, Q = model.kv_lora_rank, model.q_lora_rank
  if R is None:
    reads = D * (N * H + 2 * config_lib.num_kv_heads(model) * H)
    return reads, N * H * D, 2 * H if model.qk_norm else 0
  queries = D * N * H if Q is None else D * Q + Q * N * H
  keys = D * (R + config_lib.rope_dim(model)) + count_up_projections(model)
  writes = N * config_lib.value_dim(model) * D
  return queries + keys, writes, R + (Q or 0)


def count_up_projections(model: ModelConfig) -> int:
  """Returns one layer's parameters that project latent keys and values."""
  P = config_lib.head_dim(model) - config_lib.rope_dim(model)
  width = model.num_heads * (P + config_lib.value_dim(model))
  return (model.kv_lora_rank or 0) * width


def score_flops_per_token(model: ModelConfig, seq_len: int) -> int:
  """Returns FLOPs per trained token of all T x T scores: 6 L N (H + V) T.

  H wide products make a score and V wide ones read it; backward doubles both.
  With values as wide as keys this is PaLM's 12 L N H T.
  """
  width = config_lib.head_dim(model) + config_lib.value_dim(model)
  return 6 * count_blocks(model) * model.num_heads * width * seq_len


def count_active_parameters(model: ModelConfig) -> dict[str, int]:
  """Returns {role: number of parameters that one token uses}.

  These are A of the E experts, and everything else.
  """
  count = count_parameters(model)
  if model.num_experts is None:
    return count
  active = dataclasses.replace(model, num_experts=model.experts_per_token)
  whole = {role: count[role] for role in ("router", "balance")}
  return count_parameters(active) | whole


def active_mlp_dim(model: ModelConfig) -> int:
  """Returns the MLP width that one token uses: a layer's, the mean of all."""
  return sum_mlp_dims(model, model.experts_per_token) // model.num_layers


def train_flops_per_token(model: ModelConfig, seq_len: int) -> int:
  """Returns FLOPs per trained token: 6 N + 12 L (N_heads H) T.

  The second term is that of score_flops_per_token.

  N excludes learned positions and untied input embeddings, which are looked up
  and not multiplied (Chowdhery et al. 2022, appendix B), and the experts that a
  token is not sent to.
  """
  count = count_active_parameters(model)
  idle = count["position"] + (0 if model.tied_embeddings else count["embed"])
  weights = sum(count.values()) - idle
  table = config_lib.vocab_size(model) * model.model_dim
  weights += (model.num_future_tokens - 1) * table  # each reads it again
  return 6 * weights + score_flops_per_token(model, seq_len)


def masked_flops_per_token(model: ModelConfig, seq_len: int) -> int:
  """Returns train_flops_per_token, but counts visible attention scores only.

  A causal mask hides about half of the scores, and attention kernels skip them:
  by this count utilization does not exceed the hardware's.
  """
  scores = score_flops_per_token(model, seq_len)
  hidden = 1 - visible_part(model, seq_len)
  return int(train_flops_per_token(model, seq_len) - hidden * scores)


def visible_part(model: ModelConfig, seq_len: int) -> float:
  """Returns the visible part of all layers' scores, which kernels compute."""
  kinds = config_lib.layer_kinds(model)
  part = {
    kind: visibility.visible_part(visibility.rule_of(model, kind), seq_len)
    for kind in set(kinds)
  }
  if len(part) == 1:
    return part[kinds[0]]
  return sum(part[kind] for kind in kinds) / len(kinds)


def count_by_convention(
  model: ModelConfig, seq_len: int, name: str
) -> tuple[int, int]:
  """Returns (N, FLOPs per trained token) under an entry of CONVENTIONS.

  Counts only the experts that a token uses.
  """
  how, count = CONVENTIONS[name], count_active_parameters(model)
  embed, position = count["embed"], count["position"]
  head = embed if model.tied_embeddings else count["unembed"]
  body = sum(count.values()) - embed - position - count["unembed"]
  params = body + (head if how.has_head else 0)
  if how.has_embed:
    params += position + (0 if model.tied_embeddings else embed)
  scores = int(how.attention * score_flops_per_token(model, seq_len))
  return params, 6 * params + scores


def cache_bytes(model: ModelConfig, num_tokens: float, itemsize: int) -> float:
  """Returns the bytes of the cache of a row of num_tokens tokens.

  Keys and values, or what latent attention projects them from. The cache of a
  local layer is no longer than its window.
  """
  width = sum(heads * dim for heads, dim in config_lib.cached_dims(model))
  window = model.sliding_window
  slots = sum(
    min(num_tokens, window) if window and kind == "local" else num_tokens
    for kind in config_lib.layer_kinds(model)
  )
  return slots * width * itemsize


def estimate_temporary_bytes(model: ModelConfig, tokens: int) -> int:
  """Returns an estimate of the bytes that a step needs beyond its state.

  For an unsharded model, before anything is compiled: gradients, each block's
  activations for the backward pass (scores included), and logits.

  Args:
    tokens: tokens in one microbatch on the device.
  """
  c = DTYPE_BYTES[model.compute_dtype]
  D, F, L = model.model_dim, active_mlp_dim(model), model.num_layers
  count = sum(count_parameters(model).values())
  gradients = count * DTYPE_BYTES[model.param_dtype]
  policy, names = model.remat.policy, model.remat.names
  each = {"block": D, "qkv": 3 * D, "attn": D, "mlp": 2 * F}
  saved = {
    "none": 10 * D + 3 * F,
    "dots": 7 * D + F,
    "full": D,
    "save": D + sum(each[n] for n in names),
    "offload": D,
  }[policy]
  scores = model.num_heads * min(model.max_len, tokens) * (4 + c)
  if policy not in ("none", "dots"):
    scores //= L
  logits = 2 * 4 * config_lib.padded_vocab_size(model)
  return gradients + tokens * (L * (saved * c + scores) + logits)
