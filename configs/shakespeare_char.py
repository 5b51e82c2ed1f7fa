"""Tiny Shakespeare by characters: nanoGPT's two published settings.

  small   4 layers, width 128, T=64: minutes on a CPU, published loss 1.88
  gpu     6 layers, width 384, T=256: published loss 1.4697

The project does not include the text; give its path:

  bash launch/local.sh --config=configs/shakespeare_char.py:small \
    --config.data.source=text:PATH/input.txt
"""

from configs import base


def get_config(variant: str = "small"):
  config = base.get_config()
  config.data.source = "text:input.txt"
  config.data.tokenizer = "chars"
  config.data.split = "tail"
  config.model.vocab_multiple = 1
  config.model.init_std = 0.08
  config.optim.beta2 = 0.99
  config.optim.clip_norm = 1.0
  config.sample.num_tokens = 500
  if variant == "small":
    config.data.seq_len = config.model.max_len = 64
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    config.train.global_batch_size = 12
    config.train.num_steps = 2000
  elif variant == "gpu":
    config.data.seq_len = config.model.max_len = 256
    config.model.num_layers = 6
    config.model.num_heads = 6
    config.model.model_dim = 384
    config.model.mlp_dim = 1536
    config.model.dropout_rate = 0.2
    config.train.global_batch_size = 64
    config.train.num_steps = 5000
  else:
    raise ValueError(f"no variant {variant!r}; there are small and gpu")
  return config
