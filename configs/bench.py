"""What `python -m gpt_jax.lab.bench` times: shapes that others publish too.

  tiny       4 layers, width 128, T=64, B=12: nanoGPT's CPU setting
  small      6 layers, width 384, T=256, B=64: its small GPU setting
  gpt2       GPT-2 124M, T=256, B=4, float32, for a CPU
  long       GPT-2 124M, T=8192, B=1: memory of its head and attention
  gpt2-gpu   GPT-2 124M, T=1024, bfloat16, for a GPU
  llama-1b   Llama 3.2 1B's shape, T=2048, bfloat16, for a GPU
  llama-3b   Llama 3.2 3B's shape, the largest that AdamW trains in 80 GiB
  llama-8b   Llama 3 8B's shape, the largest for 140 GiB
  15m        Llama's architecture at 15M, as for small stories; to time decoding
  growth     2 layers, width 128, T=128, B=4: where lab.bench.growth begins

These configs are for timing, not training: they set the vocabulary size
directly and read no text. For another precision:
--config.model.compute_dtype=bfloat16
"""

from configs import base

# GPT-2's architecture: (layers, heads, width, T, B, V, precision)
GPTS = {
  "tiny": (4, 4, 128, 64, 12, 65, "float32"),
  "small": (6, 6, 384, 256, 64, 65, "float32"),
  "gpt2": (12, 12, 768, 256, 4, 50257, "float32"),
  "long": (12, 12, 768, 8192, 1, 50257, "float32"),
  "gpt2-gpu": (12, 12, 768, 1024, 64, 50257, "bfloat16"),
  "growth": (2, 4, 128, 128, 4, 1024, "float32"),
}
# Llama's: (layers, heads, key and value heads, width, MLP, T, B, V, precision)
LLAMAS = {
  "llama-1b": (16, 32, 8, 2048, 8192, 2048, 16, 128_256, "bfloat16"),
  "llama-3b": (28, 24, 8, 3072, 8192, 2048, 8, 128_256, "bfloat16"),
  "llama-8b": (32, 32, 8, 4096, 14336, 2048, 4, 128_256, "bfloat16"),
  "15m": (6, 6, 6, 288, 768, 256, 32, 32_000, "float32"),
}


def get_config(variant: str = "tiny"):
  if variant not in GPTS and variant not in LLAMAS:
    known = ", ".join([*GPTS, *LLAMAS])
    raise ValueError(f"no variant {variant!r}; there are {known}")
  config = base.get_config()
  config.optim.clip_norm = 1.0
  config.model.num_layers = (GPTS | LLAMAS)[variant][0]
  if variant in GPTS:
    _, heads, width, seq_len, rows, vocab_size, precision = GPTS[variant]
    config.model.mlp_dim = 4 * width
    config.model.max_len = seq_len
    if vocab_size == 50257:
      config.data.tokenizer = "bpe:50257"
      config.model.max_len = max(1024, seq_len)
      config.model.bias = True
      if variant in ("long", "gpt2-gpu"):
        config.train.num_loss_chunks = 8
    else:
      config.data.tokenizer = "chars"
      config.model.vocab_multiple = 1
      config.optim.beta2 = 0.99
      if variant == "small":
        # Microbatches that fit a CPU's caches; same update (configs/LOG.md).
        config.train.num_microbatches = 16
  else:
    _, heads, kv_heads, width, mlp_dim, seq_len, rows, vocab_size, precision = (
      LLAMAS[variant]
    )
    config.data.tokenizer = f"bpe:{vocab_size}"
    config.model.num_kv_heads = kv_heads
    config.model.mlp_dim = mlp_dim
    config.model.max_len = seq_len
    config.model.norm = "rmsnorm"
    config.model.position = "rope"
    config.model.mlp = "swiglu"
    if variant != "15m":
      config.model.rope_theta = 500_000.0
      config.train.num_loss_chunks = 8
    if variant in ("llama-3b", "llama-8b"):
      config.optim.moment_dtype = "bfloat16"  # or activations do not fit
    config.model.tied_embeddings = variant != "llama-8b"
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.vocab_size = vocab_size
  config.model.compute_dtype = precision
  config.data.seq_len = seq_len
  config.train.global_batch_size = rows
  return config
