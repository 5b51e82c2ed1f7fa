"""The notebooks of docs/ run from the first cell to the last."""

import json
import subprocess
import sys

import pytest
from harness import ROOT, user_env

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Of one model, a minute or two; of five tiny ones, up to a minute.
MARKS = {"inside": pytest.mark.slow, "scaling": pytest.mark.wide}


def code_of(notebook: dict) -> str:
  cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
  return "\n".join("".join(cell["source"]) for cell in cells)


def test_there_are_notebooks_and_they_hold_no_output():
  assert NOTEBOOKS
  for path in NOTEBOOKS:
    notebook = json.loads(path.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] for c in code), path
    compile(code_of(notebook), str(path), "exec")


@pytest.mark.parametrize(
  "path",
  [pytest.param(path, marks=MARKS[path.stem]) for path in NOTEBOOKS],
  ids=lambda path: path.stem,
)
def test_a_notebook_runs(path, tmp_path):
  code = code_of(json.loads(path.read_text("utf-8")))
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=user_env() | {"TMPDIR": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
