"""The sizes that this project started from, as a language model.

Vaswani et al. (2017) in small: 2 layers, 4 heads, width 512, MLP 2048, dropout
0.1, 512 positions, norms after the sum, ReLU's smooth successor, Adam at 1e-3.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.tokenizer = "bpe:4096"
  config.data.seq_len = config.model.max_len = 512
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.model_dim = 512
  config.model.mlp_dim = 2048
  config.model.norm_placement = "post"
  config.model.bias = True
  config.model.dropout_rate = 0.1
  config.optim.optimizer = "adam"
  config.optim.learning_rate = 1e-3
  config.optim.beta2 = 0.98
  config.optim.schedule = "inverse_sqrt"
  config.optim.warmup_steps = 400
  config.train.num_steps = 4000
  config.train.global_batch_size = 16
  return config
