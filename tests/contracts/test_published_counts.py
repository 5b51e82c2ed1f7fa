"""The Transformer's published sizes, row by row."""

import dataclasses

from test_configs import model_of

from gpt_jax import flops

# Vaswani et al. 2017, table 3: what a row changes, and its millions of
# parameters. Left out: rows that change no size, or the width of keys alone.
ROWS = [
  (dict(), 65),
  (dict(num_layers=2), 36),
  (dict(num_layers=4), 50),
  (dict(num_layers=8), 80),
  (dict(model_dim=256), 28),
  (dict(model_dim=1024), 168),
  (dict(mlp_dim=1024), 53),
  (dict(mlp_dim=4096), 90),
]


def millions(vocab_size: int) -> list[int]:
  model = model_of("attention.py:base", vocab_size)
  counts = [
    sum(flops.count_parameters(dataclasses.replace(model, **row)).values())
    for row, _ in ROWS
  ]
  return [round(count / 1e6) for count in counts]


def test_sizes_of_the_paper_are_those_of_a_table_of_41_000_rows():
  published = [size for _, size in ROWS]
  assert millions(41_000) == published
  fits = [v for v in range(30_000, 50_000, 100) if millions(v) == published]
  assert (fits[0], fits[-1]) == (41_000, 41_100)
  # The control: with the 37,000 tokens that the text names no row agrees.
  assert all(a != b for a, b in zip(millions(37_000), published, strict=True))
