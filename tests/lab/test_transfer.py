"""Transfer of the learning rate: what is run, kept, and concluded."""

import json
import math
import pathlib

import pytest

from gpt_jax.lab import transfer
from gpt_jax.lab.transfer import Cell

ROOT = pathlib.Path(__file__).parents[2]


def cells_of(optimum, gain: float = 0.1) -> list[Cell]:
  """Returns cells whose loss is a parabola around optimum(index of size)."""
  found = []
  for index, size in enumerate((64, 128, 256)):
    for power in range(-10, -4):
      for seed in (0, 1):
        loss = 3 - gain * index + 0.05 * (power - optimum(index)) ** 2
        loss += 0.001 * seed
        found.append(
          Cell("mup", size, power, seed, loss, f"{size}{power}{seed}")
        )
  return found


def test_a_best_rate_that_stays_is_told_from_one_that_moves():
  stays = transfer.verdict(cells_of(lambda index: -7), "mup")
  assert stays["best"] == [-7, -7, -7] and not stays["moved"]
  assert stays["between"] == pytest.approx([-7] * 3) and stays["worse"] == []
  drifts = transfer.verdict(cells_of(lambda index: -7 - 0.2 * index), "mup")
  assert drifts["best"] == [-7, -7, -7]
  assert drifts["between"] == pytest.approx([-7, -7.2, -7.4])
  edge = transfer.verdict(cells_of(lambda index: -12), "mup")
  assert edge["between"] == [-10, -10, -10]
  moves = transfer.verdict(cells_of(lambda index: -6 - index), "mup")
  assert moves["best"] == [-6, -7, -8] and moves["moved"] == 2
  assert [pair[:2] for pair in moves["worse"]] == [(128, 256)]


def test_wider_is_worse_where_it_is():
  found = transfer.verdict(cells_of(lambda index: -7, gain=-0.1), "mup")
  assert [pair[:2] for pair in found["worse"]] == [(64, 128), (128, 256)]
  assert "is worse than" in transfer.describe(
    cells_of(lambda index: -7, gain=-0.1), "width"
  )


def test_a_run_that_diverged_is_never_the_best():
  cells = cells_of(lambda index: -7)
  cells = [
    Cell("mup", c.size, c.power, c.seed, math.inf, c.identity)
    if c.power == -7
    else c
    for c in cells
  ]
  assert transfer.verdict(cells, "mup")["moved"] == 0
  assert transfer.best(cells, "mup", 64) in (-8, -6)
  assert transfer.draw(cells, "mup", "width").startswith("<svg")


@pytest.fixture
def flags(tmp_path):
  text = f"text:{ROOT}/gpt_jax/*.py"
  return [
    f"--config={ROOT}/configs/mup.py",
    f"--config.data.source={text}",
    "--config.data.split=tail",
    f"--config.data.dir={tmp_path}/prepared",
    "--config.train.num_steps=3",
    "--config.optim.warmup_steps=0",
    "--config.eval.num_batches=2",
    f"--out={tmp_path}/out",
    "--seeds=0",
    "--parametrizations=mup",
  ]


@pytest.mark.wide
def test_a_grid_is_run_once_and_can_be_extended(flags, call_verb, tmp_path):
  grid = ["--widths=64", "--powers=-9,-8"]
  first = call_verb("lab.transfer", *flags, *grid)
  assert first.returncode == 0, first.stderr
  path = tmp_path / "out" / "transfer.jsonl"
  kept = path.read_text()
  assert len(kept.splitlines()) == 2
  again = call_verb("lab.transfer", *flags, *grid)
  assert again.returncode == 0 and path.read_text() == kept
  assert " of 2: " not in again.stdout
  more = call_verb("lab.transfer", *flags, "--widths=64", "--powers=-9,-8,-7")
  assert "3 of 3: mup width 64 rate 2^-7" in more.stdout
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [r["power"] for r in rows] == [-9, -8, -7]
  assert len({r["loss"] for r in rows}) == 3
  report = json.loads((tmp_path / "out" / "transfer.json").read_text())
  assert len(report["cells"]) == 3
  assert (tmp_path / "out" / "transfer-mup.svg").exists()


@pytest.mark.parametrize(
  "words,sentence",
  [
    (["--powers=fast"], "must be whole numbers"),
    (["--parametrizations=mu"], "must be one of standard, mup, completep"),
    (["--widths=64", "--depths=2"], "both given"),
    (["--widths=80"], "whole numbers of heads"),
    (["--config.optim.optimizer=muon"], "rules for adamw and adam"),
    (["--config.data.valid_frac=0"], "validation text"),
  ],
)
def test_a_grid_that_cannot_be_run_is_refused(
  words, sentence, flags, call_verb
):
  done = call_verb("lab.transfer", *flags, *words)
  assert done.returncode == 2 and sentence in done.stderr, done.stderr
