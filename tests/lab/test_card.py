"""The check of a GPU: its parts at toy size, its limits, its tables."""

import importlib.util
import json
import sys
import types

import pytest

from gpt_jax.config import InputError
from gpt_jax.lab import card
from gpt_jax.lab.card import check, parts, table
from gpt_jax.lab.plan import gpus
from gpt_jax.machine import chips

HAS_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None
needs_compiler = pytest.mark.skipif(
  not (HAS_COMPILER and gpus.has_cudnn()),
  reason="the GPU compiler, extra plan-gpu, or cuDNN is not installed",
)


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["--parts=gpt3"], r"--parts names 'gpt3'; there are check, gpt2, .*flags"),
    (["--minutes=0"], "--minutes is 0; it must be above 0 and below 1000"),
    (["--toy", "--config.model.num_layers=2"], "num_layers does nothing here"),
    (["--parts="], "--parts names ''"),
    (["--minutes=nan"], "--minutes is nan; it must be above 0"),
    (
      ["--compile=h300"],
      "--compile is 'h300'; it must be one of a100, b200, h100",
    ),
  ],
)
def test_bad_words_are_refused(words, sentence):
  with pytest.raises(InputError, match=sentence):
    card.main(words)


def test_without_a_gpu_or_its_compiler_nothing_is_begun(monkeypatch, tmp_path):
  monkeypatch.setattr(card.runtime, "find_accelerator", lambda: False)
  out = tmp_path / "out"
  with pytest.raises(InputError, match="there is no GPU here; --toy runs"):
    card.main([f"--out={out}"])
  monkeypatch.setattr(card.runtime, "start_compiler", lambda platform: None)
  monkeypatch.setattr(gpus, "has_compiler", lambda: False)
  with pytest.raises(InputError, match="needs jax's CUDA plugin.*plan-gpu"):
    card.main(["--compile=h100", f"--out={out}"])
  monkeypatch.setattr(gpus, "has_compiler", lambda: True)
  monkeypatch.setattr(gpus, "has_cudnn", lambda: False)
  with pytest.raises(InputError, match="with cuDNN, which is not inst.*cuda"):
    card.main(["--compile=h100", f"--out={out}"])
  assert not out.exists()


@pytest.mark.wide
def test_a_part_runs_at_toy_size(tmp_path, capfd):
  assert card.main(["--toy", "--parts=gpt2", f"--out={tmp_path}"]) == 0
  out = capfd.readouterr().out
  rows = [json.loads(r) for r in (tmp_path / "card.jsonl").open()]
  assert [json.loads(line) for line in out.splitlines()[:2]] == rows
  assert [r["row"] for r in rows] == ["64 rows", "64 rows, documents"]
  row = rows[0]
  assert row["part"] == "gpt2" and row["device"] == "cpu"
  assert row["tokens_per_s"] > 0 and row["steps"] == 5
  assert f"| 64 rows | {row['step_ms']} | {row['tokens_per_s']:,} |" in out
  assert (tmp_path / "gpt2.hlo.gz").exists()


def test_a_card_without_the_memory_for_a_trial_leaves_it_out(monkeypatch):
  monkeypatch.setattr(parts.steps, "time_step", lambda *a: {})
  count = {}
  for kind in "NVIDIA H200", "NVIDIA H100 80GB HBM3":
    setting = parts.Setting([types.SimpleNamespace(device_kind=kind)])
    count[kind] = len(list(parts._rows("llama-8b", setting)))
  assert count == {"NVIDIA H200": 1, "NVIDIA H100 80GB HBM3": 0}


@pytest.mark.wide
def test_a_part_that_hangs_is_stopped_and_said(monkeypatch, tmp_path, capfd):
  monkeypatch.setitem(card.PARTS, "gpt2", card.Part("hangs", 5.5))
  monkeypatch.setattr(card.runtime, "find_accelerator", lambda: True)
  script = tmp_path / "python"
  script.write_text("#!/bin/sh\nsleep 60\n")
  script.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(script))
  assert card.main(["--parts=gpt2", "--minutes=1"]) == 1
  said = capfd.readouterr()
  assert '"error": "stopped after 6 s"' in said.out
  assert "gpt2: stopped after 6 s" in said.err


def test_the_table_shows_shares_errors_and_kernels():
  about = {"part": "gpt2", "device": "card"}
  rows = [
    about
    | {"row": "a", "step_ms": 70.0, "mfu": 0.4123}
    | {"kernels": [["all", 69.0, 2], ["gemm", 40.0, 12]]},
    about | {"row": "b", "error": "RESOURCE_EXHAUSTED: out of memory"},
    {"part": "check", "device": "card", "row": "c", "is_right": True},
    {"part": "check", "device": "card", "row": "d", "is_right": False},
  ]
  lines = table.lines(rows)
  assert "| a | 70.0 | 41.2 % |" in lines
  assert "| b | RESOURCE_EXHAUSTED: out of memory |  |" in lines
  assert "     40.000 ms     12 x gemm" in lines
  assert "check: 1 of 2 rows are right" in lines
  lost = {"part": "flags", "device": "card", "row": "e", "error": "no memory"}
  assert table.lines([lost]) == ["flags: e: no memory", ""]
  compiled = {
    "part": "check",
    "device": "card",
    "row": "c",
    "is_compiled": True,
  }
  assert table.lines([compiled]) == ["check: 1 of 1 programs compile", ""]


def test_every_chip_that_is_planned_for_has_a_target():
  words = {w for w, chip in chips.CHIPS.items() if chip.platform == "gpu"}
  assert words <= set(gpus.TARGETS)
  for word in words:
    chip, target = chips.CHIPS[word], gpus.TARGETS[word]
    assert target.name in chip.kinds
    # A B200's clock gives 7,672 of the 8,000 GB/s that are published.
    assert 0.95 < target.bandwidth / 1e9 / chip.hbm_gbps < 1.01
    assert chip.hbm_bytes < target.memory


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("word", ["h100", "h200"])
def test_every_program_compiles(word, tmp_path):
  names = ",".join(card.PARTS)
  words = [f"--compile={word}", f"--parts={names}", f"--out={tmp_path}"]
  assert card.main(words) == 0
  rows = (tmp_path / "card.jsonl").read_text().splitlines()
  memory = chips.CHIPS[word].hbm_bytes / parts.steps.GIB
  trials = [t for one in parts.TRIALS.values() for t in one.values()]
  expected = sum(trial.gib <= memory for trial in trials)
  expected += len(parts.DECODED) + len(parts.CHECKED) + len(check.RULES)
  assert len(rows) == expected
