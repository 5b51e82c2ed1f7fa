"""T5 1.1 and T5 (Raffel et al. 2020): laptop (minutes, two cores), base, v1.0.

An encoder-decoder that fills in hidden spans of text: RMS norms, no biases,
positions as a bias of the scores that is learned for 32 buckets of distances,
scores that are not divided by sqrt(H). 1.1 has a gated gelu and an output
matrix of its own, v1.0 ReLU and the tied table.

base has the published 247,577,856 parameters, v1.0 222,903,552, both with rows
for 32,128 tokens. Of a window of 568 tokens 15 % are hidden, in spans of 3 on
average, which leaves 512 of source and makes 114 of target. Rate, batch and
steps are those of section 3.1.2, but the rate rises to its first value. The
tokenizer is a file to give by its path:
--config.data.tokenizer=hf:PATH/tokenizer.json

  bash launch/local.sh --config=configs/t5.py:laptop
"""

from configs import base

# variant: (layers of each stack, heads, width, MLP width)
SIZES = {
  "laptop": (3, 4, 256, 640),
  "base": (12, 12, 768, 2048),
  "v1.0": (12, 12, 768, 3072),
}


def get_config(variant: str = "laptop"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, width, mlp_dim = SIZES[variant]
  config = base.get_config()
  config.data.objective = "span_corruption"
  config.model.family = "encoder_decoder"
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.mlp_dim = mlp_dim
  config.model.norm = "rmsnorm"
  config.model.norm_eps = 1e-6
  config.model.position = "relative"
  config.model.attn_scale = 1.0
  config.model.mlp = "relu" if variant == "v1.0" else "geglu_tanh"
  config.model.tied_embeddings = variant == "v1.0"
  config.model.scaled_readout = variant == "v1.0"
  config.optim.schedule = "inverse_sqrt"
  config.optim.clip_norm = 1.0
  if variant == "laptop":
    config.data.tokenizer = "bpe:4096"
    config.data.seq_len = config.model.max_len = 128
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 100
    config.train.global_batch_size = 16
    config.train.num_steps = 500
    config.eval.every_steps = 250
    return config
  config.data.tokenizer = "hf:tokenizer.json"
  config.data.seq_len = 568
  config.model.max_len = 512
  config.model.vocab_size = 32_128
  config.model.scan_layers = True
  config.model.compute_dtype = "bfloat16"
  config.optim.optimizer = "adafactor"
  config.optim.learning_rate = 0.01
  config.optim.warmup_steps = 10_000
  config.optim.weight_decay = 0.0
  config.train.num_steps = 524_288
  config.train.global_batch_size = 128
  config.checkpoint.every_steps = 10_000
  return config
