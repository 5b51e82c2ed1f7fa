"""Runs cells on this machine, several at a time, trunks before branches."""

import contextlib
import os
import signal
import statistics
import time

from gpt_jax import exits, metric_names
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import branches, folder, plan
from gpt_jax.lab.sweep.cells import Cell
from gpt_jax.lab.sweep.worker import Worker
from gpt_jax.machine import console

# Signals that stop a sweep. Cells are sent SIGINT for SIGINT, else SIGTERM.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STOPPING += (signal.SIGUSR2,)
# Seconds between polls of the workers, and between lines of progress.
POLL_SECONDS, SAY_SECONDS = 0.1, 10.0


class Pool:
  """Cells that wait, run or have ended.

  Attributes:
    waiting: cells still to run, in order.
    workers: the processes of the cells that run.
    failed, stopped, finished: cells that ended in this pool.
    elsewhere: cells that another process runs.
    lost: cells whose trunk failed.
    signal: the signal that stopped the queue, None without one.
    first, work: {cell id: first step, FLOPs from there on}.
    rates: seconds per FLOP of finished cells.
    rests: seconds of finished cells outside of their steps.
    shares: cores of each worker; empty lets all use all.
  """

  def __init__(
    self,
    root: str,
    cells: list[Cell],
    num_workers: int,
    memory: float | None,
    say,
  ):
    self.root, self.num_workers = root, num_workers
    self.memory, self.say = memory, say
    self.waiting = list(cells)
    self.workers: list[Worker] = []
    self.failed, self.stopped, self.finished = [], [], []
    self.elsewhere, self.lost = [], []
    self.signal = None
    self.count = len(cells)
    pairs = {c.id: _work(root, c) for c in cells}
    self.first = {cell_id: first for cell_id, (first, _) in pairs.items()}
    self.work = {cell_id: work for cell_id, (_, work) in pairs.items()}
    self.rates, self.rests = [], []
    self.shares = share_cores(num_workers)
    self.said = time.monotonic()

  def run(self) -> int | None:
    """Runs until all cells end; returns the exit code of a signal, or None."""
    if not self.waiting:
      return None
    # A signal that is ignored from the start (nohup) stays ignored.
    heard = [s for s in STOPPING if signal.getsignal(s) != signal.SIG_IGN]
    old = {s: signal.signal(s, self._note) for s in heard}
    is_told = False
    try:
      while self.waiting or self.workers:
        if self.signal is not None and not is_told:
          is_told = True
          self.say(f"stopping {len(self.workers)} cells, which save")
        self._collect()
        if self.signal is None:
          self._fill()
        elif not self.workers:
          break
        for worker in self.workers:
          if self.signal is not None and not worker.told:
            worker.pass_on(self.signal)  # arrived while this worker started
        self._say()
        time.sleep(POLL_SECONDS)
    finally:
      for number, handler in old.items():
        signal.signal(number, handler)
      for worker in self.workers:  # only after an error in this process
        worker.pass_on(signal.SIGTERM)
    if self.signal is None:
      return None
    is_first = self.signal == signal.SIGINT
    return exits.INTERRUPTED if is_first else exits.PREEMPTED

  def _note(self, number, frame) -> None:
    number = number if number == signal.SIGINT else signal.SIGTERM
    self.signal = self.signal or number
    for worker in self.workers:
      worker.pass_on(number)

  def _fill(self) -> None:
    for cell in list(self.waiting):
      if len(self.workers) >= self.num_workers:
        return
      if cell.trunk is not None and not self._is_ready(cell):
        continue
      self.waiting.remove(cell)
      self._begin(cell)
    held = {w.cell.id for w in self.workers} | {c.id for c in self.waiting}
    for cell in list(self.waiting):
      # No cell that runs or waits will write the trunk's checkpoint.
      if cell.the_trunk()[0] not in held:
        self.waiting.remove(cell)
        self.lost.append(cell)
        word = folder.read(self.root, cell.the_trunk()[0]).word
        line = (
          f"not run: {cell.id} {cell.title}: its trunk {cell.the_trunk()[0]} is"
        )
        self.say(f"{line} {word}")

  def _is_ready(self, cell: Cell) -> bool:
    path = folder.path_of(self.root, cell.id)
    if folder.list_steps(path) or branches.is_ready(self.root, cell):
      return True
    return folder.is_done(self.root, cell.the_trunk()[0])

  def _begin(self, cell: Cell) -> None:
    fault = ""
    # If the vocabulary is unknown, only the run itself can find out.
    with contextlib.suppress(InputError):
      fault = plan.fault_of(
        plan.with_vocab(cell.config, self.root), self.memory
      )
    if not folder.claim(self.root, cell):
      self.elsewhere.append(cell)
      return
    path = folder.path_of(self.root, cell.id)
    begun = ""
    try:
      if cell.trunk is not None and not fault:
        step = branches.start(self.root, cell)
        if step:
          begun = f" from step {step:,} of {cell.the_trunk()[0]}"
    except InputError as error:
      fault = str(error)
    except OSError as error:
      fault = f"its trunk cannot be copied: {error}"
    if fault:
      ended = {"code": 2, "is_stopped": False, "reason": fault}
      folder.release(path, ended)
      self._end(cell, ended)
      return
    memory = None if self.memory is None else int(self.memory * 2**30)
    taken = set().union(*(w.cores for w in self.workers))
    cores = next((c for c in self.shares if not c & taken), set())
    self.workers.append(Worker(self.root, cell, memory, cores))
    self.say(f"started  {cell.id} {cell.title}{begun}")

  def _collect(self) -> None:
    for worker in list(self.workers):
      ended = worker.poll()
      if ended is None:
        continue
      self.workers.remove(worker)
      folder.release(worker.path, ended)
      state = folder.read(self.root, worker.cell.id)
      if ended["code"] == 0 and state.word != folder.DONE:
        code = exits.DIVERGED if state.word == folder.DIVERGED else exits.FAILED
        ended |= {"code": code, "reason": state.reason or "it left no curve"}
        folder.release(worker.path, ended)
      self._end(worker.cell, ended)

  def _end(self, cell: Cell, ended: dict) -> None:
    if ended["code"] == 0:
      self.finished.append(cell)
      self._learn(cell, ended)
      final = folder.read(self.root, cell.id).final
      loss = f": {final[0]} {final[1]:.4f}" if final else ""
      line = f"finished {cell.id} {cell.title}{loss}"
    elif ended["is_stopped"]:
      self.stopped.append(cell)
      line = f"stopped  {cell.id} {cell.title}"
    else:
      self.failed.append(cell)
      is_lost = ended["code"] == exits.DIVERGED
      word = folder.DIVERGED if is_lost else "failed  "
      line = f"{word} {cell.id} {cell.title}: {ended['reason']}"
    ended_count = len(self.finished) + len(self.failed)
    self.say(f"{line}  [{ended_count} of {self.count}]")

  def _say(self) -> None:
    """Prints the progress of all cells every SAY_SECONDS."""
    if time.monotonic() - self.said < SAY_SECONDS or not self.workers:
      return
    self.said = time.monotonic()
    now = []
    for worker in self.workers:
      step = folder.read(self.root, worker.cell.id).step
      total = worker.cell.config.train.num_steps
      now.append(f"{worker.cell.id} step {step:,} of {total:,}")
    seconds = self._seconds_left()
    left = ""
    if seconds is not None:
      left = f", about {console.format_seconds(seconds)} left"
    ended_count = len(self.finished) + len(self.failed)
    self.say(f"{ended_count} of {self.count} ended{left}; {'; '.join(now)}")

  def _seconds_left(self) -> float | None:
    """Returns the time left, estimated from finished cells; None without one.

    A cell takes the time of its steps and a fixed time outside of them. The
    seconds per FLOP and the fixed time are medians over finished cells, which
    ran with the same number of workers.
    """
    if not self.rates:
      return None
    rate, rest = map(statistics.median, (self.rates, self.rests))
    whole = lambda cell: rest + rate * self.work[cell.id]
    left = sum(whole(cell) for cell in self.waiting)
    for worker in self.workers:
      left += max(0.0, whole(worker.cell) - (self.said - worker.started))
    return left / min(self.num_workers, len(self.waiting) + len(self.workers))

  def _learn(self, cell: Cell, ended: dict) -> None:
    """Records a finished cell's seconds per FLOP, and seconds outside steps."""
    rows = folder.read(self.root, cell.id).rows
    times = [
      r[metric_names.STEP_SECONDS]
      for r in rows
      if metric_names.STEP_SECONDS in r
    ]
    if times and self.work[cell.id]:
      steps = cell.config.train.num_steps - self.first[cell.id]
      seconds = min(statistics.median(times) * steps, ended["seconds"])
      self.rates.append(seconds / self.work[cell.id])
      self.rests.append(ended["seconds"] - seconds)


def share_cores(workers: int) -> list[set[int]]:
  """Returns the cores of each worker, [] to let every worker use all cores.

  Without this, threads of several workers share cores and wait for each other
  at every matmul.
  """
  if workers == 1 or not hasattr(os, "sched_getaffinity"):
    return []
  cores = sorted(os.sched_getaffinity(0))
  if workers > len(cores):
    return []
  return [set(cores[index::workers]) for index in range(workers)]


def _work(root: str, cell: Cell) -> tuple[int, float]:
  """Returns (a cell's first step, FLOPs of its remaining steps).

  If the vocabulary is unknown, the number of steps replaces the FLOPs.
  """
  there = folder.list_steps(folder.path_of(root, cell.id))
  first = max(there, default=cell.the_trunk()[1] if cell.trunk else 0)
  work = float(cell.config.train.num_steps - first)
  with contextlib.suppress(InputError):
    work *= plan.step_flops(plan.with_vocab(cell.config, root))
  return first, work
