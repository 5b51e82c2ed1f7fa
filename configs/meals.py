"""One layer with two heads of width 8: small enough to read every number.

A character model of Chinese sentences that a rule generates; the page
docs/interpretability.md follows one sentence through its queries, keys,
attention weights and weighted sums.

  python tests/meals.py meals.txt
  bash launch/local.sh --config=configs/meals.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.source = "text:meals.txt"
  config.data.tokenizer = "chars"
  config.data.split = "tail"
  config.data.seq_len = config.model.max_len = 32
  config.model.num_layers = 1
  config.model.num_heads = 2
  config.model.model_dim = 16
  config.model.mlp_dim = 32
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.optim.learning_rate = 1e-2
  config.optim.warmup_steps = 20
  config.train.global_batch_size = 16
  config.train.num_steps = 300
  config.eval.every_steps = 100
  config.eval.num_batches = 4
  config.sample.every_steps = 0
  return config
