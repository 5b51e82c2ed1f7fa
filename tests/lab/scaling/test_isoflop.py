"""IsoFLOP profiles: minima of budgets, and the law through them."""

import json

import numpy as np
import pytest
from laws import COLUMNS, TRUTH, make_isoflop, make_points, write_csv

from gpt_jax.lab.scaling import frontier, isoflop, parametric


def test_isoflop_data_alone_give_the_exponent(tmp_path, call_verb):
  path = write_csv(tmp_path / "i.csv", ("N", "C", "loss"), make_isoflop(0.002))
  words = f"--csv={path}", *COLUMNS, "--form=isoflop", f"--out={tmp_path}"
  result = call_verb("lab.scaling", *words)
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  found = json.loads((tmp_path / "scaling.json").read_text())
  laws = found["isoflop"]["laws"]
  truth = float(frontier.exponent(TRUTH))
  for name, exponent in (("params", truth), ("tokens", 1 - truth)):
    law = laws[name]["exponent"]
    assert law["low"] < exponent < law["high"]
    assert law["value"] == pytest.approx(exponent, abs=0.02)
  assert len(found["isoflop"]["budgets"]) == 5 and "parametric" not in found
  svg = (tmp_path / "isoflop.svg").read_text()
  assert svg.count("<polyline") == 5 and svg.count("<circle") == 35 + 5


def test_isoflop_intervals_hold_the_truth():
  truth, held = frontier.exponent(TRUTH), 0
  for trial in range(60):
    params, flops_, loss = make_isoflop(0.003, trial)
    points = make_points(params, flops_ / 6 / params, loss)
    law = isoflop.fit(points, 0.1, 200, trial)["laws"]["params"]["exponent"]
    held += law["low"] <= truth <= law["high"]
  assert 0.86 <= held / 60 <= 1.0


SKEWED = np.array([*np.log([71.0, 4.5e5, 1.8]), 0.25, 0.6])


def make_wide(noise: float = 0.003, half: float = 10.0):
  """Returns points of five budgets of 11 sizes over two decades.

  Too few parameters cost less than too few tokens: no loss is symmetric.
  """
  rng = np.random.default_rng(0)
  rows = []
  for flops_ in (1e18, 1e19, 1e20, 1e21, 1e22):
    best, _, _ = frontier.optimum(SKEWED, flops_)
    for ratio in np.geomspace(1 / half, half, 11):
      n = best * ratio
      loss = parametric.log_predict(SKEWED, np.log(n), np.log(flops_ / 6 / n))
      rows.append((n, flops_ / 6 / n, loss[0] + noise * rng.standard_normal()))
  params, tokens, loss = np.array(rows).T
  return make_points(params, tokens, np.exp(loss))


def test_a_parabola_over_decades_is_refused_and_narrowed():
  points = make_wide()
  found = isoflop.fit(points, 0.1, 100, 0)
  window = found["window"]
  assert window["p_whole"] < 1e-6
  assert window["factor"] in (5.0, 3.0, 2.0) and window["num_outside"] > 0
  assert not window["p"] < 0.01
  bias = lambda found: max(
    abs(b.log_params - np.log(frontier.optimum(SKEWED, b.flops)[0]))
    for b in found["budgets"]
  )
  # The negative control: without a window the minima are elsewhere.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(isoflop, "_SURE", 0.0)
    whole = isoflop.fit(points, 0.1, 100, 0)
  assert whole["window"]["factor"] is None
  assert bias(found) < bias(whole)
  # Sizes near the minima are no matter for a window.
  near = isoflop.fit(make_wide(0.003, 2.0), 0.1, 100, 0)["window"]
  assert near["factor"] is None and near["num_outside"] == 0


def test_the_window_and_every_budget_left_out_are_told(tmp_path, call_verb):
  points = make_wide()
  # Twelve more budgets, of one size each.
  extra = np.outer((1e18, 1e19, 1e20, 1e21), (2, 3, 5)).ravel()
  params = np.append(points.params, np.full(12, 1e9))
  flops_ = np.append(points.flops, extra)
  loss = np.append(points.loss, np.full(12, 2.5))
  path = write_csv(
    tmp_path / "i.csv", ("N", "C", "loss"), (params, flops_, loss)
  )
  words = f"--csv={path}", *COLUMNS, "--form=isoflop", "--bootstraps=50"
  result = call_verb("lab.scaling", *words)
  assert result.returncode == 0, result.stderr
  said = " ".join(result.stdout.split())
  assert "a parabola over all sizes does not fit (terms beyond it: p" in said
  assert "5 of 17 IsoFLOP minima (sizes within" in said
  for value in extra:
    assert f"{value:.3g}" in said, value


def test_a_budget_without_a_minimum_is_named_and_left_out(tmp_path, call_verb):
  params, flops_, loss = make_isoflop(0.0)
  # The smallest budget keeps the sizes above its optimum, the next only two.
  best, _, _ = frontier.optimum(TRUTH, 1e18)
  kept = (flops_ != 1e18) | (params > best * 1.2)
  kept[9:14] = False
  columns = params[kept], flops_[kept], loss[kept]
  path = write_csv(tmp_path / "i.csv", ("N", "C", "loss"), columns)
  result = call_verb("lab.scaling", f"--csv={path}", *COLUMNS)
  assert result.returncode == 0, result.stderr
  assert "left out: 1e+18 FLOPs, the parabola falls or rises" in result.stdout
  assert "needs 3 sizes: 1 budgets of 2 (1e+19)" in result.stdout


def test_budgets_are_grouped_by_tolerance_or_by_column(tmp_path, call_verb):
  flops_ = np.array([1.05, 1.0, 1.09, 1.2, 3.0])
  groups = isoflop.group(flops_, 0.1)
  assert [sorted(g) for g in groups] == [[0, 1, 2], [3], [4]]
  groups = isoflop.group(flops_, 0.1, np.array([1, 1, 2, 2, 2]))
  assert [sorted(g) for g in groups] == [[0, 1], [2, 3, 4]]
  params, flops_, loss = make_isoflop(0.001)
  spread = flops_ * np.random.default_rng(0).uniform(0.7, 1.4, len(flops_))
  columns = params, spread, loss, flops_
  names = "N", "C", "loss", "target"
  path = write_csv(tmp_path / "i.csv", names, columns)
  words = f"--csv={path}", *COLUMNS, "--form=isoflop", "--budgets=target"
  result = call_verb("lab.scaling", *words)
  assert result.returncode == 0 and result.stdout.count("[") >= 5
