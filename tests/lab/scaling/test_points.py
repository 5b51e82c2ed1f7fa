"""Points from tables and workdirs, in units that are checked."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from laws import (
  COLUMNS,
  TRUTH,
  assert_refused,
  make_points,
  make_runs,
  write_csv,
  write_workdir,
)

from gpt_jax import files, flops
from gpt_jax.config import InputError
from gpt_jax.lab.scaling import forecast
from gpt_jax.lab.scaling import points as points_lib


def test_any_two_of_params_tokens_and_flops_are_enough(tmp_path):
  params, tokens, loss = make_runs(9, 0.01)
  columns = {"N": params, "D": tokens, "C": 6 * params * tokens, "loss": loss}
  path = write_csv(tmp_path / "a.csv", columns, columns.values())
  read = lambda **given: points_lib.read_csv(
    str(path),
    dict.fromkeys(("params", "tokens", "flops", "budgets"))
    | {"loss": "loss"}
    | given,
  )
  for given in ({"params": "N", "tokens": "D"}, {"params": "N", "flops": "C"}):
    p = read(**given)
    assert np.allclose(p.params, params) and np.allclose(p.tokens, tokens)
    assert np.allclose(p.flops, columns["C"]) and p.convention == "6N"
  p = read(tokens="D", flops="C")
  assert np.allclose(p.params, params)
  p = read(params="N", tokens="D", flops="C")
  assert p.convention == "as given" and set(p.counts) == {"as given", "6N"}


def test_what_is_counted_moves_the_exponent(tmp_path, call_verb):
  params, tokens, loss = make_runs(60, 0.002)
  # A token costs 30 N^0.93: what is not 6 N moves a as it must.
  columns = params, tokens, 30 * params**0.93 * tokens, loss
  path = write_csv(tmp_path / "c.csv", ("N", "D", "C", "loss"), columns)
  words = f"--csv={path}", *COLUMNS, "--tokens=D", f"--out={tmp_path}"
  result = call_verb("lab.scaling", *words)
  assert result.returncode == 0, result.stderr
  own, six = json.loads((tmp_path / "scaling.json").read_text())["conventions"]
  assert (own["convention"], six["convention"]) == ("as given", "6N")
  assert own["flops_per_token"] == pytest.approx({"c": 30, "g": 0.93})
  alpha, beta = own["alpha"], own["beta"]
  assert own["a"]["value"] == pytest.approx(beta / (alpha + 0.93 * beta))
  assert six["a"]["value"] == pytest.approx(beta / (alpha + beta))
  shift = six["shift"]
  assert shift["low"] < shift["value"] < shift["high"] < 0
  # The same resamples: the shift is surer than either exponent.
  assert shift["error"] < 0.2 * six["a"]["error"]


def test_finished_workdirs_are_points(grid):
  folder, made = grid
  p = points_lib.read_workdirs(f"{folder}/*", None, "6N-no-embed")
  assert len(p) == 20 and p.left_out == (
    f"{folder}/stopped is at step 300 of 600",
  )
  for i, name in enumerate(p.names):
    got = p.params[i], p.tokens[i], p.loss[i]
    assert got == made[os.path.basename(name)]
  assert set(p.counts) == set(flops.CONVENTIONS) and p.num_found == 21


def test_workdirs_show_how_every_convention_moves_the_exponent(
  grid, tmp_path, call_verb
):
  words = f"--workdirs={grid[0]}/*", "--convention=6N-no-embed"
  words += "--bootstraps=100", f"--out={tmp_path / 'out'}"
  result = call_verb("lab.scaling", *words)
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "out" / "scaling.json").read_text())
  rows = {row["convention"]: row for row in found["conventions"]}
  assert set(rows) == set(flops.CONVENTIONS)
  # The losses were made from this one.
  own = rows["6N-no-embed"]
  assert own["shift"]["value"] == 0
  assert (own["alpha"], own["beta"]) == pytest.approx(TRUTH[3:], abs=1e-4)
  # With embeddings small models differ less in N: alpha is more, and a less,
  # as between Kaplan et al. 2020 and Hoffmann et al. 2022.
  assert rows["6N"]["shift"]["value"] < -0.02
  for name in rows:
    assert name in result.stdout
  assert "Fitted to 20 of 21 runs" in result.stdout
  assert f"left out: {grid[0]}/stopped is at step 300" in result.stdout


# What a table gives for (N, D, C, loss): the columns named, what is said.
TABLES = {
  "C in GFLOPs": (lambda n, d, c, z: (n, d, c / 1e9, z), "NDC", "gigaFLOPs"),
  "C in EFLOPs": (lambda n, d, c, z: (n, d, c / 1e18, z), "NDC", "exaFLOPs"),
  "C of days": (lambda n, d, c, z: (n, d, c / 8.64e19, z), "NDC", "8.64e19"),
  "C = 2 N D": (lambda n, d, c, z: (n, d, c / 3, z), "NDC", "forward pass"),
  "C = N D": (lambda n, d, c, z: (n, d, c / 6, z), "NDC", "multiply it by 6"),
  "N in millions": (lambda n, d, c, z: (n / 1e6, d, c, z), "NDC", "millions"),
  "D in billions": (lambda n, d, c, z: (n, d / 1e9, c, z), "NDC", "billions"),
  "both": (lambda n, d, c, z: (n / 1e6, d / 1e9, c, z), "NDC", "1e15 in all"),
  "N of experts": (lambda n, d, c, z: (n * 9, d, c, z), "NDC", "active ones"),
  "N and D swapped": (lambda n, d, c, z: (d, n, c, z), "NDC", "exchanged"),
  "swapped, no C": (lambda n, d, c, z: (d, n, c, z), "ND", "exchanged"),
  "D in billions, no C": (lambda n, d, c, z: (n, d / 1e9, c, z), "ND", "D is"),
  "N in millions, no C": (lambda n, d, c, z: (n / 1e6, d, c, z), "ND", "N is"),
  "both in billions": (
    lambda n, d, c, z: (n / 1e9, d / 1e9, c, z),
    "ND",
    "N =",
  ),
  "C in GFLOPs, no D": (lambda n, d, c, z: (n, d, c / 1e9, z), "NC", "C or N"),
  "C in GFLOPs, no N": (lambda n, d, c, z: (n, d, c / 1e9, z), "DC", "N ="),
  "perplexities": (lambda n, d, c, z: (n, d, c, np.exp(z)), "NDC", "perplex"),
  "losses of nothing": (lambda n, d, c, z: (n, d, c, z / 99), "NC", "entropy"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_other_units_is_refused_by_what_it_is(
  tmp_path, call_verb, name
):
  change, letters, said = TABLES[name]
  params, tokens, loss = make_runs(40, 0.003)
  table = change(params, tokens, 6 * params * tokens, loss)
  path = write_csv(tmp_path / "t.csv", ("x", "y", "z", "loss"), table)
  flags = {"N": "--params=x", "D": "--tokens=y", "C": "--flops=z"}
  words = f"--csv={path}", "--loss=loss", *(flags[k] for k in letters)
  result = call_verb("lab.scaling", *words)
  assert_refused(result, str(path), said, "or give --trust-units")


def test_columns_that_are_named_for_another_unit_are_refused(
  tmp_path, call_verb
):
  params, tokens, loss = make_runs(12, 0.003)
  names = "tokens", "params", "loss_bits"
  path = write_csv(tmp_path / "t.csv", names, (params, tokens, loss))
  call = lambda *words: call_verb("lab.scaling", f"--csv={path}", *words)
  right = "--params=tokens", "--tokens=params", "--loss=loss_bits"
  assert_refused(call(*right), "loss_bits (--loss) is by its name in bits")
  path = write_csv(
    tmp_path / "t.csv", (*names[:2], "z"), (params, tokens, loss)
  )
  right = *right[:2], "--loss=z"
  assert_refused(call(*right), "tokens (--params) is by its name of tokens")
  assert call(*right, "--trust-units", "--bootstraps=20").returncode == 0


def test_one_row_in_another_unit_is_named(tmp_path, call_verb):
  params, tokens, loss = make_runs(12, 0.003)
  flops_ = 6 * params * tokens
  flops_[4] /= 1000
  names = "N", "D", "C", "loss"
  path = write_csv(tmp_path / "t.csv", names, (params, tokens, flops_, loss))
  words = f"--csv={path}", *COLUMNS, "--tokens=D"
  assert_refused(
    call_verb("lab.scaling", *words), "0.001 in line 6", "its N, D"
  )


def test_published_tables_are_in_the_units_of_a_fit(test_data):
  roles = ("params", "tokens", "flops")
  for path in sorted((test_data / "laws").glob("[gp]*/[!p]*.csv")):
    header = path.read_text().splitlines()[0].split(",")
    columns = {k: k for k in roles if k in header} | {"loss": "loss"}
    columns = dict.fromkeys((*roles, "budgets")) | columns
    assert len(points_lib.read_csv(str(path), columns)) >= 11


def test_a_run_that_is_there_twice_counts_once(runs_csv, grid, call_verb):
  lines = runs_csv.read_text().splitlines()
  once = call_verb("lab.scaling", f"--csv={runs_csv}", *COLUMNS)
  runs_csv.write_text("\n".join([*lines, *lines[3:5], *lines[3:4]]) + "\n")
  twice = call_verb("lab.scaling", f"--csv={runs_csv}", *COLUMNS)
  said = "line 42, line 44: the same run as line 4, counted once"
  assert said in twice.stdout and "Fitted to 40 of 43 runs" in twice.stdout
  assert once.stdout.split("\n\n")[1] == twice.stdout.split("\n\n")[1]
  folder, _ = grid
  shutil.copytree(folder / "w32-300", folder / "w32-copy")
  p = points_lib.read_workdirs(f"{folder}/w*", None, "6N")
  assert len(p) == 20 and p.num_found == 21
  assert "w32-copy: the same run as" in p.left_out[0]


def test_a_folder_with_brackets_is_read_and_no_other(tmp_path):
  for name in ("sw[1]", "sw1"):
    write_workdir(tmp_path / name / "cells" / "a", 32, 300)
  pattern = f"{tmp_path}/sw[1]/cells/*"
  p = points_lib.read_workdirs(pattern, None, "6N")
  assert p.names == (f"{tmp_path}/sw[1]/cells/a",)
  shutil.rmtree(tmp_path / "sw[1]")
  p = points_lib.read_workdirs(pattern, None, "6N")
  assert p.names == (f"{tmp_path}/sw1/cells/a",)


def test_workdirs_that_cannot_be_points_are_named(grid, tmp_path, call_verb):
  folder, _ = grid
  call = lambda *words: call_verb(
    "lab.scaling", f"--workdirs={folder}/w32*", *words
  )
  assert_refused(call("--loss=eval/vald/loss"), "did you mean eval/valid/loss?")
  result = call_verb("lab.scaling", f"--workdirs={folder}/stopped")
  assert_refused(result, "no finished run", "is at step 300 of 600")
  path = folder / "w32-300" / "metrics.jsonl"
  text = path.read_text()
  path.write_text(text + '{"step": 300, "eval/valid/loss": -1.0}\n')
  assert_refused(call(), "w32-300", "is -1.0 at step 300")
  # A loss that is not finite is no number of a row: the run has none.
  damaged = [line for line in text.splitlines(True) if "num_tokens" not in line]
  path.write_text("".join(damaged) + '{"step": 300, "eval/valid/loss": null}\n')
  p = points_lib.read_workdirs(f"{folder}/w32*", None, "6N")
  assert len(p) == 3 and "w32-300 has no eval/valid/loss" in p.left_out[0]
  more = {"eval/other/loss": 1.0, "eval/other/num_tokens": 9}
  path.write_text(text + json.dumps({"step": 300} | more) + "\n")
  assert_refused(call(), "2 sets", "eval/valid/loss, eval/other/loss")
  path.write_text(text)
  # A run of an older version lacks a key, or has one that is gone.
  path = folder / "w32-300" / "config.json"
  record = json.loads(path.read_text())
  del record["config"]["model.qk_norm"]
  for commit, hint in (
    ("0abc", "is missing; the run is of commit 0abc"),
    (None, ""),
  ):
    path.write_text(json.dumps(files.seal(record | {"commit": commit})))
    done = call()
    assert_refused(done, str(path), "config key model.qk_norm is missing", hint)
    assert ("of commit" in done.stderr) == bool(commit)


def test_taking_points_keeps_them_together():
  params, tokens, loss = make_runs(12, 0.01)
  points = make_points(params, tokens, loss)
  kept = points.drop_highest(3)
  assert len(kept) == 9 and kept.loss.max() < np.sort(loss)[9]
  for i, name in enumerate(kept.names):
    j = int(name.split()[1])
    assert kept.params[i] == params[j] and kept.counts["6N"][0][i] == params[j]
  moved = dataclasses.replace(points, loss=loss * 1.0001)
  assert moved.fingerprint() != points.fingerprint()
  with pytest.raises(InputError, match="leave some to fit"):
    points.drop_highest(12)
  assert forecast.checksum({"a": 1, "checksum": "x"}) == forecast.checksum(
    {"a": 1}
  )
