"""The order of reading: a pure function of (seed, global sample index).

Design choice: no shuffle buffer and no list of indices. A Feistel network
permutes the windows of a set, and counting decides which set of a mixture a
sample comes from, so sample 10^12 costs as much as sample 0 and resuming needs
no seek.

Tested: each epoch of a set contains each window exactly once; epochs differ;
the first n samples contain n times the share of each set, within one for each
level of splitting; the number of processes does not matter.
"""

import functools
from typing import NamedTuple

import numpy as np

# Shares of a mixture are multiples of 2^-20.
SHARE_BITS = 20

_ROUNDS = 6
_C1 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64 (Steele et al. 2014)
_C2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15
_S32 = np.uint64(32)
_S29 = np.uint64(29)
_MASK = (1 << 64) - 1


def count_windows(num_ids: int, seq_len: int) -> int:
  """Returns the number of windows in an epoch, of T ids and a last target.

  A long set uses one window fewer, so that the borders of the others can shift
  by up to 2 T ids from epoch to epoch.
  """
  windows = max(0, num_ids - 1) // seq_len
  return windows - 1 if windows > 64 else windows


class Curriculum(NamedTuple):
  """Shares of sets that change over training.

  Attributes:
    starts: the first sequence of each stage, ascending from 0.
    weights: for each stage, the share of each set; they sum to 1.
  """

  starts: tuple[int, ...]
  weights: tuple[tuple[float, ...], ...]


Weights = list[float] | Curriculum


