"""Every key of the config, declared once: a line in the sections below.

A line holds the key's type, its options or bounds, and whether it is a path,
free to change when a run resumes, or newer than stored runs. The value and the
reason of each key are in configs/base.py.
"""

import dataclasses
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

from gpt_jax.config.curriculum import Stages
from gpt_jax.config.options import (
  CLASS_HEADS,
  FAMILIES,
  LABELS,
  OBJECTIVES,
  AdapterRanks,
  BatchRamp,
  LayerChoice,
  LayerPattern,
  MaskMix,
  ParsedOption,
  Rates,
  Remat,
  RopeScaling,
  Template,
  TokenizerSpec,
)

# Ids, positions, rows and steps are int32 on the devices.
MAX_INT32 = 2**31 - 1
# The smallest normal float32; devices flush smaller values to 0.
MIN_FLOAT32 = 1.1754944e-38


class Bounds(NamedTuple):
  """The lowest and highest value; None is the largest float32."""

  low: float
  high: float | None = None


class Added(NamedTuple):
  """The key is newer than some stored runs, which behaved as with `value`.

  A config.json without the key is read as if it held `value`; a config file
  must have every key. A key with this value is left out of the fingerprint, so
  that a run's fingerprint does not change when keys are added.
  """

  value: object


# A path, in which ~ is expanded.
PATH = "path"
# The key affects where, how fast or with what reports a run trains, but not
# what it learns, except for rounding and the dropout masks of microbatches. A
# run may be resumed with another value. On a section it applies to all keys.
FREE = "free"

Count = Annotated[int, Bounds(1, MAX_INT32)]
Steps = Annotated[int, Bounds(0, MAX_INT32)]
Axis = Annotated[int, Bounds(-1, 1 << 24)]
Frac = Annotated[float, Bounds(0.0, 1.0)]
NotNegative = Annotated[float, Bounds(0.0)]
Decay = Annotated[float, Bounds(0.0, 0.9999999)]
FloatType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Section:
  """Turns texts into ParsedOptions when built, also by dataclasses.replace."""

  def __post_init__(self):
    for field in dataclasses.fields(self):
      kind = _plain_types(field.type)[0]
      value = getattr(self, field.name)
      if issubclass(kind, ParsedOption) and not isinstance(value, kind):
        object.__setattr__(self, field.name, kind(value))


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  source: str
  valid_source: str | None
  temperature: Annotated[float | None, Bounds(0.1, 1e6), Added(None)]
  curriculum: Annotated[Stages, Added("none")]
  split: Literal["document", "content", "tail"]
  valid_frac: Annotated[float, Bounds(0.0, 0.99)]
  tokenizer: TokenizerSpec
  dir: Annotated[str, PATH, FREE]
  verify: Annotated[Literal["once", "open", "never"], FREE, Added("once")]
  seq_len: Count
  source_len: Annotated[Count | None, Added(None)]
  packing: Literal["stream", "documents"]
  objective: Annotated[str, tuple(OBJECTIVES), Added("causal")]
  mask_rate: Annotated[float, Bounds(1e-6, 1.0), Added(0.15)]
  mask_mix: Annotated[MaskMix, Added("0.8*mask+0.1*random+0.1*keep")]
  mask_unit: Annotated[Literal["token", "word"], Added("token")]
  fim_rate: Annotated[float, Bounds(0.0, 1.0), Added(0.5)]
  fim_spm_rate: Annotated[float, Bounds(0.0, 1.0), Added(0.5)]
  fim_unit: Annotated[Literal["token", "character"], Added("character")]
  noise_density: Annotated[float, Bounds(1e-6, 0.99), Added(0.15)]
  mean_span_len: Annotated[float, Bounds(1.0), Added(3.0)]
  label: Annotated[str, LABELS, Added("single")]
  template: Annotated[Template, Added("chatml")]
  num_workers: Annotated[int, Bounds(0, 1024), FREE]
  key: Annotated[str | None, FREE, Added(None)]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  family: Annotated[str, tuple(FAMILIES), Added("decoder")]
  num_layers: Annotated[int, Bounds(1, 100_000)]
  num_encoder_layers: Annotated[int | None, Bounds(1, 100_000), Added(None)]
  model_dim: Count
  num_heads: Count
  num_kv_heads: Count | None
  head_dim: Count | None
  kv_lora_rank: Annotated[Count | None, Added(None)]
  q_lora_rank: Annotated[Count | None, Added(None)]
  qk_rope_head_dim: Annotated[Count | None, Added(None)]
  v_head_dim: Annotated[Count | None, Added(None)]
  mlp_dim: Count
  max_len: Count
  vocab_size: Annotated[int | None, Bounds(2, MAX_INT32)]
  vocab_multiple: Count
  norm: Literal["layernorm", "rmsnorm"]
  norm_placement: Literal["pre", "post", "sandwich", "output"]
  parallel_residual: Annotated[bool, Added(False)]
  norm_eps: Frac
  embed_norm: Annotated[bool, Added(False)]
  source_embed: Annotated[Literal["shared", "own"], Added("shared")]
  scaled_embeddings: Annotated[bool, Added(False)]
  scaled_readout: Annotated[bool, Added(False)]
  position: Literal[
    "learned",
    "sinusoidal",
    "sinusoidal_halves",
    "rope",
    "alibi",
    "relative",
    "none",
  ]
  num_token_types: Annotated[Count | None, Added(None)]
  rope_frac: Annotated[float, Bounds(1e-6, 1.0), Added(1.0)]
  rope_theta: Annotated[float, Bounds(1.0)]
  local_rope_theta: Annotated[float | None, Bounds(1.0), Added(None)]
  rope_scaling: RopeScaling
  mlp: Literal[
    "gelu_tanh",
    "gelu",
    "relu",
    "relu_squared",
    "silu",
    "swiglu",
    "geglu",
    "geglu_tanh",
  ]
  num_experts: Annotated[int | None, Bounds(1, 1 << 20)]
  experts_per_token: Annotated[int, Bounds(1, 1 << 20)]
  expert_mlp_dim: Annotated[Count | None, Added(None)]
  num_shared_experts: Annotated[int, Bounds(0, 1 << 20), Added(0)]
  expert_capacity_factor: Annotated[float | None, Bounds(1e-3), Added(None)]
  router_score: Annotated[Literal["softmax", "sigmoid"], Added("softmax")]
  router_normalized: Annotated[bool, Added(True)]
  router_scale: Annotated[float, Bounds(1e-6), Added(1.0)]
  router_groups: Annotated[Count, Added(1)]
  router_groups_per_token: Annotated[Count | None, Added(None)]
  router_balance_weight: NotNegative
  router_bias_rate: Annotated[float, Bounds(0.0), Added(0.0)]
  router_z_weight: Annotated[float, Bounds(0.0), Added(0.0)]
  bias: bool
  qkv_bias: Annotated[bool, Added(False)]
  tied_embeddings: bool
  num_future_tokens: Annotated[Count, Added(1)]
  head: Annotated[
    str, ("linear", "biased", "transform", *CLASS_HEADS), Added("linear")
  ]
  num_classes: Annotated[Count | None, Added(None)]
  pooler: Annotated[bool, Added(False)]
  qk_norm: bool
  qk_norm_over: Annotated[Literal["head", "heads"], Added("head")]
  attn_scale: Annotated[float | None, Bounds(1e-6), Added(None)]
  attn_softcap: Annotated[float | None, Bounds(1e-6)]
  logit_softcap: Annotated[float | None, Bounds(1e-6)]
  sliding_window: Count | None
  layer_pattern: Annotated[LayerPattern, Added("uniform")]
  dropout_rate: Annotated[float, Bounds(0.0, 0.99)]
  init_std: NotNegative
  unembed_init_std: NotNegative | None
  parametrization: Literal["standard", "mup", "completep"]
  base_dim: Count | None
  base_layers: Count | None
  base_head_dim: Count | None
  scan_layers: Annotated[bool, FREE]
  remat: Annotated[Remat, FREE]
  attention: Annotated[
    Literal["auto", "dense", "blocks", "splash", "cudnn", "flash"], FREE
  ]
  seq_attention: Annotated[Literal["gather", "ring"], FREE]
  param_dtype: FloatType
  compute_dtype: FloatType
  grad_dtype: FloatType


