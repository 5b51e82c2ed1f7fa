"""Chunked prefill: prompts are read together, a chunk of each at a time.

Every pass reads the same number of chunks of the same length, whichever of them
belong to a prompt. So no matmul's shape depends on the other prompts, and a
prompt gives the same bits alone or in a full batch.

The last token of a prompt is left to the first decode step. So prefill needs no
logits, which would take a third of its time, and the logits of a text's first
token are computed in the same way as all others.
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
  """Returns how many tokens of a prompt are read at once, for a server's rows.

  With one row, no other text waits for its next token during prefill, and one
  chunk of 64 tokens takes two thirds of the time of two chunks of 32
  (docs/serving.md).
  """
  return 2 * CHUNK if num_rows == 1 else CHUNK


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read(params, cache, tokens_PC, start_P, last_P, filled, *, model):
  """Returns the cache with a chunk read in each place.

  Args:
    start_P: the slot of each chunk's first token.
    last_P: the index of each chunk's last token; -1 for a chunk of padding.
    filled: number of slots, from the first, that attention reads.
  """
  _, cache = model.apply_cached(
    params, tokens_PC, cache, start_P, last_P, filled=filled
  )
  return cache


class Prompt:
  """A prompt that is being prefilled, a chunk at a time.

  Attributes:
    ids: int32.
    home, place: the Prefill that reads it, and its row in that cache.
    num_read: number of ids whose keys and values are in the cache.
    own: the same prompt as the drafter's model reads it, or None.
  """

  def __init__(self, ids: np.ndarray, home: "Prefill", place: int):
    self.ids, self.home, self.place, self.num_read = ids, home, place, 0
    self.own: Prompt | None = None

  @property
  def is_read(self) -> bool:
    """Returns whether all but the last token are read."""
    return self.num_read == len(self.ids) - 1


class Prefill:
  """A KV cache of P places, each holding a prompt until it is dropped.

  Args:
    model: the run's model.
    params: from generation.prepare.
    num_places: P, the number of prompts that are read at once.
    num_slots: slots of each place.
    stored: pages.Pages, the prefix cache, or None.
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
    """Returns a new prompt, with the prefix that the prefix cache has of it."""
    prompt = Prompt(np.asarray(ids, np.int32), self, self._free.pop(0))
    if self._pages is not None:
      self.cache, found = self._pages.load(
        self.cache, prompt.place, prompt.ids[:-1]
      )
      # Rounded down to whole chunks: a chunk has the same bits only if it
      # begins at the same token.
      prompt.num_read = found - found % self.chunk
    self._held[prompt.place] = prompt
    return prompt

  def drop(self, prompt: Prompt) -> None:
    """Frees the place of a prompt."""
    del self._held[prompt.place]
    self._free.append(prompt.place)

  def read(self, prompts: Sequence[Prompt]) -> None:
    """Prefills the next chunk of each prompt; none may be read to its end."""
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
    """Runs one pass over {place: its next tokens}."""
    tokens_PC = np.zeros((self.num_places, self.chunk), np.int32)
    # A place that is not in parts gets padding written after its prompt; where
    # there is no room for that, the cache drops it.
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

  If their matmuls sum in different orders, random tokens show it at once.
  """
  size = max(one.num_places, other.num_places)
  prompts = np.random.default_rng(0).integers(0, 2, (size, length))
  return all(
    np.array_equal(*pair)
    for pair in zip(_kept(one, prompts), _kept(other, prompts), strict=True)
  )


def _kept(prefill: Prefill, prompts: np.ndarray) -> list[np.ndarray]:
  """Prefills prompts, drops them, and returns their keys and values."""
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
