"""The report: every run comes to its end with one."""

import json


def test_a_run_without_bits_per_byte_is_reported_too(
  call_verb, small_run, tmp_path
):
  done = call_verb(
    "train",
    *small_run,
    "--config.data.objective=prefix_lm",
    "--config.optim.warmup_steps=0",
    "--config.train.num_steps=2",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  (found,) = [row for row in map(json.loads, lines) if "eval/valid/loss" in row]
  assert "eval/valid/bits_per_byte" not in found
  assert (tmp_path / "run" / "plots" / "loss.svg").exists()
