"""Supervised tuning: a small model learns to take orders, from 200 dialogues.

  bash launch/local.sh
  .venv/bin/python tests/orders.py runs/orders
  bash launch/local.sh --config=configs/tune_chat.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_chat --generate=100

The first command trains the quickstart, whose weights and tokenizer are the
starting point. The second generates dialogues by a rule: 200 for training and
100 held out. The third tunes the model, and the last one generates answers to
the held-out dialogues and counts exact matches.
"""

from configs import tiny


def get_config():
  config = tiny.get_config()
  config.data.source = "chat:runs/orders/train.jsonl"
  config.data.valid_source = "chat:runs/orders/valid.jsonl"
  config.data.tokenizer = "hf:runs/tiny/tokenizer.json"
  config.data.objective = "chat"
  config.data.template = "chatml:text"
  config.data.packing = "documents"
  config.train.init_from = "runs/tiny"
  config.data.seq_len = config.model.max_len = 256
  config.train.global_batch_size = 8
  config.train.num_steps = 200
  config.optim.learning_rate = 2e-3
  config.optim.warmup_steps = 20
  config.eval.every_steps = 50
  config.sample.every_steps = 100
  config.sample.prompt = "two teas and a bun, please."
  config.sample.temperature = 0.0
  return config
