"""The induction head: what the command says of a run, and of its config."""

import subprocess
import sys

import pytest
from harness import ROOT

import gpt_jax
from gpt_jax.lab.interp import induction


@pytest.mark.slow  # trains for two minutes
def test_an_induction_head_is_learned_and_is_what_copies(tmp_path):
  text = tmp_path / "repeats.jsonl"
  words = sys.executable, str(ROOT / "tests" / "repeats.py"), str(text)
  subprocess.run(words, check=True)
  changes = {"data.source": f"jsonl:{text}", "data.dir": f"{tmp_path}/prepared"}
  run = gpt_jax.fit("configs/induction.py", str(tmp_path / "run"), changes)
  found, figure = induction.measure(run)
  print(found)
  score, control = (found[k] for k in found if k.startswith("score of"))
  assert score > 0.6 and control < 0.1
  first, second, *lost = (
    found[f"loss, {half} reading, {case}"]
    for half, case in (
      ("first", "all heads"),
      ("second", "all heads"),
      *(("second", name_of(found, score)) for score in (score, control)),
    )
  )
  # With the head gone the second reading is as hard as the first.
  assert second < 0.6 and lost[0] > first - 0.5
  assert lost[1] < 1.5
  assert "without layer 1" in figure


def name_of(found: dict, score: float) -> str:
  """Returns the case without the head that has a score."""
  (name,) = (k for k, value in found.items() if value == score)
  return name.replace("score of", "without")
