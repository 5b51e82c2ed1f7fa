"""Predictions are registered first, scored later, vouched for by hold-outs."""

import json
import shutil
import time

import numpy as np
import pytest
from laws import (
  COLUMNS,
  TRUTH,
  assert_refused,
  grid_runs,
  make_runs,
  write_csv,
  write_workdir,
)

from gpt_jax.lab.scaling import forecast, parametric
from gpt_jax.lab.scaling import points as points_lib


def test_a_prediction_is_registered_once_and_scored_after(
  runs_csv, tmp_path, call_verb
):
  path = tmp_path / "prediction.json"
  words = f"--csv={runs_csv}", *COLUMNS, f"--register={path}"
  words += "--at-params=4e10", "--at-tokens=8e11"
  result = call_verb("lab.scaling", *words)
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  record = json.loads(path.read_text())
  logs = np.log([4e10]), np.log([8e11])
  truth = float(np.exp(parametric.log_predict(TRUTH, *logs))[0])
  assert record["low"] < truth < record["high"]
  assert record["predicted"] == pytest.approx(truth, rel=0.02)
  assert record["flops"] == pytest.approx(6 * 4e10 * 8e11)
  again = call_verb("lab.scaling", *words)
  assert again.returncode == 2 and "is there already" in again.stderr

  out = tmp_path / "out"
  scored = f"--score={path}", f"--measured={truth}", f"--out={out}"
  result = call_verb("lab.scaling", *scored)
  assert result.returncode == 0 and "inside the interval" in result.stdout
  score = json.loads((out / "score.json").read_text())
  assert score["is_inside"] and score["prediction"] == record
  result = call_verb("lab.scaling", f"--score={path}", "--measured=9")
  assert ", outside the interval" in result.stdout

  for key, value in (("predicted", truth), ("low", 0.0), ("note", "mine")):
    path.write_text(json.dumps(record | {key: value}))
    result = call_verb("lab.scaling", *scored)
    assert_refused(result, "was altered", str(path), "put the registered file")
  # Written another way it is the same prediction.
  path.write_text(json.dumps(dict(reversed(record.items()))))
  assert call_verb("lab.scaling", *scored).returncode == 0


def test_a_run_that_was_not_predicted_is_not_scored(grid, tmp_path, call_verb):
  folder, made = grid
  path = tmp_path / "prediction.json"
  words = f"--workdirs={folder}/w*", "--convention=6N-no-embed"
  params, tokens, loss = write_workdir(
    tmp_path / "early", 192, 2000, began=time.time() - 60
  )
  words += f"--at-params={params}", f"--at-tokens={tokens}"
  result = call_verb("lab.scaling", *words, f"--register={path}")
  assert result.returncode == 0, result.stderr
  score = lambda name: call_verb(
    "lab.scaling", f"--score={path}", f"--workdir={tmp_path / name}"
  )
  assert_refused(score("early"), "was started before", "registered")
  # A copy is younger than what was copied, and so are its files.
  shutil.copytree(tmp_path / "early", tmp_path / "copy")
  assert_refused(score("copy"), "was started before", "registered")
  write_workdir(tmp_path / "late", 192, 2000)
  result = score("late")
  assert result.returncode == 0 and f"{loss:.4f}, inside" in result.stdout
  path_ = tmp_path / "late" / "metrics.jsonl"
  lines = path_.read_text().splitlines(True)
  path_.write_text("".join(lines[1:]))
  assert_refused(
    score("late"), "does not say when it was trained", "--measured"
  )
  write_workdir(tmp_path / "other", 160, 2000)
  assert_refused(score("other"), "params", "score the run that was predicted")
  assert_refused(score("none"), "none does not exist")
  write_workdir(tmp_path / "young", 192, 2000, is_finished=False)
  assert_refused(
    score("young"), "at step 1,000 of 2,000", "when it is finished"
  )
  write_workdir(tmp_path / "short", 192, 1000)
  assert_refused(score("short"), "tokens", "score the run that was predicted")


def test_a_prediction_by_all_three_columns_is_scored_by_its_loss(
  tmp_path, call_verb
):
  params, tokens, loss = make_runs(30, 0.003)
  columns = params, tokens, 7 * params * tokens, loss
  path = write_csv(tmp_path / "c.csv", ("N", "D", "C", "loss"), columns)
  words = f"--csv={path}", *COLUMNS, "--tokens=D", "--at-params=1e6"
  words += "--at-tokens=1e9", f"--register={tmp_path / 'p.json'}"
  assert call_verb("lab.scaling", *words).returncode == 0
  write_workdir(tmp_path / "run", 64, 300)
  score = f"--score={tmp_path / 'p.json'}"
  result = call_verb("lab.scaling", score, f"--workdir={tmp_path / 'run'}")
  assert_refused(result, "as a CSV file did", "give --measured")
  assert call_verb("lab.scaling", score, "--measured=3").returncode == 0


