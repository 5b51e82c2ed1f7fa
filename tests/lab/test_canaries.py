"""Canaries: planted as asked, and exposure as the paper defines it."""

import json
import math

import numpy as np
import pytest

from gpt_jax.lab import canaries
from gpt_jax.lab.canaries import figure


def test_exposure_is_the_bits_by_which_a_rank_is_better_than_the_last():
  for rank, wanted in ((1, 3.0), (2, 2.0), (4, 1.0), (8, 0.0)):
    others = [-1.0] * (rank - 1) + [-3.0] * (8 - rank)
    assert canaries.exposure([-2.0, *others]) == pytest.approx(wanted)
  # Equal ones count half: rank 1 + 7 / 2 of 8.
  assert canaries.exposure([-2.0] * 8) == pytest.approx(3 - math.log2(4.5))


def test_chance_is_the_mean_of_a_model_that_knows_nothing():
  dice = np.random.default_rng(0)
  bits = [canaries.exposure(dice.normal(size=1024)) for _ in range(2000)]
  assert np.mean(bits) == pytest.approx(figure.CHANCE, abs=0.1)


def test_a_canary_is_planted_as_often_as_asked():
  found = canaries.make([1, 5], each=3, seed=0)
  assert [c.copies for c in found] == [1, 1, 1, 5, 5, 5]
  assert len({c.text for c in found}) == 6
  texts = [(f"{i}", f"text {i}") for i in range(20)]
  planted = list(canaries.plant(texts, found, 20, seed=0))
  assert [d for d in planted if not d[0].startswith("canary")] == texts
  for canary in found:
    assert sum(text == canary.text for _, text in planted) == canary.copies
  places = [i for i, (name, _) in enumerate(planted) if name[0] == "c"]
  assert places[0] < 10 < places[-1]  # all over the text
  assert planted == list(canaries.plant(texts, found, 20, seed=0))
  assert planted != list(canaries.plant(texts, found, 20, seed=1))
  assert found != canaries.make([1, 5], each=3, seed=1)


def test_candidates_are_many_and_the_first_is_the_secret():
  (canary,) = canaries.make([1], each=1, seed=3)
  found = canary.candidates()
  assert found[0] == canary.secret and len(set(found)) == len(found) == 1024
  assert found == canary.candidates()
  assert {len(one) for one in found} == {10}


def test_deduplication_leaves_one_copy(tmp_path, call_verb):
  text = tmp_path / "text.jsonl"
  rows = [json.dumps({"text": f"text {i}"}) for i in range(9)]
  text.write_text("\n".join(rows))
  flags = [f"--list={tmp_path / 'list.json'}"]
  out = tmp_path / "planted.jsonl"
  words = [*flags, f"--source=jsonl:{text}", f"--out={out}", "--copies=1,7"]
  plant = ("lab.canaries.__main__", "plant", *words, "--each=2")
  result = call_verb(*plant)
  assert result.returncode == 0, result.stderr
  assert len(out.read_text().splitlines()) == 9 + 16
  other = tmp_path / "other.jsonl"
  for path in (other, text / "list.json"):
    words = f"--source=jsonl:{text}", f"--out={other}", f"--list={path}"
    bad = call_verb("lab.canaries.__main__", "plant", *words)
    assert bad.returncode == 2 and not other.exists()
    assert "each its own file" in bad.stderr or "no folder" in bad.stderr
  again = call_verb(*plant)
  assert again.returncode == 2 and "exists" in again.stderr
  single = tmp_path / "single.jsonl"
  result = call_verb(
    *("data.__main__", "clean", f"--source=jsonl:{out}", f"--out={single}"),
    *("--rules=none", "--copies=exact"),
  )
  assert result.returncode == 0, result.stderr
  assert len(single.read_text().splitlines()) == 9 + 4


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["plant"], "plant needs --source and --out"),
    (["plant", "--source=text:a", "--out=b", "--copies=1,x"], "--copies is"),
    (["plant", "--source=text:a", "--out=b", "--each=0"], "--each is 0"),
    (["measure"], "does not exist"),
  ],
  ids=str,
)
def test_what_cannot_be_done_is_one_sentence(
  call_verb, tmp_path, words, sentence
):
  flag = f"--list={tmp_path / 'no.json'}"
  result = call_verb("lab.canaries.__main__", *words, flag)
  assert result.returncode == 2 and sentence in result.stderr
  assert not list(tmp_path.iterdir())


def test_a_list_that_is_none_is_one_sentence(call_verb, tmp_path):
  path = tmp_path / "list.json"
  row = {"context": "a", "secret": 3, "copies": 1}
  for content in (
    "[]",
    "{}",
    '{"canaries": []}',
    json.dumps({"canaries": [row]}),
  ):
    path.write_text(content)
    words = ("measure", f"--list={path}", "--runs=a=b")
    result = call_verb("lab.canaries.__main__", *words)
    assert result.returncode == 2 and "no list of canaries" in result.stderr


def test_the_figure_shows_each_run_and_mean():
  curves = {
    "planted": np.array([[1.0, 8.0], [2.0, 9.0]]),
    "deduplicated <once>": np.array([[1.0, 1.5], [1.5, 2.0]]),
  }
  svg = figure.draw(curves, [1, 64])
  assert svg.count("<circle") == 8 and svg.count("<polyline") == 2
  assert "&lt;once&gt;" in svg
  text = figure.table(curves, [1, 64])
  assert "8.50 (8.00-9.00)" in text and "1.44 by chance, 10 at most" in text


@pytest.mark.slow
def test_deduplication_takes_what_was_memorised(tmp_path, call_verb):
  root = tmp_path
  words = ["--list=" + str(root / "list.json"), "--source=text:docs/*.md"]
  out = root / "planted.jsonl"
  result = call_verb(
    *("lab.canaries.__main__", "plant", *words, f"--out={out}"),
    *("--copies=1,64", "--each=6"),
  )
  assert result.returncode == 0, result.stderr
  single = root / "single.jsonl"
  result = call_verb(
    *("data.__main__", "clean", f"--source=jsonl:{out}", f"--out={single}"),
    *("--rules=none", "--copies=exact"),
  )
  assert result.returncode == 0, result.stderr
  values = {
    "data.valid_frac": 0.0,
    "data.tokenizer": "bytes",
    "data.seq_len": 128,
    "data.dir": root / "prepared",
    "model.max_len": 128,
    "model.num_layers": 2,
    "model.model_dim": 96,
    "model.mlp_dim": 384,
    "model.num_heads": 4,
    "train.global_batch_size": 16,
    "train.num_steps": 600,
    "optim.warmup_steps": 30,
    "optim.learning_rate": 0.003,
    "eval.every_steps": 0,
    "sample.every_steps": 0,
    "checkpoint.every_steps": 0,
  }
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  for path in (out, single):
    result = call_verb(
      *("train", "--config=configs/tiny.py", *flags),
      *(f"--config.data.source=jsonl:{path}", f"--workdir={root / path.stem}"),
    )
    assert result.returncode == 0, result.stderr
  from gpt_jax.lab.canaries.__main__ import _read_list, measure_run

  found = _read_list(str(root / "list.json"))
  often = [c.copies == 64 for c in found]
  before, after = (
    np.array(measure_run(found, str(root / path.stem)))[often].mean()
    for path in (out, single)
  )
  assert before > 8 and after < 4
