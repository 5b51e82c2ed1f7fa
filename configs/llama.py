"""Llama's architecture (Touvron et al. 2023, Dubey et al. 2024).

Variants: mini (minutes on two cores), laptop (hours), 1b, 8b, 70b.

RMSNorm, rotary positions, SwiGLU, grouped queries, no biases. 1b is Llama 3.2
1B (tied embeddings, scaled rope frequencies); 8b and 70b are Llama 3. All three
need the path of their tokenizer:
--config.data.tokenizer=hf:PATH/tokenizer.json
"""

from configs import base

# variant: (layers, query heads, key and value heads, width, MLP width)
SIZES = {
  "mini": (4, 4, 2, 256, 704),
  "laptop": (6, 6, 2, 384, 1024),
  "1b": (16, 32, 8, 2048, 8192),
  "8b": (32, 32, 8, 4096, 14336),
  "70b": (80, 64, 8, 8192, 28672),
}


def get_config(variant: str = "laptop"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, kv_heads, width, mlp_dim = SIZES[variant]
  config = base.get_config()
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.num_kv_heads = kv_heads
  config.model.model_dim = width
  config.model.mlp_dim = mlp_dim
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "swiglu"
  config.model.tied_embeddings = variant in ("mini", "laptop", "1b")
  config.optim.clip_norm = 1.0
  config.sample.prompt = "The "
  if variant in ("mini", "laptop"):
    config.data.tokenizer = "bpe:4096"
    if variant == "mini":
      config.train.num_steps = 250
      config.optim.warmup_steps = 25
      config.eval.every_steps = 50
    return config
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.seq_len = 8192
  config.data.packing = "documents"
  config.model.max_len = 8192
  config.model.vocab_size = 128_256
  config.model.rope_theta = 500_000.0
  if variant == "1b":
    config.model.head_dim = 64
    config.model.rope_scaling = "llama3:32:8192"
  config.model.scan_layers = True
  config.model.remat = "full"
  config.model.compute_dtype = "bfloat16"
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 2000
  config.train.num_steps = 100_000
  config.train.global_batch_size = 512
  config.train.num_loss_chunks = 8
  config.mesh.data = 1
  config.mesh.fsdp = -1
  return config
