"""Reports written from fields, which come in any order and must be compared.

  .venv/bin/python tests/lessons.py runs/lessons
  bash launch/local.sh --config=configs/reports.py --workdir=runs/reports
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/reports \\
    --data=pairs:runs/lessons/reports-valid.tsv --generate=1000

The model is that of attention.py:laptop. For your own fields and reports, give
a file of pairs as data.source.
"""

from configs import attention


def get_config():
  config = attention.get_config("laptop")
  config.data.source = "pairs:runs/lessons/reports-train.tsv"
  config.data.tokenizer = "bpe:512"
  config.optim.learning_rate = 2e-3
  config.train.num_steps = 1000
  config.eval.every_steps = 500
  config.sample.every_steps = 0
  return config
