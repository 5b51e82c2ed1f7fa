"""Induction heads: two small layers learn to copy what they have seen before.

Random letters, each string twice: the second half can be predicted by a head
that looks for the last occurrence of a letter and attends to what followed it
(Olsson et al. 2022). The first layer sees the letter before and no other, as
their smeared keys do: else it carries a letter several places on, and the head
looks there. docs/interpretability.md measures that head.

  python tests/repeats.py repeats.jsonl
  bash launch/local.sh --config=configs/induction.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.source = "jsonl:repeats.jsonl"
  config.data.tokenizer = "chars"
  config.data.packing = "documents"
  # Short rows would cut many a string between its halves.
  config.data.seq_len = config.model.max_len = 128
  config.model.num_layers = 2
  config.model.layer_pattern = "local+global"
  config.model.sliding_window = 2
  config.model.num_heads = 2
  config.model.head_dim = 64
  config.model.model_dim = 64
  config.model.mlp_dim = 64
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "relu_squared"
  config.optim.learning_rate = 3e-3
  config.optim.schedule = "linear"
  config.optim.final_rate_frac = 0.0
  # Two heads that do the same cost two matrices of queries and keys.
  config.optim.weight_decay = 3.0
  config.optim.warmup_steps = 50
  config.optim.clip_norm = 1.0
  config.train.global_batch_size = 16
  config.train.num_steps = 1000
  config.checkpoint.every_steps = 1000
  config.eval.every_steps = 1000
  config.eval.num_batches = 10
  config.sample.every_steps = 0
  return config
