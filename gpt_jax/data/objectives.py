"""Objectives: how windows of ids become batches, a pure function of (seed, g).

g is a sequence's place in the order of data (order.py), so that a batch is the
same after a resume and on any number of processes. An objective is one entry of
OBJECTIVES, and one of config.OBJECTIVES, which names the fields of its batches.
"""

from collections.abc import Callable

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import DataConfig

# Separates these draws from others of the same seed.
PREFIX_STREAM = 0x9E37


def causal(batch: dict, seed: int, g: np.ndarray, vocab_size: int) -> dict:
  """Every token is predicted from those before it."""
  return batch


def prefix_lm(batch: dict, seed: int, g: np.ndarray, vocab_size: int) -> dict:
  """A prefix whose tokens see each other, and a loss on the rest.

  Prefix language modelling (Raffel et al. 2020, section 3.2.1): the prefix has
  1 to T - 1 tokens, each length as likely.

  Args:
    batch: tokens, targets (b, T), mask.
    g: (b,) places of the sequences in the order of data.
    vocab_size: of the tokenizer; all ids are below it.
  """
  T = batch["tokens"].shape[1]
  draw = lambda i: np.random.default_rng([PREFIX_STREAM, seed, i])
  lengths_B1 = np.array(
    [[draw(int(i)).integers(1, max(2, T))] for i in g], np.int32
  )
  order_BT = np.tile(np.arange(T, dtype=np.int32), (len(g), 1))
  is_asked_BT = order_BT >= lengths_B1 - 1
  return batch | {
    "mask": batch["mask"] * is_asked_BT,
    "slots": np.maximum(order_BT, lengths_B1 - 1),
  }


# By option of data.objective: what makes its batches of windows of ids.
OBJECTIVES: dict[str, Callable] = {"causal": causal, "prefix_lm": prefix_lm}


def fields(data: DataConfig) -> dict[str, type]:
  """Returns {field: dtype} of the (B, T) arrays of a batch.

  tokens; targets, the id after each token; mask, 1 where a target counts in the
  loss. Where documents are packed segments, the document of each token, and
  positions within it. Then the objective's own: with prefixes slots
  (ops/visibility.py).
  """
  found: dict[str, type] = {"tokens": np.int32, "targets": np.int32}
  found["mask"] = np.float32
  if data.packing == "documents":
    found |= {"segments": np.int32, "positions": np.int32}
  for name in config_lib.OBJECTIVES[data.objective].fields:
    found[name] = np.int32
  return found
