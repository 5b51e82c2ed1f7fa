"""The configuration as the program sees it: frozen, typed, without defaults.

`configs/base.py` owns every default. `freeze` turns its ConfigDict into the
dataclasses below, which functions receive one section at a time; they are
hashable, so that a compiled function can take one as a static argument.
Values are checked here and before jax is imported, so that a mistake costs
half a second.
"""

import dataclasses
import difflib
import math
import re
import typing

from gpt_jax import digest, files
from gpt_jax.exits import InputError as InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
  source: str
  valid_source: str | None
  split: str
  valid_frac: float
  tokenizer: str
  dir: str
  verify: str
  seq_len: int
  packing: str
  objective: str
  num_workers: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  family: str
  num_layers: int
  model_dim: int
  num_heads: int
  num_kv_heads: int | None
  head_dim: int | None
  mlp_dim: int
  max_len: int
  vocab_size: int | None
  vocab_multiple: int
  norm: str
  norm_placement: str
  norm_eps: float
  position: str
  rope_theta: float
  local_rope_theta: float | None
  rope_scaling: str
  mlp: str
  num_experts: int | None
  experts_per_token: int
  router_balance_weight: float
  bias: bool
  tied_embeddings: bool
  qk_norm: bool
  attn_softcap: float | None
  logit_softcap: float | None
  sliding_window: int | None
  layer_pattern: str
  dropout_rate: float
  init_std: float
  unembed_init_std: float | None
  parametrization: str
  base_dim: int | None
  base_layers: int | None
  base_head_dim: int | None
  scan_layers: bool
  remat: str
  attention: str
  seq_attention: str
  param_dtype: str
  compute_dtype: str
  grad_dtype: str


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  optimizer: str
  learning_rate: float
  schedule: str
  warmup_steps: int
  final_rate_frac: float
  decay_frac: float
  beta1: float
  beta2: float
  moment_dtype: str
  eps: float
  weight_decay: float
  clip_norm: float | None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  num_steps: int
  global_batch_size: int
  batch_ramp: str
  num_microbatches: int
  num_loss_chunks: int
  z_loss_weight: float
  ema_decay: float | None
  log_every_steps: int
  telemetry_every_steps: int
  check_replicas_every_steps: int
  max_nonfinite_steps: int
  spike_factor: float | None
  max_rollbacks: int
  profile_steps: int
  init_from: str | None
  wandb_project: str | None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int
  fsdp: int
  expert: int
  seq: int
  tensor: int
  rules: str


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every_steps: int
  keep_last: int
  keep_every_steps: int | None
  resume: str


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  every_steps: int
  num_batches: int


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  every_steps: int
  prompt: str
  num_tokens: int
  temperature: float


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int
  data: DataConfig
  model: ModelConfig
  optim: OptimConfig
  train: TrainConfig
  mesh: MeshConfig
  checkpoint: CheckpointConfig
  eval: EvalConfig
  sample: SampleConfig


def _list_keys(cls, prefix: str = "") -> dict[str, tuple[type, ...]]:
  keys = {}
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      keys |= _list_keys(field.type, f"{prefix}{field.name}.")
    else:
      kinds = typing.get_args(field.type) or (field.type,)
      keys[prefix + field.name] = kinds
  return keys


# {"section.key": types that its value may have}
KEYS = _list_keys(Config)

# What decoding may read matrices in: model.compute_dtype, or so many bits.
WEIGHTS = ("full", "int8", "int4")