def test_a_sealed_prediction_lacks_nothing(runs_csv, tmp_path, call_verb):
  path = tmp_path / "p.json"
  words = f"--csv={runs_csv}", *COLUMNS, f"--register={path}"
  words += "--at-params=1e10", "--at-tokens=2e11"
  assert call_verb("lab.scaling", *words).returncode == 0
  record = json.loads(path.read_text())
  call = lambda: call_verb("lab.scaling", f"--score={path}", "--measured=2")
  # Whoever changes a field can seal it anew.
  seal = lambda r: json.dumps(r | {"checksum": forecast.checksum(r)})
  assert call().returncode == 0
  for name in record.keys() - {"checksum"}:
    path.write_text(seal({k: v for k, v in record.items() if k != name}))
    result = call()
    assert result.returncode == 0 or assert_refused(result, name) is None
  for name, value in {
    "low": "1",
    "params": 0,
    "registered": "yesterday",
    "level": None,
    "num_points": True,
    "convention": 6,
  }.items():
    path.write_text(seal(record | {name: value}))
    assert_refused(call(), "is not a prediction", name)
  path.write_text(seal(record | {"registered": "2026-01-01T00:00:00"}))
  assert_refused(call(), "without a time zone")
  for text in ("[" * 100_000, "[" + "9" * 5000 + "]", "[1]", "7", "NaN"):
    path.write_text(text)
    assert_refused(call(), str(path), "--register has written")


@pytest.mark.wide
def test_a_prediction_says_what_vouches_for_it(tmp_path, call_verb):
  path = write_csv(tmp_path / "t.csv", ("N", "D", "loss"), grid_runs())
  words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
  words += "--form=parametric", "--bootstraps=100"
  call = lambda name, n, d: call_verb(
    "lab.scaling",
    *words,
    f"--register={tmp_path / name}",
    f"--at-params={n}",
    f"--at-tokens={d}",
  )
  near = call("near.json", 2e10, 4e11)
  assert near.returncode == 0 and "rolling hold-outs" in near.stdout
  assert "warning" not in near.stdout
  record = json.loads((tmp_path / "near.json").read_text())
  assert record["widening"]["factor"] >= 1 and record["widening"]["num_fits"]
  reach = record["widening"]["times"]
  size = (
    2 * reach * record["flops"] / record["times_largest_fitted_flops"] / 120
  ) ** 0.5
  far = call("far.json", size, 20 * size)
  assert far.returncode == 0 and "farther than any hold-out" in far.stdout
  wild = call("wild.json", 10 * size, 200 * size)
  assert_refused(wild, "nothing is registered", "register one of at most")
  assert not (tmp_path / "wild.json").exists()


def test_too_few_runs_to_hold_out_know_noise_alone(tmp_path, call_verb):
  table = [v[::4] for v in grid_runs()]
  path = write_csv(tmp_path / "t.csv", ("N", "D", "loss"), table)
  words = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
  words += "--form=parametric", "--bootstraps=50", "--trust-units"
  words += f"--register={tmp_path / 'p.json'}", "--at-params=1e10"
  result = call_verb("lab.scaling", *words, "--at-tokens=4e11")
  assert result.returncode == 0, result.stderr
  assert "the interval knows noise alone" in result.stdout


@pytest.mark.slow
def test_widened_intervals_hold_real_losses_at_ten_times_the_compute(test_data):
  """Three published ladders, each without its last decade of compute."""
  plain, widened, count = [], [], 0
  for name, columns in (
    ("gemstones/hot", {"tokens": "tokens"}),
    ("gemstones/cool_end", {"tokens": "tokens"}),
    ("porian/runs-rw-tuned-short-const-standard-val", {"flops": "flops"}),
  ):
    columns |= {"params": "params", "loss": "loss"}
    columns = dict.fromkeys(("tokens", "flops", "budgets")) | columns
    p = points_lib.read_csv(str(test_data / "laws" / f"{name}.csv"), columns)
    found = forecast.hold_out(p, p.flops.max() / 10 * (1 + 1e-9), 200, 0)
    factor = found["widening"]["factor"]
    for row in found["rows"]:
      error = np.log(row["measured"] / row["predicted"])
      side = "high" if error > 0 else "low"
      half = abs(np.log(row[side] / row["predicted"]))
      widened.append(abs(error) <= half)
      plain.append(abs(error) <= half / factor)
    count += 1
    print(name, len(found["rows"]), factor, found["num_inside"])
  print("inside", np.mean(plain), np.mean(widened), len(plain))
  assert count == 3 and np.mean(widened) >= 0.8 and np.mean(plain) < 0.6
