"""Do all meshes give the same losses? python -m gpt_jax.lab.verify --help.

Trains a small run on many meshes, of simulated devices in this process and of
several processes with one device each, and compares its losses with those of a
single device. Reads its flags before it imports jax. From a notebook:
measure(folder).
"""

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time

import gpt_jax
from gpt_jax import cli, metric_names
from gpt_jax import config as config_lib
from gpt_jax.machine import runtime

STEPS = 10
TOLERANCE = 1e-5
DEVICES = 8

ROW = "{:8} {:30} {:>9} {:>9} {:>10}  {}"
SMALL = {
  "data.source": f"text:{os.path.dirname(gpt_jax.__file__)}/*/*.py",
  "data.split": "tail",
  "data.tokenizer": "bytes",
  "data.seq_len": "32",
  "data.packing": "documents",
  "model.num_layers": "2",
  "model.model_dim": "64",
  "model.num_heads": "8",
  "model.mlp_dim": "128",
  "model.max_len": "32",
  "model.scan_layers": "True",
  "optim.optimizer": "adamw",
  "optim.learning_rate": "3e-3",
  "optim.warmup_steps": "3",
  "train.num_steps": str(STEPS),
  "train.global_batch_size": "8",
  "train.log_every_steps": "1",
  "checkpoint.every_steps": "4",
  "eval.every_steps": "1000",
  "sample.every_steps": "0",
}
MODELS = {
  "gpt": {},
  "grouped": {"model.num_kv_heads": "4", "train.num_loss_chunks": "3"},
  # With seed 0 two experts nearly tie for a token, and rounding would decide.
  "experts": {"model.num_experts": "8", "model.mlp": "swiglu", "seed": "1"},
}
# (model, mesh, further overrides)
MESHES = [
  ("gpt", {"data": 8}, {}),
  ("gpt", {"fsdp": 8}, {}),
  ("gpt", {"tensor": 8}, {}),
  ("gpt", {"seq": 8}, {}),
  ("gpt", {"data": 2}, {}),
  ("gpt", {"fsdp": 4}, {}),
  ("gpt", {"data": 2, "fsdp": 4}, {}),
  ("gpt", {"fsdp": 4, "tensor": 2}, {}),
  ("gpt", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
  ("gpt", {"fsdp": 4, "seq": 2}, {}),
  ("gpt", {"data": 2, "seq": 2, "tensor": 2}, {}),
  ("gpt", {"fsdp": 8}, {"model.remat": "save:qkv+attn"}),
  ("gpt", {"data": 4, "fsdp": 2}, {"mesh.rules": "replicated"}),
  ("grouped", {"fsdp": 2, "tensor": 4}, {}),
  ("grouped", {"fsdp": 2, "seq": 2, "tensor": 2}, {}),
  ("experts", {"fsdp": 2, "expert": 4}, {}),
  ("experts", {"expert": 2, "seq": 2, "tensor": 2}, {}),
  ("experts", {"data": 2, "expert": 2, "tensor": 2}, {}),
  ("grouped", {"seq": 4}, {"model.seq_attention": "ring"}),
  ("grouped", {"data": 2, "seq": 4}, {"model.seq_attention": "ring"}),
]
# Runs of several processes, one device each: (number of processes, mesh).
PROCESSES = [
  (1, {}),
  (2, {"data": 2}),
  (2, {"fsdp": 2}),
  (4, {"data": 2, "fsdp": 2}),
  (4, {"tensor": 4}),
]
# A longer run: one of two processes is killed after KILL_STEP, and four resume.
# Rounding errors grow during training, so its learning rate is smaller.
LONG_STEPS, SAVE_STEPS, KILL_STEP, LONG_RATE = 60, 10, 15, "1e-3"


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.verify",
    f"Compares {STEPS} losses on many meshes with those of one device.",
    needs_config=False,
  )
  args, overrides = cli.parse(parser, argv)
  build_config("unused", **overrides)  # checks the overrides first
  runtime.start(args.devices or DEVICES)
  print(
    f"first and last loss of {STEPS} steps, and the largest relative "
    f"difference to one\ndevice's, which may be {TOLERANCE:.0e}"
  )
  print(ROW.format("model", "mesh", "first", "last", "difference", ""))
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for row in measure(folder, overrides):
      rows.append(row)
      print(row.line(), flush=True)
  num_wrong = sum(row.is_wrong for row in rows)
  print(f"{len(rows) - num_wrong} of {len(rows)} rows agree")
  return int(num_wrong > 0)


@dataclasses.dataclass(frozen=True)
class Row:
  """A run on one mesh, compared with one device.

  Attributes:
    model: a key of MODELS.
    mesh: {axis: size} of the axes larger than 1.
    words: the run's other overrides, or its number of processes, as text.
    losses: the loss of each logged step.
    difference: the largest relative difference to one device's losses; inf
      if the two runs logged different numbers of steps.
  """

  model: str
  mesh: dict[str, int]
  words: str
  losses: list[float]
  difference: float

  @property
  def is_wrong(self) -> bool:
    return not self.difference <= TOLERANCE

  def line(self) -> str:
    """Returns the row as text."""
    return ROW.format(
      self.model,
      " x ".join(f"{a} {n}" for a, n in self.mesh.items()) or "one device",
      f"{self.losses[0]:.6f}" if self.losses else "-",
      f"{self.losses[-1]:.6f}" if self.losses else "-",
      f"{self.difference:.1e}",
      self.words + ("  WRONG" if self.is_wrong else ""),
    ).rstrip()


