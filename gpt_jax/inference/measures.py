"""Accuracy, F1, Matthews and Spearman of a whole set, from counts.

A batch gives integer counts, and counts of batches and processes add up to
those of the set: the order and the size of batches change no bit. A mean over
batches of F1 or Matthews would be another figure.

N examples, K classes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def count_classes(
  labels_N: jax.Array,
  predicted_N: jax.Array,
  is_real_N: jax.Array,
  num_classes: int,
) -> jax.Array:
  """Returns int32 counts_KK: examples of class i that were called class j.

  Args:
    labels_N, predicted_N: int32 below num_classes.
    is_real_N: False where a row only fills the last batch.
  """
  cells_N = labels_N * num_classes + predicted_N
  counts = jnp.zeros(num_classes**2, jnp.int32)
  counts = counts.at[cells_N].add(is_real_N.astype(jnp.int32))
  return counts.reshape(num_classes, num_classes)


def count_labels(
  labels_NK: jax.Array, predicted_NK: jax.Array, is_real_N: jax.Array
) -> jax.Array:
  """Returns int32 counts_3K: true positives, false positives and negatives.

  For examples with any number of labels.

  Args:
    labels_NK, predicted_NK: bool.
    is_real_N: as in count_classes.
  """
  both = labels_NK & predicted_NK
  each = [both, predicted_NK & ~labels_NK, labels_NK & ~predicted_NK]
  real_3NK = jnp.stack(each) & is_real_N[None, :, None]
  return real_3NK.sum(1, dtype=jnp.int32)


def labels_of_classes(counts_KK: np.ndarray) -> np.ndarray:
  """Returns what count_labels counts, from what count_classes does."""
  right_K = np.diag(counts_KK)
  return np.stack(
    [right_K, counts_KK.sum(0) - right_K, counts_KK.sum(1) - right_K]
  )


def accuracy(counts_KK: np.ndarray) -> float:
  """Returns the fraction of examples called their class; NaN for none."""
  return _ratio(int(np.trace(counts_KK)), int(np.sum(counts_KK)))


def f1(counts_3K: np.ndarray, average: str) -> float:
  """Returns F1, the harmonic mean of precision and recall; NaN for none.

  Args:
    counts_3K: from count_labels or labels_of_classes, added up.
    average: micro: of counts added over classes. macro: the mean over classes
      that occur as a label or a prediction.
  """
  counts_3K = np.asarray(counts_3K, np.int64)
  if average == "micro":
    counts_3K = counts_3K.sum(1, keepdims=True)
  elif average != "macro":
    raise ValueError(f"average is {average!r}; it must be micro or macro")
  each = [
    _ratio(2 * hits, 2 * hits + wrong + missed)
    for hits, wrong, missed in counts_3K.T.tolist()
    if hits + wrong + missed
  ]
  return _ratio(math.fsum(each), len(each))


def matthews(counts_KK: np.ndarray) -> float:
  """Returns the correlation of classes, -1 to 1 (Gorodkin 2004).

  With two classes it is Matthews' coefficient. It is 0 where all labels, or all
  predictions, are of one class.
  """
  # Python's integers, since products of counts pass 64 bits.
  labels_K = np.sum(counts_KK, 1).tolist()
  predicted_K = np.sum(counts_KK, 0).tolist()
  right, total = int(np.trace(counts_KK)), sum(labels_K)
  dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
  covariance = right * total - dot(labels_K, predicted_K)
  spreads = [total**2 - dot(k, k) for k in (labels_K, predicted_K)]
  if not all(spreads):
    return 0.0
  return covariance / math.sqrt(math.prod(spreads))


def spearman(predicted_N: np.ndarray, targets_N: np.ndarray) -> float:
  """Returns the correlation of ranks, -1 to 1; equal values share their rank.

  Ranks depend on all values, so that nothing smaller than the values
  themselves adds up: batches are concatenated, in any order. NaN where
  predictions or targets are all the same.
  """
  a, b = (_centered_ranks(x) for x in (predicted_N, targets_N))
  dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
  return _ratio(dot(a, b), math.sqrt(dot(a, a) * dot(b, b)))


def _centered_ranks(values_N: np.ndarray) -> list[int]:
  """Returns twice each value's rank less its mean: integers."""
  _, places_N, counts = np.unique(
    np.asarray(values_N), return_inverse=True, return_counts=True
  )
  # Values of one group have ranks end - count + 1 ... end.
  ends = np.cumsum(counts)
  twice = 2 * ends - counts + 1
  return (twice[places_N] - (len(values_N) + 1)).tolist()


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else math.nan
