"""Latent attention (DeepSeek-V2, Liu et al. 2024): laptop, v2-lite.

Decoding caches a small vector per token and layer instead of keys and values.
laptop is llama.py:laptop with latent attention: it caches 160 numbers instead
of 256 (768 if each query head had its own keys). Hours on two cores:

  bash launch/local.sh --config=configs/mla.py:laptop

v2-lite is DeepSeek-V2-Lite as it was pretrained (their appendix B): the first
layer is dense, the others have 64 small experts and two shared ones for all
tokens. Two things differ from the original: the weights of a token's experts
are divided by their sum, and the learning rate follows a cosine instead of
dropping in two steps. It needs the path of its tokenizer:
--config.data.tokenizer=hf:PATH/tokenizer.json
"""

from configs import llama


def get_config(variant: str = "laptop"):
  if variant not in ("laptop", "v2-lite"):
    raise ValueError(f"no variant {variant!r}; there are laptop, v2-lite")
  config = llama.get_config("laptop" if variant == "laptop" else "8b")
  config.model.num_kv_heads = None
  if variant == "laptop":
    # Of a head's 96 dims, 64 have no position and 32 are rotated (rope).
    config.model.head_dim = 96
    config.model.kv_lora_rank = 128
    config.model.qk_rope_head_dim = 32
    config.model.v_head_dim = 64
    return config
  config.data.seq_len = config.model.max_len = 4096
  config.model.num_layers = 27
  config.model.model_dim = 2048
  config.model.num_heads = 16
  config.model.head_dim = 192
  config.model.kv_lora_rank = 512
  config.model.qk_rope_head_dim = 64
  config.model.v_head_dim = 128
  config.model.mlp_dim = 10_944
  config.model.layer_pattern = "dense+26*moe"
  config.model.num_experts = 64
  config.model.num_shared_experts = 2
  config.model.experts_per_token = 6
  config.model.expert_mlp_dim = 1408
  config.model.router_balance_weight = 0.001
  config.model.vocab_size = 102_400
  config.model.rope_theta = 10_000.0
  config.model.norm_eps = 1e-6
  config.model.init_std = 0.006
  config.optim.learning_rate = 4.2e-4
  config.train.global_batch_size = 4608
  config.train.num_steps = 302_000
  config.mesh.expert = 8
  return config
