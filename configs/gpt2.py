"""GPT-2 (Radford et al. 2019): 124m, 350m, 774m, 1558m.

Give the path of the published vocabulary; without it, a byte-pair vocabulary
of the same size is trained on the corpus:

  bash launch/local.sh --config=configs/gpt2.py:124m \
    --config.data.tokenizer=gpt2:PATH --config.data.source='text:PATH/*.txt'
"""

from configs import base

# variant: (layers, heads, width)
SIZES = {
  "124m": (12, 12, 768),
  "350m": (24, 16, 1024),
  "774m": (36, 20, 1280),
  "1558m": (48, 25, 1600),
}


def get_config(variant: str = "124m"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, width = SIZES[variant]
  config = base.get_config()
  config.data.tokenizer = "bpe:50257"
  config.data.seq_len = config.model.max_len = 1024
  config.model.vocab_size = 50257
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.mlp_dim = 4 * width
  config.model.bias = True
  config.model.compute_dtype = "bfloat16"
  config.optim.learning_rate = 6e-4 if variant == "124m" else 2e-4
  config.optim.clip_norm = 1.0
  config.optim.warmup_steps = 700
  config.train.num_steps = 19_000
  config.train.global_batch_size = 512
  config.train.num_microbatches = 16
  config.train.max_nonfinite_steps = 20
  config.checkpoint.every_steps = 1000
  config.sample.prompt = "The "
  return config
