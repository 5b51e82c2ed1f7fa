"""The tuning of tune_chat.py by adapters; the quickstart is left as it is.

  bash launch/local.sh
  .venv/bin/python tests/orders.py runs/orders
  bash launch/local.sh --config=configs/tune_lora.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_lora --generate=100

LoRA of rank 16 on each matrix of the layers (Hu et al. 2021). Ranks this high,
a quarter of all weights beside 1.0 M, are for a base this small, to which
dialogues are new; a large one needs less. --config.adapter.base=int8 holds the
base in 8 bits.
"""

from configs import tune_chat


def get_config():
  config = tune_chat.get_config()
  config.adapter.rank = "*=16"
  config.adapter.alpha = 16.0
  config.optim.optimizer = "adamw"
  config.optim.beta1 = 0.9
  config.optim.learning_rate = 1e-2
  config.train.num_steps = 300
  return config
