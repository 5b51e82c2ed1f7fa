"""How much of each source to train on: ten mixtures of three texts.

  python -m gpt_jax.lab.sweep run --config=configs/mixture.py \
    --workdir=runs/mixture
  python -m gpt_jax.lab.sweep.mixture --workdir=runs/mixture

Small runs whose source weights form a simplex lattice, from one source alone to
equal parts (Scheffé 1958). All are evaluated on a fourth text, and a fit to
their losses predicts the best mixture for a large run, as in RegMix (Liu et al.
2024, arXiv:2407.01492). To use it, copy this file and set your sources and the
text that the large run should do well on.
"""

from configs import shakespeare_char

SOURCES = ("text:docs/*.md", "text:gpt_jax/**/*.py", "text:figures/*.svg")
TARGET = "text:tests/data/*.py"
# Weights are multiples of 1 / PARTS.
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
  """Returns data.source with these parts of each source; 0 leaves one out."""
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
