"""Strings of digits: copied, reversed or sorted by a small encoder-decoder.

  python -m gpt_jax.train --config=configs/digits.py:reverse --workdir=DIR
  python -m gpt_jax.evaluate --workdir=DIR --generate=1000

The strings have 1 to 12 digits, and those that are held out occur nowhere in
training. Whether the rule holds for longer ones, of up to 24, is asked by
--data=digits:reverse:13-16.
"""

from configs import base

RULES = ("copy", "reverse", "sort")


def get_config(rule: str = "reverse"):
  if rule not in RULES:
    raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
  config = base.get_config()
  config.data.source = f"digits:{rule}"
  config.data.valid_frac = 0.05
  config.data.tokenizer = "chars"
  config.data.objective = "sequence_to_sequence"
  # Several strings share a row, so that little of it is empty.
  config.data.packing = "documents"
  config.data.seq_len = config.model.max_len = 64
  config.model.family = "encoder_decoder"
  config.model.num_layers = 2
  config.model.model_dim = 128
  config.model.num_heads = 4
  config.model.mlp_dim = 512
  config.model.norm = "rmsnorm"
  config.optim.learning_rate = 2e-3
  config.optim.clip_norm = 1.0
  config.train.num_steps = 1500
  config.train.global_batch_size = 32
  config.eval.every_steps = 500
  config.sample.every_steps = 0
  return config
