"""A scaling study of small byte-level models on the interpreter's text.

  bash launch/study.sh runs/study

23 runs as in approach 2 of Hoffmann et al. (2022): four compute budgets with
five or six sizes each. Every run has its own schedule, which ends at zero. With
muP, one learning rate suits all widths. The variant `large` is one run of more
than four times the largest budget, whose loss is predicted before it is run.

Compute is 6 N D, where N counts all parameters, including the embedding.
"""

from configs import mup

# {FLOPs of one run: widths of the two-layer models that are trained with them}
BUDGETS = {
  2e11: (16, 32, 48, 64, 80, 96),
  6e11: (32, 48, 64, 80, 96, 128),
  1.8e12: (32, 48, 64, 80, 96, 128),
  5.4e12: (64, 80, 96, 128, 160),
}
LARGE = 128, 4.2 * 5.4e12
ROWS, LENGTH, HEAD = 8, 128, 16
VOCAB = 257


def get_config(variant: str = "small"):
  if variant not in ("small", "large"):
    raise ValueError(f"no variant {variant!r}; there are small and large")
  config = mup.get_config("64")
  config.data.source = "interpreter"
  config.data.tokenizer = "bytes"
  config.data.valid_frac = 0.03
  config.model.head_dim = HEAD
  config.model.num_heads = 64 // HEAD
  config.data.seq_len = config.model.max_len = LENGTH
  config.train.global_batch_size = ROWS
  config.optim.learning_rate = 2.0**-7
  config.optim.warmup_steps = 20
  config.train.log_every_steps = 50
  config.eval.every_steps = 500
  config.checkpoint.every_steps = 10_000
  config.checkpoint.keep_last = 1
  config.sample.every_steps = 0
  if variant == "large":
    for key, value in shape_of(*LARGE).items():
      section, name = key.split(".")
      config[section][name] = value
  return config


def count_params(width: int) -> int:
  """Returns N of a width: two layers of 12 width^2, five norms, embedding."""
  return 2 * 12 * width**2 + 5 * width + VOCAB * width


def shape_of(width: int, flops: float) -> dict:
  """Returns the config values of a run of this width and compute."""
  step = 6 * count_params(width) * ROWS * LENGTH
  return {
    "model.model_dim": width,
    "model.num_heads": width // HEAD,
    "model.mlp_dim": 4 * width,
    "train.num_steps": -int(-flops // step),
  }


def count_large() -> tuple[int, int]:
  """Returns (N, D) of the large run."""
  width, flops = LARGE
  steps = shape_of(width, flops)["train.num_steps"]
  return count_params(width), steps * ROWS * LENGTH


def sweep(add):
  for flops, widths in BUDGETS.items():
    for width in widths:
      add(f"{flops:.3g} FLOPs, width {width}", shape_of(width, flops))
