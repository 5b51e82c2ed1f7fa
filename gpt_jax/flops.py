"""The ledger of a config: parameters by role, FLOPs per token, cache bytes.

All figures are arithmetic on a config, independent of the compiler. Each FLOPs
figure names its convention; MFU uses PaLM's, as published tables do.
"""

import dataclasses
from collections.abc import Callable

from gpt_jax import config as config_lib
from gpt_jax.config import Config, ModelConfig
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
  D, V = model.model_dim, config_lib.vocab_size(model)
  count = {"embed": V * D, "position": 0, "hidden": 0, "residual": 0}
  count |= {"router": 0, "unembed": 0, "norm": 0, "balance": 0, "bias": 0}
  for stack in config_lib.stack_configs(model):
    for role, number in count_stack(stack).items():
      count[role] += number
  num_tables = 2 if model.source_embed == "own" else 1
  num_positions = num_tables * model.max_len * (model.position == "learned")
  count["position"] += (num_positions + (model.num_token_types or 0)) * D
  if not model.tied_embeddings:
    count["unembed"] = V * D
  if config_lib.has_classes(model):
    count["unembed"] = config_lib.num_classes(model) * D
    count["bias"] += config_lib.num_classes(model)
  if model.head == "first" or model.pooler:  # BERT's pooler
    count["hidden"] += D * D
    count["bias"] += D if model.bias else 0
  has_transform = model.head == "transform"
  num_norms = has_transform
  num_norms += num_tables * config_lib.has_embed_norm(model)
  count["norm"] += num_norms * D
  count["bias"] += num_norms * D * _has_norm_bias(model)
  if has_transform:
    count["hidden"] += D * D
    count["bias"] += D if model.bias else 0
  if has_transform or model.head == "biased":
    count["bias"] += V
  return count


def count_stack(model: ModelConfig) -> dict[str, int]:
  """Returns {role: number of parameters} of a stack of layers.

  This includes its relative position biases and, unless norm_placement is
  "post", its final norm.
  """
  D, L = model.model_dim, count_blocks(model)
  reads, writes, norms = count_attention(model)
  num_moe = config_lib.mlp_kinds(model).count("moe")
  E, F = model.num_experts or 0, sum_mlp_dims(model, model.num_experts or 0)
  sublayers = config_lib.num_sublayers(model)
  attends = L * (sublayers - 1)
  each = sublayers * (2 if model.norm_placement == "sandwich" else 1)
  num_norms = each * L + (model.norm_placement != "post")
  has_biases = model.kv_lora_rank is None
  biases = attends * reads // D if has_biases and _has_qkv_bias(model) else 0
  biases += attends * D if has_biases and model.bias else 0
  biases += (L - num_moe) * (model.mlp_dim + D) if model.bias else 0
  buckets = config_lib.RELATIVE_BUCKETS * (model.position == "relative")
  return {
    "position": buckets * model.num_heads,
    "hidden": attends * reads + D * F * (1 + config_lib.is_gated(model)),
    "residual": attends * writes + D * F,
    "router": num_moe * D * E,
    "norm": num_norms * D + attends * norms,
    "balance": num_moe * E * (model.router_bias_rate > 0),
    "bias": biases + num_norms * D * _has_norm_bias(model),
  }


def count_blocks(model: ModelConfig) -> int:
  """Returns the number of layers, with those for tokens beyond the next."""
  return model.num_layers + model.num_future_tokens - 1


def _has_qkv_bias(model: ModelConfig) -> bool:
  return model.bias or model.qkv_bias


def _has_norm_bias(model: ModelConfig) -> bool:
  return model.bias and model.norm == "layernorm"


def count_source_parameters(model: ModelConfig) -> int:
  """Returns the number of parameters that a source token passes through.

  The encoder's, and the projections of its output to keys and values.
  """
  if not config_lib.has_source(model):
    return 0
  encoder = count_stack(config_lib.stack_config(model, "encoder"))
  width = config_lib.num_kv_heads(model) * config_lib.head_dim(model)
  keys = 2 * width * (model.model_dim + _has_qkv_bias(model))
  return sum(encoder.values()) - encoder["position"] + model.num_layers * keys


