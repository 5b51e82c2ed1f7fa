"""Starts a branch: a cell that begins at another cell's checkpoint.

A branch gets a copy of its trunk's folder as of that checkpoint, but its own
config, and is resumed like any stopped run. Its result equals that of a run
from step 0, bit for bit, because both have the same learning rates up to the
checkpoint, which check_rates ensures. So a branch has the same id as a run from
step 0.
Design choice: the checkpoint is copied, not linked, so that damage to one run
does not damage the other.
"""

import dataclasses
import json
import os
import shutil

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import folder
from gpt_jax.lab.sweep.cells import Cell
from gpt_jax.runs import workdir


def check_rates(cells: list[Cell]) -> None:
  """Raises InputError if a branch's learning rates differ from its trunk's.

  Only the steps before the branch starts are compared.
  """
  branches = [c for c in cells if c.trunk is not None]
  if not branches:
    return
  import jax
  import numpy as np

  from gpt_jax.training import optim

  # Compute on the CPU, and leave the GPU to the workers.
  jax.config.update("jax_platforms", "cpu")

  by_id = {c.id: c for c in cells}
  rates = {}
  for cell in branches:
    trunk, step = by_id[cell.the_trunk()[0]], cell.the_trunk()[1]
    pair = []
    for one in (trunk, cell):
      key = one.id, step
      if key not in rates:
        c = one.config
        schedule = optim.build_schedule(c.optim, c.train.num_steps)
        at = np.arange(step, dtype=np.int32)
        rates[key] = np.broadcast_to(np.asarray(schedule(at)), at.shape)
      pair.append(rates[key])
    parted = np.flatnonzero(pair[0] != pair[1])
    if parted.size:
      first = int(parted[0])
      there, here = (float(r[first]) for r in pair)
      raise InputError(
        f"{cell.title!r} branches from step {step} of {trunk.title!r}, whose "
        f"learning rate after {first} steps is {there:g} and not {here:g}; "
        "branch earlier, or in the stable part of schedule='wsd'"
      )


def start_step(root: str, cell: Cell) -> int:
  """Returns the step that a cell would begin at if started now."""
  if cell.trunk is None:
    return 0
  trunk, step = cell.trunk
  there = folder.list_steps(folder.path_of(root, trunk))
  return max((s for s in there if s <= step), default=0)


def is_ready(root: str, cell: Cell) -> bool:
  """Returns whether a cell's trunk has the checkpoint that it starts from."""
  return start_step(root, cell) == cell.the_trunk()[1]


def start(root: str, cell: Cell) -> int:
  """Copies a trunk's checkpoint to its branch; returns the branch's first step.

  Copies the trunk's newest checkpoint at or before the step that was asked for,
  since trunk and branch are equal up to there. If there is none, returns 0, and
  the cell runs from step 0. Also returns 0 if the cell has its own checkpoint.
  """
  path = folder.path_of(root, cell.id)
  if folder.list_steps(path):
    return 0  # it has begun already
  step = start_step(root, cell)
  if not step:
    return 0
  source = folder.path_of(root, cell.the_trunk()[0])
  record = workdir.read_record(source)
  rows = folder.read_rows(source)
  # Drop evaluations over a whole set: only the end of a run has one.
  is_end = lambda row: any(k.endswith("/num_tokens") for k in row)
  lines = [
    json.dumps(r) + "\n" for r in rows if r["step"] <= step and not is_end(r)
  ]
  config = cell.config
  found = {}
  for name in ("vocab_size", "num_classes"):  # filled in from the data
    key = f"model.{name}"
    if getattr(config.model, name) is None and key in record["config"]:
      found[name] = record["config"][key]
  model = dataclasses.replace(config.model, **found)
  config = dataclasses.replace(config, model=model)
  files.write_text(os.path.join(path, "metrics.jsonl"), "".join(lines))
  try:
    text = files.read_text(os.path.join(source, "tokenizer.json"))
  except files.Damage as error:
    raise InputError(f"its trunk's tokenizer.json {error}") from None
  files.write_text(os.path.join(path, "tokenizer.json"), text)
  workdir.write_config(
    path,
    config,
    record["data_fingerprint"],
    record.get("tokenizer_fingerprint"),
    workdir.read_labels(source),
    {name: workdir.read_base(source, name) for name in ("base", "teacher")},
  )
  # Copy the checkpoint last and rename it when complete, because a run resumes
  # from any checkpoint that it finds.
  checkpoints = os.path.join(path, "checkpoints")
  temporary = os.path.join(checkpoints, f"{step}.copied")
  shutil.rmtree(temporary, ignore_errors=True)
  shutil.copytree(os.path.join(source, "checkpoints", str(step)), temporary)
  _give_to(config, os.path.join(temporary, "meta", "metadata"))
  os.rename(temporary, os.path.join(checkpoints, str(step)))
  return step


def _give_to(config, path: str) -> None:
  """Writes the branch's config fingerprint into its copied checkpoint."""
  try:
    meta = files.read_json(path)
  except files.Damage as error:
    raise InputError(f"its trunk's {path} {error}") from None
  if isinstance(meta, dict) and "config_fingerprint" in meta:
    name = config_lib.fingerprint(config)
    meta = files.seal(meta | {"config_fingerprint": name})
    files.write_text(path, json.dumps(meta))
