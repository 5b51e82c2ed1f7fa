"""Architectures of the hub, each as one table: config keys and tensors.

A key of config.json that changes what a model computes must be in `keys` or
`wanted` of its table. All others are ignored.
"""

from gpt_jax.deploy.hf import deepseek
from gpt_jax.deploy.hf.encoder_decoders import ENCODER_DECODERS
from gpt_jax.deploy.hf.encoders import ENCODERS
from gpt_jax.deploy.hf.rows import (
  SIZES,
  Architecture,
  Key,
  Pattern,
  Row,
  rows_of,
)

LLAMA_LAYER = "model.layers.{layer}"
LLAMA_ATTENTION = rows_of(
  LLAMA_LAYER,
  attn__q="self_attn.q_proj.weight",
  attn__k="self_attn.k_proj.weight",
  attn__v="self_attn.v_proj.weight",
  attn__o="self_attn.o_proj.weight",
  norm_attn__scale=("input_layernorm.weight", "same"),
  norm_mlp__scale=("post_attention_layernorm.weight", "same"),
)
LLAMA_MLP = rows_of(
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
  *SIZES,
  Key("num_key_value_heads", "num_kv_heads", None),
  Key("head_dim", "head_dim", None),
  Key("rms_norm_eps", "norm_eps", 1e-6),
  Key("tie_word_embeddings", "tied_embeddings", False),
)


