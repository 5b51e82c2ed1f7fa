"""Training runs on TPU slices with published speeds, one per variant.

`python -m gpt_jax.lab.plan.published` plans each run on its slice and compares
the predicted with the published speed. Batch sizes are per chip, as published.
A variant's name is the chip and the source's name of the model.
"""

from configs import base

# name: (layers, width, heads, key and value heads, MLP width, vocabulary);
# heads are 128 wide.
SHAPES = {
  "16b": (32, 4096, 64, 64, 28672, 32_000),
  "32b": (32, 8192, 64, 64, 28672, 32_000),
  "64b": (64, 8192, 64, 64, 28672, 32_000),
  "128b": (64, 8192, 128, 128, 57344, 32_000),
  "512b": (128, 16384, 128, 128, 57344, 32_000),
  "1024b": (128, 16384, 256, 256, 114688, 32_000),
  "llama2-70b": (80, 8192, 64, 8, 28672, 32_000),
  "llama3-8b": (32, 4096, 32, 8, 14336, 128_256),
  "llama3-70b": (80, 8192, 64, 8, 28672, 128_256),
}
# chip-shape: (T, sequences a chip, chips, tensor axis, remat)
RUNS = {
  "v5e-16b": (2048, 6, 256, 1, "full"),
  "v5e-32b": (2048, 4, 256, 1, "full"),
  "v5e-64b": (2048, 2, 256, 1, "full"),
  "v5e-128b": (2048, 1, 256, 16, "offload:qkv"),
  "v5p-32b": (2048, 6, 64, 4, "save:qkv+attn+mlp"),
  "v5p-64b": (2048, 3, 64, 4, "save:qkv+attn"),
  "v5p-128b": (2048, 1, 256, 8, "dots"),
  "v5p-512b": (2048, 2, 512, 8, "full"),
  "v5p-1024b": (2048, 2, 2048, 16, "full"),
  "v5p-llama2-70b": (4096, 4, 256, 1, "save:qkv+attn"),
  "v6e-llama3-8b": (8192, 4, 256, 1, "offload:block+qkv+attn"),
  "v6e-llama3-70b": (8192, 5, 256, 1, "offload:block+qkv"),
}


def get_config(variant: str):
  if variant not in RUNS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(RUNS)}")
  seq_len, per_chip, chips, tensor, remat = RUNS[variant]
  shape = SHAPES[variant.partition("-")[2]]
  layers, width, heads, kv_heads, mlp_dim, vocab_size = shape
  config = base.get_config()
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.seq_len = config.model.max_len = seq_len
  config.model.num_layers = layers
  config.model.model_dim = width
  config.model.num_heads = heads
  config.model.num_kv_heads = kv_heads
  config.model.head_dim = 128
  config.model.mlp_dim = mlp_dim
  config.model.vocab_size = vocab_size
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "swiglu"
  config.model.tied_embeddings = False
  config.model.scan_layers = True
  config.model.remat = remat
  config.model.compute_dtype = "bfloat16"
  config.optim.clip_norm = 1.0
  config.train.global_batch_size = per_chip * chips
  config.train.num_loss_chunks = 4
  config.mesh.data = 1
  config.mesh.fsdp = -1
  config.mesh.tensor = tensor
  return config
