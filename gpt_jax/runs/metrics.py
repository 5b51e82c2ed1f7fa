"""Metric names, the rate meter, and the writers of one run.

metrics.jsonl is the record: one object a row, rewound to the step that a run
resumes from (rows.py), so that it reads as if nothing had happened.
TensorBoard, and W&B where asked for, repeat it.
"""

import errno
import importlib.util
import math
import os
import time
from collections.abc import Callable

from gpt_jax import digest, files
from gpt_jax.config import InputError
from gpt_jax.metric_names import (
  BALANCE_LOSS as BALANCE_LOSS,
)
from gpt_jax.metric_names import (
  BATCH_HASH as BATCH_HASH,
)
from gpt_jax.metric_names import (
  DATA_WAIT as DATA_WAIT,
)
from gpt_jax.metric_names import (
  GRAD_NORM as GRAD_NORM,
)
from gpt_jax.metric_names import (
  GRAD_SQUARE as GRAD_SQUARE,
)
from gpt_jax.metric_names import (
  GRAD_VARIANCE as GRAD_VARIANCE,
)
from gpt_jax.metric_names import (
  LEARNING_RATE as LEARNING_RATE,
)
from gpt_jax.metric_names import (
  LOSS as LOSS,
)
from gpt_jax.metric_names import (
  MFU as MFU,
)
from gpt_jax.metric_names import (
  NUM_SKIPPED as NUM_SKIPPED,
)
from gpt_jax.metric_names import (
  PASSED as PASSED,
)
from gpt_jax.metric_names import (
  ROLLED_BACK_FROM as ROLLED_BACK_FROM,
)
from gpt_jax.metric_names import (
  SKIPPED_NONFINITE as SKIPPED_NONFINITE,
)
from gpt_jax.metric_names import (
  SKIPPED_SPIKE as SKIPPED_SPIKE,
)
from gpt_jax.metric_names import (
  STEP_SECONDS as STEP_SECONDS,
)
from gpt_jax.metric_names import (
  TOKENS as TOKENS,
)
from gpt_jax.metric_names import (
  TOKENS_PER_SECOND as TOKENS_PER_SECOND,
)
from gpt_jax.metric_names import (
  Z_LOSS as Z_LOSS,
)
from gpt_jax.metric_names import eval_name as eval_name
from gpt_jax.runs import rows as rows_lib

read_rows = rows_lib.read_rows
without_time = rows_lib.without_time

# Seconds after which TensorBoard's file is brought up to date.
BOARD_SECONDS = 30.0


