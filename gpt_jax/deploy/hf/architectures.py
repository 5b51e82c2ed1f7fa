"""Architectures of the hub, each as one table: config keys and tensors.

A key of theirs that is not named here does not change what a model computes.
Where it does, it is in `keys` or `wanted`; else the table is wrong.
"""

import dataclasses
from typing import Any, NamedTuple

from gpt_jax.config import InputError, ModelConfig, nearest

REQUIRED = object()


class Key(NamedTuple):
  """A number or a switch that both configs have.

  Attributes:
    theirs, ours: its names; ours is a field of the model section.
    default: what theirs is where it is missing; REQUIRED where it must be
      there, None leaves ours to its own default.
  """

  theirs: str
  ours: str
  default: Any = REQUIRED


class Row(NamedTuple):
  """A tensor of theirs.

  Attributes:
    theirs: its name, with {layer} and {expert} where there are several.
    ours: paths of the parameters that it holds, one after the other along
      their outputs.
    form: linear (out, in) | conv (in, out) | same.
  """

  theirs: str
  ours: tuple[str, ...]
  form: str = "linear"


class Architecture(NamedTuple):
  """How models of one config.json "model_type" are read and written.

  Attributes:
    name: of their class.
    keys: what both configs state.
    fixed: fields of our model section that all these models have.
    wanted: {key of theirs: values that can be represented}; the first is
      written, and is what a missing key means.
    rows: their tensors.
    heads: rows of models whose output matrix is not that of the embedding.
    ignored: ends of names of tensors that hold no parameters.
    prefix: of names, which a model without its head was saved without.
    has_rope: whether config.json says how positions turn.
  """

  name: str
  keys: tuple[Key, ...]
  fixed: dict[str, Any]
  wanted: dict[str, tuple]
  rows: tuple[Row, ...]
  heads: tuple[Row, ...] = ()
  ignored: tuple[str, ...] = ()
  prefix: str = "model."
  has_rope: bool = True


def _rows(layer: str, **named: tuple[str, ...] | str) -> tuple[Row, ...]:
  """Returns rows of blocks: {name of ours, "/" as "__": theirs and form}."""
  found = []
  for ours, value in named.items():
    theirs, *form = (value,) if isinstance(value, str) else value
    paths = tuple(
      f"blocks/{path.replace('__', '/')}" for path in ours.split("___")
    )
    found.append(Row(f"{layer}.{theirs}", paths, *form))
  return tuple(found)


LLAMA_LAYER = "model.layers.{layer}"
LLAMA_ATTENTION = _rows(
  LLAMA_LAYER,
  attn__q="self_attn.q_proj.weight",
  attn__k="self_attn.k_proj.weight",
  attn__v="self_attn.v_proj.weight",
  attn__o="self_attn.o_proj.weight",
  norm_attn__scale=("input_layernorm.weight", "same"),
  norm_mlp__scale=("post_attention_layernorm.weight", "same"),
)
LLAMA_MLP = _rows(
  LLAMA_LAYER,
  mlp__gate="mlp.gate_proj.weight",
  mlp__in="mlp.up_proj.weight",
  mlp__out="mlp.down_proj.weight",
)
LLAMA_ENDS = (
  Row("model.embed_tokens.weight", ("embed/tokens",), "same"),
  Row("model.norm.weight", ("final_norm/scale",), "same"),
)
UNTIED = (Row("lm_head.weight", ("unembed",), "same"),)
LLAMA_KEYS = (
  Key("hidden_size", "model_dim"),
  Key("intermediate_size", "mlp_dim"),
  Key("num_hidden_layers", "num_layers"),
  Key("num_attention_heads", "num_heads"),
  Key("num_key_value_heads", "num_kv_heads", None),
  Key("head_dim", "head_dim", None),
  Key("max_position_embeddings", "max_len"),
  Key("vocab_size", "vocab_size"),
  Key("rms_norm_eps", "norm_eps", 1e-6),
  Key("tie_word_embeddings", "tied_embeddings", False),
)
LLAMA_FIXED = dict(norm="rmsnorm", position="rope", mlp="swiglu")
LLAMA = Architecture(
  name="LlamaForCausalLM",
  keys=LLAMA_KEYS,
  fixed=LLAMA_FIXED,
  wanted={
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
  },
  rows=LLAMA_ENDS + LLAMA_ATTENTION + LLAMA_MLP,
  heads=UNTIED,
  ignored=(".rotary_emb.inv_freq",),
)
MIXTRAL_EXPERT = LLAMA_LAYER + ".block_sparse_moe"
GPT2_LAYER = "transformer.h.{layer}"

