"""Prompts of models that expect start tokens (BOS) before any text."""

from typing import Any

import numpy as np

from gpt_jax.data.tokenizers.protocol import Tokenizer


class PromptTokenizer:
  """A run's tokenizer, but its prompts begin with the tokenizer's start_ids.

  All other attributes are those of the run's tokenizer.

  Attributes:
    plain: the run's tokenizer.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.plain: Any = tokenizer

  def __getattr__(self, name: str):
    return getattr(self.plain, name)

  def encode(self, text: str) -> np.ndarray:
    """Returns start_ids and the ids of a prompt after them."""
    own = self.plain
    ids = own.encode(text)
    return np.concatenate([own.start_ids, ids]).astype(ids.dtype)

  def decode(self, ids) -> str:
    """Returns the text of ids, without start_ids if they begin with these."""
    own, ids = self.plain, list(ids)
    if tuple(ids[: len(own.start_ids)]) == own.start_ids:
      ids = ids[len(own.start_ids) :]
    return own.decode(ids)
