"""LoRA: adapters of the quickstart's model learn to take orders.

  bash launch/local.sh
  .venv/bin/python tests/orders.py runs/orders
  bash launch/local.sh --config=configs/tune_lora.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_lora --generate=100

As configs/tune_chat.py, but the quickstart's weights are frozen: only low-rank
matrices (rank 16) beside those of attention and MLP are trained (LoRA, Hu et
al. 2021), a seventh of the parameters. The last command generates answers to
100 held-out dialogues and counts exact matches.
"""

from configs import tune_chat


def get_config():
  config = tune_chat.get_config()
  config.adapter.rank = "attn=16,mlp=16"
  config.adapter.alpha = 32.0
  config.optim.optimizer = "adamw"
  config.optim.beta1 = 0.9
  config.optim.learning_rate = 5e-3
  return config
