"""Refuses config values that are valid alone but conflict with each other."""

import dataclasses

from gpt_jax.config.check_data import check_data
from gpt_jax.config.check_distill import check_distill
from gpt_jax.config.check_heads import check_heads
from gpt_jax.config.check_labels import check_labels
from gpt_jax.config.check_preferences import check_preferences
from gpt_jax.config.check_privacy import check_privacy
from gpt_jax.config.derived import (
  has_score_bias,
  has_source,
  head_dim,
  is_packed,
  is_sinusoidal,
  layer_kinds,
  mlp_kinds,
  value_dim,
)
from gpt_jax.config.options import FAMILIES
from gpt_jax.config.schema import (
  MAX_INT32,
  Config,
  MeshConfig,
  ModelConfig,
  TrainConfig,
)
from gpt_jax.exits import InputError

# A bfloat16 moment does not change if an update is below half its last bit.
MAX_BETA2_BFLOAT16 = 0.99

# Optimizers that divide by sqrt(second moment) + eps.
ADAMS = ("adamw", "adam", "muon")

# Optimizers that parametrization.py has rules for: the size of their updates
# does not depend on the scale of the gradient.
PARAMETRIZED = ("adamw", "adam")


def check_together(c: Config) -> None:
  """Refuses values that are valid alone but conflict with each other.

  Raises:
    InputError: the sentence names the keys.
  """
  m = c.model
  if m.head_dim is None and m.model_dim % m.num_heads:
    raise InputError(
      f"model.num_heads is {m.num_heads}, which does not divide "
      f"model.model_dim {m.model_dim}; change one, or set model.head_dim"
    )
  if m.num_kv_heads is not None and m.num_heads % m.num_kv_heads:
    raise InputError(
      f"model.num_kv_heads is {m.num_kv_heads}; it must divide "
      f"model.num_heads {m.num_heads}"
    )
  check_heads(m)
  _check_layers(m)
  _check_experts(c)
  _check_source(m)
  _check_scales(m)
  check_data(c)
  o, t = c.optim, c.train
  if c.adapter.rank.parts and t.init_from is None:
    raise InputError(
      f"adapter.rank is {c.adapter.rank!r} and train.init_from is None; name "
      "the workdir whose parameters are adapted"
    )
  if t.init_layers != "all" and (
    t.init_from is None or c.adapter.rank.parts or has_source(m)
  ):
    raise InputError(
      f"train.init_layers is {t.init_layers!r}, layers of a run that "
      "train.init_from names, whose model has one stack of them and is "
      "trained without adapters; leave it all"
    )
  if t.keep_zeros and (t.init_from is None or c.adapter.rank.parts):
    raise InputError(
      "train.keep_zeros is True, and zeros are those of a run that "
      "train.init_from names, trained without adapters; leave it False"
    )
  _check_rounded(c)
  if t.global_batch_size * c.data.seq_len > MAX_INT32:
    raise InputError(
      f"train.global_batch_size is {t.global_batch_size:,} and data.seq_len "
      f"is {c.data.seq_len:,}, {t.global_batch_size * c.data.seq_len:,} tokens "
      f"per step; they must be at most {MAX_INT32:,}"
    )
  if o.warmup_steps and o.warmup_steps >= t.num_steps:
    raise InputError(
      f"optim.warmup_steps is {o.warmup_steps} and train.num_steps is "
      f"{t.num_steps}; the warm-up must be shorter than the run"
    )
  if t.global_batch_size % t.num_microbatches:
    raise InputError(
      f"train.num_microbatches is {t.num_microbatches}; it must divide "
      f"train.global_batch_size {t.global_batch_size}"
    )
  _check_ramp(t)
  if o.moment_dtype == "bfloat16" and o.beta2 > MAX_BETA2_BFLOAT16:
    raise InputError(
      f"optim.moment_dtype is bfloat16, which loses changes of less than 1 in "
      f"256, and optim.beta2 is {o.beta2}; beta2 must be at most "
      f"{MAX_BETA2_BFLOAT16}"
    )
  if m.tied_embeddings and m.unembed_init_std is not None:
    raise InputError(
      f"model.unembed_init_std is {m.unembed_init_std:g} and "
      "model.tied_embeddings is True: the output matrix is the embedding, "
      "which model.init_std initializes; untie them, or leave it None"
    )
  _check_parametrization(c)
  _check_attention(c)
  _check_future(c)
  check_labels(c)
  check_preferences(c)
  check_distill(c)
  check_privacy(c)
  _check_mesh(c.mesh)