def sum_mlp_dims(model: ModelConfig, num_experts: int) -> int:
  """Returns the summed MLP widths of all layers, with num_experts experts."""
  num_moe = config_lib.mlp_kinds(model).count("moe")
  each = num_experts + model.num_shared_experts
  dense = (count_blocks(model) - num_moe) * model.mlp_dim
  return dense + num_moe * each * config_lib.expert_mlp_dim(model)


def count_attention(model: ModelConfig) -> tuple[int, int, int]:
  """Returns one layer's parameters: (hidden, residual, norm)."""
  D, N, H = model.model_dim, model.num_heads, config_lib.head_dim(model)
  R, Q = model.kv_lora_rank, model.q_lora_rank
  if R is None:
    K = config_lib.num_kv_heads(model)
    heads = 2 if model.qk_norm_over == "head" else N + K
    reads = D * (N * H + 2 * K * H)
    return reads, N * H * D, heads * H if model.qk_norm else 0
  queries = D * N * H if Q is None else D * Q + Q * N * H
  keys = D * (R + config_lib.rope_dim(model)) + count_up_projections(model)
  writes = N * config_lib.value_dim(model) * D
  return queries + keys, writes, R + (Q or 0)


def count_up_projections(model: ModelConfig) -> int:
  """Returns one layer's parameters that project latent keys and values."""
  P = config_lib.head_dim(model) - config_lib.rope_dim(model)
  width = model.num_heads * (P + config_lib.value_dim(model))
  return (model.kv_lora_rank or 0) * width


def score_flops_per_token(
  model: ModelConfig, seq_len: int, source_len: int | None = None
) -> int:
  """Returns FLOPs per trained token of all T x T scores: 6 L N (H + V) T.

  A score takes H multiply-adds, its value V; backward takes twice as many.
  With values as wide as keys this is PaLM's 12 L N H T.

  Args:
    source_len: S, in a model that has a source; None is seq_len.
  """
  width = config_lib.head_dim(model) + config_lib.value_dim(model)
  scores = sum(n for n, _ in _count_scores(model, seq_len, source_len))
  return int(6 * model.num_heads * width * scores)


def _count_scores(model: ModelConfig, T: int, source_len: int | None):
  """Returns [(scores per head and token, visible part of them)] by attention.

  Each layer has T; with a source, also S in its cross-attention, and each layer
  of the encoder S x S in a row of T tokens.
  """
  kinds = config_lib.layer_kinds(model)
  kinds += kinds[-1:] * (model.num_future_tokens - 1)
  part = lambda m, kind, length: visibility.visible_part(
    visibility.rule_of(m, kind), length
  )
  found: list = [(T, part(model, kind, T)) for kind in kinds]
  if config_lib.has_source(model):
    S, encoder = source_len or T, config_lib.stack_config(model, "encoder")
    each = config_lib.layer_kinds(encoder)
    found += [(S * S / T, part(encoder, kind, S)) for kind in each]
    found += [(S, 1.0)] * len(kinds)
  return found


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


def has_tied_head(model: ModelConfig) -> bool:
  """Returns whether the embedding is the output matrix as well."""
  return model.tied_embeddings and not config_lib.has_classes(model)


def active_mlp_dim(model: ModelConfig) -> int:
  """Returns the MLP width that one token uses, the mean over layers."""
  return sum_mlp_dims(model, model.experts_per_token) // model.num_layers


def train_flops_per_token(
  model: ModelConfig, seq_len: int, source_len: int | None = None
) -> int:
  """Returns FLOPs per trained token: 6 N + 12 L (N_heads H) T.

  The second term is score_flops_per_token. With a source, this is per target
  token, each of which accounts for S / T source tokens.

  N excludes learned positions and untied input embeddings, which are looked up
  and not multiplied (Chowdhery et al. 2022, appendix B), and the experts that a
  token is not sent to.
  """
  weights = _count_weights(model, seq_len, source_len)
  return 6 * weights + score_flops_per_token(model, seq_len, source_len)


def _count_weights(
  model: ModelConfig, seq_len: int, source_len: int | None
) -> int:
  """Returns N of train_flops_per_token."""
  count = count_active_parameters(model)
  idle = count["position"] + (0 if has_tied_head(model) else count["embed"])
  weights = sum(count.values()) - idle
  table = config_lib.vocab_size(model) * model.model_dim
  weights += (model.num_future_tokens - 1) * table  # each reads it again
  if source_len is not None:
    more = count_source_parameters(model) * (source_len - seq_len)
    weights += more // seq_len
  return weights


