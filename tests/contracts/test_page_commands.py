"""Commands of README and docs/ that take seconds do what the page says."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from harness import ROOT
from pages import PAGES, commands

# Commands that take seconds on a tiny text: as a page has them, with SMALL
# added where they would train or prepare more than that.
SMALL = [
  "--config.data.seq_len=16",
  "--config.model.max_len=16",
  "--config.model.num_layers=1",
  "--config.model.model_dim=32",
  "--config.model.num_heads=2",
  "--config.model.num_kv_heads=2",
  "--config.model.mlp_dim=32",
  "--config.train.num_steps=4",
  "--config.optim.warmup_steps=1",
  "--config.train.global_batch_size=8",
  "--config.eval.num_batches=1",
  "--config.sample.num_tokens=4",
]
RUN_AS_THEY_STAND = [
  ".venv/bin/python -m gpt_jax.train --help",
  ".venv/bin/python -m gpt_jax.train --workdir=runs/tiny",
  ".venv/bin/python -m gpt_jax.train --workdir=runs/tiny --replay=600",
  ".venv/bin/python -m gpt_jax.generate --workdir=runs/tiny "
  "--prompt='def main(' --temperature=0.7 --top_p=0.9",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny --data=README.md",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny --weights=int8 "
  "--average=last:2",
  ".venv/bin/python -m gpt_jax.lab.plan --config=configs/gpt2.py:1558m "
  "--topology=h100:8 --search",
]
RUN_SMALL = [
  "bash launch/local.sh --config.data.source='text:~/books/*.txt' "
  "--config.data.tokenizer=bpe:4096 --workdir=runs/books",
  "bash launch/local.sh "
  "--config.data.source='0.7*text:a/*.txt,0.3*jsonl:b.jsonl#body' "
  "--workdir=runs/mixture",
  "bash launch/local.sh --devices=8 --config.mesh.data=2 "
  "--config.mesh.fsdp=2 --config.mesh.tensor=2 --workdir=runs/mesh",
  ".venv/bin/python -m gpt_jax.data --config=configs/llama.py:mini",
  ".venv/bin/python -m gpt_jax.train --config=configs/tiny.py "
  "--config.data.source='pairs:pairs.tsv' "
  "--config.data.objective=sequence_to_sequence "
  "--config.data.packing=documents --workdir=runs/pairs",
]
# These read what the others have left.
RUN_LAST = [
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/pairs --generate=500",
]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
  """A folder with the texts and the run that the pages' commands name."""
  folder = tmp_path_factory.mktemp("house")
  for name in ("README.md", "configs"):
    (folder / name).symlink_to(ROOT / name)
  text = (ROOT / "docs" / "scaling.md").read_text()
  for name in ("a", "books"):
    (folder / name).mkdir()
    for i in range(4):
      (folder / name / f"{i}.txt").write_text(f"{name} {i}\n{text}")
  line = '{"body": "Some text of many words, number %d."}\n'
  (folder / "b.jsonl").write_text("".join(line % i for i in range(200)))
  pairs = "".join(f"{i}\t{i % 7}\n" for i in range(80))
  (folder / "pairs.tsv").write_text(pairs)
  # The run of the quickstart, on a text and in sizes of seconds.
  words = [*SMALL, "--config.train.num_steps=900"]
  words += ["--config.data.source=text:a/*.txt", "--workdir=runs/tiny"]
  words += ["--config.data.tokenizer=bytes", "--config.eval.every_steps=0"]
  words += ["--config.checkpoint.every_steps=450"]
  run_in(folder, ["gpt_jax.train", *words])
  return folder


def run_in(folder: pathlib.Path, words: list[str]) -> str:
  env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
  # As in conftest.py, without its 8 devices.
  env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  result = subprocess.run(
    [sys.executable, "-m", *words],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_AS_THEY_STAND + RUN_SMALL + RUN_LAST)
def test_commands_of_seconds_do_what_the_page_says(house, command):
  assert any(command in commands(page.read_text()) for page in PAGES)
  words = shlex.split(command)
  words = words[2:] if words[0] != "bash" else ["gpt_jax.train", *words[2:]]
  if command in RUN_SMALL:
    words += SMALL
    if "data.source" not in command:
      words += ["--config.data.source=text:a/*.txt"]
    if "data.tokenizer" not in command:
      words += ["--config.data.tokenizer=bytes"]
  assert run_in(house, words).strip()
