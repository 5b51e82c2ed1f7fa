"""Metric names, the rate meter, and the writers of one run.

metrics.jsonl is the record: one object a row, rewound to the step that a run
resumes from, so that it reads as if nothing had happened. TensorBoard, and
W&B where asked for, repeat it.
"""

import json
import os
import time

LOSS = "train/loss"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
NUM_SKIPPED = "train/num_skipped"
TOKENS_PER_SECOND = "perf/tokens_per_second"
STEP_SECONDS = "perf/step_seconds"
MFU = "perf/mfu"
DATA_WAIT = "perf/data_wait_seconds"
COMPILE_SECONDS = "perf/compile_seconds"
TOKENS = "progress/tokens"


def eval_name(name: str, quantity: str) -> str:
  """Returns "eval/<set>/<quantity>"."""
  return f"eval/{name}/{quantity}"


class Meter:
  """Rates over the steps between two marks, pauses left out.

  Marks are set when a step's result has arrived, so the device is waited for;
  whatever is not stepping (compiling, evaluating, saving) is bracketed by
  `restart`.
  """

  def __init__(self, tokens_per_step: int, flops_per_token: int, peak: float):
    self.tokens_per_step = tokens_per_step
    self.flops_per_token = flops_per_token
    self.peak = peak
    self.data_wait = 0.0
    self.restart()

  def restart(self) -> None:
    """Forgets the time since the last mark; the next mark opens a stretch."""
    self.start, self.last, self.steps = None, None, 0
    self.data_wait = 0.0

  def mark(self) -> None:
    """Notes that one more step's result has arrived."""
    now = time.perf_counter()
    if self.start is None:
      self.start = now
    else:
      self.steps += 1
    self.last = now

  def rates(self) -> dict[str, float]:
    """Returns the rates since the last call; empty without a whole step."""
    if not self.steps:
      return {}
    seconds = (self.last - self.start) / self.steps
    tokens_per_second = self.tokens_per_step / seconds
    rates = {
      TOKENS_PER_SECOND: round(tokens_per_second, 1),
      STEP_SECONDS: round(seconds, 6),
      MFU: round(tokens_per_second * self.flops_per_token / self.peak, 5),
      DATA_WAIT: round(self.data_wait / self.steps, 6),
    }
    self.start, self.steps, self.data_wait = self.last, 0, 0.0
    return rates


def measure_cpu_peak() -> float:
  """Returns the FLOP/s of a float32 matrix product here, best of three.

  A CPU has no sheet to quote a peak from; MFU there is of this figure.
  """
  import numpy as np

  n = 1024
  a = np.ones((n, n), np.float32)
  best = float("inf")
  for _ in range(4):
    start = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best


class Writers:
  """Writes rows of metrics under a workdir."""

  def __init__(self, workdir: str, start_step: int, wandb_project=None):
    self.path = os.path.join(workdir, "metrics.jsonl")
    rewind(self.path, start_step)
    self.file = open(self.path, "a", buffering=1)
    self.board = None
    self.board_args = (os.path.join(workdir, "tensorboard"), start_step)
    self.wandb = _start_wandb(wandb_project, workdir) if wandb_project else None

  def write(self, step: int, values: dict) -> None:
    """Appends one row; floats are written with all their digits."""
    self.file.write(json.dumps({"step": step, **values}) + "\n")
    if self.board is None:
      from tensorboardX import SummaryWriter

      folder, start = self.board_args
      self.board = SummaryWriter(folder, purge_step=start or None)
    for name, value in values.items():
      self.board.add_scalar(name, value, step)
    if self.wandb is not None:
      # The step is a metric of its own: W&B drops rows after a rewind.
      self.wandb.log({"step": step, **values})

  def close(self) -> None:
    self.file.close()
    if self.board is not None:
      self.board.close()
    if self.wandb is not None:
      self.wandb.finish()


def read_rows(path: str) -> list[dict]:
  """Returns the rows of a metrics.jsonl; a last line cut short is left out."""
  rows = []
  if os.path.exists(path):
    with open(path) as file:
      for line in file:
        try:
          rows.append(json.loads(line))
        except json.JSONDecodeError:
          break
  return rows


def rewind(path: str, step: int) -> None:
  """Drops the rows after `step`, atomically."""
  if not os.path.exists(path):
    return
  kept = [row for row in read_rows(path) if row["step"] <= step]
  with open(path + ".tmp", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in kept)
  os.replace(path + ".tmp", path)


def _start_wandb(project: str, workdir: str):
  try:
    import wandb
  except ImportError:
    from gpt_jax.config import InputError

    raise InputError(
      "train.wandb_project is set and wandb is not installed; "
      "pip install 'gpt_jax[wandb]'"
    ) from None
  return wandb.init(project=project, dir=workdir, resume="allow")