def with_defaults(keys: tuple[Key, ...], **defaults) -> tuple[Key, ...]:
  """Returns keys with the defaults of a class of transformers."""
  return tuple(
    key._replace(default=defaults.get(key.theirs, key.default)) for key in keys
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
NEOX_LAYER = "gpt_neox.layers.{layer}"
GPT2_LAYER = "transformer.h.{layer}"

QWEN3_KEYS = with_defaults(LLAMA_KEYS, num_key_value_heads=32, head_dim=128)
QWEN3_WANTED = {
  "hidden_act": ("silu",),
  "attention_bias": (False,),
  "use_sliding_window": (False,),
}
QWEN3_NORMS = rows_of(
  LLAMA_LAYER,
  attn__q_norm=("self_attn.q_norm.weight", "same"),
  attn__k_norm=("self_attn.k_norm.weight", "same"),
)

GEMMA_KEYS = with_defaults(
  LLAMA_KEYS, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True
)
GEMMA2 = LLAMA._replace(
  name="Gemma2ForCausalLM",
  keys=(
    *GEMMA_KEYS,
    Key("sliding_window", "sliding_window", 4096),
    Key("attn_logit_softcapping", "attn_softcap", 50.0),
    Key("final_logit_softcapping", "logit_softcap", 30.0),
  ),
  fixed=dict(
    norm="rmsnorm",
    norm_placement="sandwich",
    position="rope",
    mlp="geglu_tanh",
    scaled_embeddings=True,
  ),
  wanted={
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (False, None),
  },
  rows=(
    LLAMA_ENDS[0],
    LLAMA_ENDS[1]._replace(form="offset"),
    *(row for row in LLAMA_ATTENTION if row.form == "linear"),
    *LLAMA_MLP,
    *rows_of(
      LLAMA_LAYER,
      norm_attn__scale=("input_layernorm.weight", "offset"),
      norm_attn_out__scale=("post_attention_layernorm.weight", "offset"),
      norm_mlp__scale=("pre_feedforward_layernorm.weight", "offset"),
      norm_mlp_out__scale=("post_feedforward_layernorm.weight", "offset"),
    ),
  ),
  pattern=Pattern(),
)

# By "model_type" of config.json, or an Architecture's own.
ARCHITECTURES = {
  "llama": LLAMA,
  "mistral": LLAMA._replace(
    name="MistralForCausalLM",
    keys=(
      *with_defaults(LLAMA_KEYS, num_key_value_heads=8),
      Key("sliding_window", "sliding_window", 4096),
    ),
    wanted={"hidden_act": ("silu",)},
  ),
  "qwen2": LLAMA._replace(
    name="Qwen2ForCausalLM",
    keys=with_defaults(LLAMA_KEYS, num_key_value_heads=32),
    fixed=LLAMA_FIXED | dict(qkv_bias=True),
    wanted={"hidden_act": ("silu",), "use_sliding_window": (False,)},
    rows=(
      *LLAMA.rows,
      *rows_of(
        LLAMA_LAYER,
        attn__q_bias=("self_attn.q_proj.bias", "same"),
        attn__k_bias=("self_attn.k_proj.bias", "same"),
        attn__v_bias=("self_attn.v_proj.bias", "same"),
      ),
    ),
  ),
  "phi3": LLAMA._replace(
    name="Phi3ForCausalLM",
    keys=(
      *with_defaults(LLAMA_KEYS, rms_norm_eps=1e-5),
      Key("sliding_window", "sliding_window", None),
    ),
    wanted={"hidden_act": ("silu",)},
    rows=(
      *LLAMA_ENDS,
      *(r for r in LLAMA_ATTENTION if r.ours[0][-1] not in "qkv"),
      *rows_of(
        LLAMA_LAYER,
        attn__q___attn__k___attn__v="self_attn.qkv_proj.weight",
        mlp__gate___mlp__in="mlp.gate_up_proj.weight",
        mlp__out="mlp.down_proj.weight",
      ),
    ),
  ),
  "qwen3": LLAMA._replace(
    name="Qwen3ForCausalLM",
    keys=QWEN3_KEYS,
    fixed=LLAMA_FIXED | dict(qk_norm=True),
    wanted=QWEN3_WANTED,
    rows=LLAMA.rows + QWEN3_NORMS,
  ),
  "olmo2": LLAMA._replace(
    name="Olmo2ForCausalLM",
    keys=with_defaults(LLAMA_KEYS, rms_norm_eps=1e-5),
    fixed=LLAMA_FIXED
    | dict(norm_placement="output", qk_norm=True, qk_norm_over="heads"),
    wanted={"hidden_act": ("silu",), "attention_bias": (False,)},
    rows=(
      *LLAMA_ENDS,
      *(row for row in LLAMA_ATTENTION if row.form == "linear"),
      *LLAMA_MLP,
      *rows_of(
        LLAMA_LAYER,
        attn__q_norm=("self_attn.q_norm.weight", "flat"),
        attn__k_norm=("self_attn.k_norm.weight", "flat"),
        norm_attn__scale=("post_attention_layernorm.weight", "same"),
        norm_mlp__scale=("post_feedforward_layernorm.weight", "same"),
      ),
    ),
  ),
  "qwen3_moe": LLAMA._replace(
    name="Qwen3MoeForCausalLM",
    keys=(
      *with_defaults(QWEN3_KEYS, num_key_value_heads=4),
      Key("num_experts", "num_experts", 128, "num_local_experts"),
      Key("num_experts_per_tok", "experts_per_token", 8),
      Key("moe_intermediate_size", "expert_mlp_dim", 768),
      Key("norm_topk_prob", "router_normalized", False),
      Key("router_aux_loss_coef", "router_balance_weight", 0.001),
    ),
    fixed=LLAMA_FIXED | dict(qk_norm=True),
    wanted=QWEN3_WANTED
    | {
      "decoder_sparse_step": (1,),
      "mlp_only_layers": ([], None),
    },
    synonyms={"num_local_experts": "num_experts"},
    rows=(
      *LLAMA_ENDS,
      *LLAMA_ATTENTION,
      *QWEN3_NORMS,
      *rows_of(
        LLAMA_LAYER + ".mlp",
        moe__router="gate.weight",
        moe__gate="experts.{expert}.gate_proj.weight",
        moe__in="experts.{expert}.up_proj.weight",
        moe__out="experts.{expert}.down_proj.weight",
      ),
    ),
  ),
  "mixtral": LLAMA._replace(
    name="MixtralForCausalLM",
    keys=(
      *with_defaults(LLAMA_KEYS, num_key_value_heads=8, rms_norm_eps=1e-5),
      Key("sliding_window", "sliding_window", None),
      Key("num_local_experts", "num_experts", 8),
      Key("num_experts_per_tok", "experts_per_token", 2),
      Key("router_aux_loss_coef", "router_balance_weight", 0.001),
    ),
    wanted={"hidden_act": ("silu",)},
    rows=(
      *LLAMA_ENDS,
      *LLAMA_ATTENTION,
      *rows_of(
        MIXTRAL_EXPERT,
        moe__router="gate.weight",
        moe__gate="experts.{expert}.w1.weight",
        moe__in="experts.{expert}.w3.weight",
        moe__out="experts.{expert}.w2.weight",
      ),
    ),
    rope_theta=1e6,
    synonyms={"num_experts": "num_local_experts"},
  ),
  "gemma2": GEMMA2,
  "gemma3_text": GEMMA2._replace(
    name="Gemma3ForCausalLM",
    keys=(*GEMMA_KEYS, Key("sliding_window", "sliding_window")),
    fixed=GEMMA2.fixed | dict(qk_norm=True),
    wanted=GEMMA2.wanted
    | {
      "attn_logit_softcapping": (None,),
      "final_logit_softcapping": (None,),
    },
    rows=(
      *GEMMA2.rows,
      *rows_of(
        LLAMA_LAYER,
        attn__q_norm=("self_attn.q_norm.weight", "offset"),
        attn__k_norm=("self_attn.k_norm.weight", "offset"),
      ),
    ),
    pattern=Pattern("sliding_window_pattern", 6, theta="rope_local_base_freq"),
    rope_theta=1e6,
  ),
  "gpt_neox": Architecture(
    name="GPTNeoXForCausalLM",
    keys=(
      *SIZES,
      Key("layer_norm_eps", "norm_eps", 1e-5),
      Key("use_parallel_residual", "parallel_residual", True),
      Key("tie_word_embeddings", "tied_embeddings", False),
    ),
    fixed=dict(norm="layernorm", position="rope", mlp="gelu", bias=True),
    wanted={"hidden_act": ("gelu",), "attention_bias": (True,)},
    rows=(
      Row("gpt_neox.embed_in.weight", ("embed/tokens",), "same"),
      Row("gpt_neox.final_layer_norm.weight", ("final_norm/scale",), "same"),
      Row("gpt_neox.final_layer_norm.bias", ("final_norm/bias",), "same"),
      *rows_of(
        NEOX_LAYER,
        attn__q___attn__k___attn__v=(
          "attention.query_key_value.weight",
          "heads",
        ),
        attn__q_bias___attn__k_bias___attn__v_bias=(
          "attention.query_key_value.bias",
          "heads",
        ),
        attn__o="attention.dense.weight",
        attn__o_bias=("attention.dense.bias", "same"),
        mlp__in="mlp.dense_h_to_4h.weight",
        mlp__in_bias=("mlp.dense_h_to_4h.bias", "same"),
        mlp__out="mlp.dense_4h_to_h.weight",
        mlp__out_bias=("mlp.dense_4h_to_h.bias", "same"),
        norm_attn__scale=("input_layernorm.weight", "same"),
        norm_attn__bias=("input_layernorm.bias", "same"),
        norm_mlp__scale=("post_attention_layernorm.weight", "same"),
        norm_mlp__bias=("post_attention_layernorm.bias", "same"),
      ),
    ),
    heads=(Row("embed_out.weight", ("unembed",), "same"),),
    ignored=(".attention.bias", ".masked_bias", ".rotary_emb.inv_freq"),
    renamed=(("lm_head.weight", "embed_out.weight"),),
    prefix="gpt_neox.",
    rope_frac=0.25,
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
      "activation_function": ("gelu_new",),
      "scale_attn_weights": (True,),
      "scale_attn_by_inverse_layer_idx": (False,),
      "add_cross_attention": (False,),
    },
    rows=(
      Row("transformer.wte.weight", ("embed/tokens",), "same"),
      Row("transformer.wpe.weight", ("embed/positions",), "same"),
      Row("transformer.ln_f.weight", ("final_norm/scale",), "same"),
      Row("transformer.ln_f.bias", ("final_norm/bias",), "same"),
      *rows_of(
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
    synonyms={
      "hidden_size": "n_embd",
      "num_hidden_layers": "n_layer",
      "num_attention_heads": "n_head",
      "max_position_embeddings": "n_positions",
    },
    read=lambda stated, model, where: {
      "mlp_dim": model.get("mlp_dim") or 4 * model["model_dim"]
    },
  ),
  "deepseek_v2": deepseek.ARCHITECTURE,
  **ENCODERS,
  **ENCODER_DECODERS,
}
