"""BERT (Devlin et al. 2019): laptop (minutes on two cores), base.

An encoder that predicts masked tokens: post-norm, learned positions, two token
types, gelu, biases, and BERT's head. base has BERT's sizes: 109,514,298
parameters with its 30,522 tokens. It needs the path of the published
tokenizer: --config.data.tokenizer=hf:PATH/tokenizer.json
"""

from configs import base

# variant: (layers, heads, width)
SIZES = {"laptop": (4, 4, 256), "base": (12, 12, 768)}


def get_config(variant: str = "laptop"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, width = SIZES[variant]
  config = base.get_config()
  config.data.objective = "masked_lm"
  config.model.family = "encoder"
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.mlp_dim = 4 * width
  config.model.norm_placement = "post"
  config.model.norm_eps = 1e-12
  config.model.embed_norm = True
  config.model.num_token_types = 2
  config.model.mlp = "gelu"
  config.model.bias = True
  config.model.head = "transform"
  config.optim.clip_norm = 1.0
  config.optim.schedule = "linear"
  config.optim.final_rate_frac = 0.0
  config.sample.every_steps = 0
  if variant == "laptop":
    config.data.tokenizer = "bpe:4096"
    config.data.seq_len = config.model.max_len = 128
    config.train.global_batch_size = 16
    config.train.num_steps = 500
    config.eval.every_steps = 250
    return config
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.seq_len = config.model.max_len = 512
  config.model.vocab_size = 30_522
  config.model.dropout_rate = 0.1
  config.model.scan_layers = True
  config.model.compute_dtype = "bfloat16"
  config.optim.learning_rate = 1e-4
  config.optim.beta2 = 0.999
  config.optim.weight_decay = 0.01
  config.optim.warmup_steps = 10_000
  config.train.num_steps = 1_000_000
  config.train.global_batch_size = 256
  config.checkpoint.every_steps = 10_000
  return config
