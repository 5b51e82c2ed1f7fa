"""Sweeps: what names a cell, what is run, what is said of it."""

import csv
import html
import json
import math
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib

import pytest
from conftest import user_env

from gpt_jax import config as config_lib
from gpt_jax import exits, files
from gpt_jax.config import InputError
from gpt_jax.lab.scaling import points
from gpt_jax.lab.sweep import (
  asked,
  branches,
  cells,
  folder,
  groups,
  identity,
  listing,
  losses,
  paired,
  plan,
  pool,
  report,
  syntax,
  tables,
  trunks,
  worker,
)
from gpt_jax.lab.sweep import run as run_lib
from gpt_jax.machine import console
from gpt_jax.runs import integrity, restore

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
from configs import base

def get_config():
  c = base.get_config()
  c.data.source = "text:{text}"
  c.data.split = "tail"
  c.data.dir = "{folder}/prepared"
  c.data.seq_len = c.model.max_len = 32
  c.model.num_layers = 1
  c.model.model_dim = c.model.mlp_dim = 32
  c.optim.schedule = "wsd"
  c.optim.warmup_steps = 4
  c.train.num_steps = 12
  c.train.global_batch_size = 4
  c.train.log_every_steps = 1
  c.eval.every_steps = 1000
  c.sample.every_steps = 0
  return c