# Words that a key accepts where the set is closed.
CHOICES = {
  "data.split": ("document", "tail"),
  "data.packing": ("stream", "documents"),
  "data.objective": ("causal", "prefix_lm"),
  "data.verify": ("once", "open", "never"),
  "model.family": ("decoder",),
  "model.norm": ("layernorm", "rmsnorm"),
  "model.norm_placement": ("pre", "post"),
  "model.position": ("learned", "rope", "alibi", "none"),
  "model.mlp": ("gelu_tanh", "gelu", "swiglu", "relu_squared"),
  "model.parametrization": ("standard", "mup", "completep"),
  "model.attention": ("auto", "dense", "blocks", "splash", "cudnn"),
  "model.seq_attention": ("gather", "ring"),
  "model.param_dtype": ("float32", "bfloat16"),
  "model.compute_dtype": ("float32", "bfloat16"),
  "model.grad_dtype": ("float32", "bfloat16"),
  "optim.optimizer": ("adamw", "adam", "lion", "adafactor", "sgd", "muon"),
  "optim.moment_dtype": ("float32", "bfloat16"),
  "optim.schedule": ("cosine", "linear", "inverse_sqrt", "constant", "wsd"),
  "mesh.rules": ("standard", "replicated"),
  "checkpoint.resume": ("auto", "must", "never"),
}

# Kinds of data.tokenizer, and what follows their colon.
TOKENIZERS = {
  "bytes": None,
  "chars": None,
  "bpe": "SIZE",
  "gpt2": "PATH",
  "hf": "PATH",
}

# Keys that are paths, of which ~ is expanded.
PATHS = ("data.dir", "train.init_from")

# Ids, positions, rows and steps are int32 on the devices.
MAX_INT32 = 2**31 - 1
# Smallest normal and largest float32: beyond them, numbers turn 0 and inf.
MIN_FLOAT32, MAX_FLOAT32 = 1.1754944e-38, 3.4028234e38

# (lowest, highest) that a number may be; None is what float32 can hold.
RANGES = {
  "seed": (0, 2**32 - 1),
  "data.valid_frac": (0.0, 0.99),
  "data.seq_len": (1, MAX_INT32),
  "data.num_workers": (0, 1024),
  "model.num_layers": (1, 100_000),
  "model.model_dim": (1, MAX_INT32),
  "model.num_heads": (1, MAX_INT32),
  "model.num_kv_heads": (1, MAX_INT32),
  "model.head_dim": (1, MAX_INT32),
  "model.mlp_dim": (1, MAX_INT32),
  "model.num_experts": (1, 1 << 20),
  "model.experts_per_token": (1, 1 << 20),
  "model.router_balance_weight": (0.0, None),
  "model.max_len": (1, MAX_INT32),
  "model.vocab_size": (2, MAX_INT32),
  "model.vocab_multiple": (1, MAX_INT32),
  "model.norm_eps": (0.0, 1.0),
  "model.rope_theta": (1.0, None),
  "model.local_rope_theta": (1.0, None),
  "model.attn_softcap": (1e-6, None),
  "model.logit_softcap": (1e-6, None),
  "model.sliding_window": (1, MAX_INT32),
  "model.dropout_rate": (0.0, 0.99),
  "model.init_std": (0.0, None),
  "model.unembed_init_std": (0.0, None),
  "model.base_dim": (1, MAX_INT32),
  "model.base_layers": (1, MAX_INT32),
  "model.base_head_dim": (1, MAX_INT32),
  "optim.learning_rate": (0.0, None),
  "optim.warmup_steps": (0, MAX_INT32),
  "optim.final_rate_frac": (0.0, 1.0),
  "optim.decay_frac": (0.0, 1.0),
  "optim.beta1": (0.0, 0.9999999),
  "optim.beta2": (0.0, 0.9999999),
  "optim.eps": (MIN_FLOAT32, None),
  "optim.weight_decay": (0.0, None),
  "optim.clip_norm": (1e-12, None),
  "train.num_steps": (1, MAX_INT32),
  "train.global_batch_size": (1, MAX_INT32),
  "train.num_microbatches": (1, MAX_INT32),
  "train.num_loss_chunks": (1, MAX_INT32),
  "train.z_loss_weight": (0.0, None),
  "train.ema_decay": (0.0, 0.9999999),
  "train.log_every_steps": (0, MAX_INT32),
  "train.telemetry_every_steps": (0, MAX_INT32),
  "train.check_replicas_every_steps": (0, MAX_INT32),
  "train.max_nonfinite_steps": (0, MAX_INT32),
  "train.spike_factor": (1.0, None),
  "train.max_rollbacks": (0, 1000),
  "train.profile_steps": (0, MAX_INT32),
  "mesh.data": (-1, 1 << 24),
  "mesh.fsdp": (-1, 1 << 24),
  "mesh.expert": (-1, 1 << 24),
  "mesh.seq": (-1, 1 << 24),
  "mesh.tensor": (-1, 1 << 24),
  "checkpoint.every_steps": (0, MAX_INT32),
  "checkpoint.keep_last": (1, MAX_INT32),
  "checkpoint.keep_every_steps": (0, MAX_INT32),
  "eval.every_steps": (0, MAX_INT32),
  "eval.num_batches": (1, MAX_INT32),
  "sample.every_steps": (0, MAX_INT32),
  "sample.num_tokens": (1, MAX_INT32),
  "sample.temperature": (0.0, None),
}

