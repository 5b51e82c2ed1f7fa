"""A warmup-stable-decay trunk and four decays from it (Hu et al. 2024, sec. 4).

  python -m gpt_jax.lab.sweep run --config=configs/warmup_decay.py \
    --workdir=runs/decays

Measures the loss at four training lengths with three seeds, for the cost of a
trunk and four decays. Each decay equals, bit for bit, a run of that length
trained from its start with the same schedule.
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
