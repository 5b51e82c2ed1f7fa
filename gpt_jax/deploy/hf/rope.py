"""The keys of config.json on positions: RoPE, its scaling, local layers.

Design choice: with longrope and dynamic scaling, wavelengths depend on a text's
length. A run gets the wavelengths of texts up to the original length, and only
as many positions; within them it computes what transformers does.
"""

import math
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.deploy.hf.rows import Architecture, Pattern

# Names of the rotary base.
THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
# {type of rope scaling: {key: its only value that is supported}}
ONLY: dict[str, dict[str, Any]] = {
  "linear": {},
  "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
  "yarn": {"beta_fast": 32, "beta_slow": 1, "truncate": True},
  "longrope": {},
  # Dynamic scaling changes nothing up to max_position_embeddings.
  "dynamic": {},
}
OWN_FRAC = "rotary_pct"
ORIGINAL = "original_max_position_embeddings"
# Most factors of longrope; there is one for each wavelength of a head.
MAX_FACTORS = 4096
MSCALES = "mscale", "mscale_all_dim"
SCALAR = "query_pre_attn_scalar"
KINDS = {"sliding_attention": "local", "full_attention": "global"}


def read_rope(stated: dict, where: str, found: Architecture) -> dict[str, Any]:
  """Returns the RoPE fields of our model section, read from config.json.

  Raises:
    InputError: the scaling is not supported, or its values are not numbers.
  """
  both = [stated.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
  if all(both) and both[0] != both[1]:
    raise InputError(
      f"{where} has rope_parameters and another rope_scaling; it must have one"
    )
  rope = _dict(both[0] or both[1], "rope_scaling", where)
  full = rope.get("full_attention") or rope
  rope = _dict(full, "rope_scaling.full_attention", where)
  is_modern = found.pattern is not None and found.pattern.is_first
  thetas = THETAS[2:] if is_modern else THETAS[:1]
  if found.rope_frac is not None:  # GPT-NeoX has its own name for it
    thetas = THETAS[1:2]
  named = [stated[key] for key in thetas if key in stated]
  default, frac = (*named, found.rope_theta)[0], found.rope_frac
  theta = _number(rope.get("rope_theta", default), "rope_theta", where)
  kind = rope.get("rope_type", rope.get("type", "default"))
  key = "partial_rotary_factor"
  # GPT-NeoX names it rotary_pct, and reads no other key beside rope's own.
  default = stated.get(key, 1.0) if frac is None else stated.get(OWN_FRAC, frac)
  part = _number(rope.get(key, default), key, where)
  if not 0 < part <= 1 or (part != 1.0 and frac is None):
    raise InputError(f"{where} has {key} {part!r:.60}, which is not supported")
  if is_modern and both[1] and not both[0] and kind != "default":
    raise InputError(
      f"{where} has a rope_scaling, which its class applies to local layers "
      "too; only those of full_attention can be scaled"
    )
  read: dict[str, Any] = {"rope_theta": theta}
  if kind == "longrope":
    read |= _read_longrope(rope, stated, where)
  else:
    read["rope_scaling"] = _read_scaling(rope, kind, where)
  return read if frac is None else read | {"rope_frac": part}


def _read_longrope(rope: dict, stated: dict, where: str) -> dict[str, Any]:
  """Returns rope_scaling and max_len, for texts up to the original length."""
  original = rope.get(ORIGINAL, stated.get(ORIGINAL))
  if type(original) is not int or not 1 < original < 1 << 31:
    raise InputError(
      f"{where} has {ORIGINAL} {original!r:.60}; longrope needs a number of "
      "positions there"
    )
  factors = rope.get("short_factor")
  is_list = isinstance(factors, list) and 0 < len(factors) <= MAX_FACTORS
  if not is_list or any(type(f) not in (int, float) for f in factors):
    raise InputError(
      f"{where} has short_factor {factors!r:.60}; it must be a list of numbers"
    )
  mscale = rope.get("attention_factor")
  if mscale is None:
    longest = _number(
      stated.get("max_position_embeddings", original), "its length", where
    )
    given = rope.get("factor")
    factor = longest / original if given is None else given
    factor = _number(factor, "rope_scaling.factor", where)
    mscale = 1.0
    if factor > 1:
      mscale = math.sqrt(1 + math.log(factor) / math.log(original))
  mscale = _number(mscale, "rope_scaling.attention_factor", where)
  numbers = ":".join(repr(float(n)) for n in (mscale, *factors))
  return {"rope_scaling": f"longrope:{numbers}", "max_len": original}


def _read_scaling(rope: dict, kind, where: str) -> str:
  """Returns model.rope_scaling."""
  if kind == "default":
    return "none"
  if not isinstance(kind, str) or kind not in ONLY:
    raise InputError(
      f"{where} has rope_scaling of type {kind!r:.60}, which is not "
      f"supported; default, {', '.join(ONLY)} are"
    )
  factor = read_number(rope, "factor", where)
  if kind == "dynamic":
    return "none"
  numbers = [repr(factor)]
  for name, only in ONLY[kind].items():
    value = rope.get(name)
    if value != only and not (value is None and kind == "yarn"):
      raise InputError(
        f"{where} has rope_scaling with {name} {value!r:.60}; only {only} is "
        "supported"
      )
  if kind != "linear":
    original = read_number(rope, ORIGINAL, where)
    numbers.append(f"{original:.0f}")
  if kind == "yarn":
    numbers.append(repr(_read_mscale(rope, factor, where)))
  return ":".join((kind, *numbers))


def _read_mscale(rope: dict, factor: float, where: str) -> float:
  """Returns the factor by which YaRN multiplies sines and cosines."""
  if rope.get("attention_factor") is not None:
    return read_number(rope, "attention_factor", where)
  both = [_number(rope.get(key) or 0, key, where) for key in MSCALES]
  if min(both) < 0:
    raise InputError(
      f"{where} has an mscale of {min(both)}; it must be above 0"
    )
  of, less = both if all(both) else (1.0, 0.0)
  return mscale_of(factor, of) / mscale_of(factor, less)


def mscale_of(factor: float, mscale: float) -> float:
  """Returns YaRN's sqrt(1 / t), with mscale in it (Peng et al. 2023, eq. 22).

  It multiplies queries and keys alike, so that scores are multiplied by 1 / t.
  """
  return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(model: ModelConfig, found: Architecture) -> dict[str, Any]:
  """Returns the keys of a config.json that read_rope reads."""
  word, numbers = model.rope_scaling.mechanism, model.rope_scaling.numbers
  rope: dict[str, Any] | None = None
  top: dict[str, Any] = {}
  if word == "longrope":
    mscale, *factors = numbers
    top = {ORIGINAL: model.max_len}
    rope = {"rope_type": word, "attention_factor": mscale, **top}
    rope |= {"short_factor": factors, "long_factor": factors}
  elif word != "none":
    rope = {"rope_type": word, "factor": numbers[0]}
  if rope is not None and word not in ("linear", "longrope"):
    rope |= ONLY[word] | {ORIGINAL: int(numbers[1])}
  if rope is not None and word == "yarn":
    rope["attention_factor"] = numbers[2]
  stated = {"rope_theta": model.rope_theta, "rope_scaling": rope} | top
  if found.pattern is not None and found.pattern.is_first:
    stated["global_rope_theta"] = model.rope_theta
    if rope is not None:  # rope_scaling would also apply to local layers
      local = model.local_rope_theta or model.rope_theta
      stated["rope_scaling"] = None
      stated["rope_parameters"] = {
        "full_attention": rope | {"rope_theta": model.rope_theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
      }
  if found.rope_frac is not None:
    stated |= {
      "partial_rotary_factor": model.rope_frac,
      # As GPT-NeoX calls them.
      OWN_FRAC: model.rope_frac,
      "rotary_emb_base": model.rope_theta,
    }
  return stated


def read_pattern(
  stated: dict, model: dict, pattern: Pattern, where: str
) -> dict[str, Any]:
  """Returns layer_pattern and fields that depend on it, read from config.json.

  Args:
    model: {field of our model section: value}, num_layers within bounds.

  Raises:
    InputError: a kind of layer is unknown, their number is not num_layers, or
      the positions of local layers are not supported.
  """
  period = pattern.period
  if pattern.key is not None:
    period = stated.get(pattern.key, period)
  kinds = stated.get("layer_types")
  if kinds is None and type(period) is int and period > 0:
    kinds = _repeat(pattern, period, model["num_layers"])
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
  words = [KINDS[kind] for kind in kinds]
  found: dict[str, Any] = {"layer_pattern": "+".join(words)}
  if "local" not in words:
    found = {"sliding_window": None}
  if pattern.theta is not None and "local" in words:
    rope = _dict(stated.get("rope_parameters") or {}, "rope_parameters", where)
    local = rope.get("sliding_attention") or {}
    local = _dict(local, "rope_parameters.sliding_attention", where)
    kind = local.get("rope_type", local.get("type", "default"))
    if kind != "default":
      raise InputError(
        f"{where} has rope_parameters.sliding_attention of type {kind!r:.60}; "
        "only those of full_attention can be scaled"
      )
    theta = local.get("rope_theta", stated.get(pattern.theta, 10_000.0))
    found["local_rope_theta"] = _number(theta, pattern.theta, where)
  if pattern.scalar:
    scalar = _number(stated.get(SCALAR, 256), SCALAR, where)
    if not 0 < scalar < 1e9:
      raise InputError(f"{where} has {SCALAR} {scalar}; it must be above 0")
    if scalar != model["head_dim"]:
      found["attn_scale"] = scalar**-0.5
  return found


def check_uniform(stated: dict, has_window: bool, where: str) -> None:
  """Refuses mixed layer_types in a model whose layers must be all of one kind.

  transformers opens a Mistral with mixed layer_types as another class, whose
  layers alternate.
  """
  kinds = stated.get("layer_types")
  only = list(KINDS)[not has_window]
  if kinds is None or (
    isinstance(kinds, list) and all(k == only for k in kinds)
  ):
    return
  raise InputError(
    f"{where} has layer_types {kinds!r:.120}, which is not supported; each "
    f"must be {only}, as its sliding_window says"
  )


def _repeat(pattern: Pattern, period: int, num_layers: int) -> list[str]:
  """Returns the kind of each layer, every `period`th one global."""
  place = 0 if pattern.is_first else period - 1
  kinds = list(KINDS)
  return [kinds[layer % period == place] for layer in range(num_layers)]


def write_pattern(model: ModelConfig, pattern: Pattern) -> dict[str, Any]:
  """Returns the keys of a config.json that read_pattern reads."""
  words = {ours: theirs for theirs, ours in KINDS.items()}
  kinds = [words[kind] for kind in config_lib.layer_kinds(model)]
  stated: dict[str, Any] = {"layer_types": kinds}
  if pattern.key is not None:  # older versions of transformers read it
    fits = lambda n: _repeat(pattern, n, len(kinds)) == kinds
    period = next(filter(fits, range(1, len(kinds) + 1)), None)
    stated |= {} if period is None else {pattern.key: period}
  if pattern.theta is not None:
    stated[pattern.theta] = model.local_rope_theta or model.rope_theta
  if pattern.scalar:
    scalar = float(config_lib.head_dim(model))
    if model.attn_scale is not None:
      scalar = round(model.attn_scale**-2, 9)
    stated[SCALAR] = int(scalar) if scalar == int(scalar) else scalar
  return stated


def _dict(value, key: str, where: str) -> dict:
  if not isinstance(value, dict):
    raise InputError(f"{where} has {key} {value!r:.60}; it must be a dict")
  return value


def _number(value, key: str, where: str) -> float:
  if type(value) not in (int, float):
    raise InputError(f"{where} has {key} {value!r:.60}; it must be a number")
  return float(value)


def read_number(rope: dict, key: str, where: str) -> float:
  """Returns a number of rope_scaling, which must be there."""
  if key not in rope:
    raise InputError(f"{where} has a rope_scaling without {key}")
  return _number(rope[key], f"rope_scaling.{key}", where)
