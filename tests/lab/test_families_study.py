"""The study of configs/families.py compares like with like."""

import json

import functions
import pytest
from ml_collections import ConfigDict

from configs import families
from gpt_jax import config as config_lib
from gpt_jax import flops, tree
from gpt_jax.models import HEADS, build_model, check_objective


def frozen(stage: str, values: dict | None = None) -> config_lib.Config:
  config = families.get_config(stage)
  for key, value in (values or {}).items():
    config.update_from_flattened_dict({key: value})
  return config_lib.freeze(config)


def count(stage: str) -> int:
  return sum(flops.count_parameters(frozen(stage).model).values())


def cost(config: config_lib.Config) -> int:
  t = config.train
  tokens = t.num_steps * t.global_batch_size * config.data.seq_len
  return flops.train_flops_of(config) * tokens


def asked() -> dict[str, dict]:
  found = {}
  families.sweep(lambda name, values, seeds: found.setdefault(name, values))
  return found


@pytest.mark.parametrize("stage", families.STAGES)
def test_first_stages_have_equal_parameters_and_flops(stage):
  assert count(stage) == pytest.approx(count("causal"), rel=1e-3)
  wanted = cost(frozen("causal"))
  assert cost(frozen(stage)) == pytest.approx(wanted, rel=2e-3)
  # The control: 2 % more steps are another cost.
  steps = round(1.02 * families.STAGES[stage][2])
  more = frozen(stage, {"train.num_steps": steps})
  assert cost(more) != pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("name", asked())
def test_a_model_is_tuned_with_the_arrays_of_its_first_stage(name):
  values = asked()[name]
  stage = values.get("train.init_from", f"{families.FOLDER}/causal")
  start = frozen(stage.rpartition("/")[2])
  tuned = frozen("causal", values)
  check_objective(tuned.model.family, tuned.data.objective)
  assert {k: values[k] for k in ("train.num_steps", "data.seq_len")} == {
    "train.num_steps": 100,
    "data.seq_len": 96,
  }

  def trunk(config):
    section = ConfigDict(vars(config.model))
    section.num_classes = 6 if config_lib.has_classes(config.model) else None
    shapes = build_model(config_lib.ModelConfig(**section)).abstract_params()[0]
    return tree.describe_shapes(
      {k: v for k, v in shapes.items() if k not in HEADS}
    )

  if "train.init_from" in values:
    assert trunk(tuned) == trunk(start)


def test_tasks_are_made_of_functions_that_are_neither_long_nor_common(tmp_path):
  package = tmp_path / "lib" / "email"
  package.mkdir(parents=True)
  body = "  return self.first + self.second\n"
  (package / "a.py").write_text(
    "".join(f"def add(self, n{i}):\n{body}\n" for i in range(50))
    + "def recurse(n):\n  return recurse(n - 1) if n else 'nothing'\n\n"
    + f"def long(self):\n{body * 9}\ndef tiny(): pass\n"
    + f"def other(self):\n{body}"
  )
  (package / "broken.py").write_text("def (")
  functions.write(str(tmp_path / "out"), str(tmp_path / "lib"))
  pairs = (tmp_path / "out" / "names.tsv").read_text().splitlines()
  assert len(pairs) == functions.MOST + 1
  source, name = pairs[-1].split("\t")
  assert name == "other"
  assert source == "def (self): return self.first + self.second"
  lines = (tmp_path / "out" / "packages.jsonl").read_text().splitlines()
  texts = [json.loads(line) for line in lines]
  assert len(texts) == 52 and {t["label"] for t in texts} == {"email"}


def test_the_table_has_means_over_seeds(tmp_path):
  for i, accuracy in enumerate((0.5, 0.7)):
    cell = tmp_path / "cells" / str(i)
    cell.mkdir(parents=True)
    record = {"name": "a"}
    (cell / "cell.json").write_text(json.dumps(record))
    row = {"step": 9, "eval/valid/loss": 1.0, "eval/valid/accuracy": accuracy}
    early = {"step": 3, "eval/valid/accuracy": 0.1}
    rows = "".join(f"{json.dumps(r)}\n" for r in (early, row))
    (cell / "metrics.jsonl").write_text(rows)
  (line,) = functions.table(str(tmp_path)).splitlines()
  assert "2 seeds  loss 1.0000 (range 0.0000)" in line
  assert "accuracy 0.6000 (range 0.2000)" in line