def sweep(add):
{sweep}
"""


@pytest.fixture
def write(tmp_path):
  """Writes a config file with a sweep of these lines; returns its path."""
  text = tmp_path / "corpus.txt"
  text.write_text((ROOT / "gpt_jax" / "training" / "loop.py").read_text())

  def make(*lines: str) -> str:
    path = tmp_path / "conf.py"
    body = "\n".join(f"  {line}" for line in lines)
    path.write_text(CONFIG.format(text=text, folder=tmp_path, sweep=body))
    return str(path)

  return make


def load(path: str, **overrides) -> cells.Sweep:
  return asked.load(path, overrides)


def ids(sweep: cells.Sweep) -> dict[str, str]:
  return {cell.title: cell.id for cell in sweep.cells}


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


def test_numbers_of_numpy_and_seeds_make_cells(write):
  path = write(
    "import numpy as np",
    "for rate in np.array([1e-3, 2e-3]):",
    '  add(seeds=range(2), **{"optim.learning_rate": rate})',
  )
  sweep = load(path)
  titles = [cell.title for cell in sweep.cells]
  assert titles[:2] == [
    "learning_rate=0.001 seed 0",
    "learning_rate=0.001 seed 1",
  ]
  assert len(titles) == 4 and sweep.refused == []
  assert "--config.seed=1" in sweep.cells[1].argv
  assert (
    cells.diff_text(sweep.cells[3], sweep.cells[0]) == "learning_rate 0.002"
  )


# Lines of sweep(add), and what is said of them.
WRONG = {
  "nothing": (["pass"], "adds no cell"),
  "unknown key": (
    ['add("a", {"optim.learnin_rate": 1.0})'],
    "did you mean optim.learning_rate?",
  ),
  "same twice": (
    ['add("a", seed=0)', 'add("b")'],
    "'a seed 0' and 'b seed 0' have the same config",
  ),
  "same but for pace": (
    ['add("a")', 'add("b", {"train.log_every_steps": 3})'],
    "differ only in keys that change no result (train.log_every_steps)",
  ),
  "one name": (['add("a", seed=0)', 'add("a", seed=0)'], "'a seed 0'"),
  "names": (
    ['add("a")', 'add("a", {"model.num_layers": 2})'],
    "two cells are called 'a seed 0'",
  ),
  "no trunk": (
    [
      'add("trunk")',
      'add("b", {"train.num_steps": 20}, branch_from=("trnk", 3))',
    ],
    "did you mean trunk?",
  ),
  "round": (
    [
      'add("a", {"train.num_steps": 9}, branch_from=("b", 3))',
      'add("b", branch_from=("a", 3))',
    ],
    "branches go round: a seed 0 from b seed 0 from a seed 0",
  ),
  "late": (
    ['add("a")', 'add("b", {"train.num_steps": 20}, branch_from=("a", 13))'],
    "'a seed 0' has 12 steps",
  ),
  "another model": (
    ['add("a")', 'add("b", {"model.num_layers": 2}, branch_from=("a", 3))'],
    "model.num_layers (1 there, 2 here)",
  ),
  "no pair": (['add("a", branch_from="b")'], "must be (NAME, STEP)"),
  "raises": (["add(1 / 0)"], "division by zero"),
  "not a cell": (["add(3)"], "takes a name and a dict of config keys"),
  "half a seed": (['add("a", seeds=[0.5])'], "must be a list of whole numbers"),
  "seeds as text": (['add("a", seeds="12")'], "must be a list of whole"),
  "seeds as bytes": (['add("a", seeds=b"12")'], "must be a list of whole"),
  "a seed alone": (['add("a", seeds=3)'], "must be a list of whole numbers"),
  "no seeds": (['add("a", seeds=[])'], "must be a list of whole numbers"),
  "a seed that is true": (['add("a", seeds=[True])'], "list of whole numbers"),
  "seed and seeds": (
    ['add("a", {"seed": 3}, seeds=[1])'],
    "seeds=[1] and a seed of 3; leave one out",
  ),
  "zero and minus zero": (
    [f'add("{w}", {{"optim.weight_decay": {w}}})' for w in (0.0, -0.0)],
    "have the same config",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sweep_is_one_sentence(case, write):
  lines, said = WRONG[case]
  with pytest.raises(InputError) as error:
    load(write(*lines))
  assert said in str(error.value) and "\n" not in str(error.value)


def test_a_config_file_without_a_sweep_is_named():
  with pytest.raises(InputError, match=r"tiny.py defines no sweep\(add\)"):
    load("configs/tiny.py")


def test_a_bad_value_costs_its_own_cell_and_its_branches(write):
  sweep = load(
    write(
      'add("good")',
      'add("bad", {"optim.learning_rate": -1.0})',
      'add("typed", {"train.num_steps": "many"})',
      'add("twig", {"train.num_steps": 20}, branch_from=("bad", 3))',
      'add("leaf", {"train.num_steps": 30}, branch_from=("twig", 9))',
    )
  )
  assert [c.name for c in sweep.cells] == ["good"]
  reasons = {r.title: r.reason for r in sweep.refused}
  assert "optim.learning_rate is -1.0" in reasons["bad"]
  assert "train.num_steps is 'many'" in reasons["typed"]
  assert set(reasons) == {"bad", "typed", "twig seed 0", "leaf seed 0"}


def test_trunks_come_first_and_keep_what_is_branched_from(write):
  lines = [
    'add("b", {"train.num_steps": 20}, branch_from=("a", 6))',
    'add("c", {"train.num_steps": 22}, branch_from=("a", 9))',
    'add("a", {"optim.decay_frac": 0.0})',
  ]
  sweep = load(write(*lines))
  assert [c.name for c in sweep.cells] == ["a", "b", "c"]
  trunk, branch, _ = sweep.cells
  assert branch.trunk == (trunk.id, 6)
  assert trunk.argv[-2:] == (
    "--config.checkpoint.every_steps=3",
    "--config.checkpoint.keep_every_steps=3",
  )
  # Where it starts from changes nothing: the id is that of a straight run.
  straight = load(write('add("b", {"train.num_steps": 20})'))
  assert straight.cells[0].id == branch.id
  branches.check_rates(sweep.cells)


@pytest.mark.parametrize(
  "steps, asked", [((7, 12), 1000), ((7001,), 500), ((9973, 10007), 100)]
)
def test_no_trunk_saves_or_keeps_at_every_step(steps, asked, write):
  every, keep = trunks.pace_saves(set(steps), asked)
  assert keep % every == 0 and asked / 2 <= every <= asked or every == keep
  assert max(steps) / keep <= trunks.KEPT_PER_STEP * len(steps)
  assert sum(s % keep for s in steps) < 0.05 * max(steps) + 2
  # Where a rhythm meets all, nothing is repeated.
  assert trunks.pace_saves({6, 9}, 1000) == (3, 3)
  lines = ['add("a", {"optim.decay_frac": 0.0, "train.num_steps": 12})']
  for name, step in (("b", 7), ("c", 12)):
    values = f'{{"train.num_steps": {step + 8}}}'
    lines.append(f'add("{name}", {values}, branch_from=("a", {step}))')
  trunk, b, c = load(write(*lines)).cells
  assert trunk.argv[-1] == "--config.checkpoint.keep_every_steps=6"
  assert b.trunk == (trunk.id, 6) and c.trunk == (trunk.id, 12)


def test_a_branch_of_another_rate_is_refused(write):
  decays = '{"train.num_steps": 20, "optim.decay_frac": 0.9}'
  lines = ['add("a", {"optim.decay_frac": 0.0})']
  lines.append(f'add("b", {decays}, branch_from=("a", 9))')
  with pytest.raises(InputError, match="learning rate after 5 steps is 0.001"):
    branches.check_rates(load(write(*lines)).cells)
  # The control: up to the end of the warm-up they are the same.
  lines[1] = lines[1].replace('("a", 9)', '("a", 4)')
  branches.check_rates(load(write(*lines)).cells)


class Steady:
  """In place of a worker that is timed: 2 MFLOPs a millisecond."""

  asked: list = []

  def __init__(self, who, subject, config, devices):
    self.built = {"ready_seconds": 10.0}
    self.seconds = plan.step_flops(config) / 2e9
    Steady.asked.append(config.model.num_layers)

  def ask(self, do, count):
    return {"seconds": [self.seconds] * count}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


def test_verbs_are_functions_that_return_data_and_print_nothing(
  write, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr("gpt_jax.lab.bench.worker.Worker", Steady)
  lines = [
    'add("a", seeds=range(3))',
    'add("b", {"optim.learning_rate": 0.2}, seeds=range(3))',
  ]
  sweep, root = load(write(*lines)), str(tmp_path / "root")
  *done, last = sweep.cells
  for index, cell in enumerate(done):
    make_run(root, cell, (3.0, 2.0 + 0.1 * (cell.name == "b") + index / 50))
  (bill,) = plan.make(sweep, root).values()
  assert bill.steps == last.config.train.num_steps and bill.hours > 0
  states = [row["state"] for row in listing.rows(listing.read(sweep, root))]
  assert states == [folder.DONE] * 5 + [folder.WAITING]
  found = report.make(sweep, root)
  assert [group.name for group in found.groups] == ["a", "b"]
  (comparison,) = found.comparisons
  assert comparison.seeds == (0, 1) and comparison.mean > 0
  assert found.html.startswith("<!doctype html>") and found.csv.count("\n") == 6
  assert not os.path.exists(os.path.join(root, "report.html"))
  assert capsys.readouterr().out == ""


def test_a_plan_is_the_bill_of_what_is_left(
  write, call_verb, tmp_path, monkeypatch
):
  monkeypatch.setattr("gpt_jax.lab.bench.worker.Worker", Steady)
  monkeypatch.setattr(Steady, "asked", [])
  lines = [
    "for layers in (1, 2, 3, 4, 5):",
    '  add({"model.num_layers": layers, "train.num_steps": 36000})',
    'add("trunk", {"optim.decay_frac": 0.0})',
    'add("twig", {"train.num_steps": 16}, branch_from=("trunk", 12))',
    'add("huge", {"model.mlp_dim": 10**9})',
    'add("bad", {"optim.learning_rate": -1.0})',
  ]
  path = write(*lines)
  root = tmp_path / "root"
  sweep = load(path)
  make_run(root, sweep.cells[0])
  before = sorted(root.rglob("*"))
  words = ["plan", f"--config={path}", f"--workdir={root}"]
  result = call_verb("lab.sweep", *words)
  assert result.returncode == exits.DOES_NOT_FIT, result.stderr
  assert sorted(root.rglob("*")) == before  # nothing is written
  out = result.stdout
  rows = {r.split()[0]: r for r in out.splitlines()}
  assert rows[sweep.cells[0].id].endswith("done")
  two = sweep.cells[1]
  config = plan.with_vocab(two.config, None)
  size = plan.step_flops(config) * 36000
  assert f"{size:.2e}" in rows[two.id]
  wanted = console.format_seconds(size / 2e9 + 10)
  assert wanted in rows[two.id], (wanted, rows[two.id])
  # Three shapes are timed of five, the least and the greatest among them.
  assert Steady.asked == [1, 3, 5]
  assert "huge seed 0: does not fit: it needs about" in out
  assert "refused: bad: optim.learning_rate is -1.0" in out
  trunk, twig = sweep.cells[5:7]
  assert f"from step 12 of {trunk.id}" in rows[twig.id]
  assert "in all 6 of 8 cells to run" in out


def test_a_plan_for_a_slice_is_the_planner_s(write, call_verb):
  path = write(
    'add({"train.global_batch_size": 8})',
    'add({"train.global_batch_size": 8, "model.mlp_dim": 10**9})',
  )
  result = call_verb(
    "lab.sweep", "plan", f"--config={path}", "--topology=h100:8"
  )
  assert result.returncode == exits.DOES_NOT_FIT, result.stderr
  assert "does not fit h100:8: it needs" in result.stdout
  assert "in all 1 of 2 cells to run" in result.stdout


def make_run(root, cell, losses=(3.0, 2.0), is_done=True, **config) -> None:
  """Writes the folder that a run of this cell would leave."""
  path = pathlib.Path(folder.path_of(str(root), cell.id))
  path.mkdir(parents=True)
  flat = config_lib.flatten(cell.config) | {"model.vocab_size": 257} | config
  record = {"config": flat, "data_fingerprint": "0" * 64, "fingerprint": ""}
  (path / "config.json").write_text(json.dumps(files.seal(record)))
  (path / "cell.json").write_text(json.dumps(cell.record()))
  total = cell.config.train.num_steps
  at = [
    round(1 + i * (total - 1) / (len(losses) - 1)) for i in range(len(losses))
  ]
  rows = [
    {"step": s, "train/loss": loss, "progress/tokens": s * 128}
    for s, loss in zip(at, losses, strict=True)
  ]
  end = {"eval/valid/loss": losses[-1], "eval/valid/num_tokens": 99}
  if is_done:
    rows.append({"step": total} | end)
    (path / "plots").mkdir()
    (path / "plots" / "loss.svg").write_text("<svg/>")
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text)


def test_a_folder_says_how_its_cell_stands(write, tmp_path):
  lines = [f'add("{w}", seed={i})' for i, w in enumerate("abcdef")]
  a, b, c, d, e, f = load(write(*lines)).cells
  root = tmp_path / "root"
  word = lambda cell: folder.read(str(root), cell.id).word
  assert word(a) == folder.WAITING
  make_run(root, a)
  assert word(a) == folder.DONE
  make_run(root, b, is_done=False)
  path = folder.path_of(str(root), b.id)
  assert word(b) == folder.RUNNING  # of a cluster: its figures are fresh
  ended = {"code": 75, "is_stopped": True, "reason": "exit code 75"}
  folder.release(path, ended)
  assert word(b) == folder.STOPPED
  folder.release(path, {"code": 2, "is_stopped": False, "reason": "why"})
  assert word(b) == folder.FAILED
  assert folder.read(str(root), b.id).reason == "why"
  # The config file was changed between planning and running.
  make_run(root, c, **{"model.num_layers": 7})
  assert word(c) == folder.FAILED
  # A version that had other keys.
  make_run(root, d)
  record = pathlib.Path(folder.path_of(str(root), d.id), "config.json")
  other = json.loads(record.read_text().replace("model.norm_eps", "model.eps"))
  record.write_text(json.dumps(files.seal(other)))
  state = folder.read(str(root), d.id)
  assert state.word == folder.UNREADABLE and "model.eps" in state.reason
  # Held by a process that is gone, and by one on another machine.
  make_run(root, e, is_done=False)
  held = pathlib.Path(folder.path_of(str(root), e.id), "running.json")
  held.write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
  assert word(e) == folder.RUNNING
  assert not folder.claim(str(root), e)
  os.utime(held, (1, 1))
  assert folder.claim(str(root), e)
  # Copied folders are that machine's results.
  other = tmp_path / "other"
  shutil.copytree(root / "cells", other / "cells")
  assert folder.read(str(other), a.id).word == folder.DONE
  assert set(folder.list_ids(str(other))) == {a.id, b.id, c.id, d.id, e.id}
  assert f.id not in folder.list_ids(str(other))


# A process in place of a training run: it does what its seed asks for.
FAKE = """
import json, os, pathlib, signal, sys, time
from gpt_jax import files
flags = dict(w[2:].split("=", 1) for w in sys.argv[1:])
path = pathlib.Path(flags["workdir"])
cell = json.loads((path / "cell.json").read_text())
config = cell["config"] | {{"model.vocab_size": 257}}
total, seed = config["train.num_steps"], config["seed"]
mended = pathlib.Path({mended!r}).exists()
if seed == 1 and not mended:
  print("a line before", flush=True)
  sys.exit("gpt_jax: text:x matches no file")
