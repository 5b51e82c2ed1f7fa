"""Span corruption and UL2: lengths, distributions, and the text given back."""

import math

import numpy as np
import pytest
from undenoised import rebuild

from gpt_jax.config import InputError, lengths
from gpt_jax.data import denoising

V, END = 1000, 0
UP = np.arange(V, V + 200)
DOWN = UP[::-1]
MODES = {"R": V + 200, "S": V + 201, "X": V + 202}


def windows(rows: int, length: int) -> np.ndarray:
  ids = np.random.default_rng(0).integers(0, V, (rows, length))
  return ids.astype(np.int32)


def corrupt(ids, density=0.15, mean_span=3.0, sentinels=DOWN, seed=0, g=None):
  g = np.arange(len(ids)) if g is None else g
  draw = denoising.draws(seed, g)
  return denoising.corrupt_spans(ids, draw, density, mean_span, sentinels, END)


def mix(ids, seed=0, g=None):
  g = np.arange(len(ids)) if g is None else g
  draw = denoising.draws(seed, g)
  return denoising.mix_denoisers(ids, draw, lengths.UL2, DOWN, END, MODES)


def lengths_of_spans(targets) -> np.ndarray:
  """Returns the lengths of the spans of targets, all rows after each other."""
  flat = targets.reshape(-1)
  edges = np.flatnonzero(
    (flat >= V)
    | (np.arange(flat.size) % len(targets[0]) == len(targets[0]) - 1)
  )
  gaps = np.diff(edges) - 1
  return gaps[flat[edges[:-1]] >= V]


def span_lengths(input_len: int, *how: float) -> tuple[int, int]:
  """Returns (the longest window that fits an input, length of its target)."""
  length = 2
  while lengths.corrupted_lengths(length + 1, *how).inputs <= input_len:
    length += 1
  return length, lengths.corrupted_lengths(length, *how).targets


def test_lengths_are_those_of_t5():
  # Raffel et al.: 512 input tokens, 15 %, spans of 3, as in T5's own run.
  assert span_lengths(512, 0.15, 3.0) == (568, 114)
  for density, mean_span in [(0.15, 3.0), (0.5, 3.0), (0.15, 64.0), (0.9, 1.0)]:
    for length in (2, 3, 17, 200):
      inputs, targets = corrupt(windows(3, length), density, mean_span)
      n = lengths.corrupted_lengths(length, density, mean_span)
      assert (inputs.shape, targets.shape) == ((3, n.inputs), (3, n.targets))
      assert (targets >= V).sum() == 3 * n.spans
    raw, target_len = span_lengths(100, density, mean_span)
    n = lengths.corrupted_lengths(raw, density, mean_span)
    longer = lengths.corrupted_lengths(raw + 1, density, mean_span)
    assert n.inputs <= 100 < longer.inputs and n.targets == target_len


@pytest.mark.parametrize(
  "length,density,mean_span", [(400, 0.15, 3.0), (128, 0.5, 8.0)]
)
def test_spans_have_the_distribution_of_random_divisions(
  length, density, mean_span
):
  """n items in s spans: P(k) = C(n-k-1, s-2) / C(n-1, s-1)."""
  _, targets = corrupt(windows(10_000, length), density, mean_span)
  n = lengths.corrupted_lengths(length, density, mean_span)
  found = lengths_of_spans(targets)
  hidden = (targets < V).sum() - len(targets)  # the end is no noise
  assert hidden / (10_000 * length) == pytest.approx(density, rel=0.01)
  assert found.mean() == pytest.approx(mean_span, rel=0.01)
  ways = [math.comb(n.noise - k - 1, n.spans - 2) for k in range(1, n.noise)]
  formula = np.array(ways) / math.comb(n.noise - 1, n.spans - 1)
  assert formula.sum() == pytest.approx(1.0)
  often = np.bincount(found, minlength=n.noise)[1 : n.noise] / found.size
  assert np.abs(often - formula).sum() / 2 < 0.01
  second = (np.arange(1, n.noise) ** 2 * formula).sum()
  assert (found**2).mean() == pytest.approx(second, rel=0.01)


@pytest.mark.parametrize("sentinels", [DOWN, UP])
@pytest.mark.parametrize("density,mean_span", [(0.15, 3.0), (0.5, 3.0)])
def test_inputs_and_targets_give_back_the_text(sentinels, density, mean_span):
  ids = windows(200, 121)
  inputs, targets = corrupt(ids, density, mean_span, sentinels)
  for row in range(len(ids)):
    back = rebuild(inputs[row], targets[row], sentinels)
    assert np.array_equal(back, ids[row])
    used = inputs[row][inputs[row] >= V]
    assert np.array_equal(used, sentinels[: used.size])
    assert np.array_equal(used, targets[row][targets[row] >= V])
  damaged = targets[0].copy()  # the control
  damaged[1] += 1
  back = rebuild(inputs[0], damaged, sentinels)
  assert not np.array_equal(back, ids[0])


def test_a_missing_span_is_empty():
  inputs, targets = np.array([5, 1199, 6, 1198, END]), np.array([1198, 7, END])
  assert rebuild(inputs, targets, DOWN).tolist() == [5, 6, 7]


def test_a_window_is_corrupted_alike_in_any_batch():
  ids, place = windows(64, 100), np.arange(40, 50)
  for make in (corrupt, mix):
    whole = make(ids, seed=3)
    part = make(ids[40:50], seed=3, g=place)
    for a, b in zip(whole, part, strict=True):
      assert np.array_equal(a[40:50], b)
    other = make(ids[40:50], seed=4, g=place)  # the control
    for a, b in zip(part, other, strict=True):
      assert not np.array_equal(a, b)


def test_ul2_mixes_its_denoisers_evenly_and_gives_back_the_text():
  L, rows = 128, 10_000
  ids = windows(rows, L)
  found = mix(ids)
  widths = found.inputs_BS.shape[1], found.targets_BU.shape[1]
  assert widths == lengths.mixture_lengths(L, lengths.UL2)
  for mode, members in (("R", 2), ("S", 1), ("X", 4)):
    share = (found.inputs_BS[:, 0] == MODES[mode]).mean()
    assert share == pytest.approx(members / 7, abs=0.015)
  density = np.mean([d.density for d in lengths.UL2])
  hidden = ((found.targets_BU < V).sum(1)) - (
    found.targets_BU.shape[1] - found.target_lengths_B + 1
  )
  assert hidden.mean() / L == pytest.approx(density, rel=0.01)
  for row in range(300):
    inputs = found.inputs_BS[row, 1 : found.input_lengths_B[row]]
    targets = found.targets_BU[row, : found.target_lengths_B[row]]
    assert np.array_equal(rebuild(inputs, targets, DOWN), ids[row])
    if found.inputs_BS[row, 0] == MODES["S"]:
      assert np.array_equal(targets[1:-1], ids[row, -L // 4 :])


def test_too_few_sentinels_are_refused():
  with pytest.raises(InputError, match="26 spans.*there are 25 sentinels"):
    corrupt(windows(2, 512), sentinels=DOWN[:25])
