"""The rate meter and the writers of a run's metrics.

metrics.jsonl is the record: one JSON object per line. When a run resumes, rows
after the restored step are removed (rows.py), so that the file reads like that
of an uninterrupted run. TensorBoard, and W&B if configured, get copies.
"""

import errno
import importlib.util
import math
import os
import time
from collections.abc import Callable
from typing import Any

from gpt_jax import digest, files
from gpt_jax.config import InputError
from gpt_jax.metric_names import (
  DATA_WAIT,
  GRAD_SQUARE,
  GRAD_VARIANCE,
  MFU,
  STEP_SECONDS,
  TOKENS_PER_SECOND,
)
from gpt_jax.runs import rows as rows_lib

read_rows = rows_lib.read_rows
without_time = rows_lib.without_time

# Seconds between flushes of TensorBoard's file.
BOARD_SECONDS = 30.0


def noise_scale(rows: list[dict]) -> float | None:
  """Returns the gradient noise scale, in sequences, of a run's second half.

  tr(Sigma) / |G|^2 (McCandlish et al. 2018, 2.2), numerator and denominator
  each averaged over steps. A batch that is far smaller than this can grow at
  little cost in tokens; for one that is far larger, growing gains little. None
  without telemetry, or if the estimate of |G|^2 is not positive.
  """
  seen = [row for row in rows if GRAD_SQUARE in row]
  seen = seen[len(seen) // 2 :]
  square = sum(row[GRAD_SQUARE] for row in seen)
  variance = sum(row[GRAD_VARIANCE] for row in seen)
  return variance / square if square > 0 and variance > 0 else None


class Meter:
  """Measures speed over stretches of consecutive steps, without pauses.

  Call `mark` when a step's result has arrived, so that the device's work is
  included, and `restart` after compiling, evaluating, saving and other pauses.

  Args:
    tokens_per_step: in the global batch.
    flops_per_token: of training, see flops.py.
    peak: FLOP/s of all devices; None if unknown, which leaves out MFU.
    is_measured: the peak was measured, not taken from a data sheet: faster
      steps show that it was measured too low, and raise it.
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
    """Discards the time since the last mark; the next mark starts anew."""
    self.start, self.last, self.steps = None, None, 0
    self.data_wait = 0.0

  def leave_out(self, seconds: float) -> None:
    """Leaves a pause since the last mark out of the rates."""
    if self.start is not None:
      self.start += seconds

  def mark(self) -> None:
    """Notes that one more step's result has arrived."""
    now = time.perf_counter()
    if self.start is None:
      self.start = now
    else:
      self.steps += 1
    self.last = now

  def rates(self) -> dict[str, float]:
    """Returns the rates since the last call; {} without a complete step."""
    if not self.steps:
      return {}
    assert self.start is not None and self.last is not None  # by `mark`
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
  """Estimates seconds per step, with evaluations and saves, for the time left.

  It is a decaying average over the intervals between rows, without the first
  one, which contains one-time work such as compiling.
  """

  # Weight of an interval relative to the next one.
  DECAY = 0.9

  def __init__(self):
    self.last, self.seconds, self.steps = None, 0.0, 0.0
    self.is_first = True

  def note(self, step: int, now: float) -> float | None:
    """Notes that a step is done; returns seconds per step, None at first."""
    if self.last is not None and step > self.last[0]:
      steps, seconds = step - self.last[0], now - self.last[1]
      if not self.is_first:
        self.seconds = self.DECAY * self.seconds + seconds
        self.steps = self.DECAY * self.steps + steps
      self.is_first = False
    self.last = step, now
    return self.seconds / self.steps if self.steps else None


def measure_cpu_peak() -> float:
  """Returns the FLOP/s of a float32 matmul on all cores, the best of 12 runs.

  On a CPU, whose data sheet states no peak, MFU is relative to this figure. It
  comes out too low if other programs are using the CPU: see Meter.
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
    is_dropped, say, seal: as in rows.rewind.

  Attributes:
    carried: as rows.rewind returns it.
    seal: rows.Seal of all rows in the file.

  Raises:
    InputError: from any method, if the file cannot be written.
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

    Values that are not finite are left out, as JSON cannot express them.
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
      # Not as W&B's own step: after a rewind, W&B would drop rows with it.
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

  Design choice: not SummaryWriter, whose thread dies on a full disk, after
  which the run would wait forever for its queue.
  """

  def __init__(self, folder: str, start_step: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    os.makedirs(folder, exist_ok=True)
    # protobuf defines these names at import, so the type checker misses them.
    self.event = event_pb2.Event  # ty: ignore[missing-attribute]
    self.file = EventsWriter(os.path.join(folder, "events"))
    self.flushed = time.monotonic()
    if start_step:
      # Makes TensorBoard hide what an earlier process wrote after this step.
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

  def _add(self, step: int, **content: Any) -> None:
    self.file.write_event(
      self.event(step=step, wall_time=time.time(), **content)
    )


def check_wandb(project: str | None) -> None:
  """Raises InputError if W&B is configured but not installed."""
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
    f"intact: {remedy}"
  )


def _start_wandb(project: str, workdir: str):
  import wandb

  # The id follows from the folder, so that a resumed run stays one W&B run.
  name = os.path.abspath(workdir)
  key = digest.of_text(name)[:16]
  return wandb.init(project=project, dir=workdir, id=key, resume="allow")
