"""Keys and values of prompts that were read, so that none is read twice.

A pool of pages of PAGE tokens. A page is found by the hash of all tokens up to
its end, and copied into the cache of the prompt that begins with them; reading
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

# Tokens of a page; rows.CHUNK is the same, as reading goes on at a page's end.
PAGE = 32


@functools.partial(jax.jit, donate_argnames="cache")
def _load(cache, pool, pages_X):
  """Returns the cache of one row, its first X pages copied from the pool."""

  def one(x_1KSH, pool_PKCH):
    own_XKCH = pool_PKCH[pages_X]
    own_KXCH = own_XKCH.swapaxes(0, 1)
    K, X, C, H = own_KXCH.shape
    own_1KSH = own_KXCH.reshape(1, K, X * C, H)
    return jax.lax.dynamic_update_slice(x_1KSH, own_1KSH, (0, 0, 0, 0))

  return jax.tree.map(one, cache, pool)


@functools.partial(jax.jit, donate_argnames="pool")
def _store(pool, cache, pages_X):
  """Returns the pool with a row's first X pages; those beyond it are left."""

  def one(pool_PKCH, x_1KSH):
    X, (_, K, C, H) = len(pages_X), pool_PKCH.shape
    own_KXCH = x_1KSH[0, :, : X * C].reshape(K, X, C, H)
    return pool_PKCH.at[pages_X].set(own_KXCH.swapaxes(0, 1), mode="drop")

  return jax.tree.map(one, pool, cache)


class Pages:
  """A pool of pages, of which the one longest unused is replaced.

  Args:
    model: whose cache they are of; all its layers have a slot for each token.
    num_pages: of the pool.

  Attributes:
    num_held: pages that hold something.
  """

  def __init__(self, model: Model, num_pages: int):
    self._num_pages = num_pages
    whole = model.init_cache(num_pages, PAGE)
    self._pool: Any = whole
    self._free = list(range(num_pages))
    # {hash of all tokens up to a page's end: page}, the longest unused first.
    self._found: collections.OrderedDict = collections.OrderedDict()

  @property
  def num_held(self) -> int:
    assert len(self._found) + len(self._free) == self._num_pages
    return len(self._found)

  def load(self, cache, ids: np.ndarray):
    """Returns (cache, number of tokens of the prompt that it now holds).

    At least one token is left to be read, whose logits are wanted.
    """
    pages = []
    for key in _keys(ids[:-1]):
      if key not in self._found:
        break
      self._found.move_to_end(key)
      pages.append(self._found[key])
    if not pages:
      return cache, 0
    pages_X = self._pad(cache, pages, 0)
    return _load(cache, self._pool, pages_X), len(pages) * PAGE

  def store(self, cache, ids: np.ndarray) -> None:
    """Stores the whole pages of a prompt that has been read."""
    pages = []
    for key in _keys(ids)[: self._num_pages]:
      if key in self._found:
        self._found.move_to_end(key)
        pages.append(self._num_pages)  # beyond the pool: not written
        continue
      if not self._free:
        self._free.append(self._found.popitem(last=False)[1])
      self._found[key] = self._free.pop()
      pages.append(self._found[key])
    if any(page < self._num_pages for page in pages):
      pages_X = self._pad(cache, pages, self._num_pages)
      self._pool = _store(self._pool, cache, pages_X)

  def _pad(self, cache, pages: list[int], filler: int) -> np.ndarray:
    """Returns as many pages as the cache has, to compile few programs."""
    count = jax.tree.leaves(cache)[0].shape[2] // PAGE
    return np.array(pages + [filler] * (count - len(pages)), np.int32)


def _keys(ids: np.ndarray) -> list[bytes]:
  """Returns the hash of all tokens up to the end of each whole page."""
  hashed, found = hashlib.blake2b(digest_size=16), []
  for end in range(PAGE, len(ids) + 1, PAGE):
    hashed.update(np.asarray(ids[end - PAGE : end], np.int32).tobytes())
    found.append(hashed.digest())
  return found
