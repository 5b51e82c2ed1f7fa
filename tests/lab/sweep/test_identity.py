"""What names a cell: all that decides its result, and nothing else."""

import os
import shutil

import pytest
from harness import ROOT
from sweeps import ids, load

from gpt_jax.lab.sweep import asked, identity, syntax


def test_an_id_names_what_decides_the_result_and_nothing_else(write, tmp_path):
  path = write('add("a")')
  (first,) = load(path).cells
  same = {
    "log": {"train.log_every_steps": "7"},
    "place": {"data.dir": str(tmp_path / "elsewhere")},
  }
  for overrides in same.values():
    assert asked.load(path, overrides).cells[0].id == first.id
  # A copy of the text with another date is the same text.
  text = tmp_path / "corpus.txt"
  os.utime(text, (1, 1))
  identity.data_identity.cache_clear()
  assert load(path).cells[0].id == first.id
  other = {
    "rate": asked.load(path, {"optim.learning_rate": "0.5"}),
    "seed": asked.load(path, {"seed": "3"}),
    "code": asked.load(path, {}, code="0" * 12),
  }
  text.write_text(text.read_text() + "more")
  identity.data_identity.cache_clear()
  other["data"] = load(path)
  found = {name: sweep.cells[0].id for name, sweep in other.items()}
  assert len({first.id, *found.values()}) == 5, found


def test_a_value_more_changes_no_other_cell(write):
  before = ids(load(write('add("a", seed=1)', 'add("b", seed=2)')))
  lines = ['add("c", {"model.num_layers": 2})', 'add("b", seed=2)']
  after = ids(load(write(*lines, 'add("renamed", seed=1)')))
  assert before["b seed 2"] == after["b seed 2"]
  assert before["a seed 1"] == after["renamed seed 1"]
  assert after["c seed 0"] not in before.values()


def test_the_code_version_is_of_all_but_the_lab(tmp_path, monkeypatch):
  copy = tmp_path / "gpt_jax"
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "gpt_jax", copy, ignore=ignored)
  monkeypatch.setattr(identity.gpt_jax, "__file__", str(copy / "__init__.py"))
  version = identity.code_version.__wrapped__
  first = version()
  assert first == identity.code_version()
  (copy / "lab" / "plan.py").write_text("")
  (copy / "README.md").write_text("")
  # A module that moves, with its imports, computes the same.
  (copy / "runs" / "plot.py").rename(copy / "drawing.py")
  path = copy / "training" / "reporter.py"
  text = path.read_text()
  old = "from gpt_jax.runs import goodput, metrics, plot\n"
  assert old in text
  new = (
    "from gpt_jax import drawing\nfrom gpt_jax.runs import goodput, metrics\n"
  )
  text = text.replace(old, new).replace("plot.", "drawing.")
  path.write_text(text)
  path = copy / "deploy" / "compress" / "report.py"
  text = path.read_text()
  assert "gpt_jax.runs.plot" in text
  path.write_text(text.replace("gpt_jax.runs.plot", "gpt_jax.drawing"))
  assert version() == first
  (copy / "models" / "layers.py").write_text("")
  assert version() != first


