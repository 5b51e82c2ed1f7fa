"""ModernBERT (Warner et al. 2024): laptop (minutes on two cores), base.

An encoder that predicts masked tokens: pre-norm, rotary positions, a gated MLP,
no biases, and two local layers to each global one. base has ModernBERT's sizes:
149,655,232 parameters with its head. It needs the path of its tokenizer:
--config.data.tokenizer=hf:PATH/tokenizer.json
"""

from configs import base

# variant: (layers, heads, width, MLP width)
SIZES = {"laptop": (6, 4, 256, 384), "base": (22, 12, 768, 1152)}


def get_config(variant: str = "laptop"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, width, mlp_dim = SIZES[variant]
  config = base.get_config()
  config.data.objective = "masked_lm"
  config.data.mask_rate = 0.3
  config.model.family = "encoder"
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.mlp_dim = mlp_dim
  config.model.embed_norm = True
  config.model.position = "rope"
  config.model.rope_theta = 160_000.0
  config.model.local_rope_theta = 10_000.0
  config.model.layer_pattern = "global+2*local"
  config.model.mlp = "geglu"
  config.model.head = "transform"
  config.optim.schedule = "wsd"
  config.sample.every_steps = 0
  if variant == "laptop":
    config.data.tokenizer = "bpe:4096"
    config.data.seq_len = config.model.max_len = 128
    config.model.sliding_window = 17
    config.optim.clip_norm = 1.0
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.train.global_batch_size = 16
    config.train.num_steps = 500
    config.eval.every_steps = 250
    return config
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.packing = "documents"
  config.data.seq_len = config.model.max_len = 1024
  config.model.vocab_size = 50_368
  # 64 tokens on each side.
  config.model.sliding_window = 65
  config.model.scan_layers = True
  config.model.compute_dtype = "bfloat16"
  config.optim.learning_rate = 8e-4
  config.optim.warmup_steps = 2800
  config.train.num_steps = 370_000
  config.train.global_batch_size = 4608
  config.train.num_microbatches = 48
  config.checkpoint.every_steps = 3500
  return config
