"""Reads and writes config.json by the tables of architectures."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig, nearest
from gpt_jax.deploy.hf import rope
from gpt_jax.deploy.hf.architectures import ARCHITECTURES
from gpt_jax.deploy.hf.rows import REQUIRED, Architecture, Key

# Fields of our model section that do not change what a model computes.
FREE = (
  *("dropout_rate", "init_std", "unembed_init_std", "parametrization"),
  *("base_dim", "base_layers", "base_head_dim", "scan_layers", "remat"),
  *("attention", "seq_attention", "param_dtype", "compute_dtype", "grad_dtype"),
  *("vocab_multiple", "router_balance_weight", "router_bias_rate"),
  *("router_z_weight", "layer_pattern"),
)
# Fields bounded by the number of tensors, and fields bounded by their dims.
COUNTS = ("num_layers", "num_encoder_layers", "num_experts")
WIDTHS = (
  *("model_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
  *("vocab_size", "expert_mlp_dim", "kv_lora_rank", "q_lora_rank"),
  *("qk_rope_head_dim", "v_head_dim", "num_token_types"),
)
# Fields that are None if config.json has null.
NULLABLE = (
  *("head_dim", "sliding_window", "attn_softcap", "logit_softcap"),
  *("q_lora_rank", "num_kv_heads"),
)
# sliding_window of a model without local layers, where its class needs one.
WINDOW, UNREAD = "sliding_window", 128

# Other names of a function in transformers.
SYNONYMS = {
  "swish": "silu",
  "gelu_accurate": "gelu_new",
  "gelu_fast": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
  "gelu_python_tanh": "gelu_new",
  "gelu_python": "gelu",
}


class Sizes(NamedTuple):
  """Sizes of a folder's tensors, which bound the numbers of its config.json.

  Attributes:
    count: number of tensors that are not empty.
    longest: the largest dim of these.
  """

  count: int
  longest: int


def sizes_of(shapes: Iterable[tuple[int, ...]]) -> Sizes:
  """Returns the sizes of tensors of these shapes."""
  filled = [shape for shape in shapes if math.prod(shape)]
  dims = [dim for shape in filled for dim in shape]
  return Sizes(len(filled), max(dims, default=0))


def find(stated: dict, where: str) -> Architecture:
  """Returns the architecture of a config.json.

  Raises:
    InputError: the architecture is unknown.
  """
  word = stated.get("model_type")
  named: dict[str, list[Architecture]] = {}
  for own, each in ARCHITECTURES.items():
    named.setdefault(each.model_type or own, []).append(each)
  if not isinstance(word, str) or word not in named:
    hint = nearest(f"{word!s:.60}", named)
    raise InputError(f"{where} has model_type {word!r:.60}; {hint}")
  is_told = lambda each: all(
    key in stated and stated[key] == value for key, value in each.told.items()
  )
  return next((each for each in named[word] if is_told(each)), named[word][-1])


def _canonical(value):
  """Returns the main name of a function that has several, or the value."""
  return SYNONYMS.get(value, value) if isinstance(value, str) else value


def read_model(stated: dict, sizes: Sizes, where: str) -> dict[str, Any]:
  """Returns {field of our model section: value}, read from config.json.

  Args:
    sizes: of the tensors, which bound the numbers of config.json.

  Raises:
    InputError: a key is missing, has a wrong type or is out of bounds, or its
      value is not supported.
  """
  found = find(stated, where)
  stated = _own_names(stated, found, where)
  for key, values in found.wanted.items():
    if _canonical(stated.get(key, values[0])) not in map(_canonical, values):
      raise InputError(
        f"{where} has {key} {stated[key]!r:.60}, which is not supported; it "
        f"must be {' or '.join(map(repr, values))}"
      )
  model = dict(found.fixed)
  for key in found.keys:
    is_there = stated.get(key.theirs) is not None
    if key.alias and not is_there and key.alias in stated:
      key = key._replace(theirs=key.alias)
    value = _read_key(stated, key, where)
    if value is not None or key.default is not None:
      model[key.ours] = value
      _check_size(key, value, model, sizes, where)
  is_alone = model.get("experts_per_token") == 1
  if is_alone and model.get("router_normalized", True):
    raise InputError(
      f"{where} has 1 expert per token, whose weight it divides by itself, "
      "which is not supported; it must have 2 or more"
    )
  if found.has_rope:
    model |= rope.read_rope(stated, where, found)
  if found.pattern is not None:
    model |= rope.read_pattern(stated, model, found.pattern, where)
  else:
    rope.check_uniform(stated, bool(model.get("sliding_window")), where)
  if found.read is not None:
    model |= found.read(stated, model, where)
  return model


def _own_names(stated: dict, found: Architecture, where: str) -> dict:
  """Returns `stated` with each synonym of a key replaced by the key.

  Raises:
    InputError: a key has two values.
  """
  own = dict(stated)
  for other, name in found.synonyms.items():
    value = own.pop(other, None)
    if own.get(name) is None and value is not None:
      own[name] = value
    if value not in (None, own.get(name)):
      raise InputError(
        f"{where} has {name} {own[name]!r:.60} and {other} {value!r:.60}, "
        "which are two names of one number; it must have one"
      )
  return own


def read_pair_ids(stated: dict, where: str) -> tuple[int, int]:
  """Returns (the id that begins a target, the id that ends source and target).

  Raises:
    InputError: one of them is missing.
  """
  start = stated.get("decoder_start_token_id", stated.get("pad_token_id"))
  end = stated.get("eos_token_id")
  for name, value in (("decoder_start", start), ("eos", end)):
    if type(value) is not int or value < 0:
      raise InputError(
        f"{where} has {name}_token_id {value!r:.60}; it must be a token's id"
      )
  assert isinstance(start, int) and isinstance(end, int)
  return start, end


def _read_key(stated: dict, key: Key, where: str):
  """Returns the value of a key of the tables; None if it has none."""
  value = stated.get(key.theirs, key.default)
  if value is REQUIRED:
    raise InputError(f"{where} has no {key.theirs}")
  if value is None and (key.default is None or key.ours in NULLABLE):
    return None
  if type(value) not in (int, float, bool):
    raise InputError(
      f"{where} has {key.theirs} {value!r:.60}; it must be a number"
    )
  try:
    ours = key.to_ours(value) if type(value) is int else value
    return config_lib.check_value(f"model.{key.ours}", ours)
  except InputError as error:
    raise InputError(
      f"{where} has {key.theirs} {value!r:.60}, and {error}"
    ) from None


def _check_size(key: Key, value, model: dict, sizes: Sizes, where: str) -> None:
  """Refuses a number that is larger than the tensors allow.

  This must come before anything is allocated by a number of an untrusted file:
  layers and experts become lists, widths and vocabularies arrays.
  """
  if value is None:
    return
  if key.ours in COUNTS:
    most, why = sizes.count, f"the folder holds {sizes.count:,} tensors"
    if key.ours == "num_experts":
      most //= model["num_layers"]
      why += f" for {model['num_layers']:,} layers"
  elif key.ours in WIDTHS or (
    key.ours == "max_len" and model["position"] == "learned"
  ):
    most = sizes.longest
    why = f"no dim of the folder's tensors is larger than {most:,}"
  else:
    return
  if value > most:
    raise InputError(
      f"{where} has {key.theirs} {value}; it must be at most {most}, since "
      f"{why}"
    )


def choose(model: ModelConfig, defaults: ModelConfig) -> str:
  """Returns the model_type that a model of ours can be written as.

  Args:
    defaults: the model section of configs/base.py.

  Raises:
    InputError: there is none; the sentence names what the nearest lacks.
  """
  faults = {}
  for word, found in ARCHITECTURES.items():
    named = {key.ours for key in found.keys} | {*FREE, *found.more}
    named |= {switch for _, switch in found.held}
    if found.has_rope:
      named |= {"rope_theta", "rope_scaling"}
    if found.pattern is not None and found.pattern.theta is not None:
      named |= {"local_rope_theta"}
    if found.pattern is not None and found.pattern.scalar:
      named |= {"attn_scale"}
    if found.rope_frac is not None:
      named |= {"rope_frac"}
    wrong = []
    for field in dataclasses.fields(model):
      value = getattr(model, field.name)
      if field.name in found.fixed:
        is_fine = value == found.fixed[field.name]
      else:
        is_fine = field.name in named
        is_fine = is_fine or value == getattr(defaults, field.name)
      if not is_fine:
        wrong.append(f"model.{field.name} {value!r}")
    told: dict[str, Any] = {}
    for key in found.keys:
      value = getattr(model, key.ours)
      if told.setdefault(key.theirs, value) != value:
        wrong.append(f"model.{key.ours} {value!r}")
    if not _has_layers(found, model):
      wrong.append(f"model.layer_pattern {model.layer_pattern!r}")
    has_experts = any(key.ours == "num_experts" for key in found.keys)
    if has_experts != (model.num_experts is not None):
      wrong.append(f"model.num_experts {model.num_experts}")
    if not wrong:
      return word
    faults[word] = wrong
  word = min(faults, key=lambda word: len(faults[word]))
  raise InputError(
    "no architecture of the hub has this model; the nearest, "
    f"{word}, has no {', '.join(faults[word][:4])}"
  )


def _has_layers(found: Architecture, model: ModelConfig) -> bool:
  """Returns whether an architecture has the layers of model.layer_pattern."""
  parts = [word for _, word in model.layer_pattern.parts]
  is_mixed = any("dense" in word or "moe" in word for word in parts)
  is_local = any("local" in word or "global" in word for word in parts)
  mlps = list(config_lib.mlp_kinds(model))
  is_sorted = found.has_dense and mlps == sorted(mlps)  # dense before moe
  if found.pattern is None:
    is_fine = not is_local
  else:
    is_fine = is_local or model.sliding_window is None
  return is_fine and (is_sorted or not is_mixed)


def write_model(word: str, model: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of a model of ours, without its tokenizer's ids."""
  found = ARCHITECTURES[word]
  stated: dict[str, Any] = {
    "model_type": found.model_type or word,
    "architectures": [found.name],
  }
  stated |= found.told
  stated |= {key: values[0] for key, values in found.wanted.items()}
  for key in found.keys:
    value = getattr(model, key.ours)
    stated[key.theirs] = key.to_theirs(value) if type(value) is int else value
  if found.pattern is not None and model.sliding_window is None:
    # No layer has a window, but the class of transformers computes with it.
    stated |= {k.theirs: UNREAD for k in found.keys if k.ours == WINDOW}
  for key in found.keys:
    if key.alias is not None:
      stated.setdefault(key.alias, stated[key.theirs])
  if stated.get("num_layers", 0) is None:
    stated["num_layers"] = model.num_layers
  if stated.get("num_key_value_heads", 0) is None:
    stated["num_key_value_heads"] = model.num_heads
  if stated.get("head_dim", 0) is None:
    stated["head_dim"] = model.model_dim // model.num_heads
  if stated.get("moe_intermediate_size", 0) is None:
    stated["moe_intermediate_size"] = model.mlp_dim
  if found.has_rope:
    stated |= rope.write_rope(model, found)
  if found.pattern is not None:
    stated |= rope.write_pattern(model, found.pattern)
  if found.write is not None:
    stated |= found.write(model, stated)
  return stated
