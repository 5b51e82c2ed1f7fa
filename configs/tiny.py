"""The quickstart: a small GPT that learns Python from the interpreter's text.

  bash launch/local.sh

Its settings are those that give the fewest bits per byte after three minutes
on two cores; configs/LOG.md has the measurements.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.tokenizer = "bpe:2048"
  config.data.seq_len = config.model.max_len = 128
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.model_dim = 128
  config.model.mlp_dim = 512
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "relu_squared"
  config.model.qk_norm = True
  config.model.init_std = 0.08
  config.optim.optimizer = "muon"
  config.optim.learning_rate = 8e-3
  config.optim.beta1 = 0.95
  config.optim.schedule = "linear"
  config.optim.final_rate_frac = 0.0
  config.optim.warmup_steps = 40
  config.optim.clip_norm = 1.0
  config.train.num_steps = 900
  config.train.global_batch_size = 16
  config.checkpoint.every_steps = 100
  config.eval.every_steps = 300
  config.eval.num_batches = 20
  config.sample.every_steps = 450
  config.sample.prompt = "def "
  config.sample.temperature = 0.7
  return config
