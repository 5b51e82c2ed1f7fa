"""What config.json states of positions: rope, its scaling, local layers."""

from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig

KINDS = {"sliding_attention": "local", "full_attention": "global"}


def read_rope(
  stated: dict, where: str, frac: float | None = None
) -> dict[str, Any]:
  """Returns rope's fields of our model section, of their config's form.

  Args:
    frac: an Architecture's rope_frac.

  Raises:
    InputError: the scaling is not supported, or not of numbers.
  """
  rope = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
  rope = _dict(rope, "rope_scaling", where)
  full = rope.get("full_attention") or rope
  rope = _dict(full, "rope_scaling.full_attention", where)
  default = stated.get("rope_theta", stated.get("rotary_emb_base", 10_000.0))
  theta = _number(rope.get("rope_theta", default), "rope_theta", where)
  kind = rope.get("rope_type", rope.get("type", "default"))
  key = "partial_rotary_factor"
  default = stated.get("rotary_pct", 1.0 if frac is None else frac)
  part = _number(rope.get(key, stated.get(key, default)), key, where)
  if not 0 < part <= 1 or (part != 1.0 and frac is None):
    raise InputError(f"{where} has {key} {part!r:.60}, which is not supported")
  if kind not in ("default", "linear", "llama3"):
    raise InputError(
      f"{where} has rope_scaling of type {kind!r:.60}, which is not "
      "supported; default, linear and llama3 are"
    )
  scaling = "none"
  if kind != "default":
    scaling = f"{kind}:{_factor(rope, 'factor', where)!r}"
  if kind == "llama3":
    for name, only in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0)):
      value = _factor(rope, name, where)
      if value != only:
        raise InputError(
          f"{where} has rope_scaling with {name} {value}; only {only:g} is "
          "supported"
        )
    original = _factor(rope, "original_max_position_embeddings", where)
    scaling += f":{int(original)}"
  found = {"rope_theta": theta, "rope_scaling": scaling}
  return found if frac is None else found | {"rope_frac": part}


def write_rope(model: ModelConfig, has_frac: bool) -> dict[str, Any]:
  """Returns the keys of a config.json that read_rope reads.

  Args:
    has_frac: whether an Architecture has rope_frac.
  """
  word, numbers = model.rope_scaling.mechanism, model.rope_scaling.numbers
  rope: dict[str, Any] | None = None
  if word != "none":
    rope = {"rope_type": word, "factor": numbers[0]}
  if rope is not None and word == "llama3":
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = int(numbers[1])
  stated = {"rope_theta": model.rope_theta, "rope_scaling": rope}
  if has_frac:
    stated |= {
      "partial_rotary_factor": model.rope_frac,
      # As GPT-NeoX calls them.
      "rotary_pct": model.rope_frac,
      "rotary_emb_base": model.rope_theta,
    }
  return stated


def read_pattern(stated: dict, model: dict, where: str) -> dict[str, Any]:
  """Returns layer_pattern and local_rope_theta of Gemma 3's config.

  Args:
    model: {field of our model section: value}, num_layers within bounds.

  Raises:
    InputError: the kinds of layers are not known or not as many as layers.
  """
  scalar = stated.get("query_pre_attn_scalar", 256)
  if scalar != model["head_dim"]:
    raise InputError(
      f"{where} has query_pre_attn_scalar {scalar!r:.60}, which is not "
      f"supported; it must be head_dim, {model['head_dim']}"
    )
  period = stated.get("sliding_window_pattern", 6)
  kinds = stated.get("layer_types")
  if kinds is None and type(period) is int and period > 0:
    full = lambda layer: (layer + 1) % period == 0
    kinds = [list(KINDS)[full(layer)] for layer in range(model["num_layers"])]
  if not isinstance(kinds, list) or not all(
    isinstance(kind, str) and kind in KINDS for kind in kinds
  ):
    raise InputError(
      f"{where} has layer_types {kinds!r:.120}; each must be "
      f"{' or '.join(KINDS)}"
    )
  if len(kinds) != model["num_layers"]:
    raise InputError(
      f"{where} has {len(kinds)} layer_types for {model['num_layers']} layers"
    )
  rope = _dict(stated.get("rope_parameters") or {}, "rope_parameters", where)
  key = "rope_local_base_freq"
  local = rope.get("sliding_attention") or {}
  local = _dict(local, "rope_parameters.sliding_attention", where)
  theta = local.get("rope_theta", stated.get(key, 10_000.0))
  return {
    "layer_pattern": "+".join(KINDS[kind] for kind in kinds),
    "local_rope_theta": _number(theta, key, where),
  }


def write_pattern(model: ModelConfig) -> dict[str, Any]:
  """Returns the keys of a config.json that read_pattern reads."""
  words = {ours: theirs for theirs, ours in KINDS.items()}
  return {
    "layer_types": [words[kind] for kind in config_lib.layer_kinds(model)],
    "rope_local_base_freq": model.local_rope_theta or model.rope_theta,
    "query_pre_attn_scalar": config_lib.head_dim(model),
  }


def _dict(value, key: str, where: str) -> dict:
  if not isinstance(value, dict):
    raise InputError(f"{where} has {key} {value!r:.60}; it must be a dict")
  return value


def _number(value, key: str, where: str) -> float:
  if type(value) not in (int, float):
    raise InputError(f"{where} has {key} {value!r:.60}; it must be a number")
  return float(value)


def _factor(rope: dict, key: str, where: str) -> float:
  if key not in rope:
    raise InputError(f"{where} has a rope_scaling without {key}")
  return _number(rope[key], f"rope_scaling.{key}", where)