# Kinds of layers, which model.layer_pattern names.
LAYER_KINDS = ("global", "local")
# What model.remat can name: the activations of a block that backward needs.
REMAT_NAMES = ("block", "qkv", "attn", "mlp")
# A moment in bfloat16 must move by more than half its last bit to move at all.
MAX_BETA2_BFLOAT16 = 0.99

# Optimizers that divide by the root of a second moment and eps.
ADAMS = ("adamw", "adam", "muon")

# Optimizers that the table of parametrizations is made for: their updates are
# of one size whatever the gradient's.
PARAMETRIZED = ("adamw", "adam")

# Keys that place, pace or report a run and leave what it learns the same, but
# for rounding and for which dropout masks microbatches draw; a run may be
# resumed with others.
FREE = (
  "data.dir",
  "data.verify",
  "data.num_workers",
  "model.scan_layers",
  "model.remat",
  "model.attention",
  "model.seq_attention",
  "train.num_microbatches",
  "train.num_loss_chunks",
  "train.log_every_steps",
  "train.telemetry_every_steps",
  "train.check_replicas_every_steps",
  "train.profile_steps",
  "train.wandb_project",
  "mesh.",
  "checkpoint.",
  "eval.",
  "sample.",
)

# Keys that were added after runs had been stored, with what those runs did: a
# config.json without the key is read as if it said so. A config file must have
# every key. While a key has this value it is no part of a fingerprint, so that
# a run keeps its name when keys are added.
ADDED = {
  "train.check_replicas_every_steps": 0,
  "data.verify": "once",
  "train.spike_factor": None,
  "train.max_rollbacks": 0,
  "model.family": "decoder",
  "data.objective": "causal",
  "model.layer_pattern": "uniform",
  "model.local_rope_theta": None,
}


def freeze(config) -> Config:
  """Returns the frozen Config of a ConfigDict (or plain nested dict).

  Raises:
    InputError: a key is unknown or missing, a value has the wrong type or is
      out of range, or values do not go together. The sentence names the key.
  """
  frozen = _build(Config, dict(config), "")
  _check(frozen)
  return frozen


def flatten(config: Config) -> dict:
  """Returns {"section.key": value} in the order of declaration."""
  flat = {}
  for name, value in dataclasses.asdict(config).items():
    if isinstance(value, dict):
      flat.update({f"{name}.{key}": v for key, v in value.items()})
    else:
      flat[name] = value
  return flat


def fingerprint(config: Config) -> str:
  """Returns 16 hex digits that name what this config learns (FREE apart)."""
  is_as_before = lambda key, value: key in ADDED and ADDED[key] == value
  kept = {
    key: value
    for key, value in flatten(config).items()
    if not is_free(key) and not is_as_before(key, value)
  }
  return digest.of_json(kept)[:16]


def is_free(key: str) -> bool:
  """Returns whether a run may be resumed with another value of `key`."""
  return any(key.startswith(f) if f.endswith(".") else key == f for f in FREE)


def differing_keys(old: Config, new: Config) -> list[str]:
  """Returns "key (old value, new value)" for every key that is not free."""
  a, b = flatten(old), flatten(new)
  return [
    f"{key} ({a[key]!r} there, {b[key]!r} here)"
    for key in a
    if a[key] != b[key] and not is_free(key)
  ]


