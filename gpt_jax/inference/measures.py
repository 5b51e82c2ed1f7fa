"""Accuracy, F1, Matthews and Spearman of a whole set, in one pass over it.

Each batch gives integer counts per class, which are summed over batches and
processes, so neither the order nor the size of batches changes a bit of the
result. Averaging F1 or Matthews over batches would give a different figure.

Dimensions: K classes; N texts or words.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Keys of what the functions of MEASURES return. The first two hold sums over a
# batch; those in GATHERED hold one value per row, to be concatenated.
CLASSES, RIGHT_ROWS = "classes", "right_rows"
PREDICTED, ASKED, IS_REAL = "predicted", "asked", "is_real"
GATHERED = (PREDICTED, ASKED, IS_REAL)


def count_labels(
  labels_NK: jax.Array, predicted_NK: jax.Array, is_real_N: jax.Array
) -> jax.Array:
  """Returns int32 counts_3K: true positives, false positives and negatives.

  With one class per example, each row of both arrays has exactly one True.

  Args:
    labels_NK, predicted_NK: bool.
    is_real_N: False where a row only fills the last batch.
  """
  both = labels_NK & predicted_NK
  each = [both, predicted_NK & ~labels_NK, labels_NK & ~predicted_NK]
  real_3NK = jnp.stack(each) & is_real_N[None, :, None]
  return real_3NK.sum(1, dtype=jnp.int32)


def count_classes(logits_BTK, batch: dict) -> dict:
  """Returns {CLASSES: counts_3K} for targets of one class each."""
  K = logits_BTK.shape[-1]
  is_class = lambda ids: ids.reshape(-1, 1) == jnp.arange(K)[None]
  labels_NK = is_class(batch["targets"])
  predicted_NK = is_class(logits_BTK.argmax(-1))
  is_real_N = batch["mask"].reshape(-1) > 0
  return {CLASSES: _whole(count_labels(labels_NK, predicted_NK, is_real_N))}


def count_sets(logits_B1K, batch: dict) -> dict:
  """Returns {CLASSES: counts_3K, RIGHT_ROWS: int32} for multi-label targets.

  A class is predicted if its probability is at least 0.5. RIGHT_ROWS counts the
  texts whose predicted classes are exactly the target's.
  """
  labels_BK, predicted_BK = batch["targets"] > 0.5, logits_B1K[:, 0] >= 0
  is_real_B = batch["mask"][:, 0] > 0
  right_B = (labels_BK == predicted_BK).all(1) & is_real_B
  counts_3K = count_labels(labels_BK, predicted_BK, is_real_B)
  num_right = right_B.sum(dtype=jnp.int32)
  return {CLASSES: _whole(counts_3K), RIGHT_ROWS: num_right}


def gather_numbers(logits_B11, batch: dict) -> dict:
  """Returns a batch's predicted and target numbers, replicated on all devices.

  IS_REAL is False for rows that only fill the last batch.
  """
  return {
    PREDICTED: _whole(logits_B11[:, 0, 0]),
    ASKED: _whole(batch["targets"][:, 0]),
    IS_REAL: _whole(batch["mask"][:, 0] > 0),
  }


def gather_logits(logits_BTK, batch: dict) -> dict:
  """Returns all logits of a batch, replicated on every device."""
  return {PREDICTED: _whole(logits_BTK)}


def _whole(x):
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, jax.P())


# By option of data.label: function of (logits, batch). Its results, summed or
# concatenated over the set, are the input of find_figures.
MEASURES: dict[str, Callable] = {
  "single": count_classes,
  "multi": count_sets,
  "number": gather_numbers,
  "word": count_classes,
}


def find_figures(label: str, found: dict, count: int) -> dict[str, float]:
  """Returns {metric: value}; a metric that is undefined (NaN) is left out.

  For classes: accuracy (for "multi", the fraction of texts whose whole set of
  classes is right), f1_macro and f1_micro; and except for "multi", matthews and
  the baseline majority, the accuracy of always predicting the commonest class.
  For numbers: spearman, and the baseline variance, the squared error of always
  predicting their mean.

  Args:
    label: option of data.label.
    found: what MEASURES returns, summed or concatenated over the set.
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
  """Returns the fraction of examples predicted right; NaN without examples."""
  right_K, labels_K, _ = _totals(counts_3K)
  return _ratio(sum(right_K), sum(labels_K))


def majority(counts_3K: np.ndarray) -> float:
  """Returns the commonest class's share of examples; NaN without examples."""
  _, labels_K, _ = _totals(counts_3K)
  return _ratio(max(labels_K), sum(labels_K))


def f1(counts_3K: np.ndarray, average: str) -> float:
  """Returns F1, the harmonic mean of precision and recall; NaN for no counts.

  Args:
    counts_3K: from count_labels, summed over batches.
    average: "micro" is F1 of the counts summed over classes; "macro" is the
      mean F1 over classes that occur as a label or a prediction.
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
  """Returns per class the number of right predictions, labels and predictions.

  They are Python integers, because products of counts can overflow 64 bits.
  """
  hits, wrong, missed = np.asarray(counts_3K, np.int64)
  return [k.tolist() for k in (hits, hits + missed, hits + wrong)]


def spearman(predicted_N: np.ndarray, targets_N: np.ndarray) -> float:
  """Returns the correlation of ranks, -1 to 1; equal values share their rank.

  Ranks depend on all values, so there are no partial sums of a batch: the
  arguments are whole sets, in any order. NaN where predictions or targets are
  all the same.
  """
  a, b = (_centered_ranks(x) for x in (predicted_N, targets_N))
  dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
  return _ratio(dot(a, b), math.sqrt(dot(a, a) * dot(b, b)))


def _centered_ranks(values_N: np.ndarray) -> list[int]:
  """Returns 2 * (rank - mean rank) of each value, which is an integer."""
  _, places_N, counts = np.unique(
    np.asarray(values_N), return_inverse=True, return_counts=True
  )
  # Equal values share the mean of the ranks end - count + 1 ... end.
  ends = np.cumsum(counts)
  twice = 2 * ends - counts + 1
  return (twice[places_N] - (len(values_N) + 1)).tolist()


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else math.nan
