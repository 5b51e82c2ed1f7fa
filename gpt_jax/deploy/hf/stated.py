"""What config.json states of a model, read and written by the tables."""

import dataclasses
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig, nearest
from gpt_jax.deploy.hf.architectures import (
  ARCHITECTURES,
  REQUIRED,
  Architecture,
)

# Fields of our model section that do not change what a model computes.
FREE = (
  *("dropout_rate", "init_std", "unembed_init_std", "parametrization"),
  *("base_dim", "base_layers", "base_head_dim", "scan_layers", "remat"),
  *("attention", "seq_attention", "param_dtype", "compute_dtype", "grad_dtype"),
  *("vocab_multiple", "router_balance_weight", "router_bias_rate"),
  *("router_z_weight", "layer_pattern"),
)


def find(stated: dict, where: str) -> Architecture:
  """Returns the architecture of their config.

  Raises:
    InputError: it is none that is known.
  """
  word = stated.get("model_type")
  if word not in ARCHITECTURES:
    hint = nearest(str(word), ARCHITECTURES)
    raise InputError(f"{where} has model_type {word!r:.60}; {hint}")
  return ARCHITECTURES[word]


def read_model(stated: dict, where: str) -> dict[str, Any]:
  """Returns {field of our model section: value} of their config.

  Raises:
    InputError: a key is missing or of another type, or states what cannot be
      represented.
  """
  found = find(stated, where)
  for key, values in found.wanted.items():
    if stated.get(key, values[0]) not in values:
      raise InputError(
        f"{where} has {key} {stated[key]!r:.60}, which is not supported; it "
        f"must be {' or '.join(map(repr, values))}"
      )
  model = dict(found.fixed)
  for key in found.keys:
    value = stated.get(key.theirs, key.default)
    if value is REQUIRED or (value is None and key.default is REQUIRED):
      raise InputError(f"{where} has no {key.theirs}")
    if value is not None and type(value) not in (int, float, bool):
      raise InputError(
        f"{where} has {key.theirs} {value!r:.60}; it must be a number"
      )
    if value is not None:
      model[key.ours] = value
  if found is ARCHITECTURES["gpt2"]:
    model.setdefault("mlp_dim", 4 * model["model_dim"])
  if found.has_rope:
    model |= read_rope(stated, where)
  if found.has_pattern:
    model |= read_pattern(stated, model, where)
  return model


def read_pattern(stated: dict, model: dict, where: str) -> dict[str, Any]:
  """Returns layer_pattern and local_rope_theta of Gemma 3's config."""
  scalar = stated.get("query_pre_attn_scalar", 256)
  if scalar != model["head_dim"]:
    raise InputError(
      f"{where} has query_pre_attn_scalar {scalar!r:.60}, which is not "
      f"supported; it must be head_dim, {model['head_dim']}"
    )
  period = stated.get("sliding_window_pattern", 6)
  words = {"sliding_attention": "local", "full_attention": "global"}
  kinds = stated.get("layer_types")
  if kinds is None and type(period) is int and period > 0:
    full = lambda layer: (layer + 1) % period == 0
    kinds = [list(words)[full(layer)] for layer in range(model["num_layers"])]
  if not isinstance(kinds, list) or not all(
    isinstance(kind, str) and kind in words for kind in kinds
  ):
    raise InputError(
      f"{where} has layer_types {kinds!r:.120}; each must be "
      f"{' or '.join(words)}"
    )
  if len(kinds) != model["num_layers"]:
    raise InputError(
      f"{where} has {len(kinds)} layer_types for {model['num_layers']} layers"
    )
  rope = stated.get("rope_parameters") or {}
  local = rope.get("sliding_attention") or {}
  theta = local.get("rope_theta", stated.get("rope_local_base_freq", 10_000.0))
  return {
    "layer_pattern": "+".join(words[kind] for kind in kinds),
    "local_rope_theta": float(theta),
  }