def _check_rounded(c: Config) -> None:
  """Refuses a low-bit base without adapters, or with experts."""
  asked = f"adapter.base is {c.adapter.base}"
  if c.adapter.base == "full":
    return
  if not c.adapter.rank.parts:
    raise InputError(
      f"{asked}, of frozen matrices, and adapter.rank is none, which learns "
      "all parameters; set adapter.rank, or leave it full"
    )
  if c.model.num_experts is not None:
    raise InputError(
      f"{asked}, which is for models without experts, and model.num_experts is "
      f"{c.model.num_experts}; leave it full"
    )


def _check_mesh(mesh: MeshConfig) -> None:
  """Refuses axes of size 0, and more than one that takes the rest."""
  sizes = dataclasses.asdict(mesh)
  axes = {k: v for k, v in sizes.items() if k != "rules"}
  zero = [f"mesh.{k}" for k, v in axes.items() if v == 0]
  if zero:
    raise InputError(
      f"{zero[0]} is 0; it must be 1 or more, or -1 for the rest of the devices"
    )
  if sum(v == -1 for v in axes.values()) > 1:
    named = ", ".join(f"mesh.{k}" for k, v in axes.items() if v == -1)
    raise InputError(f"{named} are all -1; only one axis can take the rest")


def _check_layers(m: ModelConfig) -> None:
  """Refuses local layers without a window, and a window without them."""
  if sum(count for count, _ in m.layer_pattern.parts) > m.num_layers:
    raise InputError(
      f"model.layer_pattern is {m.layer_pattern!r} and model.num_layers is "
      f"{m.num_layers}; the pattern must not be longer than the model"
    )
  has_local = "local" in layer_kinds(m)
  if has_local and m.sliding_window is None:
    raise InputError(
      f"model.layer_pattern is {m.layer_pattern!r} and model.sliding_window is "
      "None; set it to the window of the local layers"
    )
  if m.sliding_window is not None and not has_local:
    raise InputError(
      f"model.sliding_window is {m.sliding_window} and model.layer_pattern is "
      f"{m.layer_pattern!r}, which has no local layer; leave it uniform, or "
      "name local layers"
    )
  if m.local_rope_theta is not None and not (
    has_local and m.position == "rope"
  ):
    raise InputError(
      f"model.local_rope_theta is {m.local_rope_theta:g}; it is the rope base "
      "of local layers, and there are none, or position is not rope"
    )


def _check_source(m: ModelConfig) -> None:
  """Refuses an encoder's keys without one, and keys that conflict with one."""
  if not has_source(m):
    if m.num_encoder_layers is not None:
      raise InputError(
        f"model.num_encoder_layers is {m.num_encoder_layers} and model.family "
        f"is {m.family}, whose layers are model.num_layers; leave it None, or "
        "set the family to encoder_decoder"
      )
    if m.source_embed != "shared":
      raise InputError(
        f"model.source_embed is {m.source_embed}, of a source, which "
        f"model.family {m.family} does not read; leave it shared"
      )
    return
  least = min(m.num_layers, m.num_encoder_layers or m.num_layers)
  if sum(count for count, _ in m.layer_pattern.parts) > least:
    raise InputError(
      f"model.layer_pattern is {m.layer_pattern!r} and the encoder or the "
      f"decoder has {least} layers; the pattern must not be longer than either"
    )
  if m.attention == "cudnn":
    raise InputError(
      "model.attention is cudnn, which cannot leave out a source's padding, "
      "and model.family is encoder_decoder; use auto or flash"
    )
  for key, idle in (
    ("num_future_tokens", 1),
    ("num_experts", None),
    ("kv_lora_rank", None),
    ("parametrization", "standard"),
  ):
    if getattr(m, key) != idle:
      raise InputError(
        f"model.{key} is {getattr(m, key)} and model.family is encoder_decoder,"
        f" for which it is not made; leave it {idle}"
      )


