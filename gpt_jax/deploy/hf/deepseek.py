"""The table of DeepSeek-V2: latent attention, experts after dense layers."""

import math
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.deploy.hf.rope import mscale_of, read_number
from gpt_jax.deploy.hf.rows import SIZES, Architecture, Key, Row, rows_of

# The topk_method that takes a token's experts from a few groups, and {key of
# config.json: our field} for the number of groups and of those few.
GROUPED = "group_limited_greedy"
GROUPS = {"n_group": "router_groups", "topk_group": "router_groups_per_token"}
LAYER = "model.layers.{layer}"


def _read(stated: dict, model: dict, where: str) -> dict[str, Any]:
  """Returns the fields of our model section that no Key can express."""
  found: dict[str, Any] = {}
  is_grouped = stated.get("topk_method") == GROUPED
  defaults = {"qk_nope_head_dim": 128, "first_k_dense_replace": 0}
  for key in (*defaults, *(GROUPS if is_grouped else ())):
    value = stated.get(key, defaults.get(key))
    if type(value) is not int or not 0 <= value < 1 << 20:
      raise InputError(
        f"{where} has {key} {value!r:.60}; it must be a whole number"
      )
    found[key] = value
  dense, layers = found["first_k_dense_replace"], model["num_layers"]
  if dense >= layers:
    raise InputError(
      f"{where} has first_k_dense_replace {dense} of {layers} layers, which "
      "leaves none with experts"
    )
  width = found["qk_nope_head_dim"] + model["qk_rope_head_dim"]
  read: dict[str, Any] = {"head_dim": width}
  read |= {ours: found[key] for key, ours in GROUPS.items() if is_grouped}
  if dense:
    read["layer_pattern"] = f"{dense}*dense+{layers - dense}*moe"
  rope = stated.get("rope_parameters") or stated.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind != "default" and rope.get("mscale_all_dim"):
    factor, mscale = (
      read_number(rope, key, where) for key in ("factor", "mscale_all_dim")
    )
    read["attn_scale"] = mscale_of(factor, mscale) ** 2 / math.sqrt(width)
  return read


def _write(model: ModelConfig, stated: dict) -> dict[str, Any]:
  """Returns the keys that _read reads.

  Raises:
    InputError: the model scales attention scores, but not as YaRN does.
  """
  width = config_lib.head_dim(model)
  written: dict[str, Any] = {
    "qk_nope_head_dim": width - config_lib.rope_dim(model),
    "first_k_dense_replace": config_lib.mlp_kinds(model).count("dense"),
    "head_dim": config_lib.rope_dim(model),
  }
  if model.router_groups_per_token is not None:
    written |= {key: getattr(model, ours) for key, ours in GROUPS.items()}
    written["topk_method"] = GROUPED
  if model.attn_scale is not None:
    factor = model.rope_scaling.numbers[:1] or (1.0,)
    root = math.sqrt(model.attn_scale * math.sqrt(width))
    if model.rope_scaling.mechanism != "yarn" or factor[0] <= 1 or root <= 1:
      raise InputError(
        "no architecture of the hub has this model; deepseek_v2 scales scores "
        f"by yarn alone, and model.attn_scale is {model.attn_scale:g}"
      )
    mscale = round((root - 1) / (0.1 * math.log(factor[0])), 9)
    both = {"mscale": mscale, "mscale_all_dim": mscale}
    written["rope_scaling"] = stated["rope_scaling"] | both
  return written


ARCHITECTURE = Architecture(
  name="DeepseekV2ForCausalLM",
  keys=(
    *SIZES,
    Key("kv_lora_rank", "kv_lora_rank", 512),
    Key("q_lora_rank", "q_lora_rank", 1536),
    Key("qk_rope_head_dim", "qk_rope_head_dim", 64),
    Key("v_head_dim", "v_head_dim", 128),
    Key("n_routed_experts", "num_experts", 64),
    Key("num_experts_per_tok", "experts_per_token"),
    Key("n_shared_experts", "num_shared_experts", 2),
    Key("moe_intermediate_size", "expert_mlp_dim", 1407),
    Key("routed_scaling_factor", "router_scale", 1.0),
    Key("tie_word_embeddings", "tied_embeddings", False),
  ),
  fixed=dict(
    norm="rmsnorm",
    norm_eps=1e-6,
    position="rope",
    mlp="swiglu",
    router_normalized=False,
  ),
  wanted={
    # The norms within latent attention have 1e-6 in any case.
    "rms_norm_eps": (1e-6,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "topk_method": ("greedy", GROUPED),
    "norm_topk_prob": (False, None),
    "moe_layer_freq": (1,),
    "scoring_func": ("softmax",),
  },
  rows=(
    Row("model.embed_tokens.weight", ("embed/tokens",), "same"),
    Row("model.norm.weight", ("final_norm/scale",), "same"),
    *rows_of(
      LAYER,
      attn__kv_down=("self_attn.kv_a_proj_with_mqa.weight", "turned"),
      attn__kv_norm=("self_attn.kv_a_layernorm.weight", "same"),
      attn__k_up___attn__v_up=("self_attn.kv_b_proj.weight", "heads"),
      attn__o="self_attn.o_proj.weight",
      norm_attn__scale=("input_layernorm.weight", "same"),
      norm_mlp__scale=("post_attention_layernorm.weight", "same"),
    ),
    *(
      row._replace(is_optional=True)
      for row in rows_of(
        LAYER,
        attn__q=("self_attn.q_proj.weight", "turned"),
        attn__q_down="self_attn.q_a_proj.weight",
        attn__q_norm=("self_attn.q_a_layernorm.weight", "same"),
        attn__q_up=("self_attn.q_b_proj.weight", "turned"),
        mlp__gate="mlp.gate_proj.weight",
        mlp__in="mlp.up_proj.weight",
        mlp__out="mlp.down_proj.weight",
        moe__router="mlp.gate.weight",
        moe__gate="mlp.experts.{expert}.gate_proj.weight",
        moe__in="mlp.experts.{expert}.up_proj.weight",
        moe__out="mlp.experts.{expert}.down_proj.weight",
        moe__shared__gate="mlp.shared_experts.gate_proj.weight",
        moe__shared__in="mlp.shared_experts.up_proj.weight",
        moe__shared__out="mlp.shared_experts.down_proj.weight",
      )
    ),
  ),
  heads=(Row("lm_head.weight", ("unembed",), "same"),),
  ignored=(".rotary_emb.inv_freq",),
  has_dense=True,
  synonyms={"num_experts": "n_routed_experts"},
  read=_read,
  write=_write,
  more=("head_dim", "attn_scale", *GROUPS.values()),
)
