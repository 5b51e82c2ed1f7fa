"""The report: every run comes to its end with one."""

import json

from gpt_jax.data import card
from gpt_jax.training import preflight


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
  # The run says what it learned from, in the card of its set.
  (folder,) = (tmp_path / "prepared").iterdir()
  told = (tmp_path / "run" / "data.md").read_text()
  assert told == card.describe(str(folder)) and "data.md" in done.stdout


def test_the_first_row_comes_before_what_can_wait(
  call_verb, small_run, tmp_path, monkeypatch
):
  path, seen = tmp_path / "run" / "metrics.jsonl", []

  def measure(mesh):
    seen.extend(path.read_text().splitlines())
    return 1e15

  monkeypatch.setattr(preflight, "device_peak", measure)
  done = call_verb(
    "train",
    *small_run,
    "--config.optim.warmup_steps=0",
    "--config.train.num_steps=4",
    "--config.train.log_every_steps=1",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 0, done.stderr
  (first,) = map(json.loads, seen)
  assert first["step"] == 1 and "train/loss" in first
  rows = list(map(json.loads, path.read_text().splitlines()))
  assert any("perf/step_seconds" in row for row in rows)
  for row in rows:
    assert ("perf/mfu" in row) == ("perf/step_seconds" in row), row
