"""A tutor that grades answers and says why one is wrong.

  .venv/bin/python tests/lessons.py runs/lessons
  bash launch/local.sh --config=configs/tutor.py --workdir=runs/tutor
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tutor \\
    --data=pairs:runs/lessons/tutor-valid.tsv --generate=1000

The answers are plurals of made-up words, many of them unseen in training. So
the model reads characters and has to learn the rules.
"""

from configs import reports


def get_config():
  config = reports.get_config()
  config.data.source = "pairs:runs/lessons/tutor-train.tsv"
  config.data.tokenizer = "chars"
  return config
