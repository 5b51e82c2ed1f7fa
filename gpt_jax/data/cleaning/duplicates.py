"""Finds near-duplicate documents, and documents that contain evaluation data.

Two documents are near-duplicates if the Jaccard index of their sets of 5-grams
is at least .8. MinHash proposes pairs (Broder 1997): 100 minima in 20 bands of
5 rows. A pair of index J shares a band with probability 1 - (1 - J^5)^20,
which is .9996 at .8. Design choice: each proposed pair is then compared by the
full sets, which are in a temporary file, so that no pair below .8 counts.
"""

import functools
import os
import re
import tempfile
import zlib
from typing import NamedTuple

import numpy as np

from gpt_jax.exits import InputError

GRAM = 5
BANDS, ROWS = 20, 5
MIN_JACCARD = 0.8
# Each document in a band is compared with at most this many others in it.
MAX_COMPARED = 64
# The most n-grams in memory while documents are compared.
MAX_HELD = 1 << 20
# Length of the n-grams that a training document may not share with a test:
# Brown et al. 2020, arXiv:2005.14165, appendix C.
TEST_GRAM = 13

_TOKEN = re.compile(
  r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"
)
_ASCII_TOKEN = re.compile(rb"\w+")


def token_hashes(text: str) -> np.ndarray:
  """Returns a hash of each word, or Chinese or Japanese character: uint64[T].

  Case, white space and punctuation are ignored.
  """
  if text.isascii():
    words = _ASCII_TOKEN.findall(text.lower().encode())
  else:
    words = [word.encode() for word in _TOKEN.findall(text.lower())]
  return np.fromiter(map(zlib.crc32, words), np.uint64, len(words))


def gram_hashes(text: str, size: int) -> np.ndarray:
  """Returns a hash of each n-gram: uint64[max(1, T - size + 1)].

  A text of fewer than `size` words is a single n-gram.
  """
  hashes = token_hashes(text)
  size = min(size, max(1, len(hashes)))
  count = len(hashes) - size + 1
  mixed = np.zeros(max(1, count), np.uint64)
  for place in range(size if count else 0):
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix(mixed + hashes[place : place + count] + np.uint64(1))
  return mixed


