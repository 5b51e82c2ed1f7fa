"""Fixtures of the scaling laws."""

import json

import pytest
from laws import columns_of, make_runs, write_csv, write_workdir

from gpt_jax.lab.scaling import points as points_lib


@pytest.fixture
def runs_csv(tmp_path):
  params, tokens, loss = make_runs(40, 0.003)
  columns = params, 6 * params * tokens, loss
  return write_csv(tmp_path / "runs.csv", ("N", "C", "loss"), columns)


@pytest.fixture
def chinchilla(test_data):
  path = test_data / "chinchilla" / "svg_extracted_data.csv"
  if not path.is_file():
    pytest.skip(f"{path} is not there: no published runs to fit")
  return path


@pytest.fixture
def published_runs(chinchilla):
  points = points_lib.read_csv(str(chinchilla), columns_of(chinchilla))
  assert len(points) == 245
  return points.drop_highest(5)


WIDTHS = (32, 48, 64, 96, 128)


@pytest.fixture
def grid(tmp_path):
  """Workdirs of 20 finished runs and one that was stopped."""
  made = {}
  for width in WIDTHS:
    for steps in (300, 450, 900, 2000):
      name = f"w{width}-{steps}"
      made[name] = write_workdir(tmp_path / "grid" / name, width, steps)
  write_workdir(tmp_path / "grid" / "stopped", 32, 600, is_finished=False)
  (tmp_path / "grid" / "notes.txt").write_text("not a run")
  return tmp_path / "grid", made


@pytest.fixture
def fit_table(tmp_path, call_verb):
  """Runs the command on (N, D, loss); returns its result and scaling.json."""

  def run(table, *words):
    path = write_csv(tmp_path / "t.csv", ("N", "D", "loss"), table)
    given = f"--csv={path}", "--loss=loss", "--params=N", "--tokens=D"
    given += "--bootstraps=100", "--form=parametric", f"--out={tmp_path}"
    result = call_verb("lab.scaling", *given, *words)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result, json.loads((tmp_path / "scaling.json").read_text())

  return run