if seed == 2 and not mended:
  os.kill(os.getpid(), signal.SIGKILL)
if seed == 3 and not mended:
  block = bytearray(1 << 34)
if seed == 4 and not mended:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  pathlib.Path({ready!r}).touch()
  time.sleep(60)
record = {{"config": config, "data_fingerprint": "0" * 64, "fingerprint": ""}}
(path / "config.json").write_text(json.dumps(files.seal(record)))
rows = [{{"step": s, "train/loss": 3.0 - s / total}} for s in (1, total)]
end = {{"eval/valid/loss": 2.0, "eval/valid/num_tokens": 9}}
rows.append({{"step": total}} | end)
text = "".join(json.dumps(row) + chr(10) for row in rows)
(path / "metrics.jsonl").write_text(text)
(path / "plots").mkdir()
(path / "plots" / "loss.svg").touch()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """Puts FAKE in place of gpt_jax.train; returns the file that mends it."""
  script = tmp_path / "fake.py"
  mended = tmp_path / "mended"
  ready = str(tmp_path / "ready")
  script.write_text(FAKE.format(mended=str(mended), ready=ready))
  monkeypatch.setattr(worker, "TRAIN", (sys.executable, str(script)))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the script's gpt_jax
  monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
  return mended


def test_one_cell_that_fails_costs_no_other(write, fake, call_verb, tmp_path):
  path = write(*(f'add("c{i}", seed={i})' for i in (0, 1, 2, 3, 5, 6)))
  root = tmp_path / "root"
  words = [f"--config={path}", f"--workdir={root}", "--workers=2", "--memory=4"]
  result = call_verb("lab.sweep", "run", *words)
  assert result.returncode == exits.FAILED, result.stderr
  named = {c.config.seed: c.id for c in load(path).cells}
  states = {seed: folder.read(str(root), i) for seed, i in named.items()}
  words_of = {seed: state.word for seed, state in states.items()}
  assert words_of == dict.fromkeys((0, 5, 6), "done") | dict.fromkeys(
    (1, 2, 3), "failed"
  )
  assert states[1].reason == "exit code 1: text:x matches no file"
  assert states[2].reason.startswith("killed by SIGKILL")
  assert states[3].reason.startswith("out of memory: MemoryError")
  for seed in (1, 2, 3):
    assert f"failed   {named[seed]} c{seed} seed {seed}: " in result.stdout
  listed = call_verb("lab.sweep", "list", f"--workdir={root}")
  assert "text:x matches no file" in listed.stdout
  assert listed.stdout.splitlines()[-1] == "6 cells: 3 done, 3 failed"

  # Passed over, until it is asked for; then these alone.
  times = {s: os.stat(state.path).st_mtime_ns for s, state in states.items()}
  again = call_verb("lab.sweep", "run", *words)
  assert again.returncode == exits.FAILED
  assert "6 cells: 3 done, 0 to run" in again.stdout
  fake.touch()
  ids = f"{named[1]},{named[2]}"
  result = call_verb("lab.sweep", "run", *words, f"--only={ids}", "--retry")
  assert result.returncode == 0, result.stdout
  assert "2 cells: 0 done, 2 to run" in result.stdout
  result = call_verb("lab.sweep", "run", *words, "--retry")
  assert result.returncode == 0 and "5 done, 1 to run" in result.stdout
  for seed in (0, 5, 6):
    assert os.stat(states[seed].path).st_mtime_ns == times[seed]


def test_a_stopped_sweep_goes_on(write, fake, tmp_path, monkeypatch):
  path = write('add("first", seed=4)', 'add("second", seed=0)')
  root = tmp_path / "root"
  sweep = load(path)
  say = pool.Pool._say

  def stop(self):
    if (tmp_path / "ready").exists() and self.signal is None:
      os.kill(os.getpid(), signal.SIGTERM)
    say(self)

  monkeypatch.setattr(pool.Pool, "_say", stop)
  assert run_lib.run(sweep, str(root)).code == exits.PREEMPTED
  words = [folder.read(str(root), c.id).word for c in sweep.cells]
  assert words == [folder.STOPPED, folder.WAITING]
  fake.touch()
  monkeypatch.setattr(pool.Pool, "_say", say)
  assert run_lib.run(sweep, str(root)).code == 0
  assert all(folder.is_done(str(root), c.id) for c in sweep.cells)


