"""eval.tasks: tasks of lm-evaluation-harness at each evaluation of a run."""

import json
import re
import sys

import pytest

from gpt_jax.inference import harness

# What the harness returns of a task, as far as a run reads it.
RESULTS = {
  "choose": {
    "alias": "choose",
    "sample_len": 25,
    "acc,none": 0.5,
    "acc_stderr,none": 0.1,
    "exact_match,strict": 1,
  }
}
FIGURES = {"eval/choose/acc": 0.5, "eval/choose/exact_match_strict": 1.0}


def rows_of(folder) -> list[dict]:
  lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  return list(map(json.loads, lines))


def flags(folder, *words) -> list[str]:
  return [
    "--config.optim.warmup_steps=0",
    "--config.train.num_steps=4",
    "--config.eval.every_steps=2",
    f"--workdir={folder / 'run'}",
    *words,
  ]


@pytest.mark.wide
def test_tasks_are_answered_at_each_evaluation_and_at_the_end(
  call_verb, small_run, tmp_path, monkeypatch
):
  asked, is_told = [], []

  def evaluate(answers, names, what, limit, is_chat):
    assert not is_chat
    # The weights of that step, which a text's score tells.
    asked.append((*names, limit, *answers.score([([1], [2, 3])])[0]))
    return {"results": RESULTS}

  monkeypatch.setattr(harness, "evaluate", evaluate)
  monkeypatch.setattr(harness, "require", lambda **kw: is_told.append(kw))
  words = "--config.eval.tasks=choose, other", "--config.eval.task_limit=7"
  done = call_verb("train", *small_run, *flags(tmp_path, *words))
  assert done.returncode == 0, done.stderr
  assert is_told == [{"is_quiet": True}]
  assert [each[:3] for each in asked] == [("choose", "other", 7)] * 2
  assert asked[0][3] != asked[1][3]
  rows = [r for r in rows_of(tmp_path) if any("choose" in k for k in r)]
  for step, row in zip((2, 4), rows, strict=True):
    assert row["step"] == step
    assert {k: v for k, v in row.items() if "choose" in k} == FIGURES
  assert "step 2: choose/acc 0.5, choose/exact_match_strict 1" in done.stdout


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--config.eval.tasks=a"], r"lm_eval.*\[eval\]"),
    (["--config.eval.tasks=a,,b"], "eval.tasks is 'a,,b'"),
    (["--config.eval.tasks=/nowhere/x.yaml"], "eval.tasks names /nowhere/x"),
    (["--config.eval.tasks=a", "--config.eval.task_limit=0"], "task_limit"),
    (
      ["--config.eval.tasks=a", "--config.data.objective=prefix_lm"],
      "trained with prefixes",
    ),
  ],
)
def test_what_cannot_answer_tasks_is_refused_before_the_first_step(
  words, said, call_verb, small_run, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  done = call_verb("train", *small_run, *flags(tmp_path, *words))
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert re.search(said, done.stderr), done.stderr
  path = tmp_path / "run" / "metrics.jsonl"
  assert not path.exists() or not path.read_text()