def build_config(folder: str, **values: str) -> config_lib.Config:
  """Returns the config of the small run, whose data is prepared in `folder`."""
  config = cli.load_config(
    "configs/base.py", SMALL | {"data.dir": folder} | values
  )
  return config_lib.freeze(config)


def measure(folder: str, overrides: dict[str, str] | None = None):
  """Yields a Row for every mesh, those of one device first.

  Args:
    folder: where prepared data and the workdirs of runs are written.
    overrides: {config key: value} for all runs.
  """
  overrides = overrides or {}
  references = {}
  for model, mesh, others in [(m, {}, {}) for m in MODELS] + MESHES:
    values = overrides | MODELS[model] | others | _mesh_keys(mesh)
    losses = losses_of(build_config(folder, **values))
    reference = references.setdefault(model, losses)
    words = ", ".join(f"{k.split('.')[1]} {v}" for k, v in others.items())
    yield _row(model, mesh, words, losses, reference)
  for index, (count, mesh) in enumerate(PROCESSES):
    values = overrides | _mesh_keys(mesh)
    workdir = os.path.join(folder, f"run{index}")
    team = start_team(workdir, folder, values, count)
    losses = end_team(team, workdir)
    words = "1 process" if count == 1 else f"{count} processes"
    yield _row("gpt", mesh, words, losses, references["gpt"])
  yield _measure_killed(folder, overrides)


def _measure_killed(folder: str, overrides: dict[str, str]) -> Row:
  """Returns the Row of a run that loses a process and resumes on four."""
  values = overrides | {
    "train.num_steps": str(LONG_STEPS),
    "optim.learning_rate": LONG_RATE,
    "checkpoint.every_steps": str(SAVE_STEPS),
  }
  reference = losses_of(build_config(folder, **values | _mesh_keys({})))
  workdir = os.path.join(folder, "killed")
  team = start_team(workdir, folder, values | _mesh_keys({"fsdp": 2}), 2)
  kill_one(team, workdir)
  team = start_team(workdir, folder, values | _mesh_keys({"fsdp": 4}), 4)
  words = f"2 processes, 1 killed, then 4; {LONG_STEPS} steps"
  return _row("gpt", {"fsdp": 4}, words, end_team(team, workdir), reference)


def _row(model, mesh, words, losses, reference) -> Row:
  difference = math.inf
  if len(losses) == len(reference):
    pairs = zip(losses, reference, strict=True)
    difference = max(abs(a / b - 1) for a, b in pairs)
  return Row(model, mesh, words, losses, difference)


def _mesh_keys(mesh: dict[str, int]) -> dict[str, str]:
  keys = {f"mesh.{axis}": str(size) for axis, size in mesh.items()}
  return {"mesh.data": "1"} | keys


def start_team(workdir: str, folder: str, values: dict[str, str], count: int):
  """Starts a training run of `count` processes; returns the processes."""
  values = SMALL | {"data.dir": folder} | values
  command = [sys.executable, "-m", "gpt_jax.train", "--config=configs/base.py"]
  command += [f"--config.{key}={value}" for key, value in values.items()]
  command += [f"--workdir={workdir}", "--devices=1"]
  environments = runtime.make_team(count)
  return [
    subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    for environment in environments
  ]


def end_team(team, workdir: str) -> list[float]:
  """Waits for every process; returns the logged losses."""
  for process in team:
    process.wait()
  return [row[1] for row in read_losses(workdir)]


def kill_one(team, workdir: str) -> None:
  """Kills the last process once KILL_STEP is logged; waits for all."""
  while team[-1].poll() is None:
    if any(step >= KILL_STEP for step, _ in read_losses(workdir)):
      team[-1].kill()
    time.sleep(0.02)
  for process in team:
    process.wait()


def read_losses(workdir: str) -> list[tuple[int, float]]:
  """Returns [(step, loss), ...] of the steps that a run has logged."""
  from gpt_jax.runs import metrics

  rows = metrics.read_rows(os.path.join(workdir, "metrics.jsonl"))
  return [
    (r["step"], r[metric_names.LOSS]) for r in rows if metric_names.LOSS in r
  ]


def losses_of(config: config_lib.Config) -> list[float]:
  """Trains a config on this process's devices; returns each step's loss."""
  import jax

  from gpt_jax import metric_names, sharding
  from gpt_jax.data.batches import make_train_iterator
  from gpt_jax.data.prepare import prepare_data
  from gpt_jax.training import build

  prepared = prepare_data(config.data, lambda line: None)
  config = prepared.resolve_vocab(config)
  sizes = [getattr(config.mesh, axis) for axis in sharding.AXES]
  run = build.assemble(config, jax.devices()[: math.prod(sizes)])
  train_step, _, _ = run.compile_step()
  size, rows = config.train.global_batch_size, run.local_rows()
  batches = make_train_iterator(prepared, config, config.seed, size, rows, 0)
  now, losses = run.init_state(), []
  with jax.set_mesh(run.mesh):
    for _ in range(config.train.num_steps):
      batch = jax.device_put(next(batches), run.batch_place)
      now, result = train_step(now, batch)
      losses.append(float(result[metric_names.LOSS]))
  return losses
