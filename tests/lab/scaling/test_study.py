"""A study as data and as a report; what it says of runs that decide little."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from harness import ROOT
from laws import (
  COLUMNS,
  TRUTH,
  assert_refused,
  grid_runs,
  make_isoflop,
  make_points,
  make_runs,
  scaling_main,
  write_csv,
)

import gpt_jax
from gpt_jax.config import InputError
from gpt_jax.lab.scaling import frontier, parametric, study


def test_a_study_is_data_and_prints_nothing(capsys, tmp_path):
  points = make_points(*make_runs(25, 0.005))
  found = study.analyse(points, "parametric", num_resamples=20, hold_above=None)
  fitted = found.found["parametric"]["coefficients"]
  assert set(fitted) == {*parametric.NAMES, "a", "b"}
  assert found.fit is not None and found.curves is None
  assert found.lines()[-1].startswith("Fitted to 25 runs")
  assert "scaling.json" in study.write(found, str(tmp_path))
  assert capsys.readouterr().out == ""


def test_a_report_has_everything_and_opens(runs_csv, tmp_path, call_verb):
  out = tmp_path / "out"
  words = f"--csv={runs_csv}", *COLUMNS, f"--out={out}", "--bootstraps=100"
  result = call_verb(
    "lab.scaling", *words, "--at=1e21,1e24", "--hold-above=1e21"
  )
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  found = json.loads((out / "scaling.json").read_text())
  assert found["sentence"] in result.stdout
  rows = found["parametric"]["frontier"]
  assert [row["flops"] for row in rows] == [1e21, 1e24]
  for row in rows:
    for name in ("params", "tokens", "loss"):
      e = row[name]
      assert e["low"] < e["value"] < e["high"]
  assert len(found["parametric"]["residuals"]["rows"]) == 40
  held = found["held_out"]
  assert held["num_fitted"] + len(held["rows"]) == 40
  assert all(row["flops"] > 1e21 for row in held["rows"])
  errors = [abs(row["relative_error"]) for row in held["rows"]]
  assert held["median_relative_error"] == np.median(errors) < 0.02
  assert held["num_inside"] >= 0.7 * len(errors)
  figures = {f.name for f in out.iterdir()} - {"scaling.json"}
  assert figures == {"fit.svg", "residuals.svg", "frontier.svg"} | (
    {"isoflop.svg"} if "isoflop" in found else set()
  )
  import xml.dom.minidom

  for name in figures:
    text = (out / name).read_text()
    xml.dom.minidom.parseString(text)
    assert "nan" not in text and "inf" not in text.replace("inside", "")


def make_line(ratio: float = 20.0, jitter: float = 0.0, count: int = 12):
  """Returns (N, D, loss) of runs about D = ratio N, or of one budget for 0."""
  rng = np.random.default_rng(0)
  params = np.geomspace(1e8, 1e10, count)
  tokens = ratio * params if ratio else 1e20 / params
  tokens = tokens * np.exp(jitter * rng.standard_normal(count))
  loss = parametric.log_predict(TRUTH, np.log(params), np.log(tokens))
  return params, tokens, np.exp(loss + 0.002 * rng.standard_normal(count))


@pytest.mark.parametrize("jitter, count", [(0, 12), (0.05, 12), (0, 6), (0, 5)])
def test_runs_on_one_line_are_told_so_and_give_what_they_can(
  tmp_path, call_verb, jitter, count
):
  table = make_line(20, jitter, count)
  path = write_csv(tmp_path / "l.csv", ("N", "D", "loss"), table)
  words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
  result = call_verb("lab.scaling", *words, f"--out={tmp_path}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  found = json.loads((tmp_path / "scaling.json").read_text())
  law = found["line"]["params"]
  assert law["low"] <= 0.5 + 1e-9 and law["high"] >= 0.5 - 1e-9
  # Along the line the truth is nearly E + K / C^gamma, with E a little off.
  assert abs(found["line"]["E"]["value"] - np.exp(TRUTH[2])) < 0.05
  gamma = found["line"]["gamma"]
  assert gamma["low"] < 0.1783 < gamma["high"]
  assert "parametric" not in found and "nan" not in result.stdout
  refused = call_verb("lab.scaling", *words, "--form=parametric")
  if count > 5:
    assert "on one line in (log N, log D)" in result.stdout
    said = "D = 20 N" if not jitter else "D = "
    assert_refused(refused, said, "cannot be told from what D does", "two or")
  else:
    assert_refused(refused, "5 distinct points are too few")
  path = tmp_path / "p.json"
  more = f"--register={path}", "--at-params=1e10", "--at-tokens=2e11"
  assert call_verb("lab.scaling", *words, *more).returncode == 2
  assert not path.exists()


def test_one_budget_is_a_line_too(tmp_path, call_verb):
  path = write_csv(tmp_path / "l.csv", ("N", "D", "loss"), make_line(0))
  words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
  assert_refused(call_verb("lab.scaling", *words), "one compute budget")


def test_lists_of_optima_give_their_published_exponents(
  test_data, tmp_path, call_verb
):
  folder = test_data / "laws" / "porian"
  for row in csv.DictReader((folder / "published.csv").open()):
    path = folder / f"optima-{row['set']}.csv"
    words = f"--csv={path}", "--loss=loss", "--params=params"
    result = call_verb(
      "lab.scaling", *words, "--flops=flops", f"--out={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "scaling.json").read_text())["line"]
    wanted = float(row["exponent_of_optima"])
    assert line["params"]["value"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.wide
def test_a_step_in_place_of_a_power_is_not_determined(fit_table, tmp_path):
  params, tokens, loss = grid_runs()
  loss = 2.5 + 2100 / tokens**0.37 + (params == params.min())
  result, found = fit_table((params, tokens, loss * grid_runs()[2] ** 0.001))
  fitted = found["parametric"]
  for name in ("A", "alpha", "a", "b"):
    assert fitted["coefficients"][name]["value"] is None
    assert fitted["coefficients"][name]["why"] and fitted["frontier"] == []
  assert fitted["coefficients"]["beta"]["value"] == pytest.approx(0.37, abs=0.1)
  assert (
    "is not determined" in found["sentence"] and "C^" not in (found["sentence"])
  )
  path = tmp_path / "t.csv"
  words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
  words += f"--register={tmp_path / 'p.json'}", "--at-params=1e10"
  args = scaling_main(*words, "--at-tokens=1e11")
  with pytest.raises(InputError, match="the fit is not determined"):
    args()
  assert not (tmp_path / "p.json").exists()


def test_a_coefficient_at_its_bound_has_no_interval(fit_table):
  params, tokens, loss = grid_runs()
  result, found = fit_table((params, tokens, loss**0 * 400 / params**0.2))
  # Loss that N alone decides: neither B nor beta can be told.
  fitted = found["parametric"]["coefficients"]
  assert fitted["B"]["value"] is None and fitted["beta"]["value"] is None
  assert "not determined" in result.stdout
  for name, c in fitted.items():
    assert c["value"] is None or c["low"] is None or c["low"] < c["high"], name


def test_an_outlier_is_named_and_moves_little(fit_table):
  params, tokens, loss = grid_runs()
  clean = fit_table((params, tokens, loss))[1]["parametric"]["coefficients"]
  for factor, said in ((10, "slip of the pen"), (1 / np.log(2), "bits in pl")):
    other = loss.copy()
    other[7] *= factor
    result, found = fit_table((params, tokens, other))
    fitted = found["parametric"]
    assert len(fitted["remarks"]) == 1 and said in found["sentence"]
    assert fitted["remarks"][0].startswith("line 9: its loss")
    assert "nan" not in result.stdout
    for name, c in fitted["coefficients"].items():
      assert abs(c["value"] - clean[name]["value"]) < 3 * clean[name]["error"]
  assert "remarks" in fitted and "note: line 9" in result.stdout


def test_large_residuals_are_remarked_and_small_ones_are_not(fit_table):
  assert fit_table(grid_runs())[1]["parametric"]["remarks"] == []
  params, tokens, loss = grid_runs(0.12)
  found = fit_table((params, tokens, loss))[1]
  assert "(root mean square) are large" in found["sentence"]


def test_few_points_are_remarked_and_their_intervals_widened(fit_table):
  result, found = fit_table(make_runs(7, 0.002, 3))
  assert "7 points for 5 coefficients are few" in result.stdout
  assert frontier.small_sample_factor(1) > 15
  assert 1 < frontier.small_sample_factor(235) < 1.02


def test_an_infinite_coefficient_of_one_left_out_is_passed_over():
  samples = np.linspace(-1, 1, 201)
  left_out = np.array([0.1, -0.1, np.inf, np.nan, -np.inf])
  pair = frontier.corrected_interval(0.0, samples, left_out)
  assert np.isfinite(pair).all()
  huge = np.array([1e200, 2.0, 3.0])
  assert np.isfinite(frontier.corrected_interval(0.0, samples, huge)).all()


def test_the_order_of_rows_changes_nothing(tmp_path, call_verb):
  params, tokens, loss = grid_runs()
  order = np.random.default_rng(0).permutation(30)
  printed = []
  for rows in (np.arange(30), order):
    table = params[rows], tokens[rows], loss[rows]
    path = write_csv(tmp_path / "t.csv", ("N", "D", "loss"), table)
    words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
    words += "--bootstraps=50", "--hold-above=1e21"
    result = call_verb("lab.scaling", *words)
    assert result.returncode == 0, result.stderr
    printed.append(re.sub(r"\(line \d+\)", "", result.stdout))
  assert printed[0] == printed[1]


def test_the_command_needs_no_jax(run_verb, runs_csv):
  code = (
    "import sys; from gpt_jax import cli; from gpt_jax.lab import scaling; "
    f"scaling.main(['--csv={runs_csv}', *{COLUMNS!r}, '--bootstraps=20']); "
    "assert 'jax' not in sys.modules"
  )
  import subprocess

  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  assert re.search(r"parameters grow as C\^0\.\d{3} \[", result.stdout)


def test_a_law_in_python_is_columns(grid, tmp_path, monkeypatch, capsys):
  folder, made = grid
  # The page's lines, of the runs that it names so.
  (tmp_path / "runs").mkdir()
  for name in made:
    (tmp_path / "runs" / f"grid-{name}").symlink_to(folder / name)
  monkeypatch.chdir(tmp_path)
  page = (ROOT / "docs" / "python.md").read_text()
  (block,) = re.findall(r"```python\n(law = .*?)```", page, re.S)
  names = {"gpt_jax": gpt_jax}
  exec(block.replace("1e16]", "1e16], num_resamples=40"), names)
  law, fitted, optima = (names[k] for k in ("law", "fitted", "optima"))
  assert "alpha" in capsys.readouterr().out
  runs = law.runs()
  for name, params, tokens, loss in zip(
    *(runs[k] for k in ("name", "params", "tokens", "loss")), strict=True
  ):
    want = made[name.removeprefix("runs/grid-")]
    assert (tokens, loss) == want[1:]
    assert params > want[0]  # with the embeddings
  np.testing.assert_allclose(runs["predicted"], runs["loss"], rtol=0.01)
  assert runs["predicted"] != runs["loss"] and len(runs["loss"]) == len(made)
  given = law.found["parametric"]["coefficients"]
  at = fitted["name"].index("beta")
  assert fitted["form"][at] == "parametric" and fitted["why"][at] == ""
  for key in ("value", "low", "high"):
    assert fitted[key][at] == given["beta"][key]
  assert optima["flops"] == [1e15, 1e16]
  for name in ("params", "tokens", "loss"):
    low, value, high = (optima[name + end] for end in ("_low", "", "_high"))
    assert all(a < b < c for a, b, c in zip(low, value, high, strict=True))


def test_the_columns_of_what_is_not_determined_say_so():
  params = np.geomspace(1e7, 1e9, 8)
  points = make_points(params, 20 * params, 2 + 100 * params**-0.3)
  law = study.analyse(points, num_resamples=20)
  assert law.runs()["predicted"] == [None] * 8
  fitted = law.coefficients()
  assert set(fitted["form"]) == {"line"} and "E" in fitted["name"]
  assert law.frontier()["params"] == []
  params, flops, loss = make_isoflop(0.001)
  points = make_points(params, flops / 6 / params, loss)
  runs = study.analyse(points, "isoflop", num_resamples=20)
  assert runs.coefficients()["form"] == ["isoflop"] * 2


@pytest.mark.parametrize(
  "option, sentence",
  [
    (dict(form="parametrik"), "form is 'parametrik'; it must be one of"),
    (dict(num_resamples=3), "num_resamples is 3; an interval needs 20"),
    (dict(tolerance=-0.1), "tolerance has -0.1; it must be a finite"),
    (dict(at=[1e9, float("nan")]), "at has nan; it must be a finite"),
    (dict(hold_above=0), "hold_above has 0; it must be a finite"),
    (dict(seed=-1), "seed is -1; it must be 0 or more"),
    (dict(at=np.array([1e9, -1.0])), "at has -1.0; it must be a finite"),
  ],
)
def test_an_option_that_means_nothing_is_refused(option, sentence):
  params = np.geomspace(1e7, 1e9, 8)
  points = make_points(params, 20 * params, 2 + 100 * params**-0.3)
  with pytest.raises(InputError, match=sentence):
    study.analyse(points, **option)
  with pytest.raises(InputError, match="convention is '5N'; it must be one of"):
    gpt_jax.scaling("runs/*", convention="5N")
