"""How much of each source: three texts of this project, ten mixtures of them.

  python -m gpt_jax.lab.sweep run --config=configs/mixture.py \
    --workdir=runs/mixture
  python -m gpt_jax.lab.sweep.mixture --workdir=runs/mixture

Small runs whose weights are a lattice, from one source alone to equal parts
(Scheffé 1958), and all are measured on a fourth text: what a large run should
read is then read off a fit, as in RegMix (Liu et al. 2024, arXiv:2407.01492).
Copy this file, and name your sources and the text that the run is for.
"""

from configs import shakespeare_char

SOURCES = ("text:docs/*.md", "text:gpt_jax/**/*.py", "text:figures/*.svg")
TARGET = "text:tests/data/*.py"
# Weights are thirds.
PARTS = 3


def get_config():
  config = shakespeare_char.get_config("small")
  config.data.source = mix((1, 1, 1))
  config.data.valid_source = TARGET
  config.data.tokenizer = "bytes"
  config.data.split = "document"
  config.data.seq_len = config.model.max_len = 128
  config.model.num_layers = 2
  config.model.model_dim = 96
  config.model.num_heads = 4
  config.model.mlp_dim = 384
  config.train.num_steps = 200
  config.train.global_batch_size = 16
  config.optim.warmup_steps = 20
  config.optim.learning_rate = 3e-3
  config.eval.every_steps = 0
  config.checkpoint.every_steps = 10_000
  config.sample.every_steps = 0
  return config


def mix(parts) -> str:
  """Returns the mixture with these parts of each source; 0 leaves it out."""
  pairs = zip(parts, SOURCES, strict=True)
  return ",".join(f"{part / sum(parts):.4f}*{s}" for part, s in pairs if part)


def sweep(add):
  lattice = [
    (a, b, PARTS - a - b)
    for a in range(PARTS + 1)
    for b in range(PARTS + 1 - a)
  ]
  for parts in lattice:
    add(":".join(map(str, parts)), {"data.source": mix(parts)})
