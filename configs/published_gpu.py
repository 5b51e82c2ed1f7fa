"""Training runs on H100s and H200s with published speeds, one per variant.

`python -m gpt_jax.lab.plan.published` compiles each run for its GPUs and
compares the predicted with the published speed. Shapes, batches, microbatches
and recomputation are those of the source. A variant's name is the GPU and the
source's name of the model. Sources: llm-foundry (mpt), llm.c (gpt2), MaxText
(llama2, llama3-70b), KempnerForge (llama3-8b).
"""

from configs import base

# name: (layers, width, heads, key and value heads, MLP width, vocabulary)
GPTS = {
  "mpt-1b": (24, 2048, 16, 16, 8192, 50_368),
  "mpt-3b": (32, 2560, 20, 20, 10240, 50_368),
  "mpt-7b": (32, 4096, 32, 32, 16384, 50_368),
  "mpt-13b": (40, 5120, 40, 40, 20480, 50_368),
  "mpt-30b": (48, 7168, 56, 56, 28672, 50_368),
  "gpt2-124m": (12, 768, 12, 12, 3072, 50_304),
  "gpt2-1558m": (48, 1600, 25, 25, 6400, 50_304),
}
LLAMAS = {
  "llama2-7b": (32, 4096, 32, 32, 11008, 32_000),
  "llama3-8b": (32, 4096, 32, 8, 14336, 128_256),
  "llama3-70b": (80, 8192, 64, 8, 28672, 128_256),
}
# card-shape: (T, rows a GPU in a microbatch, microbatches, GPUs, data axis,
# remat)
RUNS = {
  "h100-gpt2-124m": (1024, 64, 1, 8, 8, "none"),
  "h100-gpt2-1558m": (1024, 16, 8, 8, 8, "none"),
  "h100-mpt-1b": (2048, 14, 1, 8, 1, "none"),
  "h100-mpt-3b": (1024, 20, 6, 8, 1, "none"),
  "h100-mpt-7b": (2048, 6, 1, 8, 1, "none"),
  "h100-mpt-13b": (4096, 10, 3, 8, 1, "full"),
  "h100-mpt-30b": (2048, 10, 3, 16, 1, "full"),
  "h100-llama2-7b": (4096, 4, 1, 128, 16, "save:qkv+attn+mlp"),
  "h200-llama3-8b": (4096, 4, 2, 1, 1, "full"),
  "h200-llama3-70b": (8192, 2, 1, 256, 2, "save:qkv+attn"),
}


def get_config(variant: str):
  if variant not in RUNS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(RUNS)}")
  seq_len, rows, microbatches, gpus, data, remat = RUNS[variant]
  name = variant.partition("-")[2]
  layers, width, heads, kv_heads, mlp_dim, vocab = (GPTS | LLAMAS)[name]
  config = base.get_config()
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.seq_len = config.model.max_len = seq_len
  config.model.num_layers = layers
  config.model.model_dim = width
  config.model.num_heads = heads
  config.model.num_kv_heads = kv_heads
  config.model.mlp_dim = mlp_dim
  config.model.vocab_size = vocab
  if name in LLAMAS:
    config.model.norm = "rmsnorm"
    config.model.position = "rope"
    config.model.mlp = "swiglu"
    config.model.tied_embeddings = False
  else:
    config.model.bias = True
  if variant == "h200-llama3-8b":
    # The source used 80.7 GB, 10 bytes a parameter: not enough for float32.
    config.model.param_dtype = config.optim.moment_dtype = "bfloat16"
  config.model.scan_layers = name != "gpt2-124m"
  config.model.remat = remat
  config.model.compute_dtype = "bfloat16"
  config.optim.clip_norm = 1.0
  config.train.global_batch_size = rows * microbatches * gpus
  config.train.num_microbatches = microbatches
  config.train.num_loss_chunks = 4
  config.mesh.data = data
  config.mesh.fsdp = -1
  return config
