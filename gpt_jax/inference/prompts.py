"""Prompts of models that expect tokens before any text."""

from typing import Any

import numpy as np

from gpt_jax.data.tokenizers.protocol import Tokenizer


class PromptTokenizer:
  """A run's tokenizer whose prompts begin with its start_ids.

  Its other attributes are those of the run's.

  Attributes:
    plain: the run's tokenizer.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.plain: Any = tokenizer

  def __getattr__(self, name: str):
    return getattr(self.plain, name)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a prompt, those of the start before them."""
    own = self.plain
    ids = own.encode(text)
    return np.concatenate([own.start_ids, ids]).astype(ids.dtype)

  def decode(self, ids) -> str:
    """Returns the text of ids, those of the start left out."""
    own, ids = self.plain, list(ids)
    if tuple(ids[: len(own.start_ids)]) == own.start_ids:
      ids = ids[len(own.start_ids) :]
    return own.decode(ids)
