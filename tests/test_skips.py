"""In CI a skipped test is one that tests/skips.txt lists, or the run fails."""

import os
import pathlib
import subprocess
import sys

import pytest
import skips

ROOT = pathlib.Path(__file__).parent.parent
TESTS = """
import pytest

def test_listed():
  pytest.skip("gcloud is not installed")

def test_that_passes():
  pass
"""
UNLISTED = TESTS.replace("gcloud is", "the tool of the day is")
WHOLE = "import pytest\npytest.skip('no reason', allow_module_level=True)\n"


def run(folder, source: str):
  """Returns (exit code, unlisted skips) of one file, run in this process."""
  file = folder / "tests" / "launch" / "test_tpu_vm.py"
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(source)
  watch = skips.Watch(skips.read_list(skips.LIST.read_text()))
  flags = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
  flags += [f"--rootdir={folder}", "-c", os.devnull, "-n", "0", str(file)]
  sys.modules.pop("tests.launch.test_tpu_vm", None)  # of the run before
  return int(pytest.main(flags, plugins=[watch])), watch.unlisted


@pytest.mark.wide
def test_a_skip_that_is_not_listed_fails_the_run(tmp_path):
  assert run(tmp_path, TESTS) == (0, [])
  name = "tests/launch/test_tpu_vm.py::test_listed"
  found = [f"{name}: the tool of the day is not installed"]
  assert run(tmp_path, UNLISTED) == (1, found)
  assert run(tmp_path, WHOLE)[1] == ["tests/launch/test_tpu_vm.py: no reason"]


@pytest.mark.parametrize("ci, code", [("1", 1), ("", 0)])
def test_ci_sees_the_skips_of_all_workers(tmp_path, ci, code):
  run(tmp_path, UNLISTED)
  flags = ["-q", "-p", "no:cacheprovider", "-p", "skips", "-n", "1", "tests"]
  result = subprocess.run(
    [sys.executable, "-m", "pytest", *flags],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "GPT_JAX_CI": ci},
    capture_output=True,
    text=True,
  )
  assert result.returncode == code, result.stdout
  assert ("skipped, and not in tests/skips.txt" in result.stdout) == bool(code)


def test_the_list_names_files_that_are_there_and_reasons_that_they_give():
  listed = skips.read_list(skips.LIST.read_text())
  assert len(listed) > 10
  for pattern, reason in listed:
    text = "".join(
      path.read_text()
      for path in ROOT.glob(pattern.replace("/*.py", "/**/*.py"))
    )
    text += (ROOT / "tests" / "conftest.py").read_text()
    name, _, rest = reason.partition(" ")
    said = reason in text or f"{{name}} {rest}" in text and f'"{name}"' in text
    assert said, (pattern, reason)