# A package of three files, in which `step` calls what `rates` defines.
SOURCES = {
  "__init__.py": "",
  "rates.py": '''"""Rates."""

import math

from pkg import scale as scale_lib

BASE = 2.0


def rate(step: int, decay=0.5):
  """Returns a rate."""
  # It decays.
  return BASE * math.exp(-decay * step) * scale_lib.scale(step)
''',
  "scale.py": "def scale(step):\n  return step + 1\n",
  "step.py": """import numpy as np
from pkg import rates


def step(x):
  from pkg.scale import scale

  return np.sum(x) * rates.rate(scale(3)) + len(f"{x:.2f} of {scale}")
""",
}
# What is done to a file, as (file, old text, new text) or {file: whole text}.
SAME_CODE = {
  "comment": [("rates.py", "# It decays.", "# Why, and how fast.")],
  "docstring": [("rates.py", '"""Returns a rate."""', '"""Longer."""')],
  "no docstring": [("rates.py", '  """Returns a rate."""\n', "")],
  "annotation": [("rates.py", "step: int, decay", "step, decay")],
  "format": [("rates.py", "BASE * math.exp", "BASE  *  math . exp")],
  "alias": [
    ("rates.py", "scale as scale_lib", "scale"),
    ("rates.py", "scale_lib.scale(", "scale.scale("),
  ],
  "a module's path": [
    ("rates.py", "from pkg import scale as", "from pkg.deep import scale as"),
    ("step.py", "pkg.scale import", "pkg.deep.scale import"),
  ],
  "a function's file": [
    ("scale.py", SOURCES["scale.py"], ""),
    ("step.py", "from pkg.scale import", "from pkg.rates import"),
    ("rates.py", "from pkg import scale as scale_lib\n", ""),
    ("rates.py", "scale_lib.scale(", "scale("),
    ("rates.py", "BASE = 2.0\n", f"BASE = 2.0\n\n\n{SOURCES['scale.py']}"),
  ],
  "order": [
    ("rates.py", "BASE = 2.0\n", ""),
    ("rates.py", "scale(step)\n", "scale(step)\n\n\nBASE = 2.0\n"),
  ],
}
OTHER_CODE = {
  "constant": [("rates.py", "BASE = 2.0", "BASE = 2.5")],
  "operator": [("rates.py", "BASE * math", "BASE + math")],
  "default": [("rates.py", "decay=0.5", "decay=0.4")],
  "library": [("step.py", "import numpy as np", "import jax.numpy as np")],
  "called function": [
    ("rates.py", "BASE = 2.0", "BASE = 2.0\nscale = abs"),
    ("step.py", "from pkg.scale import", "from pkg.rates import"),
  ],
  "rebound": [("rates.py", "BASE = 2.0", "BASE = 2.0\nBASE = -BASE")],
  "format of a string": [("step.py", ":.2f", ":.3f")],
}


def hash_changed(folder, changes) -> str:
  sources = dict(SOURCES)
  for file, old, new in changes:
    assert sources[file].count(old) == 1, (file, old)
    sources[file] = sources[file].replace(old, new)
  if any("pkg.deep" in text for text in sources.values()):
    sources |= {
      "deep/scale.py": sources.pop("scale.py"),
      "deep/__init__.py": "",
    }
  for name, text in sources.items():
    path = folder / "pkg" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return syntax.hash_package(str(folder / "pkg"))


@pytest.mark.parametrize("what", [*SAME_CODE, *OTHER_CODE])
def test_the_code_version_is_of_what_computes(what, tmp_path):
  before = hash_changed(tmp_path / "before", [])
  changes = SAME_CODE[what] if what in SAME_CODE else OTHER_CODE[what]
  after = hash_changed(tmp_path / "after", changes)
  assert (after == before) == (what in SAME_CODE)


def test_a_call_of_a_function_of_the_same_text_is_another_call(tmp_path):
  hashes = []
  for module in ("one", "two"):
    folder = tmp_path / module / "pkg"
    folder.mkdir(parents=True)
    for name, value in (("one", 1), ("two", 2)):
      text = f"def base():\n  return {value}\n\n\ndef f():\n  return base()\n"
      (folder / f"{name}.py").write_text(text)
    text = f"from pkg.{module} import f\n\n\ndef g():\n  return f()\n"
    (folder / "main.py").write_text(text)
    hashes.append(syntax.hash_package(str(folder)))
  assert hashes[0] != hashes[1]


def test_assignments_to_one_name_are_hashed_in_their_order(tmp_path):
  twice = ("BASE = 1.0\nBASE = 2.0", "BASE = 2.0\nBASE = 1.0")
  one, other = (
    hash_changed(tmp_path / str(i), [("rates.py", "BASE = 2.0", text)])
    for i, text in enumerate(twice)
  )
  assert one != other
