"""Embeddings: one unit vector for each text.

It is the mean of the last layer's output over a text's tokens (Reimers and
Gurevych 2019, section 3), divided by its Euclidean norm.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError
from gpt_jax.inference import generation
from gpt_jax.models import HEADS, Model


def encode(
  tokenizer: Tokenizer, texts: Sequence[str], limit: int
) -> list[np.ndarray]:
  """Returns the ids of texts as in the model's training, at most `limit` each.

  For an imported model, they include the special tokens that its tokenizer puts
  around a text, which truncation leaves in place. For other runs, they follow a
  separator.
  """
  if isinstance(tokenizer, LibraryTokenizer) and tokenizer.start_ids:
    return tokenizer.encode_whole(texts, limit)
  own = tokenizer.separator_id
  before = np.array([] if own is None else [own], np.uint32)
  return [
    np.concatenate([before, ids])[:limit]
    for ids in tokenizer.encode_batch(list(texts))
  ]


def encode_uncut(
  tokenizer: Tokenizer, texts: Sequence[str | Sequence[int]], limit: int
) -> list[np.ndarray]:
  """Returns the ids of texts as `encode` does; inputs that are ids stay so.

  Raises:
    InputError: a text is empty, or has more than `limit` ids, which `encode`
      would cut.
  """
  for row, text in enumerate(texts, 1):
    if len(text) == 0:
      raise InputError(f"text {row} is empty; it must have some tokens")
  written = [text for text in texts if isinstance(text, str)]
  found = iter(encode(tokenizer, written, limit + 1) if written else [])
  rows = [
    next(found) if isinstance(text, str) else np.array(text, np.int32)
    for text in texts
  ]
  for row, ids in enumerate(rows, 1):
    if len(ids) > limit:
      raise InputError(
        f"text {row} has more tokens than the {limit} of a text of the run "
        "(data.seq_len); shorten it, or give it in parts"
      )
  return rows


def embed(
  model: Model, params: Any, rows: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
  """Returns float32 (texts, D), in the order of the texts.

  Args:
    params: stacked, as trained.
    rows: ids of each text.
    batch_size: rows of a forward pass.

  Raises:
    InputError: the model reads sources, a text has no ids or more than the
      model has positions, or the output is not finite.
  """
  if config_lib.has_source(model.config):
    raise InputError(
      "the model reads sources and writes targets; embeddings are of models of "
      "one text"
    )
  limit = model.config.max_len
  for row, ids in enumerate(rows, 1):
    if not 0 < len(ids) <= limit:
      raise InputError(
        f"text {row} has {len(ids)} tokens; it must have 1 to {limit}"
      )
  # Without the heads that score tokens or classes.
  plain = dict(head="linear", tied_embeddings=True, num_classes=None)
  trunk = dataclasses.replace(
    model, config=dataclasses.replace(model.config, **plain)
  )
  params = {name: each for name, each in params.items() if name not in HEADS}
  # The longest first: what does not fit in memory fails at once.
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
  found = np.zeros((len(rows), model.config.model_dim), np.float32)
  for first in range(0, len(order), batch_size):
    own = order[first : first + batch_size]
    T = min(generation.round_up(len(rows[own[0]])), limit)
    tokens_BT = np.zeros((batch_size, T), np.int32)
    lengths_B = np.ones(batch_size, np.int32)
    for row, i in enumerate(own):
      tokens_BT[row, : len(rows[i])] = rows[i]
      lengths_B[row] = len(rows[i])
    made_BD = _embed(params, tokens_BT, lengths_B, model=trunk)
    made_BD = sharding.fetch(made_BD)
    generation.check_finite(bool(np.isfinite(made_BD).all()))
    found[own] = made_BD[: len(own)]
  return found


@functools.partial(jax.jit, static_argnames="model")
def _embed(params, tokens_BT, lengths_B, *, model: Model):
  T = tokens_BT.shape[1]
  is_text_BT = jnp.arange(T)[None] < lengths_B[:, None]
  # Padding is a document of its own, which no token of the text sees.
  segments_BT = jnp.where(is_text_BT, 0, 1)
  x_BTD, _ = model.apply(
    params, tokens_BT, segments_BT=segments_BT, is_headless=True
  )
  x_BTD = jnp.where(is_text_BT[..., None], x_BTD.astype(jnp.float32), 0)
  mean_BD = x_BTD.sum(1) / lengths_B[:, None]
  length_B1 = jnp.sqrt(jnp.square(mean_BD).sum(1, keepdims=True))
  return mean_BD / jnp.maximum(length_B1, 1e-12)
