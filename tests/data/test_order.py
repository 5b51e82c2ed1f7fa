"""The order: every window once an epoch, every share exact, no state."""

import numpy as np
import pytest

from gpt_jax.data import order


def places(n: int, seed: int = 3, k: int = 0, epoch: int = 0) -> np.ndarray:
  i = np.arange(n)
  return order.permute(i, n, seed, k, np.full(n, epoch))


def is_once_each(found: np.ndarray, n: int) -> bool:
  return np.array_equal(np.sort(found), np.arange(n))


@pytest.mark.parametrize("n", [*range(1, 70), 99, 1000, 4096, 65537])
def test_a_permutation_takes_every_place_once(n):
  for epoch in (0, 1, 10**9):
    assert is_once_each(places(n, epoch=epoch), n)


def test_the_check_sees_a_place_taken_twice():
  found = places(100)
  found[0] = found[1]
  assert not is_once_each(found, 100)


def test_seeds_sets_and_epochs_permute_differently():
  first = places(1000)
  assert np.array_equal(first, places(1000))
  for other in (
    places(1000, seed=4),
    places(1000, k=1),
    places(1000, epoch=1),
    np.arange(1000),
  ):
    assert np.mean(first == other) < 0.02
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


def test_neighbours_in_a_permutation_are_not_near():
  steps = np.abs(np.diff(places(10_000)))
  assert 0.9 * 10_000 / 3 < steps.mean() < 1.1 * 10_000 / 3
  assert np.abs(np.diff(np.arange(10_000))).mean() == 1


def test_every_window_is_read_once_an_epoch():
  n = 37
  _, epoch, window = order.locate([1.0], [n], 5, np.arange(4 * n))
  for e in range(4):
    assert is_once_each(window[epoch == e], n)
  assert not np.array_equal(window[:n], window[n : 2 * n])
  _, epoch, window = order.locate([1.0], [n], 5, np.arange(4 * n) // 2)
  assert not is_once_each(window[epoch == 0], n)


def test_a_mixture_gives_each_set_its_share_and_its_own_epochs():
  weights, sizes = [0.5, 0.2, 0.3], [11, 23, 31]
  which, epoch, window = order.locate(weights, sizes, 0, np.arange(10_000))
  for k, weight in enumerate(weights):
    mine = which == k
    taken = np.cumsum(mine)
    assert np.abs(taken - weight * np.arange(1, 10_001)).max() < 2.1
    for e in range(epoch[mine].max()):
      assert is_once_each(window[mine & (epoch == e)], sizes[k])


def test_the_smallest_share_is_never_lost():
  which, _, _ = order.locate([1 - 1e-9, 1e-9], [5, 5], 0, np.arange(1 << 20))
  assert np.sum(which == 1) == 1


def test_order_depends_on_nothing_but_the_sample_number():
  weights, sizes = [0.7, 0.3], [50, 20]
  whole = order.locate(weights, sizes, 9, np.arange(600))
  for part in (np.arange(0, 600, 7), np.arange(599, 0, -1), np.array([17])):
    for all_of_it, some in zip(
      whole, order.locate(weights, sizes, 9, part), strict=True
    ):
      assert np.array_equal(all_of_it[part], some)


def test_far_samples_stay_exact():
  g = np.array([10**12, 10**15]) + np.arange(3)[:, None]
  which, epoch, window = order.locate([0.5, 0.5], [7, 7], 1, g.ravel())
  assert (epoch > 10**10).all() and (window < 7).all() and (window >= 0).all()
  assert set(which) == {0, 1}


@pytest.mark.parametrize("num_ids", [9, 64, 65, 200, 1000])
def test_windows_of_an_epoch_stay_inside_and_do_not_overlap(num_ids):
  seq_len = 8
  n = order.count_windows(num_ids, seq_len)
  which, first = order.starts([1.0], [num_ids], seq_len, 2, np.arange(3 * n))
  assert not which.any()
  for e in range(3):
    mine = np.sort(first[e * n : (e + 1) * n])
    assert mine[0] >= 0 and mine[-1] + seq_len + 1 <= num_ids
    assert (np.diff(mine) == seq_len).all()


def test_borders_move_between_epochs():
  n = order.count_windows(1000, 8)
  _, first = order.starts([1.0], [1000], 8, 2, np.arange(20 * n))
  borders = {int(first[e * n : (e + 1) * n].min()) for e in range(20)}
  assert len(borders) > 5


def test_every_id_is_reached_in_some_epoch():
  n = order.count_windows(1000, 8)
  _, first = order.starts([1.0], [1000], 8, 2, np.arange(200 * n))
  reached = np.zeros(1000, bool)
  reached[(first[:, None] + np.arange(9)).ravel()] = True
  assert reached.all()


def test_a_curriculum_goes_on_in_each_set_where_it_was():
  """Stage by stage, against a loop that counts."""
  stages = order.Curriculum(
    (0, 100, 250), ((0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.6, 0.2, 0.2))
  )
  g = np.arange(600)
  which, epoch, window = order.locate(stages, [37, 41, 43], 3, g)
  seen = {k: [] for k in range(3)}
  for k, e, w in zip(which, epoch, window, strict=True):
    seen[k].append((e, w))
  for k, size in enumerate((37, 41, 43)):
    places = np.arange(len(seen[k]))
    wanted = order.permute(places % size, size, 3, k, places // size)
    found = [(int(e), int(w)) for e, w in seen[k]]
    assert found == list(
      zip((places // size).tolist(), wanted.tolist(), strict=True)
    )
  ends = (*stages.starts[1:], 600)
  for start, end, weights in zip(
    stages.starts, ends, stages.weights, strict=True
  ):
    counts = np.bincount(which[start:end], minlength=3)
    wanted = np.array(weights) * (end - start)
    assert np.abs(counts - wanted).max() <= 2
  # Of any part of the samples the same, in any order.
  part = np.array([599, 3, 251, 100, 99])
  for one, other in zip(
    order.locate(stages, [37, 41, 43], 3, part),
    (which, epoch, window),
    strict=True,
  ):
    assert np.array_equal(one, other[part])
  alone = order.locate([0.5, 0.3, 0.2], [37, 41, 43], 3, g[:100])
  assert np.array_equal(alone[2], window[:100])
