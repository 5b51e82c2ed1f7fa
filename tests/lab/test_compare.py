"""Two runs beside each other: what is said of them, and what is not."""

import json
import pathlib

import pytest

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.lab.sweep import compare, losses

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path):
  """Writes the workdir of a finished run; returns its path."""

  def run(
    name: str, loss: float, data: str = "0", away=9999, **overrides
  ) -> str:
    path = tmp_path / name
    path.mkdir()
    changed = {key.replace("__", "."): v for key, v in overrides.items()}
    config = cli.load_config(str(ROOT / "configs" / "tiny.py"), changed)
    flat = config_lib.flatten(config_lib.freeze(config))
    flat |= {"model.vocab_size": 257}
    total = flat["train.num_steps"]
    record = {"config": flat, "data_fingerprint": data * 64, "fingerprint": ""}
    (path / "config.json").write_text(json.dumps(files.seal(record)))
    hashed = lambda step: {"data/batch_hash": step + (step >= away)}
    rows = [
      {"step": step, "train/loss": loss + 3 * (1 - step / total)} | hashed(step)
      for step in range(100, total + 1, 100)
    ]
    rows.append({"step": total, "eval/valid/loss": loss})
    rows[-1]["eval/valid/num_tokens"] = 9
    (path / "metrics.jsonl").write_text(
      "".join(f"{json.dumps(r)}\n" for r in rows)
    )
    (path / "plots").mkdir()
    (path / "plots" / "loss.svg").touch()
    return str(path)

  return run


def test_a_comparison_is_data_and_prints_nothing(make, capsys):
  sides = [
    [make(f"{side}{seed}", loss + seed / 10, seed=str(seed)) for seed in (0, 1)]
    for side, loss in (("a", 2.0), ("b", 2.5))
  ]
  found = compare.compare(*(path[0][:-1] + "*" for path in sides))
  assert [len(runs) for runs in found.sets] == [2, 2]
  assert found.changed == {} and found.is_same_data
  assert found.unit == losses.NATS and found.verdict.seeds == (0, 1)
  assert found.verdict.mean == pytest.approx(0.5)
  assert capsys.readouterr().out == ""


def test_two_runs_are_set_side_by_side(make, call_verb, tmp_path):
  a = make("a", 2.0)
  b = make("b", 2.5, optim__learning_rate="0.5", train__log_every_steps="7")
  svg = tmp_path / "curves.svg"
  result = call_verb("lab.sweep.compare", a, b, f"--out={svg}")
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert any(
    line.split() == ["optim.learning_rate", "0.008", "0.5"] for line in lines
  )
  assert "train.log_every_steps  10     7  (changes no result)" in lines
  assert " 900  2.0000  2.5000  +0.5000" in lines
  # One pair shows a difference and no more.
  assert lines[-2].startswith(
    "B: +0.5000 against A in 1 paired seed; no verdict"
  )
  assert svg.read_text().count("<polyline") == 2


def test_sets_of_seeds_have_a_verdict(make, call_verb, tmp_path):
  for seed in range(4):
    noise = 0.01 * (seed % 3)
    make(f"a-{seed}", 2.0 + seed / 10, seed=str(seed))
    rate = {"seed": str(seed), "optim__learning_rate": "0.5"}
    make(f"b-{seed}", 1.9 + seed / 10 + noise, **rate)
    near = {"seed": str(seed), "optim__learning_rate": "0.6"}
    make(f"c-{seed}", 2.0 + seed / 10 + (-1) ** seed * 0.01, **near)
  words = lambda letter: (str(tmp_path / "a-*"), str(tmp_path / f"{letter}-*"))
  result = call_verb("lab.sweep.compare", *words("b"))
  assert "over 4 paired seeds: better (p = " in result.stdout, result.stderr
  result = call_verb("lab.sweep.compare", *words("c"))
  assert "over 4 paired seeds: not distinguishable" in result.stdout


def test_other_data_is_told(make, call_verb):
  result = call_verb(
    "lab.sweep.compare", make("a", 2.0), make("b", 2.0, data="1")
  )
  assert "config: the same" in result.stdout
  assert "data: not the same prepared set" in result.stdout
  # Another text: nothing is subtracted.
  last = result.stdout.splitlines()[-1]
  assert last.startswith("no verdict: their prepared sets differ")
  assert "B - A" not in result.stdout and "+0.0000" not in result.stdout


