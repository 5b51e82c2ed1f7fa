"""Speculative decoding: a small model drafts tokens for a large one.

A draft is accepted if it equals the token that the large model draws
(rows._step). Both draw with the same key, so they often agree where their
distributions overlap, at any temperature. Design choice: speculative sampling,
which tests a ratio of probabilities (Leviathan et al. 2023, algorithm 1),
accepts a few more drafts, but its texts depend on the drafts. Here a text has
the same bits with any drafts and with none.

The small model's cache needs no bookkeeping of its own: it holds the texts of
the large model's rows, of the same lengths. Each guess reads the last two
tokens of a text again, since the last draft of a step is drawn but never read.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.inference.drawing import Settings, draw
from gpt_jax.inference.prefill import Prompt
from gpt_jax.inference.rows import Rows
from gpt_jax.models import Model


@functools.partial(
  jax.jit,
  static_argnames=("model", "vocab_size", "count"),
  donate_argnames="cache",
)
def _guess(
  params,
  cache,
  pairs_R2,
  lengths_R,
  draws,
  is_on_R,
  *,
  model,
  vocab_size,
  count,
):
  """Returns (cache, drafts_RK), K = `count`; -1 in rows where is_on_R is False.

  Args:
    pairs_R2: the last two tokens of each row.
  """
  found, tokens_RT = [], pairs_R2
  start_R = jnp.maximum(lengths_R - 1, 0)
  for t in range(count):
    T = tokens_RT.shape[1]
    filled = jnp.max(start_R) + T
    logits_RTV, cache = model.apply_cached(
      params, tokens_RT, cache, start_R, filled=filled
    )
    none_RV = jnp.zeros_like(logits_RTV[:, -1])
    R, V = none_RV.shape
    any_RW = jnp.full((R, -(-V // 32)), 2**32 - 1, jnp.uint32)
    now = draws.replace(made_R=draws.made_R + t)
    args = none_RV, none_RV, now, any_RW, vocab_size
    ids_R = jnp.maximum(draw(logits_RTV[:, -1].T, *args), 0)
    found.append(ids_R)
    start_R, tokens_RT = start_R + T, ids_R[:, None]
  return cache, jnp.where(is_on_R[:, None], jnp.stack(found, 1), -1)


class Drafter:
  """The small model beside the rows of a large one.

  Args:
    model, params: of the small model, which has the large one's vocabulary.
    num_rows, vocab_size, num_pages: as in the large model's Rows.
    count: num_drafts of the large model's Rows.

  Raises:
    InputError: the small model has sliding windows, whose caches cannot take a
      draft back, or does not continue texts.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    num_rows: int,
    vocab_size: int,
    num_pages: int,
    count: int,
  ):
    if "local" in config_lib.layer_kinds(model.config):
      raise InputError(
        "the model of drafts has layers of sliding windows, which cannot take "
        "a draft back; give one whose layers are global"
      )
    self.rows = Rows(model, params, num_rows, vocab_size, num_pages)
    self.count = count
    self._pairs_R2 = np.zeros((num_rows, 2), np.int32)

  def read(self, prompts: Sequence[Prompt]) -> None:
    """Reads prompts at least as far as the large model has."""
    own = [(p.own, p.num_read) for p in prompts if p.own is not None]
    while behind := [each for each, count in own if each.num_read < count]:
      self.rows.read(behind)

  def join(self, row: int, prompt: Prompt, settings: Settings) -> None:
    """Copies the small model's prefilled prompt into a row, as Rows.join."""
    self.rows.join(row, prompt, settings)
    self._pairs_R2[row] = [*prompt.ids[-2:], prompt.ids[-1]][:2]

  def guess(self, lengths_R, draws, is_on_R):
    """Returns drafts_RK, guesses of the tokens after each row's last two."""
    rows = self.rows
    cache, drafts_RK = _guess(
      rows.params,
      rows.state.cache,
      self._pairs_R2.copy(),
      lengths_R,
      draws,
      is_on_R,
      model=rows.model,
      vocab_size=rows.vocab_size,
      count=self.count,
    )
    rows.state = rows.state.replace(cache=cache)
    return drafts_RK

  def follow(self, drawn) -> None:
    """Records the tokens that the large model has drawn, a drawing.Drawn."""
    ids_RT = np.concatenate([self._pairs_R2[:, 1:], drawn.ids_RT], axis=1)
    at_R2 = drawn.num_R[:, None] + np.array([-1, 0])
    self._pairs_R2 = np.maximum(np.take_along_axis(ids_RT, at_R2, 1), 0)
