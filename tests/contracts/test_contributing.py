"""The worked example of docs/mechanism.md passes as it stands."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "mechanism.md").read_text()
BATTERY = "tests/contracts/test_optimizers.py"


def apply(folder: pathlib.Path, rate: str) -> None:
  """Makes a copy of the project in which the example's words are added."""
  for name in ("gpt_jax", "configs", "tests"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  shutil.copy(ROOT / "pyproject.toml", folder)
  (branch,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
  word = re.search(r'is the word `("\w+")`', TEXT)[1]
  for name, start, line in (
    ("gpt_jax/config/schema.py", "  optimizer: Literal[", f"{word}, "),
    ("gpt_jax/training/optim.py", "  optimizers = {\n", branch),
    (BATTERY, "RATES = {\n", f"  {word}: {rate},\n"),
  ):
    path = folder / name
    text = path.read_text()
    assert text.count(start) == 1, (name, start)
    path.write_text(text.replace(start, start + line))
  ruff = [sys.executable, "-m", "ruff"]
  subprocess.run([*ruff, "format", "-q", "."], cwd=folder, check=True)
  subprocess.run([*ruff, "check", "-q", "."], cwd=folder, check=True)


@pytest.mark.slow
def test_the_worked_example_passes_its_battery(tmp_path):
  rate = re.search(r'`"adamax": ([^`]+)` in `RATES`', TEXT)[1]
  apply(tmp_path, rate)
  words = ["-q", "-n", "0", "-p", "no:cacheprovider", BATTERY]
  words += ["-k", "adamax or unknown or covers"]
  result = subprocess.run(
    [sys.executable, "-m", "pytest", *words],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
  )
  assert result.returncode == 0, result.stdout[-3000:]
  assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 10


def test_the_places_that_the_table_names_are_there():
  """Each row's files exist and hold the words that it names."""
  rows = [line for line in TEXT.splitlines() if line.startswith("| a")]
  assert len(rows) >= 8
  for row in rows:
    file = None
    for name in re.findall(r"`([^`]+)`", row):
      path = ROOT / name
      if "/" in name:
        assert path.exists(), name
    for name, file in re.findall(r"`(\w+)`(?:, `\w+`)* in `([^`]+)`", row):
      assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (name, file)
