"""T5 1.1 and T5 (Raffel et al. 2020): laptop (minutes, two cores), base, v1.0.

An encoder-decoder that fills in masked spans of text: RMSNorm, no biases,
relative positions (a learned bias of the attention scores for each of 32
distance buckets), and scores that are not divided by the root of the head
width. laptop and base are T5 1.1, with a gated gelu and an untied output
matrix; v1.0 has ReLU and tied embeddings.

base has the published 247,577,856 parameters, v1.0 222,903,552, both with
32,128 embedding rows. Of each window of 568 tokens, 15 % are masked in spans of
3 tokens on average, which leaves a source of 512 tokens and a target of 114.
Learning rate, batch and steps are those of section 3.1.2, except that the rate
has a linear warm-up. Both need the path of their tokenizer:
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
