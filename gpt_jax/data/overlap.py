"""Is held-out text also trained on? Documents are compared by their ids."""

from collections.abc import Iterator

import numpy as np

# Ids read at once.
_BLOCK = 1 << 22
# Ids by which a longer document is known, with its length.
_MAX_IDS = 1 << 24


def count(train, valid) -> tuple[int, int, float]:
  """Returns how much of the held-out text is in a train set too.

  Args:
    train, valid: TokenSets of one tokenizer.

  Returns:
    (documents that are in both, documents held out, the first's share of the
    ids held out).
  """
  held, lens = _hashes(valid)
  seen, _ = _hashes(train)
  is_both = np.isin(held, seen)
  share = lens[is_both].sum() / max(1, lens.sum())
  return int(is_both.sum()), len(held), float(share)


def _hashes(token_sets) -> tuple[np.ndarray, np.ndarray]:
  found = [row for s in token_sets for row in _hash_documents(s)]
  table = np.array(found, np.int64).reshape(-1, 2)
  return table[:, 0], table[:, 1]


def _hash_documents(token_set) -> Iterator[tuple[int, int]]:
  """Yields (hash, length) of each document's ids, without its separator."""
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
      a, b = int(borders[k]) - low, int(borders[k + 1]) - low
      if a < b and ids[a] == token_set.separator_id:
        a += 1
      # Python's own hash: 64 bits, and only compared within this process.
      yield hash((b - a, ids[a:b].tobytes())), b - a
    i = j