def noise_scale(rows: list[dict]) -> float | None:
  """Returns the gradient noise scale in sequences, of a run's second half.

  The sum of variances over the square of the mean (McCandlish et al. 2018,
  2.2), each a mean over steps. Batches far below it lose little by growing in
  number of sequences, and those far above gain little. None without
  telemetry, or where the square is lost in the noise.
  """
  seen = [row for row in rows if GRAD_SQUARE in row]
  seen = seen[len(seen) // 2 :]
  square = sum(row[GRAD_SQUARE] for row in seen)
  variance = sum(row[GRAD_VARIANCE] for row in seen)
  return variance / square if square > 0 and variance > 0 else None


class Meter:
  """Rates over the steps between two marks, pauses left out.

  Marks are set when a step's result has arrived, so the device is waited for;
  whatever is not stepping (compiling, evaluating, saving) is bracketed by
  `restart`.

  Args:
    tokens_per_step: in the global batch.
    flops_per_token: of training, see flops.py.
    peak: FLOP/s of all devices, None if unknown: then no MFU is given.
    is_measured: the peak is no figure of a data sheet; steps that are faster
      show that it was measured too low, and raise it.
  """

  def __init__(
    self,
    tokens_per_step: int,
    flops_per_token: int,
    peak: float | None,
    is_measured: bool = False,
  ):
    self.tokens_per_step = tokens_per_step
    self.flops_per_token = flops_per_token
    self.peak = peak
    self.is_measured = is_measured
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
    assert self.start is not None and self.last is not None  # a step has both
    seconds = (self.last - self.start) / self.steps
    tokens_per_second = self.tokens_per_step / seconds
    rates = {
      TOKENS_PER_SECOND: round(tokens_per_second, 1),
      STEP_SECONDS: round(seconds, 6),
      DATA_WAIT: round(self.data_wait / self.steps, 6),
    }
    if self.peak is not None:
      rate = tokens_per_second * self.flops_per_token
      if self.is_measured:
        self.peak = max(self.peak, rate)
      rates[MFU] = round(rate / self.peak, 5)
    self.start, self.steps, self.data_wait = self.last, 0, 0.0
    return rates


class TimeLeft:
  """The time to the end of a run, from all that happens between its rows.

  Evaluations and saves are in it. The first interval is left out: what is
  done once, such as compiling, is in that. Older intervals count for less.
  """

  # What an interval counts for when one more has come.
  DECAY = 0.9

  def __init__(self):
    self.last, self.seconds, self.steps = None, 0.0, 0.0
    self.is_first = True

  def note(self, step: int, now: float) -> float | None:
    """Notes that a step is done; returns seconds a step, None at first."""
    if self.last is not None and step > self.last[0]:
      steps, seconds = step - self.last[0], now - self.last[1]
      if not self.is_first:
        self.seconds = self.DECAY * self.seconds + seconds
        self.steps = self.DECAY * self.steps + steps
      self.is_first = False
    self.last = step, now
    return self.seconds / self.steps if self.steps else None


def measure_cpu_peak() -> float:
  """Returns the FLOP/s of a float32 matrix product here, the best of many.

  A CPU has no sheet to quote a peak from; MFU there is of this figure, on all
  cores. One that others used meanwhile is measured too low: see Meter.
  """
  import numpy as np

  n = 1024
  a = np.ones((n, n), np.float32)
  best = float("inf")
  for _ in range(12):
    start = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best


class Writers:
  """Writes rows of metrics under a workdir.

  Args:
    start_step: rows after it are dropped.
    is_dropped: also those for which this is true, as in rows.rewind.
    say: told what is wrong with the file that is there.
    seal: of the rows, as the checkpoint of start_step holds it.

  Attributes:
    carried: as rows.rewind returns it.
    seal: rows.Seal of all rows that are there.

  Raises:
    InputError: from any method, where the file cannot be written.
  """

  def __init__(
    self,
    workdir: str,
    start_step: int,
    wandb_project: str | None = None,
    is_dropped: Callable[[dict], bool] = lambda row: False,
    say: Callable[[str], None] = print,
    seal: list | None = None,
  ):
    self.path = os.path.join(workdir, "metrics.jsonl")
    self.board = None
    self.board_args = (os.path.join(workdir, "tensorboard"), start_step)
    try:
      os.makedirs(workdir, exist_ok=True)
      self.carried, self.seal = rows_lib.rewind(
        self.path, start_step, is_dropped, say, seal
      )
      self.file = open(self.path, "a", buffering=1)
    except OSError as error:
      raise _unwritable(self.path, error) from None
    self.wandb = _start_wandb(wandb_project, workdir) if wandb_project else None

  def write(self, step: int, values: dict) -> None:
    """Appends one row; floats are written with all their digits.

    What is not finite is left out: it is no number of JSON.
    """
    values = {k: v for k, v in values.items() if math.isfinite(v)}
    try:
      self.file.write(rows_lib.to_line(step, values))
      self.seal.add({"step": step, **values})
      if self.board is None:
        self.board = _Board(*self.board_args)
      self.board.write(step, values)
    except OSError as error:
      raise _unwritable(self.path, error) from None
    if self.wandb is not None:
      # The step is a metric of its own: W&B drops rows after a rewind.
      self.wandb.log({"step": step, **values})

  def close(self) -> None:
    try:
      if self.board is not None:
        self.board.close()
      self.file.close()
    except OSError as error:
      raise _unwritable(self.path, error) from None
    finally:
      if self.wandb is not None:
        self.wandb.finish()


class _Board:
  """An event file of TensorBoard.

  Written here and not by SummaryWriter, whose thread dies on a full disk: its
  queue is then never emptied, and the run would wait for ever.
  """

  def __init__(self, folder: str, start_step: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    os.makedirs(folder, exist_ok=True)
    # protobuf makes its names when it is imported.
    self.event = event_pb2.Event  # ty: ignore[missing-attribute]
    self.file = EventsWriter(os.path.join(folder, "events"))
    self.flushed = time.monotonic()
    if start_step:
      # What an earlier process wrote from here on is hidden.
      log = event_pb2.SessionLog  # ty: ignore[missing-attribute]
      start = log(status=log.START)
      self._add(start_step + 1, session_log=start)

  def write(self, step: int, values: dict) -> None:
    """Appends one row."""
    rows = [
      {"tag": k, "simple_value": float(v)}
      for k, v in values.items()
      if not k.startswith("time/")
    ]
    self._add(step, summary={"value": rows})
    if time.monotonic() - self.flushed > BOARD_SECONDS:
      self.flushed = time.monotonic()
      self.file.flush()

  def close(self) -> None:
    self.file.close()

  def _add(self, step: int, **content) -> None:
    self.file.write_event(
      self.event(step=step, wall_time=time.time(), **content)
    )


def check_wandb(project: str | None) -> None:
  """Raises InputError where W&B is asked for and not installed."""
  if project is not None and importlib.util.find_spec("wandb") is None:
    raise InputError(
      f"train.wandb_project is {project!r} and wandb is not installed; "
      f"in the folder of this project, {files.pip('wandb')}, or leave it None"
    )


def _unwritable(path: str, error: OSError) -> InputError:
  is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  remedy = (
    "make room and go on with the same command"
    if is_full
    else "make it writable, or give another --workdir"
  )
  return InputError(
    f"{path} cannot be written: {error.strerror}; saved checkpoints are "
    f"whole: {remedy}"
  )


def _start_wandb(project: str, workdir: str):
  import wandb

  # The folder names the run, so that a resumed one stays one run there too.
  name = os.path.abspath(workdir)
  key = digest.of_text(name)[:16]
  return wandb.init(project=project, dir=workdir, id=key, resume="allow")
