"""Imports of large models: what a host must hold, and what a kill leaves."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from make_zeros import LLAMA3_8B, write

# Bytes of programs, which do not grow with the model.
COMPILED = 1 << 25
ROOT = pathlib.Path(__file__).parents[3]
# Imports SMALL, then LARGE onto 8 devices, and prints the growth of memory from
# the one to the peak of the other.
PROGRAM = """
import pathlib, sys
small, large, run, least = sys.argv[1:]
from gpt_jax.machine import runtime
runtime.start(8)
from gpt_jax.deploy.hf import importing
from gpt_jax.runs import storage
storage.MIN_COPIED = int(least)
load, axes = importing.cli.load_config, {"mesh.data": "1", "mesh.fsdp": "8"}
importing.cli.load_config = lambda path, _: load(path, axes)
importing.import_model(small, run + "_small", "bytes")
status = lambda: dict(
  line.split(":") for line in open("/proc/self/status") if ":" in line
)
before = int(status()["VmRSS"].split()[0])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # peak = now
importing.import_model(large, run, "bytes")
print(1024 * (int(status()["VmHWM"].split()[0]) - before))
"""
SMALL = LLAMA3_8B | dict(
  hidden_size=64,
  intermediate_size=128,
  num_attention_heads=8,
  num_hidden_layers=4,
  vocab_size=512,
)


def run_program(folder, sizes: dict, least: int) -> tuple[int, int, int]:
  """Returns (growth, bytes of all tensors, of the largest)."""
  write(folder / "small", SMALL)
  total, largest = write(folder / "large", sizes)
  words = [folder / "small", folder / "large", folder / "run", least]
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (folder / "run" / "checkpoints" / "0").is_dir()
  return int(done.stdout.split()[-1]), total, largest


@pytest.mark.wide
def test_an_import_holds_its_target_and_little_more(tmp_path):
  sizes = LLAMA3_8B | dict(
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=24,
    vocab_size=262_144,
  )
  growth, total, largest = run_program(tmp_path, sizes, 0)
  bound = total + 1.2 * largest + COMPILED
  assert total < growth < bound, (growth, total, largest)


@pytest.mark.slow
def test_eight_billion_zeros_are_imported_within_the_bound(tmp_path):
  growth, total, largest = run_program(tmp_path, LLAMA3_8B, 1 << 28)
  print(f"{growth:,} bytes for {total:,}, the largest {largest:,}")
  assert total < growth < total + 1.2 * largest


KILLED = """
import os, signal, sys
from gpt_jax.machine import runtime
runtime.start(1)
from gpt_jax.deploy.hf import folders, importing
write = folders.files.write_text
def kill(path, text):
  write(path, text)
  os.kill(os.getpid(), signal.SIGKILL)
folders.files.write_text = kill
importing.import_model(*sys.argv[1:], "bytes")
"""


@pytest.mark.wide
def test_a_killed_import_leaves_no_run_and_the_next_goes_through(
  tmp_path, call_verb
):
  write(tmp_path / "source", SMALL)
  run = tmp_path / "run"
  words = [str(tmp_path / "source"), str(run)]
  done = subprocess.run(
    [sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ["run.partial", "source"]
  partial = tmp_path / "run.partial"
  assert (partial / "checkpoints" / "0").is_dir()  # it was well under way
  done = call_verb("generate", f"--workdir={run}", "--prompt=a")
  assert done.returncode == 2 and "does not exist" in done.stderr
  done = call_verb(
    "deploy.hf.__main__",
    "import",
    f"--from={tmp_path / 'source'}",
    f"--workdir={run}",
    "--tokenizer=bytes",
  )
  assert done.returncode == 0, done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "source"]
  record = json.loads((run / "config.json").read_text())
  assert record["config"]["model.num_layers"] == 4
