"""What a sweep will cost."""

import dataclasses
import os
import types

import pytest
from sweeps import load, make_run

from configs import classify
from gpt_jax import config as config_lib
from gpt_jax import exits
from gpt_jax.lab.sweep import asked as asked_lib
from gpt_jax.lab.sweep import folder, listing, plan, pool, report, tables
from gpt_jax.machine import console


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


def test_flops_are_counted_alike_by_plan_and_report(write, tmp_path):
  (cell,) = load(write('add("a")')).cells
  make_run(tmp_path, cell)
  state = folder.read(str(tmp_path), cell.id)
  bill = plan._bill(cell, state.config, plan.Limits(topology="x"))
  assert tables.sizes_of(state)["flops"] == bill.flops
  table = tables.csv_text([state], {}, [])
  assert str(int(bill.flops)) in table.splitlines()[1].split(",")


def test_the_plan_of_a_classifier_needs_its_classes_and_its_run_does_not(
  tmp_path,
):
  config = config_lib.freeze(classify.get_config())
  with pytest.raises(config_lib.InputError, match="--config.model.num_classes"):
    plan.with_vocab(config, None)
  cell = types.SimpleNamespace(config=config, trunk=None, id="a")
  assert pool._work(str(tmp_path), cell) == (0, config.train.num_steps)
  known = dataclasses.replace(config.model, num_classes=3)
  cell.config = dataclasses.replace(config, model=known)
  filled = plan.with_vocab(cell.config, None)
  assert filled.model.vocab_size == 1024
  wanted = plan.step_flops(filled) * config.train.num_steps
  assert pool._work(str(tmp_path), cell) == (0, wanted)


def test_cells_of_other_code_or_of_an_older_file_are_named(
  write, call_verb, tmp_path
):
  asked = 'add("a", {"optim.learning_rate": %s}, seeds=[0, 1])'
  root, path = str(tmp_path / "root"), write(asked % 0.1)
  for cell in asked_lib.load(path, {}, code="c0de").cells:
    make_run(root, cell)
  here = ["lab.sweep", "list", f"--workdir={root}"]
  result = call_verb(*here, f"--config={path}")
  assert "2 waiting" in result.stdout
  assert "2 cells are in" in result.stdout
  assert "of other code: --code=c0de continues them" in result.stdout
  result = call_verb(*here, f"--config={path}", "--code=c0de")
  assert "2 done" in result.stdout and "beside" not in result.stdout
  changed = write(asked % 0.2)
  result = call_verb(*here, f"--config={changed}", "--code=c0de")
  assert "2 waiting" in result.stdout
  assert "which this config does not ask for" in result.stdout