def locate(
  weights: Weights, num_windows: list[int], seed: int, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (set, epoch, window) of global samples, int64, shaped like g.

  Args:
    weights: the share of each set, which sum to 1, or a Curriculum of shares.
    num_windows: the number of windows in an epoch of each set.
    seed: the run's seed.
    g: global sample indices, step * global_batch_size + row.
  """
  g = np.asarray(g, np.int64)
  which, count = _take_turns(weights, g)
  epoch = np.empty_like(g)
  window = np.empty_like(g)
  for k, n in enumerate(num_windows):
    mine = slice(None) if len(num_windows) == 1 else which == k
    epoch[mine], place = np.divmod(count[mine], n)
    window[mine] = permute(place, n, seed, k, epoch[mine])
  return which, epoch, window


def shift(seed: int, k: int, epoch: np.ndarray, slack: int) -> np.ndarray:
  """Returns the first id of window 0 in an epoch of set k, in [0, slack]."""
  if slack == 0:
    return np.zeros_like(epoch)
  key = _mix(epoch.astype(np.uint64) + _key(seed, k, -1))
  return (key % np.uint64(slack + 1)).astype(np.int64)


def starts(
  weights: Weights,
  num_ids: list[int],
  seq_len: int,
  seed: int,
  g: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (set, first id) of the window of each global sample, as locate."""
  windows = [count_windows(n, seq_len) for n in num_ids]
  which, epoch, window = locate(weights, windows, seed, g)
  first = window * seq_len
  for k, (n, w) in enumerate(zip(num_ids, windows, strict=True)):
    mine = slice(None) if len(num_ids) == 1 else which == k
    first[mine] += shift(seed, k, epoch[mine], n - 1 - w * seq_len)
  return which, first


def permute(
  i: np.ndarray, n: int, seed: int, k: int, epoch: np.ndarray
) -> np.ndarray:
  """Returns the image of i under set k's permutation of range(n).

  An alternating Feistel network on an a-by-b grid, applied again while the
  result is not below n (cycle walking, Black and Rogaway 2002). This is a
  bijection for every n. Since a * b < n + a, a second pass is rare.
  """
  a = max(1, int(np.sqrt(n)))
  b = -(-n // a)
  keys = _mix(epoch.astype(np.uint64) + _round_keys(seed, k))
  out = _rounds(i.astype(np.uint64), a, b, keys)
  outside = out >= n
  while outside.any():
    out[outside] = _rounds(out[outside], a, b, keys[:, outside])
    outside = out >= n
  return out.astype(np.int64)


def _rounds(x: np.ndarray, a: int, b: int, keys) -> np.ndarray:
  size_a, size_b = np.uint64(a), np.uint64(b)
  left, right = np.divmod(x, size_b)
  for r, key in enumerate(keys):
    if r % 2:
      right = (right + _mix(left + key) % size_b) % size_b
    else:
      left = (left + _mix(right + key) % size_a) % size_a
  return left * size_b + right


def _mix(x: np.ndarray) -> np.ndarray:
  x = (x ^ (x >> _S32)) * _C1
  x = (x ^ (x >> _S29)) * _C2
  return x ^ (x >> _S32)


@functools.lru_cache
def _round_keys(seed: int, k: int) -> np.ndarray:
  return np.array([[_key(seed, k, r)] for r in range(_ROUNDS)])


@functools.lru_cache
def _key(seed: int, k: int, r: int) -> np.uint64:
  # Python integers: numpy warns if a scalar product overflows.
  x = seed & _MASK
  for word in (k + 1, r + 2):
    x = ((x + word) * _GOLDEN) & _MASK
    x ^= x >> 31
    x = (x * int(_C1)) & _MASK
    x ^= x >> 30
  return np.uint64(x)


def _take_turns(weights: Weights, g: np.ndarray):
  """Returns (set, number of earlier samples from that set) of g, int64."""
  if isinstance(weights, Curriculum):
    return _take_stages(weights, g)
  which = np.zeros_like(g)
  count = g.copy()
  _split_turns(weights, 0, np.ones(g.shape, bool), which, count)
  return which, count


def _take_stages(curriculum: Curriculum, g: np.ndarray):
  """As _take_turns; a stage continues each set where the last one ended."""
  which, count = np.zeros_like(g), np.zeros_like(g)
  before = np.zeros(len(curriculum.weights[0]), np.int64)
  ends = (*curriculum.starts[1:], np.iinfo(np.int64).max)
  stages = zip(curriculum.starts, ends, curriculum.weights, strict=True)
  for start, end, weights in stages:
    mine = (g >= start) & (g < end)
    if mine.any():
      which[mine], own = _take_turns(list(weights), g[mine] - start)
      count[mine] = own + before[which[mine]]
    if (g >= end).any():
      before += _count_turns(list(weights), end - start)
  return which, count


def _count_turns(weights: list[float], n: int) -> np.ndarray:
  """Returns how many of the first n samples come from each set, int64."""
  if len(weights) == 1:
    return np.array([n])
  half = len(weights) // 2
  left = int(_scaled(np.array([n]), _share_of(weights))[0])
  return np.concatenate(
    [_count_turns(weights[:half], left), _count_turns(weights[half:], n - left)]
  )


def _share_of(weights: list[float]) -> int:
  """Returns the share of the left half of some weights times 2^20."""
  share = sum(weights[: len(weights) // 2]) / sum(weights)
  one = 1 << SHARE_BITS
  return min(max(round(share * one), 1), one - 1)


def _split_turns(weights, first: int, mine, which, count) -> None:
  """Assigns the samples `mine` to sets, by halving the list of weights.

  Of the first n samples, the left half of the sets gets floor(n W / 2^20), with
  W its share times 2^20. The count of each half thus follows from n alone.

  Args:
    first: the set that weights[0] belongs to.
    mine: bool, the samples that these sets share.
    which: output: the set of each sample.
    count: input and output: the index of each sample among those of its sets.
  """
  if len(weights) == 1:
    which[mine] = first
    return
  half = len(weights) // 2
  share = _share_of(weights)
  n = count[mine]
  before = _scaled(n, share)
  is_left = _scaled(n + 1, share) > before
  count[mine] = np.where(is_left, before, n - before)
  left = mine.copy()
  left[mine] = is_left
  right = mine.copy()
  right[mine] = ~is_left
  _split_turns(weights[:half], first, left, which, count)
  _split_turns(weights[half:], first + half, right, which, count)


def _scaled(n: np.ndarray, share: int) -> np.ndarray:
  # (n * share) >> 20, in parts that do not overflow int64 for any n.
  low = (1 << SHARE_BITS) - 1
  return (n >> SHARE_BITS) * share + (((n & low) * share) >> SHARE_BITS)
