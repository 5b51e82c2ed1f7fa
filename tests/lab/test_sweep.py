"""Sweeps: what names a cell, what is run, what is said of it."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import branches, cells, folder

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
  text.write_text((ROOT / "gpt_jax" / "loop.py").read_text())

  def make(*lines: str) -> str:
    path = tmp_path / "conf.py"
    body = "\n".join(f"  {line}" for line in lines)
    path.write_text(CONFIG.format(text=text, folder=tmp_path, sweep=body))
    return str(path)

  return make


def load(path: str, **overrides) -> cells.Sweep:
  return cells.load(path, overrides)


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
    assert cells.load(path, overrides).cells[0].id == first.id
  # A copy of the text with another date is the same text.
  text = tmp_path / "corpus.txt"
  os.utime(text, (1, 1))
  cells.data_identity.cache_clear()
  assert load(path).cells[0].id == first.id
  other = {
    "rate": cells.load(path, {"optim.learning_rate": "0.5"}),
    "seed": cells.load(path, {"seed": "3"}),
    "code": cells.load(path, {}, code="0" * 12),
  }
  text.write_text(text.read_text() + "more")
  cells.data_identity.cache_clear()
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
  monkeypatch.setattr(cells.gpt_jax, "__file__", str(copy / "__init__.py"))
  version = cells.code_version.__wrapped__
  first = version()
  (copy / "lab" / "plan.py").write_text("")
  (copy / "README.md").write_text("")
  assert version() == first
  (copy / "models" / "layers.py").write_text("")
  assert version() != first


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
  assert cells.diff_text(sweep.cells[3], sweep.cells[0]) == (
    "seed 1, learning_rate 0.002"
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
    "differ in what changes no result alone (train.log_every_steps)",
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
    "--config.checkpoint.every_steps=1",
    "--config.checkpoint.keep_every_steps=3",
  )
  # Where it starts from changes nothing: the id is that of a straight run.
  straight = load(write('add("b", {"train.num_steps": 20})'))
  assert straight.cells[0].id == branch.id
  branches.check_rates(sweep.cells)


def test_a_branch_of_another_rate_is_refused(write):
  decays = '{"train.num_steps": 20, "optim.decay_frac": 0.9}'
  lines = ['add("a", {"optim.decay_frac": 0.0})']
  lines.append(f'add("b", {decays}, branch_from=("a", 9))')
  with pytest.raises(InputError, match="learning rate after 5 steps is 0.001"):
    branches.check_rates(load(write(*lines)).cells)
  # The control: up to the end of the warm-up they are the same.
  lines[1] = lines[1].replace('("a", 9)', '("a", 4)')
  branches.check_rates(load(write(*lines)).cells)


def make_run(root, cell, losses=(3.0, 2.0), is_done=True, **config) -> None:
  """Writes the folder that a run of this cell would leave."""
  path = pathlib.Path(folder.path_of(str(root), cell.id))
  path.mkdir(parents=True)
  flat = config_lib.flatten(cell.config) | {"model.vocab_size": 257} | config
  record = {"config": flat, "data_fingerprint": "0" * 64}
  (path / "config.json").write_text(json.dumps(record))
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
  record.write_text(record.read_text().replace("model.norm_eps", "model.eps"))
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
  assert dataclasses.astuple(f)[0] not in folder.list_ids(str(other))