@dataclasses.dataclass(frozen=True)
class AdapterConfig(Section):
  rank: Annotated[AdapterRanks, Added("none")]
  alpha: Annotated[float, Bounds(1e-6), Added(16.0)]
  kind: Annotated[Literal["lora", "dora"], Added("lora")]
  base: Annotated[Literal["full", "int8", "int4"], Added("full")]


@dataclasses.dataclass(frozen=True)
class DistillConfig(Section):
  teacher: Annotated[str | None, PATH, Added(None)]
  top_k: Annotated[Count | None, Added(None)]
  kl: Annotated[Literal["forward", "reverse"], Added("forward")]
  temperature: Annotated[float, Bounds(1e-3, 1e3), Added(1.0)]
  weight: Annotated[float, Bounds(0.0, 1.0), Added(0.5)]


@dataclasses.dataclass(frozen=True)
class OptimConfig(Section):
  optimizer: Literal["adamw", "adam", "lion", "adafactor", "sgd", "muon"]
  learning_rate: NotNegative
  schedule: Literal["cosine", "linear", "inverse_sqrt", "constant", "wsd"]
  warmup_steps: Steps
  final_rate_frac: Frac
  decay_frac: Frac
  beta1: Decay
  beta2: Decay
  moment_dtype: FloatType
  eps: Annotated[float, Bounds(MIN_FLOAT32)]
  weight_decay: NotNegative
  rates: Annotated[Rates, Added("none")]
  clip_norm: Annotated[float | None, Bounds(1e-12)]
  noise_multiplier: Annotated[float | None, Bounds(0.2, 1e4), Added(None)]
  privacy_delta: Annotated[float, Bounds(1e-30, 0.5), Added(1e-5)]


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
  num_steps: Count
  global_batch_size: Count
  batch_ramp: BatchRamp
  num_microbatches: Annotated[Count, FREE]
  num_loss_chunks: Annotated[Count, FREE]
  z_loss_weight: NotNegative
  label_smoothing: Annotated[float, Bounds(0.0, 0.99), Added(0.0)]
  preference_beta: Annotated[float, Bounds(1e-6), Added(0.1)]
  group_size: Annotated[Count, Added(1)]
  updates_per_batch: Annotated[Count, Added(1)]
  clip_ratio: Annotated[float, Bounds(1e-6), Added(0.2)]
  kl_weight: Annotated[float, Bounds(0.0), Added(0.0)]
  ema_decay: Decay | None
  log_every_steps: Annotated[Steps, FREE]
  telemetry_every_steps: Annotated[Steps, FREE]
  check_replicas_every_steps: Annotated[Steps, FREE, Added(0)]
  max_nonfinite_steps: Steps
  spike_factor: Annotated[float | None, Bounds(1.0), Added(None)]
  max_rollbacks: Annotated[int, Bounds(0, 1000), Added(0)]
  profile_steps: Annotated[Steps, FREE]
  init_from: Annotated[str | None, PATH]
  init_layers: Annotated[LayerChoice, Added("all")]
  keep_zeros: Annotated[bool, Added(False)]
  wandb_project: Annotated[str | None, FREE]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  data: Axis
  fsdp: Axis
  expert: Axis
  seq: Axis
  tensor: Axis
  rules: Literal["standard", "replicated"]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
  every_steps: Steps
  keep_last: Count
  keep_every_steps: Steps | None
  resume: Literal["auto", "must", "never"]


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
  every_steps: Steps
  num_batches: Count
  tasks: Annotated[str | None, Added(None)]
  task_limit: Annotated[Count | None, Added(None)]