def _check_scales(m: ModelConfig) -> None:
  """Refuses scales that do not fit the width or its parametrization."""
  if is_sinusoidal(m) and m.model_dim % 2:
    raise InputError(
      f"model.position is {m.position}, pairs of sine and cosine, and "
      f"model.model_dim is {m.model_dim}; it must be even"
    )
  if m.parametrization == "standard":
    return
  for key, idle in (
    ("scaled_embeddings", False),
    ("scaled_readout", False),
    ("attn_scale", None),
  ):
    if getattr(m, key) != idle:
      raise InputError(
        f"model.{key} is {getattr(m, key)} and model.parametrization is "
        f"{m.parametrization}, which scales by the width itself; leave it "
        f"{idle}"
      )


def _check_experts(c: Config) -> None:
  """Refuses invalid numbers of experts, and keys of experts without any."""
  m, kinds = c.model, mlp_kinds(c.model)
  if m.num_experts is None:
    if "moe" in kinds:
      raise InputError(
        f"model.layer_pattern is {m.layer_pattern!r} and model.num_experts is "
        "None; set it to the number of experts of a moe layer"
      )
    for key in (
      "expert_mlp_dim",
      "num_shared_experts",
      "expert_capacity_factor",
      "router_groups_per_token",
      "router_bias_rate",
      "router_z_weight",
    ):
      if getattr(m, key):
        raise InputError(
          f"model.{key} is {getattr(m, key)} and model.num_experts is None; "
          "set num_experts, or leave both"
        )
    return
  if "moe" not in kinds:
    raise InputError(
      f"model.num_experts is {m.num_experts} and model.layer_pattern is "
      f"{m.layer_pattern!r}, all dense; name moe layers, or leave it None"
    )
  if m.experts_per_token > m.num_experts:
    raise InputError(
      f"model.experts_per_token is {m.experts_per_token}; it must be at most "
      f"model.num_experts {m.num_experts}"
    )
  _check_groups(m)
  if m.expert_capacity_factor is not None:
    asked = f"model.expert_capacity_factor is {m.expert_capacity_factor:g}"
    if c.data.packing == "documents":
      raise InputError(
        f"{asked} and data.packing is documents, which would take each other's "
        "places; leave it None, or packing stream"
      )
    if c.mesh.seq != 1:
      raise InputError(
        f"{asked}, which counts whole sequences, and mesh.seq is "
        f"{c.mesh.seq}; it must be 1"
      )
  if c.mesh.expert > 0 and m.num_experts % c.mesh.expert:
    raise InputError(
      f"mesh.expert is {c.mesh.expert}; it must divide model.num_experts "
      f"{m.num_experts}"
    )


def _check_groups(m: ModelConfig) -> None:
  """Refuses groups of experts that are too small or too few for a token."""
  G, each = m.router_groups, m.num_experts or 0
  if each % G:
    raise InputError(
      f"model.router_groups is {G}; it must divide model.num_experts {each}"
    )
  each, most = each // G, m.router_groups_per_token or G
  if most > G or most * each < m.experts_per_token:
    raise InputError(
      f"model.router_groups_per_token is {most} of {G} groups with {each} "
      f"experts each; it must be at most {G}, and they must hold "
      f"model.experts_per_token {m.experts_per_token}"
    )


def _check_future(c: Config) -> None:
  """Refuses multi-token prediction that the family or length rules out."""
  ahead = c.model.num_future_tokens
  if ahead > 1 and not FAMILIES[c.model.family].is_causal:
    raise InputError(
      f"model.num_future_tokens is {ahead} and model.family is "
      f"{c.model.family}, whose tokens see those after them; leave it 1"
    )
  if ahead > c.data.seq_len:
    raise InputError(
      f"model.num_future_tokens is {ahead}; it must be at most data.seq_len "
      f"{c.data.seq_len}"
    )


def _check_ramp(t: TrainConfig) -> None:
  """Refuses a batch ramp that does not fit the batch size or the run."""
  whole, asked = t.global_batch_size, t.batch_ramp
  for divisor, _ in asked.parts:
    if whole % divisor:
      raise InputError(
        f"train.batch_ramp is {asked!r}, and {divisor} does not divide "
        f"train.global_batch_size {whole}"
      )
  steps = sum(steps for _, steps in asked.parts)
  if steps >= t.num_steps:
    raise InputError(
      f"train.batch_ramp is {asked!r}, {steps:,} steps, and train.num_steps is "
      f"{t.num_steps:,}; the ramp must be shorter than the run"
    )


