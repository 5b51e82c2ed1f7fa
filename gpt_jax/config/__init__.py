"""The configuration as the program sees it: frozen, typed, without defaults.

`configs/base.py` holds every default, `schema.py` declares every key. `freeze`
turns the ConfigDict into frozen sections, which are passed to functions one by
one; they are hashable, so that a compiled function can take one as a static
argument. Values are checked before jax is imported, so that a mistake is
reported within half a second.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any

from gpt_jax import files
from gpt_jax.config.check import (
  ADAMS,
  MAX_BETA2_BFLOAT16,
  check_together,
  cudnn_fault,
  flash_fault,
)
from gpt_jax.config.derived import (
  RELATIVE_BUCKETS,
  RELATIVE_REACH,
  at_step,
  batch_fields,
  batch_stages,
  cached_dims,
  count_sequences,
  expert_mlp_dim,
  has_classes,
  has_embed_norm,
  has_prefixes,
  has_score_bias,
  has_source,
  head_dim,
  is_gated,
  is_packed,
  is_sinusoidal,
  layer_cycle,
  layer_kinds,
  layer_stacks,
  mlp_kinds,
  num_classes,
  num_kv_heads,
  num_scored,
  num_sublayers,
  padded_vocab_size,
  rope_dim,
  sample_steps,
  stack_config,
  stack_configs,
  tokenizer_spec,
  value_dim,
  vocab_size,
)
from gpt_jax.config.identity import (
  differing_keys,
  fingerprint,
  flatten,
  is_free,
  nest,
)
from gpt_jax.config.lengths import RowLengths, denoisers, row_lengths
from gpt_jax.config.options import (
  CLASS_HEADS,
  FAMILIES,
  LABELS,
  MAX_FLOAT32,
  NUM_SENTINELS,
  OBJECTIVES,
  TOKENIZERS,
  ParsedOption,
  Template,
)
from gpt_jax.config.schema import (
  KEYS,
  AdapterConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  DistillConfig,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  SampleConfig,
  TrainConfig,
  section_type,
)
from gpt_jax.exits import InputError

# Weight formats for decoding: "full" is model.compute_dtype.
WEIGHTS = ("full", "int8", "int4")


def freeze(config: Any) -> Config:
  """Returns the frozen Config of a ConfigDict (or plain nested dict).

  Raises:
    InputError: a key is unknown or missing, a value has the wrong type or is
      out of range, or values conflict. The sentence names the key.
  """
  frozen = _build(Config, dict(config), "")
  check_together(frozen)
  return frozen


def nearest(word: str, words: Iterable[str]) -> str:
  """Returns "did you mean X?" or, if nothing is similar, a list of words."""
  words = list(words)
  close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
  if close:
    return f"did you mean {close[0]}?"
  return "valid here: " + ", ".join(words)


def nearest_key(dotted: str) -> str:
  """Returns "did you mean KEY?" for an unknown key, or a list of keys.

  Keys with the same or a similar last part come first. Of several such keys it
  suggests the most similar one, or all of them if `dotted` has no section.
  """
  *sections, last = dotted.split(".")
  owners: dict[str, list[str]] = {}
  for key in KEYS:
    owners.setdefault(key.split(".")[-1], []).append(key)
  tops = {key.split(".")[0]: [key.split(".")[0]] for key in KEYS}
  words = tops | owners
  close = [last] if last in owners else []
  close = close or difflib.get_close_matches(last, words, n=1, cutoff=0.6)
  if close:
    near = words[close[0]]
    if sections:
      near = difflib.get_close_matches(dotted, near, n=1, cutoff=0)
    return f"did you mean {' or '.join(near)}?"
  within = [key for key in KEYS if sections == key.split(".")[:-1]]
  return "valid here: " + ", ".join(within if sections and within else tops)


def require_choice(key: str, value: str, words: Collection[str]) -> None:
  """Raises InputError unless `value` is one of `words`."""
  if value not in words:
    raise InputError(
      f"{key} is {value!r}; it must be one of {', '.join(words)}"
    )


def _build(cls, values: dict, prefix: str):
  fields = {f.name: section_type(f.type) for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise InputError(
        f"unknown config key {prefix}{key}; {nearest_key(prefix + key)}"
      )
  built = {}
  for key, section in fields.items():
    if key not in values:
      raise InputError(f"config key {prefix}{key} is missing")
    value = values[key]
    if section:
      if not hasattr(value, "items"):
        raise InputError(f"config section {prefix}{key} must hold keys")
      built[key] = _build(section, dict(value.items()), f"{prefix}{key}.")
    else:
      built[key] = check_value(f"{prefix}{key}", value)
  return cls(**built)


def check_value(key: str, value: Any):
  """Returns the value of a key as it is stored in the frozen config.

  Raises:
    InputError: it has the wrong type, is not an option, or is out of bounds.
  """
  line = KEYS[key]
  kinds = line.types
  value = _plain(value, kinds)
  if type(value) not in kinds:
    names = " or ".join(
      "None" if k is type(None) else k.__name__ for k in kinds
    )
    raise InputError(f"{key} is {value!r}; it must be of type {names}")
  if line.options:
    require_choice(key, value, line.options)
  if line.is_path and value is not None:
    return files.user_path(key, value, may_be_address=True)
  if type(value) is float:
    _check_float32(key, value)
    value += 0.0  # turns -0.0 into 0.0, so that fingerprints agree
  if line.bounds and value is not None:
    low, high = line.bounds.low, line.bounds.high
    if not (value >= low and (high is None or value <= high)):
      bound = f"at least {low}" + ("" if high is None else f", at most {high}")
      raise InputError(f"{key} is {value}; it must be {bound}")
  return value


def _plain(value: Any, kinds: tuple[type, ...]) -> Any:
  """Returns a ParsedOption as a str, and an int as a float for float keys."""
  if isinstance(value, ParsedOption):
    return str(value)
  if float in kinds and type(value) is int:
    # Python refuses to convert an integer that a float cannot hold.
    return float(value) if abs(value) < 1 << 1023 else math.inf
  return value


def _check_float32(key: str, value: float) -> None:
  if not math.isfinite(value):
    raise InputError(f"{key} is {value}; it must be a finite number")
  if abs(value) > MAX_FLOAT32:
    raise InputError(
      f"{key} is {value}, which is infinite in float32; it must be at most "
      f"{MAX_FLOAT32:.3g}"
    )
