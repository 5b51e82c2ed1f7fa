"""Prompts that are read together, a chunk of each at a time.

Every pass reads the same number of chunks, each of one length, whichever of
them belong to a prompt. So no product's shape depends on what else is being
read, and a prompt has the same bits alone and in company.

The last token of a prompt is left to the first step of the text. So reading
needs no logits, which would take a third of its time, and those of the first
token are computed as all others are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.inference.pages import PAGE, Pages
from gpt_jax.models import Model

# Tokens of a prompt that are read at once.
CHUNK = PAGE


def chunk_for(num_rows: int) -> int:
  """Returns how many tokens of a prompt are read at once beside the rows.

  With one row no other text waits for its next token meanwhile, and 64 tokens
  at once take two thirds of the time of twice 32 (docs/serving.md).
  """
  return 2 * CHUNK if num_rows == 1 else CHUNK


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read(params, cache, tokens_PC, start_P, last_P, filled, *, model):
  """Returns the cache with chunks, of which token last_P is the last."""
  _, cache = model.apply_cached(
    params, tokens_PC, cache, start_P, last_P, filled=filled
  )
  return cache


class Prompt:
  """A prompt that is being read, a chunk at a time.

  Attributes:
    ids: int32.
    home, place: the Prefill that reads it, and where in its cache.
    num_read: how many of them are there.
    own: the same prompt as a drafter reads it, or None.
  """

  def __init__(self, ids: np.ndarray, home: "Prefill", place: int):
    self.ids, self.home, self.place, self.num_read = ids, home, place, 0
    self.own: Prompt | None = None

  @property
  def is_read(self) -> bool:
    """Returns whether all but the last token are read."""
    return self.num_read == len(self.ids) - 1


class Prefill:
  """A cache of P places, each of which holds a prompt until it is dropped.

  Args:
    model, params: as decoding reads them.
    num_places: P, prompts that are read at once.
    num_slots: of each.
    stored: pages.Pages, which stores prompts, or None.
    chunk: tokens of each prompt that are read at once, whole pages.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    num_places: int,
    num_slots: int,
    stored: Pages | None,
    chunk: int = CHUNK,
  ):
    self._model, self._params, self.num_places = model, params, num_places
    self.chunk = chunk
    self.cache = model.init_cache(num_places, num_slots)
    self._pages = stored
    self._free = list(range(num_places))
    self._held: dict[int, Prompt] = {}

  @property
  def num_free(self) -> int:
    return len(self._free)

  def warm_up(self) -> None:
    """Compiles all programs."""
    self._read({})
    if self._pages is not None:
      self.cache = self._pages.warm_up(self.cache)

  def start(self, ids: Sequence[int] | np.ndarray) -> Prompt:
    """Returns a prompt of which nothing is read but what is stored."""
    prompt = Prompt(np.asarray(ids, np.int32), self, self._free.pop(0))
    if self._pages is not None:
      self.cache, found = self._pages.load(
        self.cache, prompt.place, prompt.ids[:-1]
      )
      # A chunk has the same bits where it begins at the same token.
      prompt.num_read = found - found % self.chunk
    self._held[prompt.place] = prompt
    return prompt

  def drop(self, prompt: Prompt) -> None:
    """Frees the place of a prompt."""
    del self._held[prompt.place]
    self._free.append(prompt.place)

  def read(self, prompts: Sequence[Prompt]) -> None:
    """Reads the next chunk of each of the prompts, which are not read."""
    parts = {}
    for prompt in prompts:
      end = min(prompt.num_read + self.chunk, len(prompt.ids) - 1)
      parts[prompt.place] = prompt.ids[prompt.num_read : end]
    self._read(parts)
    for prompt in prompts:
      prompt.num_read += len(parts[prompt.place])
      if prompt.is_read and self._pages is not None:
        self._pages.store(self.cache, prompt.place, prompt.ids[:-1])

  def _read(self, parts: dict[int, np.ndarray]) -> None:
    """Reads {place: its next tokens}."""
    tokens_PC = np.zeros((self.num_places, self.chunk), np.int32)
    # A place that reads nothing has padding written behind what it holds; where
    # there is no room, the cache drops it.
    start_P, last_P = np.zeros((2, self.num_places), np.int32)
    last_P -= 1
    for place, prompt in self._held.items():
      start_P[place] = prompt.num_read
    for place, own in parts.items():
      tokens_PC[place, : len(own)] = own
      last_P[place] = len(own) - 1
    filled = max((start_P[place] for place in parts), default=0) + self.chunk
    self.cache = _read(
      self._params,
      self.cache,
      tokens_PC,
      start_P,
      last_P,
      np.int32(filled),
      model=self._model,
    )


def have_same_bits(one: Prefill, other: Prefill, length: int) -> bool:
  """Returns whether both read the same prompts of this length to the same bits.

  One order of a product's terms or another shows in random numbers at once.
  """
  size = max(one.num_places, other.num_places)
  prompts = np.random.default_rng(0).integers(0, 2, (size, length))
  return all(
    np.array_equal(*pair)
    for pair in zip(_kept(one, prompts), _kept(other, prompts), strict=True)
  )


def _kept(prefill: Prefill, prompts: np.ndarray) -> list[np.ndarray]:
  """Returns the keys and values of prompts, which are then dropped."""
  size, found = prefill.num_places, []
  for first in range(0, len(prompts), size):
    own = [prefill.start(ids) for ids in prompts[first : first + size]]
    while unread := [prompt for prompt in own if not prompt.is_read]:
      prefill.read(unread)
    for prompt in own:
      filled = prompt.num_read
      found += [
        np.asarray(x[prompt.place, :, :filled])
        for layer in prefill.cache
        for x in layer
      ]
      prefill.drop(prompt)
  return found