def _check_parametrization(c: Config) -> None:
  """Refuses a parametrization that lacks its base, or rules for the run."""
  m, chosen = c.model, c.model.parametrization
  if chosen == "standard":
    return
  asked = f"model.parametrization is {chosen}"
  if m.base_dim is None:
    raise InputError(
      f"{asked} and model.base_dim is None; set it to the width at which the "
      "learning rate was tuned"
    )
  if chosen == "completep" and m.base_layers is None:
    raise InputError(
      f"{asked} and model.base_layers is None; set it to the number of layers "
      "at which the learning rate was tuned"
    )
  if chosen == "completep" and m.norm_placement != "pre":
    raise InputError(
      f"{asked}, which scales each sublayer's output, and "
      f"model.norm_placement is {m.norm_placement}; it must be pre"
    )
  if m.kv_lora_rank is not None:
    raise InputError(
      f"{asked}, which was not found to keep activations of latent attention "
      f"level (configs/LOG.md), and model.kv_lora_rank is {m.kv_lora_rank}; "
      "use standard"
    )
  if c.optim.optimizer not in PARAMETRIZED:
    raise InputError(
      f"{asked}, which has rules for {' and '.join(PARAMETRIZED)}, and "
      f"optim.optimizer is {c.optim.optimizer}; use one of them, or standard"
    )


def _check_attention(c: Config) -> None:
  """Refuses an attention kernel that does not support the model."""
  m, kernel = c.model, c.model.attention
  is_ring = m.seq_attention == "ring" and c.mesh.seq != 1
  if kernel not in ("auto", "dense") or is_ring:
    if kernel in ("auto", "dense"):
      asked = "model.seq_attention is ring"
    else:
      asked = f"model.attention is {kernel}"
    if has_score_bias(m):
      raise InputError(
        f"{asked}, which does not support position={m.position!r}; only dense "
        "attention with seq_attention='gather' does"
      )
    if m.dropout_rate > 0:
      raise InputError(
        f"{asked}, which cannot drop attention weights, and "
        f"model.dropout_rate is {m.dropout_rate}; only dense attention with "
        "seq_attention='gather' can"
      )
  if is_ring and kernel in ("dense", "cudnn", "flash"):
    raise InputError(
      f"model.attention is {kernel}, which cannot run as a ring; "
      "seq_attention='ring' needs auto, blocks or splash"
    )
  if kernel not in ("cudnn", "flash"):
    return
  fault = flash_fault(m)
  if kernel == "cudnn":
    fault = cudnn_fault(m, is_packed(c))
  if fault:
    raise InputError(f"model.attention is {kernel}, which {fault}")
  if c.mesh.seq > 1:
    raise InputError(
      f"model.attention is {kernel}, which needs whole rows, and mesh.seq is "
      f"{c.mesh.seq}; use auto or blocks"
    )


def cudnn_fault(model: ModelConfig, is_packed: bool) -> str | None:
  """Returns why cuDNN does not support this model, or None if it does.

  Args:
    is_packed: whether rows hold several documents.
  """
  H, V = head_dim(model), value_dim(model)
  if is_packed:
    return (
      "needs an array of T x T to keep the documents of a row apart; use auto "
      "or flash"
    )
  if model.attn_softcap is not None:
    return "has no soft-cap, and model.attn_softcap is set"
  if model.compute_dtype != "bfloat16":
    return f"needs compute_dtype='bfloat16', found {model.compute_dtype!r}"
  if H % 8 or H > 128:
    return f"needs a head width of 8, 16, ... or 128, found {H}"
  if V > H:
    return f"needs values no wider than keys, and they are {V} and {H} wide"
  return None


def flash_fault(model: ModelConfig) -> str | None:
  """Returns why our GPU kernels do not support this model, or None."""
  H, V = head_dim(model), value_dim(model)
  if model.compute_dtype == "float32":
    return "needs compute_dtype='bfloat16', found 'float32'"
  if H > 256:
    return f"needs a head width of at most 256, found {H}"
  if V > H:
    return f"needs values no wider than keys, and they are {V} and {H} wide"
  return None
