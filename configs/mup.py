"""Widths that share a learning rate: muP on the interpreter's text.

The variant is the width; at 64, the base width, muP changes nothing. The study
asks whether the best learning rate is the same at every width, with muP and
without it.

  python -m gpt_jax.lab.transfer.coordinates --config=configs/mup.py
  python -m gpt_jax.lab.transfer --config=configs/mup.py --out=runs/transfer
"""

from configs import base

# The transfer study has one cell for each combination of these.
WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**k for k in range(-11, -3))
SEEDS = (0, 1, 2)
PARAMETRIZATIONS = ("standard", "mup")


def get_config(variant: str = "64"):
  config = base.get_config()
  width = int(variant) if variant.isdigit() else 0
  if width == 0 or width % 32:
    raise ValueError(f"no variant {variant!r}; it is a width, 32, 64, 96, ...")
  config.data.seq_len = config.model.max_len = 64
  config.model.num_layers = 2
  config.model.model_dim = width
  # A wider model has more heads of the same width.
  config.model.head_dim = 32
  config.model.num_heads = width // 32
  config.model.mlp_dim = 4 * width
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.init_std = 0.08
  config.model.parametrization = "mup"
  config.model.base_dim = 64
  config.model.base_layers = 2
  config.optim.learning_rate = 2.0**-8
  config.optim.schedule = "linear"
  config.optim.final_rate_frac = 0.0
  config.optim.warmup_steps = 20
  config.train.num_steps = 150
  config.train.global_batch_size = 8
  config.eval.num_batches = 40
  config.sample.prompt = "def "
  return config


def sweep(add):
  """Adds every cell of the transfer study."""
  for word in PARAMETRIZATIONS:
    for width in WIDTHS:
      for rate in RATES:
        for seed in SEEDS:
          add(
            **{
              "model.parametrization": word,
              "model.model_dim": width,
              "model.num_heads": width // 32,
              "model.mlp_dim": 4 * width,
              "optim.learning_rate": rate,
              "seed": seed,
            }
          )
