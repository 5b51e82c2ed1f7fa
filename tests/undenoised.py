"""The window that span corruption was given, from what it made of it."""

import numpy as np


def rebuild(
  inputs: np.ndarray, targets: np.ndarray, sentinels: np.ndarray
) -> np.ndarray:
  """Returns the ids of the window that corrupt_spans was given.

  A sentinel that the targets lack, as a model's may, is taken for an empty
  span.

  Args:
    inputs: (I,) ids of one window, whose last is the end.
    targets: (U,) its targets, whose last is the end.
    sentinels: as in corrupt_spans.
  """
  parts = np.split(
    targets[:-1], np.flatnonzero(np.isin(targets[:-1], sentinels))
  )
  spans = {int(part[0]): part[1:] for part in parts if part.size}
  empty = targets[:0]
  marks = np.flatnonzero(np.isin(inputs[:-1], sentinels))
  found = []
  for part in np.split(inputs[:-1], marks):
    is_marked = part.size and int(part[0]) in set(map(int, sentinels))
    found += [spans.get(int(part[0]), empty), part[1:]] if is_marked else [part]
  return np.concatenate(found)
