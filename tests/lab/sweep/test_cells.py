"""Which cells a sweep has, and from where each begins."""

import pytest
from sweeps import load

from gpt_jax.config import InputError
from gpt_jax.lab.sweep import branches, cells, trunks


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