def test_what_cannot_fit_is_refused_by_name(write, fake, call_verb, tmp_path):
  path = write('add("small")', 'add("huge", {"model.mlp_dim": 10**9})')
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "run", *words)
  assert result.returncode == exits.FAILED
  assert "huge seed 0: does not fit: it needs about" in result.stdout
  assert "finished" in result.stdout  # the other


def test_a_cell_of_two_sweeps_is_run_once(write, fake, call_verb, tmp_path):
  words = [f"--workdir={tmp_path / 'root'}", "--config=" + write('add("a")')]
  assert "1 to run" in call_verb("lab.sweep", "run", *words).stdout
  write('add("b", seed=0)', 'add("c", seed=5)')
  result = call_verb("lab.sweep", "run", *words)
  assert "2 cells: 1 done, 1 to run" in result.stdout
  # Without its folder it is run again: the control.
  shutil.rmtree(tmp_path / "root" / "cells")
  assert "0 done, 2 to run" in call_verb("lab.sweep", "run", *words).stdout


def test_emitted_lines_are_cells_for_slurm(write, fake, call_verb, tmp_path):
  path = write(
    'add("it\'s", {"optim.decay_frac": 0.0})',
    'add("b", {"train.num_steps": 20}, branch_from=("it\'s", 6))',
    'add("c", {"sample.prompt": "two words", "seed": 7})',
  )
  file = tmp_path / "cells.txt"
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "run", *words, f"--emit={file}")
  assert result.returncode == 0, result.stderr
  lines = [shlex.split(line) for line in file.read_text().splitlines()]
  assert len(lines) == 2 and "b seed 0" in result.stdout.splitlines()[-1]
  assert "--config.sample.prompt=two words" in lines[1]
  shown = subprocess.run(
    ["bash", "launch/slurm.sh", "--dry-run", f"--cells={file}", "--"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert shown.returncode == 0, shown.stderr
  assert "--array=0-1" in shown.stdout
  assert shown.stdout.count("gpt_jax.train --config=") == 2


def test_a_line_break_in_a_value_is_not_emitted(write, call_verb, tmp_path):
  path = write('add("a", {"sample.prompt": "two\\nlines"})', 'add("b", seed=1)')
  file, root = tmp_path / "cells.txt", tmp_path / "root"
  words = ["run", f"--config={path}", f"--workdir={root}", f"--emit={file}"]
  result = call_verb("lab.sweep", *words)
  assert result.returncode == 2 and "holds a line break" in result.stderr
  assert not file.exists() and not (root / "cells").exists()
  only = f"--only={load(path).cells[1].id}"
  assert call_verb("lab.sweep", *words, only).returncode == 0
  assert len(file.read_text().splitlines()) == 1


def test_many_emitted_lines_are_counted(write, call_verb, tmp_path):
  path = write('add("a", seeds=range(9))')
  file = tmp_path / "cells.txt"
  words = ["run", f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", *words, f"--emit={file}")
  assert result.stdout.count("python -m gpt_jax.train") == 3
  assert "# and 6 more" in result.stdout
  assert len(file.read_text().splitlines()) == 9


class Broken:
  """A stream whose reader is gone."""

  def __init__(self, path):
    self.file = open(path, "w")

  def write(self, text):
    raise BrokenPipeError(32, "Broken pipe")

  flush = isatty = lambda self: None

  def fileno(self):
    return self.file.fileno()


def test_what_becomes_of_its_lines_decides_nothing_about_a_sweep(
  write, fake, tmp_path, monkeypatch
):
  sweep = load(write('add("a")'))
  for index, stream in enumerate((Broken(tmp_path / "pipe"), None)):
    root = str(tmp_path / f"root-{index}")
    with monkeypatch.context() as patch:
      patch.setattr(sys, "stdout", stream)
      assert run_lib.run(sweep, root).code == 0
    assert folder.is_done(root, sweep.cells[0].id)


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1", "USR2"])
def test_signals_stop_a_sweep_unless_they_were_ignored(
  name, write, fake, tmp_path, monkeypatch
):
  number = signal.Signals[f"SIG{name}"]
  path = write('add("a", seed=4)', 'add("b", seed=0)')
  say = pool.Pool._say
  sent = []

  def kill(self):
    if (tmp_path / "ready").exists() and not sent:
      sent.append(number)
      os.kill(os.getpid(), number)
      fake.touch()
      if signal.getsignal(number) == signal.SIG_IGN:
        self.workers[0].process.kill()
    say(self)

  monkeypatch.setattr(pool.Pool, "_say", kill)
  old = signal.signal(number, signal.SIG_IGN)
  try:
    ignored = run_lib.run(load(path), str(tmp_path / "ignored")).code
    assert signal.getsignal(number) == signal.SIG_IGN
  finally:
    signal.signal(number, old)
  # The cell was killed here; the sweep went on to the other.
  words = lambda root: [
    folder.read(str(tmp_path / root), c.id).word for c in load(path).cells
  ]
  assert ignored == exits.FAILED and words("ignored") == ["failed", "done"]
  fake.unlink()
  (tmp_path / "ready").unlink()
  sent.clear()
  # A test that runs in the background may have inherited it ignored.
  signal.signal(number, lambda *_: pytest.fail("it was not heard"))
  try:
    code = run_lib.run(load(path), str(tmp_path / "heard")).code
  finally:
    signal.signal(number, old)
  is_int = number == signal.SIGINT
  assert code == (exits.INTERRUPTED if is_int else exits.PREEMPTED)
  assert words("heard") == [folder.STOPPED, folder.WAITING]


def test_a_disk_without_locks_is_told_and_used(
  write, tmp_path, monkeypatch, capsys
):
  def refuse(file, how):
    raise OSError(number, os.strerror(number))

  cell = load(write('add("a")')).cells[0]
  monkeypatch.setattr(folder.fcntl, "flock", refuse)
  for number in (37, 38, 95, 524):
    assert folder.claim(str(tmp_path / f"root-{number}"), cell)
    said = capsys.readouterr().err
    assert "without locks" in said and len(said.splitlines()) == 1


def test_verbs_and_flags_are_checked(call_verb, write, tmp_path):
  path = write('add("a")')
  said = {
    (): "the first word must be what to do",
    ("rum",): "did you mean run?",
    ("plan",): "--config=FILE is missing",
    ("run", f"--config={path}"): "--workdir=ROOT is missing",
    ("list", f"--workdir={tmp_path}/no"): "does not exist",
    ("report", f"--workdir={tmp_path}"): "holds no cell",
    ("run", f"--config={path}", f"--workdir={tmp_path}/r", "--only=ffff"): (
      "no cell of this sweep"
    ),
    ("run", f"--config={path}", f"--workdir={tmp_path}/r", "--workers=0"): (
      "--workers is 0"
    ),
  }
  for words, sentence in said.items():
    result = call_verb("lab.sweep", *words)
    assert result.returncode == 2 and sentence in result.stderr, words
    assert len(result.stderr.splitlines()) == 1


def test_intervals_and_p_are_those_of_student():
  stats = pytest.importorskip("scipy.stats")
  a = {0: 2.1, 1: 2.3, 2: 2.2, 3: 2.4, 9: 7.0}
  b = {0: 2.0, 1: 2.25, 2: 2.15, 3: 2.28, 8: 1.0}
  (found,) = paired.compare(("a", a), [("b", b)])
  pairs = [[x[s] for s in range(4)] for x in (b, a)]
  wanted = stats.ttest_rel(*pairs)
  interval = wanted.confidence_interval(0.95)
  assert found.seeds == (0, 1, 2, 3)
  assert found.p == pytest.approx(wanted.pvalue, rel=1e-10)
  assert found.low == pytest.approx(interval.low, rel=1e-10)
  assert found.high == pytest.approx(interval.high, rel=1e-10)
  assert found.verdict == paired.BETTER


def test_holm_holds_over_all_comparisons():
  assert paired.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx(
    [0.04, 0.09, 0.09, 0.5]
  )
  # Alone it is better; as one of ten tries it is not distinguishable.
  base = dict(enumerate([2.0, 2.1, 2.2]))
  better = {s: base[s] - d for s, d in enumerate([0.1, 0.12, 0.15])}
  noise = {s: base[s] + d for s, d in enumerate([0.01, -0.01, 0.002])}
  (alone,) = paired.compare(("a", base), [("b", better)])
  assert alone.verdict == paired.BETTER
  several = paired.compare(("a", base), [("b", better)] + [("n", noise)] * 9)
  assert several[0].verdict == paired.SAME
  assert several[0].p == alone.p and several[0].adjusted > alone.adjusted


def test_verdicts_are_wrong_as_rarely_as_they_say():
  """Of runs that differ by noise alone, 5 % are told apart; unpaired: none."""
  draw = random.Random(0)
  wrong = 0
  for _ in range(1000):
    level = [draw.gauss(2, 1) for _ in range(4)]
    a, b = (
      {s: x + draw.gauss(0, 0.1) for s, x in enumerate(level)} for _ in "ab"
    )
    (found,) = paired.compare(("a", a), [("b", b)])
    wrong += found.verdict != paired.SAME
  assert 0.03 < wrong / 1000 < 0.07


def test_an_interval_excludes_zero_where_its_verdict_does():
  """Both are corrected alike, over however many comparisons."""
  draw, seen = random.Random(1), {False: 0, True: 0}
  alone = 0
  for trial in range(300):
    base = {s: draw.gauss(2, 1) for s in range(2 + trial % 4)}
    others = [
      (f"{i}", {s: x + draw.gauss(shift, 0.1) for s, x in base.items()})
      for i, shift in enumerate((0, 0.05, 0.1, 0.2, 0.4)[: 1 + trial % 5])
    ]
    for one in paired.compare(("a", base), others):
      is_apart = one.low > 0 or one.high < 0
      assert is_apart == (one.verdict != paired.SAME), one
      assert is_apart == (one.adjusted < 0.05)
      seen[is_apart] += 1
      alone += one.p < 0.05 <= one.adjusted
  # There were those that an interval of its own would have told apart.
  assert min(seen.values()) > 50 and alone > 20


def test_a_set_of_which_one_has_diverged_has_no_mean():
  base = {0: 2.0, 1: 2.1, 2: 2.2}
  lost = {0: 1.0, 1: 1.1, 2: math.inf}
  (found,) = paired.compare(("a", base), [("b", lost)])
  assert found.verdict == "diverged (1 of 3 seeds)" and found.mean is None
  (found,) = paired.compare(("b", lost), [("a", base)])
  assert found.verdict == paired.NO_VERDICT and found.mean is None
  assert "b diverged (1 of 3 seeds)" in found.sentence


def test_without_two_pairs_there_is_no_verdict():
  for a, b in [({0: 2.0}, {1: 1.0}), ({0: 2.0, 1: 2.0}, {0: 1.0, 2: 1.0})]:
    (found,) = paired.compare(("a", a), [("b", b)])
    assert found.verdict == paired.NO_VERDICT and "two seeds" in found.sentence
  same = {0: 2.0, 1: 2.1}
  (found,) = paired.compare(("a", same), [("b", dict(same))])
  assert found.verdict == paired.SAME
  (found,) = paired.compare(("a", same), [("b", {0: 1.0, 1: 1.1})])
  assert found.verdict == paired.NO_VERDICT


# The report

NASTY = "<script>alert(\"1\")</script> & 'x' </td>"


@pytest.fixture(scope="module")
def browser():
  """Opens a page in headless Chromium; skipped where there is none."""
  program = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
  )
  if program is None:
    pytest.skip("chromium is not installed: the report is not opened")

  def show(page, *words) -> str:
    flags = ["--headless", "--no-sandbox", "--disable-gpu"]
    flags += ["--disable-background-networking", "--virtual-time-budget=2000"]
    flags += [f"--user-data-dir={page.parent}/chromium"]
    result = subprocess.run(
      [program, *flags, *words, page.as_uri()],
      capture_output=True,
      text=True,
      timeout=90,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

  return show


def written(write, call_verb, tmp_path, lines, spoil=lambda sweep: None):
  """Makes the report of fabricated runs; returns its path."""
  path = write(*lines)
  sweep = load(path)
  for cell in sweep.cells:
    rate, seed = cell.config.optim.learning_rate, cell.config.seed
    end = 2.0 + rate + 0.01 * seed + 0.002 * math.sin(1e4 * rate + seed)
    make_run(tmp_path / "root", cell, (5.0, 3.0, end))
  spoil(sweep)
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "report", *words)
  assert result.returncode == 0, result.stderr
  return tmp_path / "root" / "report.html", result.stdout


def rows_of(dom: str) -> list[list[str]]:
  """Returns the texts of the rows of the table of cells."""
  body = dom.split("<h2>Cells</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
  fields = [
    re.findall(r"<td.*?>(.*?)</td>", r, re.S) for r in body.split("<tr>")[1:]
  ]
  return [
    [html.unescape(re.sub("<.*?>", "", f)) for f in row] for row in fields
  ]


def test_a_report_of_one_cell(write, call_verb, tmp_path, browser):
  page, said = written(write, call_verb, tmp_path, ['add("alone")'])
  dom = browser(page, "--dump-dom")
  assert [row[1] for row in rows_of(dom)] == ["alone"]
  assert "no two groups of finished runs" in dom
  assert "What did not work" not in dom and "Sensitivity" not in dom
  assert "Telemetry" not in dom and tables.NOISE not in dom
  assert "written to" in said


def test_telemetry_is_drawn_and_its_noise_scale_told(
  write, call_verb, tmp_path, browser
):
  lines = ['add("watched", seeds=range(2))', 'add("not", {"seed": 7})']

  def spoil(sweep) -> None:
    for cell in sweep.cells[:2]:
      path = folder.path_of(str(tmp_path / "root"), cell.id)
      rows = [
        {
          "step": step,
          "telemetry/attn_logit_max/00": 1.0 + step,
          "telemetry/attn_logit_max/01": 2.0 + step,
          "telemetry/grad_norm/hidden": 0.5,
          "telemetry/grad_square": 0.25,
          "telemetry/grad_variance": 5.0 + cell.config.seed,
        }
        for step in (1, 2)
      ]
      with open(os.path.join(path, "metrics.jsonl"), "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

  page, _ = written(write, call_verb, tmp_path, lines, spoil)
  dom = browser(page, "--dump-dom")
  assert dom.count("<polyline") == 3 + 2 * 2  # losses, and two of two figures
  assert "attn_logit_max, the largest over layers" in dom
  assert "grad_norm/hidden</text>" in dom and "grad_square" not in dom
  at = re.findall(
    "<th[^>]*>([^<]*)</th>", dom.split("<h2>Cells</h2>")[1]
  ).index(tables.NOISE)
  assert [row[at] for row in rows_of(dom)] == ["20.0", "24.0", ""]


def test_a_report_of_many_cells_is_looked_at(
  write, call_verb, tmp_path, browser
):
  lines = [
    "for layers in (1, 2, 3, 4):",
    "  for i in range(10):",
    "    add({'model.num_layers': layers, 'optim.learning_rate': 0.01 * 2**i},",
    "        seeds=range(5))",
  ]
  page, _ = written(write, call_verb, tmp_path, lines)
  dom = browser(page, "--dump-dom")
  rows = rows_of(dom)
  assert len(rows) == 200
  assert dom.count("<polyline") == 200 + 10 + 4
  # Sorted by the reader, by number and not by text.
  text = page.read_text()
  click = "<script>document.querySelectorAll('.sort th')[4].click()</script>"
  page.write_text(text.replace("</body>", f"{click}</body>"))
  rates = [float(row[4]) for row in rows_of(browser(page, "--dump-dom"))]
  assert rates == sorted(rates) and rates != [float(row[4]) for row in rows]
  # It reaches for nothing outside the file.
  assert not re.search(r"(src|href)=.https?:|@import|url\((?!#)", text)
  for name, flag in {"light": "1", "dark": "0"}.items():
    picture = tmp_path / f"{name}.png"
    browser(
      page,
      f"--screenshot={picture}",
      "--window-size=1100,1400",
      f"--blink-settings=preferredColorScheme={flag}",
    )
    level = brightness(picture)
    assert level > 200 if name == "light" else level < 70, (name, level)


def brightness(path) -> float:
  """Returns the mean of the bytes of a PNG's first and last lines, unfiltered.

  Enough to tell a light ground from a dark one.
  """
  data, at, packed = path.read_bytes(), 8, b""
  while at < len(data):
    size, kind = struct.unpack(">I4s", data[at : at + 8])
    if kind == b"IHDR":
      width, _, depth, color = struct.unpack(">IIBB", data[at + 8 : at + 18])
    if kind == b"IDAT":
      packed += data[at + 8 : at + 8 + size]
    at += 12 + size
  assert depth == 8
  channels = {2: 3, 6: 4}[color]
  line = zlib.decompress(packed)[1 : 1 + width * channels]
  # The first pixel of the first line is its own value under every filter.
  return sum(line[:3]) / 3


def test_a_report_says_what_failed_and_escapes_names(
  write, call_verb, tmp_path, browser
):
  lines = [
    f"nasty = {NASTY!r}",
    'add("base", seeds=range(3))',
    'add(nasty, {"optim.learning_rate": 0.2}, seeds=range(3))',
    'add("lost", {"optim.learning_rate": 0.3})',
    'add("bad", {"optim.learning_rate": -1.0})',
  ]

  def spoil(sweep) -> None:
    path = folder.path_of(str(tmp_path / "root"), sweep.cells[-1].id)
    os.remove(os.path.join(path, "plots", "loss.svg"))
    reason = f"killed by SIGKILL {NASTY}"
    folder.release(path, {"code": -9, "is_stopped": False, "reason": reason})

  page, said = written(write, call_verb, tmp_path, lines, spoil)
  dom = browser(page, "--dump-dom")
  assert "alert(" not in "".join(re.findall(r"<script.*?</script>", dom, re.S))
  assert dom.count("<script") == 1
  shown = [row[1] for row in rows_of(dom)]
  assert shown == ["base"] * 3 + [NASTY] * 3 + ["lost"]
  trouble = html.unescape(dom.split("What did not work")[1].split("<h2>")[0])
  assert f"killed by SIGKILL {NASTY}" in trouble
  assert "optim.learning_rate is -1.0" in trouble
  assert f"{NASTY}: +0.2" in said and "worse (p = " in said
  # What is finished can be fitted.
  table = points.read_csv(
    str(page.with_suffix(".csv")),
    {"loss": "loss", "params": "params", "tokens": "tokens", "flops": "flops"},
    is_trusted=True,  # these runs have fewer tokens than units.py expects
  )
  assert len(table) == 6 and table.loss.min() > 1.9


# What a diverged run may have left: its last rows, and how its process ended.
LOST = {
  "told": ([{"step": 3, "train/loss": 5.5475}], {"code": exits.DIVERGED}),
  "finished": (
    [
      {"step": 3, "train/loss": 5.5475},
      {"step": 12, "train/loss": 5.5475, "train/num_skipped": 4},
      {"step": 12, "eval/valid/num_tokens": 9},
    ],
    None,
  ),
  "job": (
    [
      {"step": 3, "train/loss": 5.5475, "train/num_skipped": 0},
      {"step": 6, "train/num_skipped": 3},
    ],
    None,
  ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_diverged_cell_is_shown_as_one(how, write, call_verb, tmp_path):
  rows, ended = LOST[how]

  def spoil(sweep) -> None:
    for cell in sweep.cells[-2:]:
      path = folder.path_of(str(tmp_path / "root"), cell.id)
      text = "".join(json.dumps(row) + "\n" for row in rows)
      pathlib.Path(path, "metrics.jsonl").write_text(text)
      if how != "finished":
        os.remove(os.path.join(path, "plots", "loss.svg"))
      if ended:
        how_ended = {"is_stopped": False, "reason": "not finite"}
        folder.release(path, ended | how_ended)
      for name in os.listdir(path):
        os.utime(os.path.join(path, name), (1, 1))

  lines = [
    "for rate in (0.1, 0.2, 0.3):",
    "  add(f'rate {rate}', {'optim.learning_rate': rate}, seeds=range(2))",
  ]
  page, said = written(write, call_verb, tmp_path, lines, spoil)
  assert "rate 0.3: diverged (2 of 2 seeds), against rate 0.1\n" in said
  assert re.search(r"rate 0\.2: \+\d", said)
  text = page.read_text()
  assert "5.5475" not in text and text.count("l8,8m0,-8l-8,8") == 2
  assert "diverged (2 of 2 seeds)</td>" in text
  assert len(page.with_suffix(".csv").read_text().splitlines()) == 5
  table = page.with_name("report-comparisons.csv").read_text().splitlines()
  assert table[-1].startswith("rate 0.3,rate 0.1,2,nats per token,,,,,diverged")
  listed = call_verb("lab.sweep", "list", f"--workdir={tmp_path / 'root'}")
  for row in listed.stdout.splitlines():
    if "rate 0.3" in row:
      assert row.split()[1] == "diverged" and row.split()[3] == "-"
  assert "4 done, 2 diverged" in listed.stdout and "5.5475" not in listed.stdout


def test_losses_of_other_texts_or_tokens_have_no_difference(
  write, call_verb, tmp_path
):
  other = tmp_path / "other.txt"
  other.write_text("another text " * 99)
  changes = {
    "chars": {"data.tokenizer": "chars"},
    "short": {"data.seq_len": 16},
    "text": {"data.source": f"text:{other}"},
    "share": {"data.valid_frac": 0.2},
    "rate": {"optim.learning_rate": 0.5},
  }
  lines = ['add("base", seeds=range(2))']
  lines += [f"add('{n}', {c}, seeds=range(2))" for n, c in changes.items()]
  path, root = write(*lines), tmp_path / "root"
  for cell in load(path).cells:
    make_run(root, cell, (5.0, 2.0 + 0.01 * cell.config.seed))
    rows = pathlib.Path(folder.path_of(str(root), cell.id), "metrics.jsonl")
    bits = 1.5 if cell.name == "short" else 1.25 + 0.001 * cell.config.seed
    row = {"step": 12, "eval/valid/bits_per_byte": bits}
    rows.write_text(rows.read_text() + json.dumps(row) + "\n")
  words = [f"--config={path}", f"--workdir={root}"]
  result = call_verb("lab.sweep", "report", *words)
  assert result.returncode == 0, result.stderr
  said = dict(line.split(": ", 1) for line in result.stdout.splitlines()[:-1])
  assert said["rate"].startswith("+0.0000 [")
  assert said["chars"].startswith("+0.0000 bits per byte [")
  assert said["short"].startswith("+0.2495 bits per byte [")
  for name in ("text", "share"):
    assert said[name].startswith("no verdict against base: their validation")
  assert "data.source" in said["text"] or "differ" in said["text"]
  text = (root / "report.html").read_text()
  assert "no lowest loss" in text and "<dt>lowest loss" not in text


def test_the_text_itself_decides_whether_losses_compare(write, tmp_path):
  path = write('add("a")', 'add("b", seed=1)')
  a, b = load(path).cells
  make_run(tmp_path, a)
  make_run(tmp_path, b)
  record = pathlib.Path(folder.path_of(str(tmp_path), b.id), "config.json")
  other = json.loads(record.read_text()) | {"data_fingerprint": "1" * 64}
  both = lambda: [folder.read(str(tmp_path), cell.id) for cell in (a, b)]
  assert groups.find_unit(both()) == (losses.NATS, "")
  record.write_text(json.dumps(files.seal(other)))
  unit, why = groups.find_unit(both())
  assert unit == "" and "prepared sets differ" in why


def test_flops_are_counted_alike_by_plan_and_report(write, tmp_path):
  (cell,) = load(write('add("a")')).cells
  make_run(tmp_path, cell)
  state = folder.read(str(tmp_path), cell.id)
  bill = plan._bill(cell, state.config, plan.Limits(topology="x"))
  assert tables.sizes_of(state)["flops"] == bill.flops
  table = tables.csv_text([state], {}, [])
  assert str(int(bill.flops)) in table.splitlines()[1].split(",")


FORMULAS = ("=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r=1")


def test_no_name_is_a_formula_or_steers_a_terminal(write, call_verb, tmp_path):
  names = [*FORMULAS, "\x1b[2J\x1b]0;title\x07", "two\nlines", "\x9b1m"]
  lines = [
    f"add({name!r}, {{'optim.learning_rate': 0.1 + {i}}})"
    for i, name in enumerate(names)
  ]
  page, said = written(write, call_verb, tmp_path, lines)
  root = f"--workdir={tmp_path / 'root'}"
  listed = call_verb("lab.sweep", "list", root).stdout
  shown = said + listed + page.read_text()
  assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r"}
  assert "\\x1b[2J" in said and len(listed.splitlines()) == len(names) + 2
  for table in (
    page.with_suffix(".csv"),
    page.with_name("report-comparisons.csv"),
  ):
    with open(table, newline="") as file:
      for row in list(csv.reader(file))[1:]:
        for cell in row:
          is_number = re.fullmatch(r"[-+]?[\d.e+-]+", cell) and cell != "+1"
          assert is_number or not cell.lstrip().startswith(("=", "+", "-", "@"))
  assert tables.inert(-0.5) == -0.5  # a number stays one


# What may stand in the place of a file that a sweep has written.
HOSTILE = [
  "[" * 100_000,
  "9" * 5_000,
  "[]",
  "7",
  "{",
  "\xff",
  '{"pid": NaN}',
  "{}",
]


@pytest.mark.parametrize("name", ["cell.json", "ended.json", "running.json"])
def test_damaged_files_of_a_cell_are_said_or_passed_over(
  name, write, call_verb, tmp_path
):
  path, root = write('add("a")', 'add("b", seed=1)'), tmp_path / "root"
  a, b = load(path).cells
  make_run(root, a)
  make_run(root, b)
  file = pathlib.Path(folder.path_of(str(root), b.id), name)
  whole = (
    b.record() if name == "cell.json" else {"code": 1, "is_stopped": False}
  )
  broken = [
    {**whole, key: [7]} for key in (*whole, "trunk", "seconds", "reason")
  ]
  for content in [*HOSTILE, *map(json.dumps, broken), "FIFO"]:
    if content == "FIFO":
      file.unlink()
      os.mkfifo(file)
    else:
      file.write_bytes(content.encode("latin-1"))
    for verb in ("list", "report"):
      result = call_verb("lab.sweep", verb, f"--workdir={root}")
      assert result.returncode == 0, (content[:40], result.stderr)
      assert "a" in result.stdout
    state = folder.read(str(root), b.id)
    assert state.word in (folder.DONE, folder.UNREADABLE, folder.FAILED)
    if name != "cell.json":
      assert state.word == folder.DONE


@pytest.mark.parametrize("pid", [10**20, 2**31, 0, -1, True, None, "7", 1.0])
def test_what_is_no_process_holds_no_cell(pid, write, tmp_path, monkeypatch):
  (cell,) = load(write('add("a")')).cells
  make_run(tmp_path, cell)
  path = pathlib.Path(folder.path_of(str(tmp_path), cell.id))
  held = {"pid": pid, "host": socket.gethostname()}
  (path / "running.json").write_text(json.dumps(held))
  assert folder.is_done(str(tmp_path), cell.id)
  # The control: a process that is there.
  monkeypatch.setattr(folder, "_is_alive", lambda pid: True)
  (path / "running.json").write_text(json.dumps(held | {"pid": os.getpid()}))
  assert folder.read(str(tmp_path), cell.id).word == folder.RUNNING


def test_finished_cells_feed_scaling_laws(write, tmp_path):
  a, b = load(write('add("a")', 'add("b", seed=1)')).cells
  make_run(tmp_path, a)
  waiting = pathlib.Path(folder.path_of(str(tmp_path), b.id))
  waiting.mkdir()
  (waiting / "cell.json").write_text(json.dumps(b.record()))
  found = points.read_workdirs(f"{tmp_path}/cells/*", None, "6N")
  assert len(found) == 1 and "has not begun" in found.left_out[0]


def test_the_baseline_is_the_one_that_is_named(write, call_verb, tmp_path):
  path = write('add("a")', 'add("b", {"optim.learning_rate": 0.5})')
  for cell in load(path).cells:
    make_run(tmp_path, cell)
  words = ["report", f"--config={path}", f"--workdir={tmp_path}"]
  result = call_verb("lab.sweep", *words, "--baseline=b")
  assert result.stdout.startswith("a: +0.0000 against b"), result.stderr
  result = call_verb("lab.sweep", *words, "--baseline=c")
  assert result.returncode == 2 and "--baseline=c is no name" in result.stderr


# Real runs


def command(*words) -> list[str]:
  return [sys.executable, "-m", "gpt_jax.lab.sweep", *map(str, words)]


def start(*words) -> subprocess.Popen:
  return subprocess.Popen(
    command(*words),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=user_env(),
  )


def losses_of(path: str) -> dict[int, float]:
  rows = folder.read_path(path).rows
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def newest_meta(path: str) -> dict:
  """Returns the record of the newest checkpoint in a workdir."""
  checkpoints = os.path.join(path, "checkpoints")
  return integrity.read_meta(checkpoints, restore.list_steps(checkpoints)[-1])


def test_a_branch_equals_a_straight_run_bit_for_bit(write, tmp_path):
  trunk = 'add("trunk", {"optim.decay_frac": 0.0})'
  decay = 'add("decay", {"train.num_steps": 20}%s)'
  lost = 'add("lost", {"train.init_from": "nowhere"})'
  root, other = tmp_path / "root", tmp_path / "other"
  path = write(trunk, decay % ', branch_from=("trunk", 8)', lost)
  words = ["run", f"--config={path}", f"--workdir={root}"]
  process = start(*words)
  said = process.communicate(timeout=200)[0]
  assert process.returncode == exits.FAILED, said
  first, branch, failed = load(path).cells
  states = [folder.read(str(root), c.id) for c in (first, branch, failed)]
  assert [s.word for s in states] == ["done", "done", "failed"], said
  assert "train.init_from is 'nowhere'" in states[2].reason
  # Each step was done once: 12 of the trunk, 12 of the decay.
  log = pathlib.Path(states[1].path, "log.txt").read_text()
  assert "going on from step 8\n" in log

  process = start("run", f"--config={write(decay % '')}", f"--workdir={other}")
  assert process.wait(timeout=200) == 0
  straight = folder.path_of(str(other), branch.id)
  a, b = map(newest_meta, (states[1].path, straight))
  assert a["step"] == b["step"] == 20 and a["checksum"] == b["checksum"]
  assert losses_of(states[1].path) == losses_of(straight)
  assert states[1].final == folder.read_path(straight).final
  # The control: the trunk's own end is another state.
  assert newest_meta(states[0].path)["checksum"] != a["checksum"]

  # Finished, it says so at once: without jax, which takes a second to import.
  write(trunk, decay % ', branch_from=("trunk", 8)')
  code = (
    "import sys; from gpt_jax.lab import sweep; code = sweep.main(sys.argv[1:])"
    "; assert 'jax' not in sys.modules and code == 0"
  )
  started = time.monotonic()
  again = subprocess.run(
    [sys.executable, "-c", code, *words],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=user_env(),
  )
  assert again.returncode == 0, again.stderr
  assert again.stdout == "2 cells: 2 done, 0 to run\n"
  assert time.monotonic() - started < 5


@pytest.mark.slow
def test_twelve_cells_of_which_three_fail(write, tmp_path):
  lines = [
    "for i in range(9):",
    '  add(f"good {i}", seed=i)',
    'add("bad", {"optim.learning_rate": RATE, "seed": 10})',
    'add("killed", {"train.num_steps": 3000, "seed": 11})',
    'add("large", {"train.global_batch_size": 4096, "seed": 12})',
  ]
  root = tmp_path / "root"
  spell = lambda rate, *more: write(
    *(line.replace("RATE", rate) for line in lines), *more
  )
  path = spell("-1.0")
  words = [f"--config={path}", f"--workdir={root}"]
  sweep = load(path)
  ids = {cell.name: cell.id for cell in sweep.cells}
  process = start("run", *words, "--workers=2", "--memory=1.2")
  killed = pathlib.Path(folder.path_of(str(root), ids["killed"]))
  deadline = time.monotonic() + 400
  while not (killed / "metrics.jsonl").exists():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.1)
  held = json.loads((killed / "running.json").read_text())
  os.kill(held["pid"], signal.SIGKILL)
  said = process.communicate(timeout=400)[0]
  assert process.returncode == exits.FAILED, said
  states = {name: folder.read(str(root), i) for name, i in ids.items()}
  done = [name for name, state in states.items() if state.word == "done"]
  assert done == [f"good {i}" for i in range(9)], said
  assert "refused: bad seed 10: optim.learning_rate is -1.0" in said
  assert states["killed"].reason.startswith("killed by SIGKILL")
  assert states["large"].reason.startswith("out of memory")
  print(said)

  # Mended: another value, more memory, and once more.
  path = spell("0.01")
  ids = {cell.name: cell.id for cell in load(path).cells}
  for name in ("bad", "killed", "large"):
    only = f"--only={ids[name]}"
    process = start("run", *words, "--retry", only)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0 and "1 to run" in said, said
    print(said)
  started = time.monotonic()
  process = start("run", *words)
  said = process.communicate(timeout=60)[0]
  assert process.returncode == 0 and "12 cells: 12 done, 0 to run" in said
  seconds = time.monotonic() - started
  print(f"again: {seconds:.2f} s")
  assert seconds < 5

  # Two more values, on two machines, and their folders together.
  times = {
    i: os.stat(folder.path_of(str(root), i)).st_mtime_ns for i in ids.values()
  }
  path = spell("0.01", 'add("more", seed=20)', 'add("yet more", seed=21)')
  new = {c.name: c.id for c in load(path).cells if c.id not in ids.values()}
  assert set(new) == {"more", "yet more"}
  other = tmp_path / "other"
  process = start("run", *words, f"--only={new['more']}")
  assert process.wait(timeout=200) == 0
  there = [words[0], f"--workdir={other}", f"--only={new['yet more']}"]
  process = start("run", *there)
  assert process.wait(timeout=200) == 0
  shutil.copytree(other / "cells", root / "cells", dirs_exist_ok=True)
  process = start("run", *words)
  said = process.communicate(timeout=60)[0]
  assert process.returncode == 0 and "14 cells: 14 done, 0 to run" in said
  for i, changed in times.items():
    assert os.stat(folder.path_of(str(root), i)).st_mtime_ns == changed


def test_workers_have_cores_of_their_own(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5})
  assert pool.share_cores(2) == [{0, 3}, {2, 5}]
  assert pool.share_cores(4) == [{0}, {2}, {3}, {5}]
  # One has all; more than there are cores share them.
  assert pool.share_cores(1) == pool.share_cores(5) == []
