"""Memorisation of training text (Carlini et al. 2019, arXiv:1802.08232).

A small byte-level model that memorises what occurs often in a text in which
`gpt_jax.lab.canaries plant` has planted lines. docs/cleaning.md has the other
commands.

  python -m gpt_jax.train --config=configs/canaries.py \
    --config.data.source=jsonl:planted.jsonl --workdir=runs/planted
"""

from configs import base


def get_config():
  config = base.get_config()
  # Nothing is held out: the model cannot memorise a canary it never reads.
  config.data.valid_frac = 0.0
  config.data.tokenizer = "bytes"
  config.data.seq_len = config.model.max_len = 128
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.model_dim = 96
  config.model.mlp_dim = 384
  config.optim.learning_rate = 3e-3
  config.optim.warmup_steps = 30
  config.train.num_steps = 600
  config.train.global_batch_size = 16
  config.checkpoint.every_steps = 0
  config.eval.every_steps = 0
  config.sample.every_steps = 0
  return config
