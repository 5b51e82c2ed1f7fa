"""Gemma 3's architecture (Gemma Team 2025): laptop, 1b.

Five local layers to each global one; local layers have a sliding window and
their own rope base. Norms before and after each sublayer, and of queries and
keys. A gated GELU. Embeddings are multiplied by the root of the width. 1b
needs the path of its tokenizer: --config.data.tokenizer=hf:PATH/tokenizer.json

  bash launch/local.sh --config=configs/gemma3.py:laptop
"""

from configs import llama

VARIANTS = ("laptop", "1b")


def get_config(variant: str = "laptop"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = llama.get_config("mini" if variant == "laptop" else "1b")
  config.model.norm_placement = "sandwich"
  config.model.qk_norm = True
  config.model.mlp = "geglu_tanh"
  config.model.scaled_embeddings = True
  config.model.layer_pattern = "5*local+global"
  config.model.local_rope_theta = 10_000.0
  config.model.rope_theta = 1_000_000.0
  config.model.num_kv_heads = 1
  if variant == "laptop":
    config.model.num_layers = 6
    config.model.sliding_window = 64
    return config
  config.data.seq_len = config.model.max_len = 32_768
  config.model.num_layers = 26
  config.model.num_heads = 4
  config.model.head_dim = 256
  config.model.model_dim = 1152
  config.model.mlp_dim = 6912
  config.model.vocab_size = 262_144
  config.model.norm_eps = 1e-6
  config.model.rope_scaling = "none"
  config.model.sliding_window = 512
  config.train.global_batch_size = 128
  return config
