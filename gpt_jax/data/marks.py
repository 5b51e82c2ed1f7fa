"""Ids that objectives add to the vocabulary, after the tokenizer's.

Text is never encoded to them. The ids that objectives share come first, so that
a model trained with one objective has learned them for the next one.
"""

from typing import NamedTuple

import numpy as np

from gpt_jax.config import NUM_SENTINELS
from gpt_jax.data.tokenizers.protocol import Tokenizer

MODES = ("R", "S", "X")


class Marks(NamedTuple):
  """Ids of marks.

  Attributes:
    start: begins the targets that a decoder reads.
    end: ends inputs and targets.
    sentinels: int32; they stand for hidden spans, in the order of use.
    modes: {mode of a denoiser: the id that begins its inputs}.
  """

  start: int
  end: int
  sentinels: np.ndarray
  modes: dict[str, int]


def pair_ids(tokenizer: Tokenizer) -> tuple[int, int]:
  """Returns (the id that begins a target, the id that ends both texts)."""
  marks = find_marks(tokenizer.vocab_size)
  return tokenizer.pair_ids or (marks.start, marks.end)


def find_marks(vocab_size: int) -> Marks:
  """Returns the marks, whose ids start at the tokenizer's `vocab_size`."""
  first = vocab_size + 2
  sentinels = np.arange(first, first + NUM_SENTINELS, dtype=np.int32)
  modes = {mode: first + NUM_SENTINELS + i for i, mode in enumerate(MODES)}
  return Marks(vocab_size, vocab_size + 1, sentinels, modes)