def nearest(word: str, words) -> str:
  """Returns ', did you mean X?' or, where nothing is near, a list."""
  words = list(words)
  close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
  if close:
    return f"did you mean {close[0]}?"
  return "valid here: " + ", ".join(words)


def nearest_key(dotted: str) -> str:
  """Returns `nearest` over all keys; the same last word wins at once."""
  *sections, last = dotted.split(".")
  owners = [key for key in KEYS if key.split(".")[-1] == last]
  if owners:
    return f"did you mean {owners[0]}?"
  tops = {key.split(".")[0]: key.split(".")[0] for key in KEYS}
  words = tops | {key.split(".")[-1]: key for key in KEYS}
  close = difflib.get_close_matches(last, words, n=1, cutoff=0.6)
  if close:
    return f"did you mean {words[close[0]]}?"
  within = [key for key in KEYS if sections == key.split(".")[:-1]]
  return "valid here: " + ", ".join(within if sections and within else tops)


def require_choice(key: str, value: str, words) -> None:
  """Raises InputError unless `value` is one of `words`."""
  if value not in words:
    raise InputError(
      f"{key} is {value!r}; it must be one of {', '.join(words)}"
    )


def _build(cls, values: dict, prefix: str):
  fields = {f.name: f.type for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise InputError(
        f"unknown config key {prefix}{key}; {nearest_key(prefix + key)}"
      )
  built = {}
  for key, kind in fields.items():
    if key not in values:
      raise InputError(f"config key {prefix}{key} is missing")
    value = values[key]
    if dataclasses.is_dataclass(kind):
      if not hasattr(value, "items"):
        raise InputError(f"config section {prefix}{key} must hold keys")
      built[key] = _build(kind, dict(value.items()), f"{prefix}{key}.")
    else:
      built[key] = _typed(f"{prefix}{key}", value)
  return cls(**built)


def _typed(key: str, value):
  kinds = KEYS[key]
  if float in kinds and type(value) is int:
    # Python refuses to convert an integer that a float cannot hold.
    value = float(value) if abs(value) < 1 << 1023 else math.inf
  if type(value) not in kinds:
    names = " or ".join(
      "None" if k is type(None) else k.__name__ for k in kinds
    )
    raise InputError(f"{key} is {value!r}; it must be of type {names}")
  if key in CHOICES:
    require_choice(key, value, CHOICES[key])
  if key in PATHS and value is not None:
    value = files.user_path(key, value)
  if type(value) is float and not math.isfinite(value):
    raise InputError(f"{key} is {value}; it must be a finite number")
  if type(value) is float and abs(value) > MAX_FLOAT32:
    raise InputError(
      f"{key} is {value}, which is infinite in float32; it must be at most "
      f"{MAX_FLOAT32:.3g}"
    )
  if type(value) is float:
    value += 0.0  # of -0.0, which is the same value and another text
  if key in RANGES and value is not None:
    low, high = RANGES[key]
    if not (value >= low and (high is None or value <= high)):
      bound = f"at least {low}" + ("" if high is None else f", at most {high}")
      raise InputError(f"{key} is {value}; it must be {bound}")
  return value


def _check(c: Config) -> None:
  """Refuses values that are fine alone and cannot work together."""
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
  if m.position == "rope" and head_dim(m) % 2:
    raise InputError(
      f"model.position='rope' turns pairs, so the head width must be even; "
      f"it is {head_dim(m)}"
    )
  tokenizer_spec(c.data.tokenizer)
  rope_scaling(m)
  remat_policy(m)
  _check_layers(m)
  if m.num_experts is not None:
    if m.experts_per_token > m.num_experts:
      raise InputError(
        f"model.experts_per_token is {m.experts_per_token}; it must be at most "
        f"model.num_experts {m.num_experts}"
      )
    if c.mesh.expert > 0 and m.num_experts % c.mesh.expert:
      raise InputError(
        f"mesh.expert is {c.mesh.expert}; it must divide model.num_experts "
        f"{m.num_experts}"
      )
  if c.data.seq_len > m.max_len:
    raise InputError(
      f"data.seq_len is {c.data.seq_len}, longer than model.max_len "
      f"{m.max_len}; raise model.max_len or shorten the sequences"
    )
  o, t = c.optim, c.train
  if t.global_batch_size * c.data.seq_len > MAX_INT32:
    raise InputError(
      f"train.global_batch_size is {t.global_batch_size:,} and data.seq_len "
      f"is {c.data.seq_len:,}, {t.global_batch_size * c.data.seq_len:,} tokens "
      f"in a step; they must be at most {MAX_INT32:,}"
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
  batch_stages(t)
  if o.moment_dtype == "bfloat16" and o.beta2 > MAX_BETA2_BFLOAT16:
    raise InputError(
      f"optim.moment_dtype is bfloat16 and optim.beta2 is {o.beta2}; changes "
      f"of less than 1 in 256 are lost in it: beta2 must be at most "
      f"{MAX_BETA2_BFLOAT16}"
    )
  if m.tied_embeddings and m.unembed_init_std is not None:
    raise InputError(
      f"model.unembed_init_std is {m.unembed_init_std:g} and "
      "model.tied_embeddings is True: the output matrix is the embedding and "
      "starts by model.init_std; untie them, or leave it None"
    )
  _check_parametrization(c)
  _check_attention(c)
  _check_objective(c)
  sizes = dataclasses.asdict(c.mesh)
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
  """Refuses a pattern of layers that lacks its window, and the reverse."""
  has_local = "local" in layer_kinds(m)
  if has_local and m.sliding_window is None:
    raise InputError(
      f"model.layer_pattern is {m.layer_pattern!r} and model.sliding_window is "
      "None; give the window of the local layers"
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


def _check_parametrization(c: Config) -> None:
  """Refuses a parametrization that lacks its base or has no rule for this."""
  m, word = c.model, c.model.parametrization
  if word == "standard":
    return
  asked = f"model.parametrization is {word}"
  if m.base_dim is None:
    raise InputError(
      f"{asked} and model.base_dim is None; give the width that the learning "
      "rate was found at"
    )
  if word == "completep" and m.base_layers is None:
    raise InputError(
      f"{asked} and model.base_layers is None; give the number of blocks that "
      "the learning rate was found at"
    )
  if word == "completep" and m.norm_placement != "pre":
    raise InputError(
      f"{asked}, which scales what is added to the residual stream, and "
      f"model.norm_placement is {m.norm_placement}; it must be pre"
    )
  if c.optim.optimizer not in PARAMETRIZED:
    raise InputError(
      f"{asked}, which has rules for {' and '.join(PARAMETRIZED)}, and "
      f"optim.optimizer is {c.optim.optimizer}; take one of them, or standard"
    )


def _check_attention(c: Config) -> None:
  """Refuses a kernel of attention that cannot do what the model asks for."""
  m, word = c.model, c.model.attention
  is_ring = m.seq_attention == "ring" and c.mesh.seq != 1
  if word not in ("auto", "dense") or is_ring:
    if word in ("auto", "dense"):
      asked = "model.seq_attention is ring"
    else:
      asked = f"model.attention is {word}"
    if m.position == "alibi":
      raise InputError(
        f"{asked}, which has no position='alibi'; only dense attention with "
        "seq_attention='gather' has"
      )
    if m.dropout_rate > 0:
      raise InputError(
        f"{asked}, which cannot drop attention weights, and "
        f"model.dropout_rate is {m.dropout_rate}; only dense attention with "
        "seq_attention='gather' can"
      )
  if is_ring and word in ("dense", "cudnn"):
    raise InputError(
      f"model.attention is {word}, which cannot run as a ring; "
      "seq_attention='ring' goes with auto, blocks or splash"
    )
  fault = cudnn_fault(m)
  if word == "cudnn" and fault:
    raise InputError(f"model.attention is cudnn, which {fault}")
  if word == "cudnn" and c.mesh.seq > 1:
    raise InputError(
      f"model.attention is cudnn and mesh.seq is {c.mesh.seq}; it serves whole "
      "rows alone: take auto or blocks"
    )


def _check_objective(c: Config) -> None:
  """Refuses an objective that the model or the data cannot carry."""
  if c.data.objective != "prefix_lm":
    return
  asked = "data.objective is prefix_lm, whose prefixes see both ways,"
  if c.data.packing == "documents":
    raise InputError(
      f"{asked} and data.packing is documents; a prefix is that of a whole "
      "sequence: leave it stream"
    )
  if c.model.attention in ("splash", "cudnn"):
    raise InputError(
      f"{asked} and model.attention is {c.model.attention}, which has no "
      "prefixes; take auto, dense or blocks"
    )
  if c.model.position == "alibi" or c.model.sliding_window is not None:
    raise InputError(
      f"{asked} and the model has ALiBi or a sliding window, which go by "
      "distance; it must have neither"
    )


def cudnn_fault(model: ModelConfig) -> str | None:
  """Returns why cuDNN cannot attend for this model, None if it can."""
  H = head_dim(model)
  if model.attn_softcap is not None:
    return "has no soft-cap, and model.attn_softcap is set"
  if model.compute_dtype != "bfloat16":
    return f"needs compute_dtype='bfloat16', found {model.compute_dtype!r}"
  if H % 8 or H > 128:
    return f"needs a head width of 8, 16, ... or 128, found {H}"
  return None


def head_dim(model: ModelConfig) -> int:
  """Returns H, the width of a head."""
  return model.head_dim or model.model_dim // model.num_heads


def num_kv_heads(model: ModelConfig) -> int:
  """Returns K, the number of key and value heads."""
  return model.num_kv_heads or model.num_heads


def padded_vocab_size(model: ModelConfig) -> int:
  """Returns the rows of the embedding: vocab_size up to vocab_multiple."""
  return -(-model.vocab_size // model.vocab_multiple) * model.vocab_multiple


def tokenizer_spec(spec: str) -> tuple[str, str]:
  """Returns (kind, argument) of data.tokenizer, such as ("bpe", "4096").

  Raises:
    InputError: the kind is unknown, or its size or path is missing or wrong.
  """
  kind, colon, argument = spec.partition(":")
  form = TOKENIZERS.get(kind)
  is_known = kind in TOKENIZERS and bool(colon) == bool(form)
  if not is_known or (form == "PATH" and not argument):
    kinds = [f"{k}:{v}" if v else k for k, v in TOKENIZERS.items()]
    raise InputError(
      f"data.tokenizer is {spec!r}; it must be one of {', '.join(kinds)}"
    )
  if form == "SIZE":
    is_number = re.fullmatch("[0-9]{1,9}", argument)
    if not is_number or not 257 <= int(argument) <= 1 << 20:
      raise InputError(
        f"data.tokenizer is {spec!r}; the size of a bpe vocabulary must be a "
        "whole number from 257 (256 bytes and the separator) to 1048576"
      )
  return kind, argument


def layer_kinds(model: ModelConfig) -> tuple[str, ...]:
  """Returns the kind of each layer, global or local.

  A local layer sees model.sliding_window slots. With model.layer_pattern
  "uniform" all layers are local where there is a window, and global where
  there is none.

  Raises:
    InputError: the pattern cannot be read.
  """
  pattern, depth = model.layer_pattern, model.num_layers
  if pattern == "uniform":
    kind = "global" if model.sliding_window is None else "local"
    return (kind,) * depth
  kinds = []
  for part in pattern.split("+"):
    count, star, kind = part.rpartition("*")
    is_count = count.isdecimal() and len(count) <= 6 and int(count) > 0
    if kind not in LAYER_KINDS or (star and not is_count):
      raise InputError(
        f"model.layer_pattern is {pattern!r}; it must be uniform, or kinds in "
        f"the order of the layers, of {', '.join(LAYER_KINDS)}, which repeat: "
        "local+global or 5*local+global"
      )
    number = int(count) if star else 1
    if len(kinds) + number > depth:
      raise InputError(
        f"model.layer_pattern is {pattern!r} and model.num_layers is {depth}; "
        "the pattern must not be longer than the model"
      )
    kinds += [kind] * number
  return tuple(kinds[layer % len(kinds)] for layer in range(depth))


def layer_period(model: ModelConfig) -> int:
  """Returns the number of layers after which the kinds repeat."""
  kinds = layer_kinds(model)
  return next(
    n
    for n in range(1, len(kinds) + 1)
    if all(kinds[i] == kinds[i % n] for i in range(len(kinds)))
  )


def rope_scaling(model: ModelConfig) -> tuple[str, tuple[float, ...]]:
  """Returns (mechanism, numbers) of model.rope_scaling."""
  word, *numbers = model.rope_scaling.split(":")
  wanted = {"none": 0, "linear": 1, "llama3": 2}
  try:
    values = tuple(float(n) for n in numbers)
  except ValueError:
    values = ()
  if (
    word not in wanted
    or len(values) != wanted[word]
    or not all(0 < v <= MAX_FLOAT32 for v in values)
  ):
    raise InputError(
      f"model.rope_scaling is {model.rope_scaling!r}; it must be none, "
      "linear:FACTOR or llama3:FACTOR:ORIGINAL_LEN"
    )
  return word, values


def batch_stages(train: TrainConfig) -> list[tuple[int, int]]:
  """Returns [(first step, sequences in a batch)] of train.batch_ramp.

  Raises:
    InputError: the ramp cannot be read, or does not go with the batch.
  """
  whole, asked = train.global_batch_size, train.batch_ramp
  if asked == "none":
    return [(0, whole)]
  stages, step, last = [], 0, math.inf
  for part in asked.split("+"):
    divisor, at, steps = part.partition("@")
    # Ten digits hold every int32, and Python refuses to convert thousands.
    is_whole = lambda n: n.isdecimal() and len(n) <= 10
    numbers = [int(n) for n in (divisor, steps) if is_whole(n)]
    if not at or len(numbers) != 2 or min(numbers) < 1 or numbers[0] >= last:
      raise InputError(
        f"train.batch_ramp is {asked!r}; it must be none or DIVISOR@STEPS+..., "
        "with divisors that fall, as in 4@100+2@200"
      )
    last = numbers[0]
    if whole % last:
      raise InputError(
        f"train.batch_ramp is {asked!r}, and {last} does not divide "
        f"train.global_batch_size {whole}"
      )
    stages.append((step, whole // last))
    step += numbers[1]
  if step >= train.num_steps:
    raise InputError(
      f"train.batch_ramp is {asked!r}, {step:,} steps, and train.num_steps is "
      f"{train.num_steps:,}; the ramp must be shorter than the run"
    )
  return [*stages, (step, whole)]


def count_sequences(train: TrainConfig, step: int) -> int:
  """Returns the sequences of the first `step` steps."""
  stages = batch_stages(train)
  ends = [first for first, _ in stages[1:]] + [math.inf]
  return sum(
    size * max(0, min(step, end) - first)
    for (first, size), end in zip(stages, ends, strict=True)
  )


def at_step(config: Config, step: int) -> Config:
  """Returns the config without a ramp, of the batch that a step has.

  A microbatch has at most the sequences of one of the whole batch.
  """
  t = config.train
  size = [size for first, size in batch_stages(t) if first <= step][-1]
  parts = -(-t.num_microbatches * size // t.global_batch_size)
  parts = next(n for n in range(parts, size + 1) if size % n == 0)
  t = dataclasses.replace(
    t, global_batch_size=size, num_microbatches=parts, batch_ramp="none"
  )
  return dataclasses.replace(config, train=t)


def remat_policy(model: ModelConfig) -> tuple[str, tuple[str, ...]]:
  """Returns (none | full | dots | save | offload, names) of model.remat."""
  word, colon, rest = model.remat.partition(":")
  names = tuple(rest.split("+")) if colon else ()
  is_whole = word in ("none", "full", "dots") and not colon
  is_named = word in ("save", "offload") and set(names) <= set(REMAT_NAMES)
  if not (is_whole or (is_named and names)):
    raise InputError(
      f"model.remat is {model.remat!r}; it must be none, full, dots, "
      "save:NAMES or offload:NAMES, with NAMES of "
      f"{', '.join(REMAT_NAMES)} joined by +"
    )
  return word, names
