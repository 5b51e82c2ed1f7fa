"""Induction heads: a two-layer model learns to copy what it has seen before.

Each text is a string of random letters, written twice. The second half can be
predicted by a head that finds the last occurrence of a letter and attends to
the letter after it (Olsson et al. 2022). The first layer attends only to the
current letter and the one before, like the smeared keys of that paper: without
this window it carries a letter several positions further, and the head looks
there. docs/interpretability.md measures the head.

  python tests/repeats.py repeats.jsonl
  bash launch/local.sh --config=configs/induction.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.source = "jsonl:repeats.jsonl"
  config.data.tokenizer = "chars"
  config.data.packing = "documents"
  # Shorter rows would cut many strings between their halves.
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
  # Strong: a second head that does the same pays for its own query and key
  # matrices, so that only one head learns to copy (docs/interpretability.md).
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
