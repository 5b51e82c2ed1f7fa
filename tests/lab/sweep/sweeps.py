"""Sweeps to test on: config files, cells, and what a run of one leaves."""

import json
import pathlib

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.lab.sweep import asked, cells, folder

CONFIG = """
from configs import base

def get_config():
  c = base.get_config()
  c.data.source = "text:{text}"
  c.data.split = "tail"
  c.data.dir = "{folder}/prepared"
  c.data.seq_len = c.model.max_len = 32
  c.model.num_layers = 1
  c.model.model_dim = c.model.mlp_dim = 32
  c.optim.schedule = "wsd"
  c.optim.warmup_steps = 4
  c.train.num_steps = 12
  c.train.global_batch_size = 4
  c.train.log_every_steps = 1
  c.eval.every_steps = 1000
  c.sample.every_steps = 0
  return c

def sweep(add):
{sweep}
"""


def load(path: str, **overrides) -> cells.Sweep:
  return asked.load(path, overrides)


def ids(sweep: cells.Sweep) -> dict[str, str]:
  return {cell.title: cell.id for cell in sweep.cells}


def make_run(root, cell, losses=(3.0, 2.0), is_done=True, **config) -> None:
  """Writes the folder that a run of this cell would leave."""
  path = pathlib.Path(folder.path_of(str(root), cell.id))
  path.mkdir(parents=True)
  flat = config_lib.flatten(cell.config) | {"model.vocab_size": 257} | config
  record = {"config": flat, "data_fingerprint": "0" * 64, "fingerprint": ""}
  (path / "config.json").write_text(json.dumps(files.seal(record)))
  (path / "cell.json").write_text(json.dumps(cell.record()))
  total = cell.config.train.num_steps
  at = [
    round(1 + i * (total - 1) / (len(losses) - 1)) for i in range(len(losses))
  ]
  rows = [
    {"step": s, "train/loss": loss, "progress/tokens": s * 128}
    for s, loss in zip(at, losses, strict=True)
  ]
  end = {"eval/valid/loss": losses[-1], "eval/valid/num_tokens": 99}
  if is_done:
    rows.append({"step": total} | end)
    (path / "plots").mkdir()
    (path / "plots" / "loss.svg").write_text("<svg/>")
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text)