# By "model_type" of config.json.
ARCHITECTURES = {
  "llama": LLAMA,
  "mistral": LLAMA._replace(
    name="MistralForCausalLM",
    keys=(*LLAMA_KEYS, Key("sliding_window", "sliding_window", 4096)),
    wanted={"hidden_act": ("silu",)},
  ),
  "qwen3": LLAMA._replace(
    name="Qwen3ForCausalLM",
    keys=(
      *(key for key in LLAMA_KEYS if key.ours != "head_dim"),
      Key("head_dim", "head_dim", 128),
    ),
    fixed=LLAMA_FIXED | dict(qk_norm=True),
    wanted={
      "hidden_act": ("silu",),
      "attention_bias": (False,),
      "use_sliding_window": (False,),
    },
    rows=(
      *LLAMA.rows,
      *_rows(
        LLAMA_LAYER,
        attn__q_norm=("self_attn.q_norm.weight", "same"),
        attn__k_norm=("self_attn.k_norm.weight", "same"),
      ),
    ),
  ),
  "mixtral": LLAMA._replace(
    name="MixtralForCausalLM",
    keys=(
      *LLAMA_KEYS,
      Key("sliding_window", "sliding_window", None),
      Key("num_local_experts", "num_experts", 8),
      Key("num_experts_per_tok", "experts_per_token", 2),
      Key("router_aux_loss_coef", "router_balance_weight", 0.001),
    ),
    wanted={"hidden_act": ("silu",)},
    rows=(
      *LLAMA_ENDS,
      *LLAMA_ATTENTION,
      *_rows(
        MIXTRAL_EXPERT,
        moe__router="gate.weight",
        moe__gate="experts.{expert}.w1.weight",
        moe__in="experts.{expert}.w3.weight",
        moe__out="experts.{expert}.w2.weight",
      ),
    ),
  ),
  "gpt2": Architecture(
    name="GPT2LMHeadModel",
    keys=(
      Key("n_embd", "model_dim"),
      Key("n_inner", "mlp_dim", None),
      Key("n_layer", "num_layers"),
      Key("n_head", "num_heads"),
      Key("n_positions", "max_len"),
      Key("vocab_size", "vocab_size"),
      Key("layer_norm_epsilon", "norm_eps", 1e-5),
      Key("tie_word_embeddings", "tied_embeddings", True),
    ),
    fixed=dict(
      norm="layernorm", position="learned", mlp="gelu_tanh", bias=True
    ),
    wanted={
      "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
      "scale_attn_weights": (True,),
      "scale_attn_by_inverse_layer_idx": (False,),
      "add_cross_attention": (False,),
    },
    rows=(
      Row("transformer.wte.weight", ("embed/tokens",), "same"),
      Row("transformer.wpe.weight", ("embed/positions",), "same"),
      Row("transformer.ln_f.weight", ("final_norm/scale",), "same"),
      Row("transformer.ln_f.bias", ("final_norm/bias",), "same"),
      *_rows(
        GPT2_LAYER,
        attn__q___attn__k___attn__v=("attn.c_attn.weight", "conv"),
        attn__q_bias___attn__k_bias___attn__v_bias=("attn.c_attn.bias", "same"),
        attn__o=("attn.c_proj.weight", "conv"),
        attn__o_bias=("attn.c_proj.bias", "same"),
        mlp__in=("mlp.c_fc.weight", "conv"),
        mlp__in_bias=("mlp.c_fc.bias", "same"),
        mlp__out=("mlp.c_proj.weight", "conv"),
        mlp__out_bias=("mlp.c_proj.bias", "same"),
        norm_attn__scale=("ln_1.weight", "same"),
        norm_attn__bias=("ln_1.bias", "same"),
        norm_mlp__scale=("ln_2.weight", "same"),
        norm_mlp__bias=("ln_2.bias", "same"),
      ),
    ),
    heads=UNTIED,
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
    has_rope=False,
  ),
}
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
  return model


def read_rope(stated: dict, where: str) -> dict[str, Any]:
  """Returns rope_theta and rope_scaling of their config, old form or new."""
  rope = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
  if not isinstance(rope, dict):
    raise InputError(
      f"{where} has rope_scaling {rope!r:.60}; it must be a dict"
    )
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
    if model.layer_pattern != "uniform":
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
