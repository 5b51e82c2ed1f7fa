"""GPTQ against its closed form."""

import numpy as np
import pytest

from gpt_jax.deploy.compress import gptq

F, D, C = 6, 8, 4
GRID = {4: (-8, 7), 8: (-127, 127)}


def draw(seed: int, width: int = D):
  rng = np.random.default_rng(seed)
  x_DN = rng.normal(size=(width, width)) @ rng.normal(size=(width, 40))
  w_FD = rng.normal(size=(F, width)).astype(np.float32)
  return w_FD, x_DN @ x_DN.T


def solve(w_FD, gram_DD, scale_GF, num_bits):
  """Rounds input after input; the free ones are solved for anew each time."""
  size = len(gram_DD)
  damped = gram_DD + gptq.DAMPING * np.trace(gram_DD) / size * np.eye(size)
  order = list(np.argsort(-np.diag(gram_DD), kind="stable"))
  now, whole = w_FD.astype(np.float64), w_FD.astype(np.float64)
  values = np.zeros(w_FD.shape, np.int64)
  for i, at in enumerate(order):
    scale_F = scale_GF[at // (size // len(scale_GF))].astype(np.float64)
    values[:, at] = np.clip(np.rint(now[:, at] / scale_F), *GRID[num_bits])
    now[:, at] = values[:, at] * scale_F
    done, free = order[: i + 1], order[i + 1 :]
    if free:
      # The minimum over the free weights of (W - Q) H (W - Q)^T.
      known = (whole - now)[:, done] @ damped[np.ix_(done, free)]
      more = np.linalg.solve(damped[np.ix_(free, free)], known.T).T
      now[:, free] = whole[:, free] + more
  return values


@pytest.mark.parametrize("num_bits", [4, 8])
def test_each_weight_is_the_minimum_given_those_before_it(
  num_bits, monkeypatch
):
  monkeypatch.setattr(gptq, "BLOCK", 3)  # blocks meet groups in their middle
  for seed in range(4):
    w_FD, gram_DD = draw(seed)
    _, scale_GF = gptq.round_rows(w_FD, num_bits, C)
    found = gptq._compensate(w_FD, gram_DD, scale_GF, num_bits, C)
    wanted = solve(w_FD, gram_DD, scale_GF, num_bits)
    np.testing.assert_array_equal(
      found.swapaxes(0, 1).reshape(F, D), wanted, err_msg=f"seed {seed}"
    )


@pytest.mark.parametrize("num_bits", [4, 8])
def test_inputs_without_correlation_are_rounded_to_nearest(num_bits):
  w_FD, _ = draw(0)
  sizes = np.diag(np.random.default_rng(1).uniform(1, 9, D))
  for gram_DD in (np.eye(D), sizes):
    found = gptq.quantize(w_FD, gram_DD, num_bits, C)
    wanted = gptq.round_rows(w_FD, num_bits, C)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_no_row_has_more_error_than_rounding_leaves():
  shares, is_greedy_worse = [], False
  for seed in range(20):
    w_FD, gram_DD = draw(seed, 16)
    plain = gptq.round_rows(w_FD, 4, C)
    found = gptq.quantize(w_FD, gram_DD, 4, C)
    greedy = gptq._compensate(w_FD, gram_DD, plain[1], 4, C), plain[1]
    ours, nearest, alone = (
      gptq.error_of(w_FD, rounded, gram_DD)
      for rounded in (found, plain, greedy)
    )
    assert (ours <= nearest).all()
    is_greedy_worse |= bool((alone > nearest).any())
    shares.append(ours.sum() / nearest.sum())
  assert is_greedy_worse  # else the comparison guards nothing
  assert np.mean(shares) < 0.75


def test_the_error_is_that_of_the_outputs():
  w_FD, _ = draw(3)
  x_DN = np.random.default_rng(3).normal(size=(D, 30))
  rounded = gptq.round_rows(w_FD, 4, C)
  outputs = (w_FD - gptq.restore(*rounded)) @ x_DN
  found = gptq.error_of(w_FD, rounded, x_DN @ x_DN.T)
  np.testing.assert_allclose(found, (outputs**2).sum(1), rtol=1e-6)


def test_inputs_that_never_occur_are_rounded_and_harm_none():
  w_FD, gram_DD = draw(5)
  gram_DD[2] = gram_DD[:, 2] = 0
  values, scale = gptq.quantize(w_FD, gram_DD, 4, C)
  assert np.isfinite(gptq.restore(values, scale)).all()
  values, scale = gptq.quantize(w_FD, np.zeros((D, D)), 4, C)
  np.testing.assert_array_equal(values, gptq.round_rows(w_FD, 4, C)[0])