def masked_flops_per_token(
  model: ModelConfig, seq_len: int, source_len: int | None = None
) -> int:
  """Returns train_flops_per_token, but counts visible attention scores only.

  A causal mask hides about half of the scores, and attention kernels skip them:
  by this count utilization does not exceed the hardware's.
  """
  scores = score_flops_per_token(model, seq_len, source_len)
  hidden = 1 - visible_part(model, seq_len, source_len)
  total = train_flops_per_token(model, seq_len, source_len)
  return int(total - hidden * scores)


def train_flops_of(config: Config) -> int:
  """Returns train_flops_per_token of each token of data.seq_len.

  A run counts its tokens by data.seq_len, whatever rows its objective makes of
  them. With adapters it is 4 N in place of 6 N: their base has no gradient of
  its own. The adapters' own matmuls, about 6 R / D of one matrix, are left out.
  """
  return _by_rows(config, train_flops_per_token)


def masked_flops_of(config: Config) -> int:
  """Returns masked_flops_per_token of each token of data.seq_len."""
  return _by_rows(config, masked_flops_per_token)


def _by_rows(config: Config, per_token: Callable) -> int:
  S, T = config_lib.row_lengths(config)
  count = per_token(config.model, T, S)
  if config.adapter.rank.parts:
    count -= 2 * _count_weights(config.model, T, S)
  return count * T // config.data.seq_len


def visible_part(
  model: ModelConfig, seq_len: int, source_len: int | None = None
) -> float:
  """Returns the visible part of all layers' scores, which kernels compute."""
  scores = _count_scores(model, seq_len, source_len)
  parts = {part for _, part in scores}
  if len(parts) == 1:
    return parts.pop()
  share = [n / seq_len for n, _ in scores]
  visible = sum(s * part for s, (_, part) in zip(share, scores, strict=True))
  return visible / sum(share)


def count_by_convention(
  model: ModelConfig, seq_len: int, name: str
) -> tuple[int, int]:
  """Returns (N, FLOPs per trained token) under an entry of CONVENTIONS.

  Counts only the experts that a token uses.
  """
  how, count = CONVENTIONS[name], count_active_parameters(model)
  embed, position = count["embed"], count["position"]
  head = embed if has_tied_head(model) else count["unembed"]
  body = sum(count.values()) - embed - position - count["unembed"]
  params = body + (head if how.has_head else 0)
  if how.has_embed:
    params += position + (0 if has_tied_head(model) else embed)
  scores = int(how.attention * score_flops_per_token(model, seq_len))
  return params, 6 * params + scores


def cache_bytes(
  model: ModelConfig, num_tokens: float, itemsize: int, num_source: float = 0
) -> float:
  """Returns the bytes of the cache of a row of num_tokens tokens.

  Keys and values, or latent attention's compressed vectors. The cache of a
  local layer is no longer than its window; a source takes slots for all its
  num_source tokens in every layer.
  """
  width = sum(heads * dim for heads, dim in config_lib.cached_dims(model))
  window = model.sliding_window
  slots = sum(
    min(num_tokens, window) if window and kind == "local" else num_tokens
    for kind in config_lib.layer_kinds(model)
  )
  slots += num_source * model.num_layers * config_lib.has_source(model)
  return slots * width * itemsize


def estimate_temporary_bytes(model: ModelConfig, tokens: int) -> int:
  """Returns an estimate of the bytes that a step needs beyond its state.

  For an unsharded model, before anything is compiled: gradients, each block's
  activations for the backward pass (scores included), and logits.

  Args:
    tokens: tokens in one microbatch on the device.
  """
  c = DTYPE_BYTES[model.compute_dtype]
  D, F = model.model_dim, active_mlp_dim(model)
  L = sum(stack.num_layers for stack in config_lib.stack_configs(model))
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
  width = config_lib.padded_vocab_size(model)
  if config_lib.has_classes(model):
    width = config_lib.num_classes(model)
  logits = 2 * 4 * width
  return gradients + tokens * (L * (saved * c + scores) + logits)
