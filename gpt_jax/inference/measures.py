"""Accuracy, F1, Matthews and Spearman of a whole set, in one pass over it.

A batch gives integer counts of its classes, and counts of batches and processes
add up to those of the set: the order and the size of batches change no bit. A
mean over batches of F1 or Matthews would be another figure.

K classes; N texts, or words.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# What the functions of MEASURES return: sums, and what is gathered.
CLASSES, RIGHT_ROWS = "classes", "right_rows"
PREDICTED, ASKED, IS_REAL = "predicted", "asked", "is_real"
GATHERED = (PREDICTED, ASKED, IS_REAL)


def count_labels(
  labels_NK: jax.Array, predicted_NK: jax.Array, is_real_N: jax.Array
) -> jax.Array:
  """Returns int32 counts_3K: true positives, false positives and negatives.

  Where an example has one class, both have one True in each row.

  Args:
    labels_NK, predicted_NK: bool.
    is_real_N: False where a row only fills the last batch.
  """
  both = labels_NK & predicted_NK
  each = [both, predicted_NK & ~labels_NK, labels_NK & ~predicted_NK]
  real_3NK = jnp.stack(each) & is_real_N[None, :, None]
  return real_3NK.sum(1, dtype=jnp.int32)


def count_classes(logits_BTK, batch: dict) -> dict:
  """Returns {CLASSES: counts_3K} of targets of which each has one class."""
  K = logits_BTK.shape[-1]
  is_class = lambda ids: ids.reshape(-1, 1) == jnp.arange(K)[None]
  labels_NK = is_class(batch["targets"])
  predicted_NK = is_class(logits_BTK.argmax(-1))
  is_real_N = batch["mask"].reshape(-1) > 0
  return {CLASSES: _whole(count_labels(labels_NK, predicted_NK, is_real_N))}


def count_sets(logits_B1K, batch: dict) -> dict:
  """Returns {CLASSES: counts_3K, RIGHT_ROWS: int32} of sets of classes.

  A class is predicted from a probability of one half on.
  """
  labels_BK, predicted_BK = batch["targets"] > 0.5, logits_B1K[:, 0] >= 0
  is_real_B = batch["mask"][:, 0] > 0
  right_B = (labels_BK == predicted_BK).all(1) & is_real_B
  counts_3K = count_labels(labels_BK, predicted_BK, is_real_B)
  num_right = right_B.sum(dtype=jnp.int32)
  return {CLASSES: _whole(counts_3K), RIGHT_ROWS: num_right}


def gather_numbers(logits_B11, batch: dict) -> dict:
  """Returns all numbers of a batch, whole on every device."""
  return {
    PREDICTED: _whole(logits_B11[:, 0, 0]),
    ASKED: _whole(batch["targets"][:, 0]),
    IS_REAL: _whole(batch["mask"][:, 0] > 0),
  }


def gather_logits(logits_BTK, batch: dict) -> dict:
  """Returns all logits of a batch, whole on every device."""
  return {PREDICTED: _whole(logits_BTK)}


def _whole(x):
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, jax.P())


# By option of data.label: function of (logits, batch) that returns what the
# figures of a set are found from.
MEASURES: dict[str, Callable] = {
  "single": count_classes,
  "multi": count_sets,
  "number": gather_numbers,
  "word": count_classes,
}


def find_figures(label: str, found: dict, count: int) -> dict[str, float]:
  """Returns {quantity: value}; a figure that is not defined is left out.

  accuracy (of sets of classes: the part that is right as a whole), f1_macro,
  f1_micro, matthews, and what always guessing gives beside them: majority, the
  accuracy of the commonest class. Of numbers spearman, and variance, the
  squared error of their mean.

  Args:
    label: option of data.label.
    found: what MEASURES returns, added up or joined over the set.
    count: the number of texts.
  """
  if label == "number":
    is_real = found[IS_REAL]
    predicted, asked = found[PREDICTED][is_real], found[ASKED][is_real]
    figures = {"spearman": spearman(predicted, asked)}
    if asked.size:
      figures["variance"] = float(np.var(asked, dtype=np.float64))
  else:
    counts_3K = found[CLASSES]
    figures = {
      "accuracy": accuracy(counts_3K),
      "f1_macro": f1(counts_3K, "macro"),
      "f1_micro": f1(counts_3K, "micro"),
    }
    if label == "multi":
      figures["accuracy"] = _ratio(int(found[RIGHT_ROWS]), count)
    else:
      figures["matthews"] = matthews(counts_3K)
      figures["majority"] = majority(counts_3K)
  return {name: x for name, x in figures.items() if not math.isnan(x)}


def accuracy(counts_3K: np.ndarray) -> float:
  """Returns the fraction of examples called their class; NaN for none."""
  right_K, labels_K, _ = _totals(counts_3K)
  return _ratio(sum(right_K), sum(labels_K))


def majority(counts_3K: np.ndarray) -> float:
  """Returns the fraction of examples of the commonest class; NaN for none."""
  _, labels_K, _ = _totals(counts_3K)
  return _ratio(max(labels_K), sum(labels_K))


def f1(counts_3K: np.ndarray, average: str) -> float:
  """Returns F1, the harmonic mean of precision and recall; NaN for none.

  Args:
    counts_3K: from count_labels, added up.
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


def matthews(counts_3K: np.ndarray) -> float:
  """Returns the correlation of classes, -1 to 1 (Gorodkin 2004).

  With two classes it is Matthews' coefficient. It is 0 where all labels, or all
  predictions, are of one class. Examples have one class each.
  """
  right_K, labels_K, predicted_K = _totals(counts_3K)
  right, total = sum(right_K), sum(labels_K)
  dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
  covariance = right * total - dot(labels_K, predicted_K)
  spreads = [total**2 - dot(k, k) for k in (labels_K, predicted_K)]
  if not all(spreads):
    return 0.0
  return covariance / math.sqrt(math.prod(spreads))


def _totals(counts_3K) -> list[list[int]]:
  """Returns, by class: right predictions, labels, predictions.

  Python's integers, since products of counts pass 64 bits.
  """
  hits, wrong, missed = np.asarray(counts_3K, np.int64)
  return [k.tolist() for k in (hits, hits + missed, hits + wrong)]


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
