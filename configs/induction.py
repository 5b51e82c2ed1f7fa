"""Induction heads: two small layers learn to copy what they have seen before.

Random letters, each string twice: the second half can be predicted by a head
that looks for the last occurrence of a letter and attends to what followed it
(Olsson et al. 2022). docs/interpretability.md measures that head.

  python tests/repeats.py repeats.jsonl
  bash launch/local.sh --config=configs/induction.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.source = "jsonl:repeats.jsonl"
  config.data.tokenizer = "chars"
  config.data.packing = "documents"
  config.data.seq_len = config.model.max_len = 64
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.model_dim = 64
  config.model.mlp_dim = 64
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "relu_squared"
  config.optim.learning_rate = 3e-3
  config.optim.warmup_steps = 50
  config.train.global_batch_size = 32
  config.train.num_steps = 1500
  config.checkpoint.every_steps = 500
  config.eval.every_steps = 500
  config.eval.num_batches = 10
  config.sample.every_steps = 0
  return config