@dataclasses.dataclass(frozen=True)
class SampleConfig(Section):
  every_steps: Steps
  prompt: str
  num_tokens: Count
  temperature: NotNegative


@dataclasses.dataclass(frozen=True)
class Config(Section):
  seed: Annotated[int, Bounds(0, 2**32 - 1)]
  data: DataConfig
  model: ModelConfig
  adapter: AdapterConfig
  distill: DistillConfig
  optim: OptimConfig
  train: TrainConfig
  mesh: Annotated[MeshConfig, FREE]
  checkpoint: Annotated[CheckpointConfig, FREE]
  eval: Annotated[EvalConfig, FREE]
  sample: Annotated[SampleConfig, FREE]


class Key(NamedTuple):
  """The declaration of a key.

  Attributes:
    types: the types that its value may have in a config file.
    options: all values that it may have; empty if they are not a closed set.
    forms: what --help lists: the options, or the forms of a ParsedOption.
  """

  types: tuple[type, ...]
  options: tuple[str, ...]
  forms: tuple[str, ...]
  bounds: Bounds | None
  is_path: bool
  is_free: bool
  added: Added | None


def section_type(hint: Any) -> type | None:
  """Returns the section that a field holds, None if it is a key."""
  kind = typing.get_args(hint)[0] if _is_annotated(hint) else hint
  return kind if dataclasses.is_dataclass(kind) else None


def _is_annotated(hint) -> bool:
  return typing.get_origin(hint) is Annotated


def _plain_types(hint) -> tuple[type, ...]:
  """Returns the types of a hint, without annotations; str for a Literal."""
  if _is_annotated(hint):
    return _plain_types(typing.get_args(hint)[0])
  if typing.get_origin(hint) is Literal:
    return (str,)
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return sum((_plain_types(a) for a in typing.get_args(hint)), ())
  return (hint,)


def _notes(hint) -> list:
  """Returns the annotations and Literal options of a hint and its parts."""
  if typing.get_origin(hint) is Literal:
    return [typing.get_args(hint)]
  if _is_annotated(hint):
    inner, *notes = typing.get_args(hint)
    return _notes(inner) + notes
  return [note for part in typing.get_args(hint) for note in _notes(part)]


def _describe(hint, is_free: bool) -> Key:
  kinds, notes = _plain_types(hint), _notes(hint)
  find = lambda kind: next((n for n in notes if type(n) is kind), None)
  options = find(tuple) or ()
  is_parsed = issubclass(kinds[0], ParsedOption)
  return Key(
    types=(str, *kinds[1:]) if is_parsed else kinds,
    options=options,
    forms=kinds[0].FORMS if is_parsed else options,
    bounds=find(Bounds),
    is_path=PATH in notes,
    is_free=is_free or FREE in notes,
    added=find(Added),
  )


def _list_keys(cls, prefix: str = "", is_free: bool = False) -> dict[str, Key]:
  keys = {}
  for field in dataclasses.fields(cls):
    name, section = prefix + field.name, section_type(field.type)
    if section:
      keys |= _list_keys(section, f"{name}.", FREE in _notes(field.type))
    else:
      keys[name] = _describe(field.type, is_free)
  return keys


# {"section.key": its declaration}
KEYS = _list_keys(Config)
