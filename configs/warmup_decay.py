"""A warm-up-stable trunk and four decays from it (Hu et al. 2024, section 4).

  python -m gpt_jax.lab.sweep run --config=configs/warmup_decay.py \
    --workdir=runs/decays

The loss at four lengths for the price of a trunk and four decays, with three
seeds: each equals a straight run of its own schedule, bit for bit.
"""

from configs import shakespeare_char

LENGTHS = (200, 400, 600, 800)
DECAYED = 0.2
SEEDS = (0, 1, 2)


def get_config():
  config = shakespeare_char.get_config("small")
  config.data.source = "interpreter"
  config.data.tokenizer = "bytes"
  config.data.valid_frac = 0.01
  config.optim.schedule = "wsd"
  config.optim.final_rate_frac = 0.0
  config.optim.decay_frac = 0.0
  config.train.num_steps = round(max(LENGTHS) * (1 - DECAYED))
  config.sample.every_steps = 0
  return config


def sweep(add):
  add("trunk", seeds=SEEDS)
  for length in LENGTHS:
    add(
      f"decay to {length}",
      {"train.num_steps": length, "optim.decay_frac": DECAYED},
      seeds=SEEDS,
      branch_from=("trunk", round(length * (1 - DECAYED))),
    )
