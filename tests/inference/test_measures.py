"""Metrics of classification from counts, against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference import measures

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 1])
CALLED = np.array([0, 0, 1, 1, 2, 2, 2, 0, 2, 1])


def count(labels, called, size=3, is_real=None):
  """Returns counts_3K of logits that call classes `called`."""
  is_real = np.ones(len(labels)) if is_real is None else is_real
  logits = np.eye(size, dtype=np.float32)[called][:, None]
  batch = {"targets": labels[:, None], "mask": np.float32(is_real)[:, None]}
  return np.asarray(
    measures.count_classes(jnp.asarray(logits), batch)[measures.CLASSES]
  )


def from_confusion(counts_KK) -> np.ndarray:
  """Returns counts_3K of examples of class i that were called class j."""
  counts_KK = np.asarray(counts_KK)
  right_K = np.diag(counts_KK)
  return np.stack(
    [right_K, counts_KK.sum(0) - right_K, counts_KK.sum(1) - right_K]
  )


def test_figures_of_three_classes_are_those_of_the_formulas():
  counts = count(LABELS, CALLED)
  assert counts.tolist() == [[2, 2, 3], [1, 1, 1], [1, 1, 1]]
  whole = from_confusion([[2, 1, 0], [0, 2, 1], [1, 0, 3]])
  assert counts.tolist() == whole.tolist()
  assert measures.accuracy(counts) == 0.7
  assert measures.majority(counts) == 0.4
  assert measures.f1(counts, "micro") == pytest.approx(0.7)
  # 2/3, 2/3, 3/4
  assert measures.f1(counts, "macro") == pytest.approx(
    (2 / 3 + 2 / 3 + 3 / 4) / 3
  )
  # c s - t.p = 7 * 10 - (9 + 9 + 16); s^2 - t.t = 100 - 34, and the same.
  assert measures.matthews(counts) == pytest.approx(36 / 66)


def test_matthews_of_two_classes_is_the_formula_of_its_four_counts():
  tp, fp, fn, tn = 90, 4, 5, 1
  counts = np.array([[tn, fp], [fn, tp]])
  above = tp * tn - fp * fn
  below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
  of = lambda counts_KK: measures.matthews(from_confusion(counts_KK))
  assert of(counts) == pytest.approx(above / below**0.5)
  assert of(counts[::-1]) == pytest.approx(-above / below**0.5)
  assert of([[3, 2], [0, 0]]) == 0.0
  # Counts whose products pass 64 bits.
  huge = counts.astype(np.int64) * 10**15
  assert of(huge) == pytest.approx(of(counts))


def test_batches_and_a_ragged_last_one_add_up_to_the_set():
  rng = np.random.default_rng(0)
  labels, called = rng.integers(0, 5, (2, 103))
  whole = count(labels, called, 5)
  padded = np.pad(np.stack([labels, called]), ((0, 0), (0, 5)))
  is_real = np.arange(108) < 103
  cut = lambda real: sum(
    count(*padded[:, i : i + 12], 5, real[i : i + 12])
    for i in range(0, 108, 12)
  )
  assert cut(is_real).tolist() == whole.tolist()
  assert cut(np.ones(108, bool)).tolist() != whole.tolist()  # the control


def test_words_are_counted_where_they_are_targets():
  labels = np.array([[0, 1, 2], [2, 0, 0]])
  called = np.array([[0, 2, 2], [2, 1, 1]])
  logits = jnp.asarray(np.eye(3, dtype=np.float32)[called])
  batch = {"targets": labels, "mask": np.float32([[1, 1, 0], [1, 1, 0]])}
  counts = measures.count_classes(logits, batch)[measures.CLASSES]
  assert counts.tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 0]]


def test_figures_of_sets_of_classes():
  labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1]], np.float32)
  called = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 1, 1]])
  batch = {"targets": labels, "mask": np.float32([[1], [1], [1], [0]])}
  logits = jnp.asarray(called[:, None] * 2.0 - 1)
  found = measures.count_sets(logits, batch)
  counts = np.asarray(found[measures.CLASSES])
  assert counts.tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 1]]
  assert measures.f1(counts, "micro") == pytest.approx(4 / 7)
  # The label in the middle occurs nowhere.
  assert measures.f1(counts, "macro") == pytest.approx((2 / 3 + 1 / 2) / 2)
  with pytest.raises(ValueError, match="'mean'; it must be micro or macro"):
    measures.f1(counts, "mean")
  figures = measures.find_figures("multi", found, 3)
  assert figures.keys() == {"accuracy", "f1_macro", "f1_micro"}
  assert figures["accuracy"] == pytest.approx(1 / 3)


def test_spearman_ranks_and_shares_ranks():
  x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
  assert measures.spearman(x, x**3) == 1.0
  assert measures.spearman(x, -x) == -1.0
  # 1 - 6 (1 + 1 + 0 + 1 + 1) / (5 * 24)
  y = np.array([2.0, 1.0, 3.0, 5.0, 4.0])
  assert measures.spearman(x, y) == pytest.approx(0.8)
  # Ranks 1.5 1.5 3 4 and 1 2 3.5 3.5, less 2.5: products 4 over 4.5.
  tied = measures.spearman(
    np.array([1.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 2.0])
  )
  products = 1.5 + 0.5 + 0.5 + 1.5
  assert tied == pytest.approx(products / 4.5)
  order = np.random.default_rng(0).permutation(5)
  assert measures.spearman(x[order], y[order]) == measures.spearman(x, y)
  assert np.isnan(measures.spearman(x, np.ones(5)))


def test_numbers_of_rows_that_fill_a_batch_do_not_count():
  logits = jnp.array([1.0, 2.0, 3.0, -9.0])[:, None, None]
  batch = {
    "targets": np.float32([[1], [3], [8], [0]]),
    "mask": np.float32([[1], [1], [1], [0]]),
  }
  found = measures.gather_numbers(logits, batch)
  found = {name: np.asarray(x) for name, x in found.items()}
  figures = measures.find_figures("number", found, 3)
  assert figures == {"spearman": 1.0, "variance": pytest.approx(26 / 3)}


def test_an_empty_set_has_no_figure():
  none = np.zeros((3, 2), int)
  found = {measures.CLASSES: none}
  assert measures.find_figures("single", found, 0) == {"matthews": 0.0}
