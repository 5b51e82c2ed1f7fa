"""The ledger: parameters by role, FLOPs per token, cache bytes.

All of it is arithmetic on a config, so that it costs nothing and never changes
with a compiler. Each FLOPs figure names its convention; MFU uses the PaLM one,
which published tables use.
"""

import dataclasses

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.ops import visibility

# Bytes of a number.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Convention:
  """What a published N and FLOPs per token count.

  Attributes:
    has_embed: N holds embeddings, looked-up positions too.
    has_head: N holds the unembedding, a tied one once.
    attention: share of the T x T scores whose FLOPs are counted: 0, 1/2 or 1.
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
  """Returns {role: parameters}, vocabulary padding left out."""
  D, F, L, V = (
    model.model_dim,
    model.mlp_dim,
    model.num_layers,
    config_lib.vocab_size(model),
  )
  N, K, H = (
    model.num_heads,
    config_lib.num_kv_heads(model),
    config_lib.head_dim(model),
  )
  is_gated = model.mlp == "swiglu"
  E = model.num_experts
  has_norm_bias = model.bias and model.norm == "layernorm"
  num_norms = 2 * L + (model.norm_placement == "pre")
  biases = N * H + 2 * K * H + D if model.bias else 0
  biases += F + D if model.bias and E is None else 0
  return {
    "embed": V * D,
    "position": model.max_len * D if model.position == "learned" else 0,
    "hidden": L * D * (N * H + 2 * K * H + (E or 1) * F * (1 + is_gated)),
    "residual": L * D * (N * H + (E or 1) * F),
    "router": L * D * (E or 0),
    "unembed": 0 if model.tied_embeddings else V * D,
    "norm": num_norms * D + (2 * L * H if model.qk_norm else 0),
    "bias": L * biases + (num_norms * D if has_norm_bias else 0),
  }


def count_active_parameters(model: ModelConfig) -> dict[str, int]:
  """Returns {role: parameters that one token meets}: A of E experts, the rest.

  As count_parameters where there are no experts.
  """
  count = count_parameters(model)
  if model.num_experts is None:
    return count
  met = dataclasses.replace(model, num_experts=model.experts_per_token)
  return count_parameters(met) | {"router": count["router"]}


def active_mlp_dim(model: ModelConfig) -> int:
  """Returns the hidden width that one token meets: A experts of mlp_dim."""
  if model.num_experts is None:
    return model.mlp_dim
  return model.mlp_dim * model.experts_per_token


def train_flops_per_token(model: ModelConfig, seq_len: int) -> int:
  """Returns FLOPs per trained token: 6 N + 12 L (N_heads H) T.

  N counts all parameters but looked-up positions and untied input embeddings,
  which multiply nothing (Chowdhery et al. 2022, appendix B), and experts that
  a token is not sent to.
  """
  count = count_active_parameters(model)
  idle = count["position"] + (0 if model.tied_embeddings else count["embed"])
  width = model.num_heads * config_lib.head_dim(model)
  weights = sum(count.values()) - idle
  return 6 * weights + 12 * model.num_layers * width * seq_len


def masked_flops_per_token(model: ModelConfig, seq_len: int) -> int:
  """Returns train_flops_per_token with the visible scores only.

  The mask hides half of the scores or more, and attention kernels skip what it
  hides: by this figure no utilisation exceeds that of the hardware.
  """
  width = model.num_heads * config_lib.head_dim(model)
  scores = 12 * model.num_layers * width * seq_len
  hidden = 1 - visible_part(model, seq_len)
  return int(train_flops_per_token(model, seq_len) - hidden * scores)


def visible_part(model: ModelConfig, seq_len: int) -> float:
  """Returns the part of all layers' scores that kernels cannot skip."""
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
  """Returns (N, FLOPs per trained token) under a name of CONVENTIONS.

  Of experts, those that a token meets are counted.
  """
  how, count = CONVENTIONS[name], count_active_parameters(model)
  embed, position = count["embed"], count["position"]
  head = embed if model.tied_embeddings else count["unembed"]
  body = sum(count.values()) - embed - position - count["unembed"]
  params = body + (head if how.has_head else 0)
  if how.has_embed:
    params += position + (0 if model.tied_embeddings else embed)
  width = model.num_heads * config_lib.head_dim(model)
  scores = int(12 * how.attention * model.num_layers * width * seq_len)
  return params, 6 * params + scores


def cache_bytes(model: ModelConfig, num_tokens: float, itemsize: int) -> float:
  """Returns bytes of the keys and values of a row of num_tokens tokens.

  A local layer holds no more of them than its window.
  """
  K, H = config_lib.num_kv_heads(model), config_lib.head_dim(model)
  window = model.sliding_window
  slots = sum(
    min(num_tokens, window) if window and kind == "local" else num_tokens
    for kind in config_lib.layer_kinds(model)
  )
  return 2 * slots * K * H * itemsize


def estimate_passing_bytes(model: ModelConfig, tokens: int) -> int:
  """Returns bytes that a step needs beyond its state on one device.

  An estimate to print before anything is compiled, of a whole model:
  gradients, what backward keeps of each block (scores included), and logits.

  Args:
    tokens: tokens in one microbatch on the device.
  """
  item = DTYPE_BYTES
  c = item[model.compute_dtype]
  D, F, L = model.model_dim, active_mlp_dim(model), model.num_layers
  gradients = sum(count_parameters(model).values()) * item[model.param_dtype]
  word, names = model.remat.policy, model.remat.names
  each = {"block": D, "qkv": 3 * D, "attn": D, "mlp": 2 * F}
  kept = {
    "none": 10 * D + 3 * F,
    "dots": 7 * D + F,
    "full": D,
    "save": D + sum(each[n] for n in names),
    "offload": D,
  }[word]
  scores = model.num_heads * min(model.max_len, tokens) * (4 + c)
  if word not in ("none", "dots"):
    scores //= L
  logits = 2 * 4 * config_lib.padded_vocab_size(model)
  return gradients + tokens * (L * (kept * c + scores) + logits)
