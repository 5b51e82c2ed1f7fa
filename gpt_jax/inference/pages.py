"""Prefix cache: keys and values of prompts, so that no prefix is read twice.

A pool holds pages of PAGE tokens. A page is found by the hash of all tokens up
to its end, and is copied into the cache of a prompt that begins with those
tokens. Prefill then goes on at the next chunk, with the same bits as if it had
read the whole prompt. Generated tokens are not stored: a decode step computes
them with matmuls of other shapes than a prefill chunk, so bits could differ.

Design choice: each row owns a contiguous cache, into which pages are copied
once. Paged attention, which looks its keys up in a table of pages, is as fast
on a CPU if it gathers them block by block (docs/serving.md). It would save the
memory of rows that are not full, but needs a program of its own for every kind
of cache.
"""

import collections
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from gpt_jax.models import Model

# Tokens in a page. A prefill chunk is a whole number of pages
# (prefill.chunk_for).
PAGE = 32


@functools.partial(jax.jit, donate_argnames="cache")
def _load(cache, pool, place, pages_X, count):
  """Returns the cache with `count` pages copied to the start of a place.

  `count` is traced, so that one program serves any number of pages.

  Args:
    place: row of the prefill cache.
    pages_X: indices of the pages in the pool; the first `count` are copied.
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
  """Returns the pool with `count` pages copied into it from a place.

  Args:
    place: row of the prefill cache.
    pages_X: indices of the pages in the pool.
    at_X: indices of the pages within the row.
  """

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
  """A pool of pages; when it is full, the least recently used is replaced.

  Args:
    model: its cache is what is stored; all its layers must have a slot for each
      token (no sliding windows).
    num_pages: number of pages in the pool.
    num_slots: slots per row of the caches that pages are copied from and to.

  Attributes:
    num_held: number of pages in use.
  """

  def __init__(self, model: Model, num_pages: int, num_slots: int):
    self._num_pages, self._most = num_pages, num_slots // PAGE
    whole = model.init_cache(num_pages, PAGE)
    self._pool: Any = whole
    self._free = list(range(num_pages))
    # {hash of all tokens up to a page's end: page}, least recently used first.
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
    """Copies the stored pages of a prompt's prefix into a place.

    Returns:
      (cache, number of the prompt's first tokens that the place now holds).
    """
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
    """Stores the whole pages of a prompt that was prefilled in a place."""
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
    """Returns numbers, padded with 0 to the most pages that a prompt has."""
    return np.array(numbers + [0] * (self._most - len(numbers)), np.int32)


def _keys(ids: np.ndarray) -> list[bytes]:
  """Returns for each whole page the hash of all tokens up to its end."""
  hashed, found = hashlib.blake2b(digest_size=16), []
  for end in range(PAGE, len(ids) + 1, PAGE):
    hashed.update(np.asarray(ids[end - PAGE : end], np.int32).tobytes())
    found.append(hashed.digest())
  return found
