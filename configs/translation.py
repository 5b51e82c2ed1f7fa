"""Translation of sentences, by a small Transformer: minutes on two cores.

The model is that of attention.py:laptop. The sentence pairs come from a file
with two columns, and both languages share one byte-pair vocabulary:

  bash launch/local.sh --config=configs/translation.py \\
    --config.data.source=pairs:PATH.tsv --workdir=DIR
  .venv/bin/python -m gpt_jax.evaluate --workdir=DIR --generate=1000 --beams=4

For the other direction, use pairs:PATH.tsv#2#1. Sentences have at most 64
tokens.
"""

from configs import attention


def get_config():
  config = attention.get_config("laptop")
  config.data.source = "pairs:pairs.tsv"
  config.data.tokenizer = "bpe:1024"
  config.optim.learning_rate = 2e-3
  config.train.num_steps = 1500
  config.eval.every_steps = 500
  config.sample.every_steps = 0
  return config