def read_rope(stated: dict, where: str) -> dict[str, Any]:
  """Returns rope_theta and rope_scaling of their config, old form or new."""
  rope = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
  if not isinstance(rope, dict):
    raise InputError(
      f"{where} has rope_scaling {rope!r:.60}; it must be a dict"
    )
  rope = rope.get("full_attention", rope)
  theta = rope.get("rope_theta", stated.get("rope_theta", 10_000.0))
  if type(theta) not in (int, float):
    raise InputError(
      f"{where} has rope_theta {theta!r:.60}; it must be a number"
    )
  kind = rope.get("rope_type", rope.get("type", "default"))
  part = rope.get(
    "partial_rotary_factor", stated.get("partial_rotary_factor", 1.0)
  )
  if part != 1.0:
    raise InputError(
      f"{where} has partial_rotary_factor {part!r:.60}, which is not supported"
    )
  try:
    scaling = {
      "default": lambda: "none",
      "linear": lambda: f"linear:{float(rope['factor'])!r}",
      "llama3": lambda: _llama3(rope, where),
    }[kind]()
  except KeyError as error:
    if error.args == (kind,):
      raise InputError(
        f"{where} has rope_scaling of type {kind!r:.60}, which is not "
        "supported; default, linear and llama3 are"
      ) from None
    raise InputError(
      f"{where} has a rope_scaling without {error.args[0]}"
    ) from None
  except (TypeError, ValueError):
    raise InputError(
      f"{where} has rope_scaling {rope!r:.120}; its factors must be numbers"
    ) from None
  return {"rope_theta": float(theta), "rope_scaling": scaling}


def _llama3(rope: dict, where: str) -> str:
  low, high = rope["low_freq_factor"], rope["high_freq_factor"]
  if (low, high) != (1.0, 4.0):
    raise InputError(
      f"{where} has rope_scaling with low_freq_factor {low} and "
      f"high_freq_factor {high}; only 1 and 4 are supported"
    )
  factor = float(rope["factor"])
  return f"llama3:{factor!r}:{int(rope['original_max_position_embeddings'])}"


def choose(model: ModelConfig, defaults: ModelConfig) -> str:
  """Returns the model_type that a model of ours can be written as.

  Args:
    defaults: the model section of configs/base.py.

  Raises:
    InputError: there is none; the sentence names what the nearest lacks.
  """
  faults = {}
  for word, found in ARCHITECTURES.items():
    named = {key.ours for key in found.keys} | set(FREE)
    if found.has_rope:
      named |= {"rope_theta", "rope_scaling"}
    if found.has_pattern:
      named |= {"local_rope_theta"}
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
    if found.has_pattern == (model.layer_pattern == "uniform"):
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


def write_model(word: str, model: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of a model of ours, without its tokenizer's ids."""
  found = ARCHITECTURES[word]
  stated: dict[str, Any] = {
    "model_type": word,
    "architectures": [found.name],
  }
  stated |= {key: values[0] for key, values in found.wanted.items()}
  for key in found.keys:
    stated[key.theirs] = getattr(model, key.ours)
  if stated.get("num_key_value_heads", 0) is None:
    stated["num_key_value_heads"] = model.num_heads
  if stated.get("head_dim", 0) is None:
    stated["head_dim"] = model.model_dim // model.num_heads
  if found.has_rope:
    stated["rope_theta"] = model.rope_theta
    stated["rope_scaling"] = _write_rope(model)
  if found.has_pattern:
    words = {"local": "sliding_attention", "global": "full_attention"}
    kinds = config_lib.layer_kinds(model)
    stated["layer_types"] = [words[kind] for kind in kinds]
    local = model.local_rope_theta
    stated["rope_local_base_freq"] = local or model.rope_theta
    stated["query_pre_attn_scalar"] = config_lib.head_dim(model)
  return stated


def _write_rope(model: ModelConfig) -> dict | None:
  word, numbers = model.rope_scaling.mechanism, model.rope_scaling.numbers
  if word == "none":
    return None
  rope: dict[str, Any] = {"rope_type": word, "factor": numbers[0]}
  if word == "llama3":
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = int(numbers[1])
  return rope
