"""Strings of digits: copied, reversed or sorted, in minutes on two cores.

The model is that of attention.py:laptop. The strings have 1 to 12 digits, and
those that are held out occur nowhere in training:

  bash launch/local.sh --config=configs/digits.py:sort --workdir=DIR
  .venv/bin/python -m gpt_jax.evaluate --workdir=DIR --generate=1000

Whether the rule holds for longer ones is asked by --data=digits:sort:13-16.
"""

from configs import attention

RULES = ("copy", "reverse", "sort")


def get_config(rule: str = "reverse"):
  if rule not in RULES:
    raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
  config = attention.get_config("laptop")
  config.data.source = f"digits:{rule}"
  # At the rate that inverse_sqrt ends with, single steps leave the floor of
  # label smoothing; after such a last step, strings would be sorted wrongly.
  config.optim.schedule = "linear"
  config.train.num_steps = 700
  return config
