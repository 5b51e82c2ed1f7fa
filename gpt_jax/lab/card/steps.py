"""Times train steps, and reads the time of each kernel from a profile."""

import contextlib
import dataclasses
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from typing import Any

import jax

from gpt_jax import flops, metric_names, sharding
from gpt_jax.config import Config
from gpt_jax.lab.bench import ours
from gpt_jax.machine import chips
from gpt_jax.training import build

# Length of a measurement in seconds.
SECONDS = 3.0
# Largest number of kernels that are listed from a profile.
MOST_KERNELS = 40
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a part is run.

  Attributes:
    devices: one device, real or only described to the compiler.
    is_compiled_only: compile every program and run none.
    is_toy: use small sizes, for a CPU.
    out: path that output files begin with, or None to write none.
  """

  devices: list
  is_compiled_only: bool = False
  is_toy: bool = False
  out: str | None = None


class Steps:
  """A compiled train step with its state and batches."""

  def __init__(self, config: Config, devices: list, options: dict | None):
    self.config = config
    self.run = build.assemble(config, devices)
    self.step, self.seconds, _ = self.run.compile_step(options)

  def start(self) -> None:
    self.state = jax.block_until_ready(self.run.init_state())
    self.rows = self.run.local_rows()
    self.batches = ours.random_batches(self.config, len(self.rows))

  def take(self) -> dict:
    """Dispatches a step; returns its metrics without waiting for them."""
    batch = sharding.place_batch(
      next(self.batches),
      self.run.batch_place,
      self.rows,
      self.config.train.global_batch_size,
    )
    with jax.set_mesh(self.run.mesh):
      self.state, metrics = self.step(self.state, batch)
    return metrics

  def time(self, count: int) -> tuple[list[float], float]:
    """Returns (seconds of each step, last loss).

    As in a run, each step is awaited once the next has been dispatched, so that
    the device never waits for the host.
    """
    seconds, pending, begun = [], self.take(), time.perf_counter()
    for _ in range(count):
      following = self.take()
      float(pending[metric_names.LOSS])
      now = time.perf_counter()
      seconds.append(now - begun)
      pending, begun = following, now
    return seconds, float(pending[metric_names.LOSS])


def time_step(
  config: Config,
  options: dict | None,
  setting: Setting,
  is_profiled: bool = False,
) -> dict:
  """Returns a row: step time, tokens/s and MFU of a train step.

  Args:
    options: XLA options, added to those of the platform.
    is_profiled: also list the kernels, and write the program if `out` is set.
  """
  steps = Steps(config, setting.devices, options)
  memory = steps.step.memory_analysis()
  row = {
    "compile_s": round(steps.seconds, 1),
    "temporary_gib": round(memory.temp_size_in_bytes / GIB, 2),
    "state_gib": round(memory.argument_size_in_bytes / GIB, 2),
  }
  if is_profiled and setting.out:
    write_program(setting.out, steps.step)
  if setting.is_compiled_only:
    return row
  steps.start()
  seconds, _ = steps.time(3)
  most = 5 if setting.is_toy else 200
  count = max(5, min(most, int(SECONDS / min(seconds))))
  seconds, loss = steps.time(count)
  median = statistics.median(seconds)
  tokens = config.train.global_batch_size * config.data.seq_len
  per_token = flops.train_flops_per_token(config.model, config.data.seq_len)
  peak = chips.peak_flops(setting.devices[0].device_kind)
  row |= {
    "step_ms": round(1e3 * median, 2),
    "least_ms": round(1e3 * min(seconds), 2),
    "tokens_per_s": round(tokens / median),
    "mfu": peak and round(per_token * tokens / median / peak, 4),
    "loss": loss,
    "steps": count,
  }
  if is_profiled:
    with profiled(row, 3):
      steps.time(2)
  return row


def write_program(path: str, compiled: Any) -> None:
  """Writes the compiled program's text to PATH.hlo.gz."""
  with gzip.open(f"{path}.hlo.gz", "wt") as file:
    file.write(compiled.as_text())


@contextlib.contextmanager
def profiled(row: dict, count: int) -> Generator[None]:
  """Profiles its context, and adds the kernels to a row as row["kernels"].

  Args:
    count: number of steps or tokens in the context, as in read_profile.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      yield
    row["kernels"] = read_profile(folder, count)


def read_profile(folder: str, count: int) -> list:
  """Returns [[name, milliseconds, launches], ...] of kernels, slowest first.

  Milliseconds and launches are totals over the profile divided by `count`, the
  number of steps or tokens in it. The first entry is ["all", milliseconds,
  number of different kernels]; at most MOST_KERNELS entries follow.
  """
  paths = [
    os.path.join(top, name)
    for top, _, names in os.walk(folder)
    for name in names
    if name.endswith(".xplane.pb")
  ]
  totals: dict[str, list] = {}
  for path in paths:
    for plane in jax.profiler.ProfileData.from_file(path).planes:
      if not plane.name.startswith("/device:GPU"):
        continue
      for line in plane.lines:
        if not line.name.startswith("Stream"):
          continue
        for event in line.events:
          total = totals.setdefault(event.name, [0.0, 0])
          total[0] += event.duration_ns / 1e6 / count
          total[1] += 1
  kernels = [
    [name[:120], round(ms, 4), round(launches / count, 1)]
    for name, (ms, launches) in sorted(
      totals.items(), key=lambda item: -item[1][0]
    )
  ]
  milliseconds = sum(ms for ms, _ in totals.values())
  whole = ["all", round(milliseconds, 3), len(kernels)]
  return [whole, *kernels[:MOST_KERNELS]]