def _mix(x: np.ndarray) -> np.ndarray:
  """Returns the finaliser of splitmix64."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  draw = lambda: rng.integers(0, 1 << 32, (BANDS * ROWS, 1), np.uint32)
  return draw() | np.uint32(1), draw()


def band_keys(grams: np.ndarray) -> np.ndarray:
  """Returns the key of each band of a set of n-grams: uint64[BANDS].

  Args:
    grams: uint32[N], N at least 1.
  """
  factors, terms = _permutations()
  minima = np.full(BANDS * ROWS, np.uint32(0xFFFFFFFF))
  for start in range(0, len(grams), 1 << 14):
    values = grams[None, start : start + (1 << 14)] * factors + terms
    np.minimum(minima, values.min(axis=1), out=minima)
  key = np.zeros(BANDS, np.uint64)
  for row in minima.reshape(BANDS, ROWS).T.astype(np.uint64):
    key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + row + np.uint64(1))
  return key


class Signature(NamedTuple):
  """The n-grams of a text and their MinHash, for comparison.

  Attributes:
    grams: the sorted set of its hashed n-grams, uint32 as bytes.
    keys: the band_keys of the set, as bytes.
  """

  grams: bytes
  keys: bytes


def sign(text: str) -> Signature:
  """Returns the signature of a text."""
  grams = np.unique(gram_hashes(text, GRAM).astype(np.uint32))
  return Signature(grams.tobytes(), band_keys(grams).tobytes())


class NearDuplicates:
  """Finds near-duplicates among documents, numbered in the order of adding.

  Memory grows by 180 bytes per document; the sets of n-grams are on disk.
  """

  def __init__(self, folder: str | None = None):
    self._folder = folder or tempfile.gettempdir()
    self._file = tempfile.TemporaryFile(dir=folder)
    self._keys: list[bytes] = []
    self._starts = [0]
    # A cache of sets, as a document is compared with several others.
    self._held: dict[int, np.ndarray] = {}
    self._num_held = 0

  def add(self, signature: Signature) -> None:
    """Adds the next document."""
    try:
      self._file.write(signature.grams)
    except OSError as error:
      raise self._full(error) from None
    self._starts.append(self._starts[-1] + len(signature.grams) // 4)
    self._keys.append(signature.keys)

  def _full(self, error: OSError) -> InputError:
    return InputError(
      f"the n-grams of texts cannot be written in {self._folder}: "
      f"{error.strerror}; set TMPDIR to another disk"
    )

  def copies(self) -> np.ndarray:
    """Returns, for each document, the first one it is a copy of: int64[N].

    A document that is no copy has its own number. Being a copy is transitive.
    """
    count = len(self._keys)
    keys = np.frombuffer(b"".join(self._keys), np.uint64).reshape(count, BANDS)
    first = np.arange(count)
    if not count:
      return first
    try:
      self._file.flush()
    except OSError as error:
      raise self._full(error) from None
    for band in range(BANDS):
      order = np.argsort(keys[:, band], kind="stable")
      equal = keys[order, band]
      borders = np.flatnonzero(equal[1:] != equal[:-1]) + 1
      starts, ends = np.append(0, borders), np.append(borders, count)
      has_more = ends - starts > 1
      for start, end in zip(starts[has_more], ends[has_more], strict=True):
        self._join(order[start:end], first)
    for number in range(count):  # in order: the first of each is final
      first[number] = first[first[number]]
    return first

  def _join(self, group, first: np.ndarray) -> None:
    """Joins near-duplicates in a group that has the same key in a band."""
    leaders: list[int] = []
    for number in map(int, group):
      for leader in leaders[-MAX_COMPARED:]:
        one, other = _root(first, leader), _root(first, number)
        if one == other:
          break
        if self._jaccard(leader, number) >= MIN_JACCARD:
          first[max(one, other)] = min(one, other)
          break
      else:
        leaders.append(number)

  def _jaccard(self, one: int, other: int) -> float:
    sizes = [self._starts[i + 1] - self._starts[i] for i in (one, other)]
    if min(sizes) < MIN_JACCARD * max(sizes):
      return 0.0
    # The method of np.intersect1d, in a third of its time.
    both = np.concatenate([self._grams_of(one), self._grams_of(other)])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)

  def _grams_of(self, number: int) -> np.ndarray:
    found = self._held.get(number)
    if found is None:
      # No memory map, whose pages would count as memory of the process.
      start, end = (4 * place for place in self._starts[number : number + 2])
      data = os.pread(self._file.fileno(), end - start, start)
      found = np.frombuffer(data, np.uint32)
      self._num_held += len(found)
      if self._num_held > MAX_HELD:
        self._held.clear()
        self._num_held = len(found)
      self._held[number] = found
    return found


def _root(first: np.ndarray, number: int) -> int:
  while first[number] != number:
    number = int(first[number])
  return number


class Contamination:
  """Searches documents for n-grams of evaluation sets.

  Args:
    texts: the items of the sets. An item of fewer than TEST_GRAM words is
      searched for as a whole, if it has at least `least` words.
  """

  def __init__(self, texts, least: int = 8):
    grams: dict[int, list[np.ndarray]] = {}
    self.num_items = self.num_short = 0
    for text in texts:
      self.num_items += 1
      size = min(TEST_GRAM, len(token_hashes(text)))
      if size < least:
        self.num_short += 1
      else:
        grams.setdefault(size, []).append(gram_hashes(text, size))
    self._grams = {n: np.unique(np.concatenate(g)) for n, g in grams.items()}

  def count(self, text: str) -> int:
    """Returns how many n-grams of a document are in an evaluation set."""
    return sum(
      int(np.isin(gram_hashes(text, size), known).sum())
      for size, known in self._grams.items()
    )
