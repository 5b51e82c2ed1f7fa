"""Prompts that are read together, a chunk of each at a time.

Every pass reads the same number of chunks, each of one length, whichever of
them belong to a prompt. So no product's shape depends on what else is being
read, and a prompt has the same bits alone and in company.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.inference import pages
from gpt_jax.models import Model

# Tokens of a prompt that are read at once.
CHUNK = pages.PAGE


@functools.partial(
  jax.jit, static_argnames=("model", "is_last"), donate_argnames="cache"
)
def _read(params, cache, tokens_PC, start_P, last_P, filled, *, model, is_last):
  """Returns (cache, logits_PV of token last_P of each chunk).

  Only the last chunk of a prompt has logits: they take a third of its time.
  """
  logits_P1V, cache = model.apply_cached(
    params, tokens_PC, cache, start_P, last_P, filled=filled
  )
  return cache, logits_P1V[:, 0] if is_last else None


class Prompt:
  """A prompt that is being read, a chunk at a time.

  Attributes:
    ids: int32.
    place: of its keys and values in the cache of Prefill.
    num_read: how many of them are there.
    logits_PV: once all are read, those of the next token, in row `place`.
    own: the same prompt as a drafter reads it, or None.
  """

  def __init__(self, ids: np.ndarray, place: int, num_read: int):
    self.ids, self.place, self.num_read = ids, place, num_read
    self.logits_PV: jax.Array | None = None
    self.own: Prompt | None = None

  @property
  def is_read(self) -> bool:
    return self.num_read == len(self.ids)


class Prefill:
  """A cache of P places, each of which holds a prompt until it is dropped.

  Args:
    model, params: as decoding reads them.
    num_places: P, prompts that are read at once.
    num_slots: of each.
    num_pages: of pages.Pages, which stores prompts; 0 stores none.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    num_places: int,
    num_slots: int,
    num_pages: int,
  ):
    self._model, self._params, self.num_places = model, params, num_places
    self.cache = model.init_cache(num_places, num_slots)
    self.pages = pages.Pages(model, num_pages, num_slots) if num_pages else None
    self._free = list(range(num_places))
    self._held: dict[int, Prompt] = {}

  @property
  def num_free(self) -> int:
    return len(self._free)

  def warm_up(self) -> None:
    """Compiles all programs."""
    for is_last in (False, True):
      self._read({}, is_last)
    if self.pages is not None:
      self.cache = self.pages.warm_up(self.cache)

  def start(self, ids: Sequence[int] | np.ndarray) -> Prompt:
    """Returns a prompt of which nothing is read but what is stored."""
    own = np.asarray(ids, np.int32)
    place, num_read = self._free.pop(0), 0
    if self.pages is not None:
      self.cache, num_read = self.pages.load(self.cache, place, own)
    self._held[place] = Prompt(own, place, num_read)
    return self._held[place]

  def drop(self, prompt: Prompt) -> None:
    """Frees the place of a prompt."""
    del self._held[prompt.place]
    self._free.append(prompt.place)

  def read(self, prompts: Sequence[Prompt]) -> None:
    """Reads the next chunk of each of the prompts, which are not read."""
    parts = {
      prompt.place: prompt.ids[prompt.num_read : prompt.num_read + CHUNK]
      for prompt in prompts
    }
    ends = {p.place: p.num_read + len(parts[p.place]) for p in prompts}
    is_last = any(ends[p.place] == len(p.ids) for p in prompts)
    logits_PV = self._read(parts, is_last)
    for prompt in prompts:
      prompt.num_read = ends[prompt.place]
      if prompt.is_read:
        prompt.logits_PV = logits_PV
        if self.pages is not None:
          self.pages.store(self.cache, prompt.place, prompt.ids)

  def _read(self, parts: dict[int, np.ndarray], is_last: bool):
    """Reads {place: its next tokens}; returns logits_PV, or None."""
    tokens_PC = np.zeros((self.num_places, CHUNK), np.int32)
    # A place that reads nothing has padding written behind what it holds; where
    # there is no room, the cache drops it.
    start_P, last_P = np.zeros((2, self.num_places), np.int32)
    last_P -= 1
    for place, prompt in self._held.items():
      start_P[place] = prompt.num_read
    for place, own in parts.items():
      tokens_PC[place, : len(own)] = own
      last_P[place] = len(own) - 1
    filled = max((start_P[place] for place in parts), default=0) + CHUNK
    self.cache, logits_PV = _read(
      self._params,
      self.cache,
      tokens_PC,
      start_P,
      last_P,
      np.int32(filled),
      model=self._model,
      is_last=is_last,
    )
    return logits_PV
