"""Copying, reversing or sorting strings of digits: minutes on two cores.

The model is that of attention.py:laptop. The strings have 1 to 12 digits, and
no held-out string occurs in training:

  bash launch/local.sh --config=configs/digits.py:sort --workdir=DIR
  .venv/bin/python -m gpt_jax.evaluate --workdir=DIR --generate=1000

--data=digits:sort:13-16 tests whether the model generalises to longer strings.
"""

from configs import attention

RULES = ("copy", "reverse", "sort")


def get_config(rule: str = "reverse"):
  if rule not in RULES:
    raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
  config = attention.get_config("laptop")
  config.data.source = f"digits:{rule}"
  # inverse_sqrt ends at a rate that is still high enough for the loss to jump
  # in single steps; a run that ended on such a step would sort wrongly.
  config.optim.schedule = "linear"
  config.train.num_steps = 700
  return config
