"""Keys and values of prompts that were read, so that none is read twice.

A pool of pages of PAGE tokens. A page is found by the hash of all tokens up to
its end, and copied to the place of the prompt that begins with them; reading
then goes on at the chunk after it, with the same bits as if all had been read.
Answers are not stored: a step computes them with other products than a chunk.

Design choice: rows own contiguous caches, into which pages are copied once. On
a CPU, attention that finds its keys by a table of pages is as fast where it
gathers them block by block (docs/serving.md); it would save the memory of rows
that are not full, and needs a program of its own for every kind of cache.
"""

import collections
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from gpt_jax.models import Model

# Tokens of a page; chunks of a prompt are whole pages (prefill.chunk_for).
PAGE = 32


@functools.partial(jax.jit, donate_argnames="cache")
def _load(cache, pool, place, pages_X, count):
  """Returns the cache with `count` pages of the pool at the start of a place.

  One program for any number of pages: a loop copies as many as there are.
  """

  def one(x_PKSH, pool_YKCH):
    _, K, C, H = pool_YKCH.shape

    def copy(i, x_PKSH):
      start = (pages_X[i], 0, 0, 0)
      own_1KCH = jax.lax.dynamic_slice(pool_YKCH, start, (1, K, C, H))
      return jax.lax.dynamic_update_slice(
        x_PKSH, own_1KCH, (place, 0, i * C, 0)
      )

    return jax.lax.fori_loop(0, count, copy, x_PKSH)

  return jax.tree.map(one, cache, pool)


@functools.partial(jax.jit, donate_argnames="pool")
def _store(pool, cache, place, pages_X, at_X, count):
  """Returns the pool with pages of a place: `count` of at_X as pages_X."""

  def one(pool_YKCH, x_PKSH):
    _, K, C, H = pool_YKCH.shape

    def copy(i, pool_YKCH):
      start = (place, 0, at_X[i] * C, 0)
      own_1KCH = jax.lax.dynamic_slice(x_PKSH, start, (1, K, C, H))
      return jax.lax.dynamic_update_slice(
        pool_YKCH, own_1KCH, (pages_X[i], 0, 0, 0)
      )

    return jax.lax.fori_loop(0, count, copy, pool_YKCH)

  return jax.tree.map(one, pool, cache)


class Pages:
  """A pool of pages, of which the one longest unused is replaced.

  Args:
    model: whose cache they are of; all its layers have a slot for each token.
    num_pages: of the pool.
    num_slots: of the caches that pages are copied from and to.

  Attributes:
    num_held: pages that hold something.
  """

  def __init__(self, model: Model, num_pages: int, num_slots: int):
    self._num_pages, self._most = num_pages, num_slots // PAGE
    whole = model.init_cache(num_pages, PAGE)
    self._pool: Any = whole
    self._free = list(range(num_pages))
    # {hash of all tokens up to a page's end: page}, the longest unused first.
    self._found: collections.OrderedDict = collections.OrderedDict()

  @property
  def num_held(self) -> int:
    assert len(self._found) + len(self._free) == self._num_pages
    return len(self._found)

  def warm_up(self, cache):
    """Compiles both programs; returns the cache."""
    none = self._pad([])
    self._pool = _store(self._pool, cache, 0, none, none, 0)
    return _load(cache, self._pool, 0, none, 0)

  def load(self, cache, place: int, ids: np.ndarray):
    """Returns (cache, number of tokens of the ids that a place now holds)."""
    pages = []
    for key in _keys(ids):
      if key not in self._found:
        break
      self._found.move_to_end(key)
      pages.append(self._found[key])
    if not pages:
      return cache, 0
    cache = _load(cache, self._pool, place, self._pad(pages), len(pages))
    return cache, len(pages) * PAGE

  def store(self, cache, place: int, ids: np.ndarray) -> None:
    """Stores the whole pages of a prompt that has been read in a place."""
    pages, at = [], []
    for i, key in enumerate(_keys(ids)[: self._num_pages]):
      if key in self._found:
        self._found.move_to_end(key)
        continue
      if not self._free:
        self._free.append(self._found.popitem(last=False)[1])
      self._found[key] = self._free.pop()
      pages.append(self._found[key])
      at.append(i)
    if pages:
      own = self._pad(pages), self._pad(at)
      self._pool = _store(self._pool, cache, place, *own, len(pages))

  def _pad(self, numbers: list[int]) -> np.ndarray:
    """Returns as many numbers as a prompt has pages at most."""
    return np.array(numbers + [0] * (self._most - len(numbers)), np.int32)


def _keys(ids: np.ndarray) -> list[bytes]:
  """Returns the hash of all tokens up to the end of each whole page."""
  hashed, found = hashlib.blake2b(digest_size=16), []
  for end in range(PAGE, len(ids) + 1, PAGE):
    hashed.update(np.asarray(ids[end - PAGE : end], np.int32).tobytes())
    found.append(hashed.digest())
  return found
