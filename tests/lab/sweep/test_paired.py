"""Pairs of seeds: intervals, p, and verdicts over many comparisons."""

import math
import random

import pytest

from gpt_jax.lab.sweep import paired


def test_intervals_and_p_are_those_of_student():
  stats = pytest.importorskip("scipy.stats")
  a = {0: 2.1, 1: 2.3, 2: 2.2, 3: 2.4, 9: 7.0}
  b = {0: 2.0, 1: 2.25, 2: 2.15, 3: 2.28, 8: 1.0}
  (found,) = paired.compare(("a", a), [("b", b)])
  pairs = [[x[s] for s in range(4)] for x in (b, a)]
  wanted = stats.ttest_rel(*pairs)
  interval = wanted.confidence_interval(0.95)
  assert found.seeds == (0, 1, 2, 3)
  assert found.p == pytest.approx(wanted.pvalue, rel=1e-10)
  assert found.low == pytest.approx(interval.low, rel=1e-10)
  assert found.high == pytest.approx(interval.high, rel=1e-10)
  assert found.verdict == paired.BETTER


def test_holm_holds_over_all_comparisons():
  ps = [0.01, 0.04, 0.03, 0.5]
  factors = paired.holm_factors(ps)
  assert [p * f for p, f in zip(ps, factors, strict=True)] == pytest.approx(
    [0.04, 0.09, 0.09, 0.5]
  )
  # Alone it is better; as one of ten tries it is not distinguishable.
  base = dict(enumerate([2.0, 2.1, 2.2]))
  better = {s: base[s] - d for s, d in enumerate([0.1, 0.12, 0.15])}
  noise = {s: base[s] + d for s, d in enumerate([0.01, -0.01, 0.002])}
  (alone,) = paired.compare(("a", base), [("b", better)])
  assert alone.verdict == paired.BETTER
  several = paired.compare(("a", base), [("b", better)] + [("n", noise)] * 9)
  assert several[0].verdict == paired.SAME
  assert several[0].p == alone.p and several[0].adjusted > alone.adjusted


def test_verdicts_are_wrong_as_rarely_as_they_say():
  """Of runs that differ by noise alone, 5 % are told apart; unpaired: none."""
  draw = random.Random(0)
  wrong = 0
  for _ in range(1000):
    level = [draw.gauss(2, 1) for _ in range(4)]
    a, b = (
      {s: x + draw.gauss(0, 0.1) for s, x in enumerate(level)} for _ in "ab"
    )
    (found,) = paired.compare(("a", a), [("b", b)])
    wrong += found.verdict != paired.SAME
  assert 0.03 < wrong / 1000 < 0.07


def test_an_interval_excludes_zero_where_its_verdict_does():
  """Both are corrected alike, over however many comparisons."""
  draw, seen = random.Random(1), {False: 0, True: 0}
  alone = 0
  for trial in range(300):
    base = {s: draw.gauss(2, 1) for s in range(2 + trial % 4)}
    others = [
      (f"{i}", {s: x + draw.gauss(shift, 0.1) for s, x in base.items()})
      for i, shift in enumerate((0, 0.05, 0.1, 0.2, 0.4)[: 1 + trial % 5])
    ]
    for one in paired.compare(("a", base), others):
      is_apart = one.low > 0 or one.high < 0
      assert is_apart == (one.verdict != paired.SAME), one
      assert is_apart == (one.adjusted < 0.05)
      seen[is_apart] += 1
      alone += one.p < 0.05 <= one.adjusted
  # There were those that an interval of its own would have told apart.
  assert min(seen.values()) > 50 and alone > 20


def test_a_set_of_which_one_has_diverged_has_no_mean():
  base = {0: 2.0, 1: 2.1, 2: 2.2}
  lost = {0: 1.0, 1: 1.1, 2: math.inf}
  (found,) = paired.compare(("a", base), [("b", lost)])
  assert found.verdict == "diverged (1 of 3 seeds)" and found.mean is None
  (found,) = paired.compare(("b", lost), [("a", base)])
  assert found.verdict == paired.NO_VERDICT and found.mean is None
  assert "b diverged (1 of 3 seeds)" in found.sentence


def test_without_two_pairs_there_is_no_verdict():
  for a, b in [({0: 2.0}, {1: 1.0}), ({0: 2.0, 1: 2.0}, {0: 1.0, 2: 1.0})]:
    (found,) = paired.compare(("a", a), [("b", b)])
    assert found.verdict == paired.NO_VERDICT and "two seeds" in found.sentence
  same = {0: 2.0, 1: 2.1}
  (found,) = paired.compare(("a", same), [("b", dict(same))])
  assert found.verdict == paired.SAME
  (found,) = paired.compare(("a", same), [("b", {0: 1.0, 1: 1.1})])
  assert found.verdict == paired.NO_VERDICT