def test_other_tokens_are_compared_in_bits_per_byte_or_not_at_all(
  make, call_verb
):
  for changes in ({"data__seq_len": "64"}, {"data__tokenizer": "chars"}):
    word = next(iter(changes.values()))
    a, b = (
      make(f"{n}-{word}", 2.0, **c) for n, c in (("a", {}), ("b", changes))
    )
    result = call_verb("lab.sweep.compare", a, b)
    assert "no verdict: their tokens or contexts differ (data." in result.stdout
    assert "B - A" not in result.stdout and "+0." not in result.stdout
    for path, bits in ((a, 1.5), (b, 1.25)):
      with open(f"{path}/metrics.jsonl", "a") as file:
        row = {"step": 1500, "eval/valid/bits_per_byte": bits}
        total = json.loads(pathlib.Path(path, "config.json").read_text())
        row["step"] = total["config"]["train.num_steps"]
        file.write(json.dumps(row) + "\n")
    result = call_verb("lab.sweep.compare", a, b)
    assert "B: -0.2500 bits per byte against A in 1 paired" in result.stdout
    assert "B - A" not in result.stdout


def test_a_diverged_run_is_told_and_has_no_loss(make, call_verb):
  a, b = make("a", 2.0), make("b", 2.0, optim__learning_rate="0.5")
  rows = pathlib.Path(b, "metrics.jsonl")
  text = rows.read_text()
  rows.write_text(text.replace('"eval/valid/loss": 2.0, ', ""))
  assert rows.read_text() != text
  result = call_verb("lab.sweep.compare", a, b)
  assert "B seed 0: diverged" in result.stdout, result.stderr
  last = result.stdout.splitlines()[-1]
  assert last == "B: diverged (1 of 1 seed), against A"


def test_a_folder_with_brackets_is_that_folder(make, call_verb, tmp_path):
  for name in ("sw[1]", "sw1"):
    (tmp_path / name).mkdir()
  for seed in range(2):
    for name, loss in (("sw[1]", 2.0), ("sw1", 3.0)):
      make(f"{name}/{seed}", loss + seed / 10, seed=str(seed))
  words = [str(tmp_path / name / "*") for name in ("sw[1]", "sw1")]
  result = call_verb("lab.sweep.compare", *words)
  assert "B: +1.0000 against A in 2 paired seeds" in result.stdout


def test_where_batches_part_is_told(make, call_verb):
  a, b, c = make("a", 2.0), make("b", 2.0), make("c", 2.0, away=300)
  d = make("d", 2.0, seed="1")
  same = call_verb("lab.sweep.compare", a, b).stdout
  assert "seed 0: the same batches at" in same
  assert (
    "other batches from step 300 on"
    in call_verb("lab.sweep.compare", a, c).stdout
  )
  assert " batches " not in call_verb("lab.sweep.compare", a, d).stdout


def test_what_cannot_be_compared_is_one_sentence(make, call_verb, tmp_path):
  a, b = make("a", 2.0), make("b", 2.0, optim__learning_rate="0.5")
  make("c", 2.1)
  old = pathlib.Path(make("old", 2.0), "config.json")
  other = json.loads(old.read_text().replace("model.norm_eps", "model.eps"))
  old.write_text(json.dumps(files.seal(other)))
  (tmp_path / "empty").mkdir()
  said = {
    (a,): "takes two workdirs",
    (a, str(tmp_path / "none-*")): "matches no folder",
    (a, str(tmp_path / "[ab]")): "differs from",
    (a, str(tmp_path / "[ac]")): "have both seed 0",
    (a, str(old.parent)): "unknown config key model.eps",
    (a, str(tmp_path / "empty")): "has no config.json",
    (a, b, "--config.seed=1"): "--config.seed does nothing here",
    (a, b, "--outt=x"): "did you mean --out?",
  }
  for words, sentence in said.items():
    result = call_verb("lab.sweep.compare", *words)
    assert result.returncode == 2 and sentence in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
