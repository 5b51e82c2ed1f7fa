"""Vocabularies are learned from a bounded sample."""

import numpy as np

from gpt_jax.data import vocabulary


def test_a_sample_for_training_is_bounded_and_spread(monkeypatch):
  monkeypatch.setattr(vocabulary, "SAMPLE_BYTES", 1000)
  pieces = [f"{i:04d}" + "x" * 96 for i in range(100)]
  kept, notes = vocabulary.sample(iter(pieces))
  assert notes["trained_on_bytes"] == sum(map(len, kept)) <= 1000
  assert notes["of_bytes"] == 10_000
  numbers = [int(text[:4]) for text in kept]
  assert np.diff(numbers).tolist() == [notes["every_nth_piece"]] * (
    len(numbers) - 1
  )
  assert numbers[0] == 0 and numbers[-1] >= 80
  kept, notes = vocabulary.sample(iter(pieces[:5]))
  assert kept == pieces[:5] and notes["every_nth_piece"] == 1
