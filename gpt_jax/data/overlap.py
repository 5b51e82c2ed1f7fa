"""Held-out documents that are also trained on, found by comparing ids."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Ids that are read at once.
_BLOCK = 1 << 22
# A document is compared by its length and at most this many first ids.
_MAX_IDS = 1 << 24
# Ids and documents up to which a comparison is quick enough for every start.
_QUICK_IDS = 1 << 25
_QUICK_DOCUMENTS = 1 << 17


def count(train: Any, valid: Any) -> tuple[int, int, float]:
  """Returns how much of the held-out text is in a train set too.

  Args:
    train, valid: lists of TokenSets with one tokenizer.

  Returns:
    (held-out documents that are in both, all held-out documents, share of the
    held-out ids that is in both).
  """
  held, lens = _hashes(valid)
  trained, _ = _hashes(train)
  is_both = np.isin(held, trained)
  share = lens[is_both].sum() / max(1, lens.sum())
  return int(is_both.sum()), len(held), float(share)


def is_quick(token_sets: Any) -> bool:
  """Returns whether `count` over these sets takes well under a second."""
  return (
    sum(s.num_ids for s in token_sets) <= _QUICK_IDS
    and sum(s.num_documents for s in token_sets) <= _QUICK_DOCUMENTS
  )


def report(
  train: Any, valid: Any, say: Callable[[str], None], least: float = 0.0
) -> None:
  """Says how many held-out documents are also trained on, if any are.

  Args:
    train, valid: lists of TokenSets with one tokenizer.
    say: receives the line.
    least: the share of the held-out ids below which nothing is said.
  """
  found, total, share = count(train, valid)
  if not found or share < least:
    return
  line = (
    f"{found:,} of {total:,} held-out documents are also in the text "
    f"to train on ({share:.2%} of the tokens), so validation losses are too low"
  )
  if len(train) > 1 or train[0].folder != valid[0].folder:
    line += "; give each text in one source only"
  elif not train[0].is_apart:
    line += f"; remove {train[0].folder}, and they are brought to one side"
  say(line)


def _hashes(token_sets) -> tuple[np.ndarray, np.ndarray]:
  found = [row for s in token_sets for row in _hash_documents(s)]
  table = np.array(found, np.int64).reshape(-1, 2)
  return table[:, 0], table[:, 1]


def _hash_documents(token_set) -> Iterator[tuple[int, int]]:
  """Yields (hash, length) of each document's ids, without its separator.

  In sets of pairs only the sources count: many targets may well be equal.
  """
  starts = token_set.document_starts
  borders = np.append(starts, token_set.num_ids)
  i = 0
  while i < len(starts):
    low = int(borders[i])
    j = int(np.searchsorted(borders, low + _BLOCK, "right")) - 1
    j = max(j, i + 1)
    high = min(int(borders[j]), low + _MAX_IDS)
    ids = token_set.read(low, high)
    for k in range(i, j):
      if token_set.is_paired and k % 2:
        continue
      a, b = int(borders[k]) - low, int(borders[k + 1]) - low
      if a < b and ids[a] == token_set.separator_id:
        a += 1
      # Python's hash is fast and 64 bits wide. It differs between processes,
      # but these hashes do not leave this one.
      yield hash((b - a, ids[a:b].tobytes())), b - a
    i = j
