"""Runs a sweep's cells on this machine, each in a process of its own.

jax is not imported here unless there are branches to check, so that a sweep
that is finished says so at once. A cell's process has a session of its own:
Ctrl-C reaches this process alone, which passes it on, so that each saves.
"""

import contextlib
import os
import resource
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time

from gpt_jax import exits, files
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import branches, folder, plan
from gpt_jax.lab.sweep.cells import Cell, Sweep, command
from gpt_jax.machine import console
from gpt_jax.runs import metrics

TRAIN = (sys.executable, "-m", "gpt_jax.train")
# Signals that stop a sweep; its cells are told SIGINT, or else SIGTERM.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STOPPING += (signal.SIGUSR2,)
# Seconds between looks at the workers, and between lines of progress.
POLL_SECONDS, SAY_SECONDS = 0.1, 10.0
# Lines of --emit that are printed too.
SHOWN = 3
# Characters at the end of a log in which a reason is looked for.
LOG_CHARS = 20_000
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError", "bad_alloc", "ENOMEM")


def say(line: str) -> None:
  """Prints a line; what becomes of it decides nothing about the cells."""
  console.tell(line, is_error=False)


class Worker:
  """The process of one cell."""

  def __init__(
    self, root: str, cell: Cell, memory: int | None, cores: set[int]
  ):
    self.cell, self.path = cell, folder.path_of(root, cell.id)
    self.cores = cores
    self.started, self.beaten = time.monotonic(), time.monotonic()
    self.kills, self.told = _count_kills(), []
    folder.forget_end(self.path)
    with open(os.path.join(self.path, "log.txt"), "ab") as log:
      self.log_start = log.tell()
      self.process = subprocess.Popen(
        [*TRAIN, *cell.argv, f"--workdir={self.path}"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    # From here: between fork and exec nothing may run beside jax's threads.
    with contextlib.suppress(ProcessLookupError):
      if cores:
        os.sched_setaffinity(self.process.pid, cores)
      if memory is not None:
        resource.prlimit(
          self.process.pid, resource.RLIMIT_DATA, (memory, memory)
        )
    folder.hold(self.path, self.process.pid)

  def poll(self) -> dict | None:
    """Returns what ended.json will hold once the process has ended."""
    now = time.monotonic()
    if now - self.beaten > folder.BEAT_SECONDS:
      self.beaten = now
      folder.beat(self.path)
    pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
    if not pid:
      return None
    code = os.waitstatus_to_exitcode(status)
    self.process.returncode = code
    is_stopped = code in (exits.PREEMPTED, exits.INTERRUPTED) or (
      code < 0 and -code in self.told
    )
    return {
      "code": code,
      "is_stopped": is_stopped,
      "reason": "told to stop" if is_stopped else self._reason(code),
      "seconds": round(now - self.started, 2),
      # Linux counts in KiB.
      "peak_bytes": usage.ru_maxrss << 10,
      "host": socket.gethostname(),
      "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }

  def pass_on(self, number: int) -> None:
    """Sends a signal to the process."""
    self.told.append(number)
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.process.pid, number)

  def _reason(self, code: int) -> str:
    if code == 0:
      return ""
    with open(os.path.join(self.path, "log.txt"), "rb") as log:
      log.seek(self.log_start)
      text = log.read()[-LOG_CHARS:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("gpt_jax: ")]
    short = [line for line in lines if any(w in line for w in _OUT_OF_MEMORY)]
    if short:
      return f"out of memory: {short[-1][:300]}"
    if code < 0:
      name = signal.Signals(-code).name
      if code == -signal.SIGKILL and _count_kills() > self.kills:
        return "out of memory: killed by the kernel"
      why = ", by somebody or for want of memory" * (code == -signal.SIGKILL)
      return f"killed by {name}{why}"
    last = (said or lines or [""])[-1].removeprefix("gpt_jax: ")
    return f"exit code {code}: {last[:500]}"


def run(sweep: Sweep, root: str, args) -> int:
  """Runs what is not done; returns the exit code."""
  states = {c.id: folder.read(root, c.id) for c in sweep.cells}
  chosen = choose(sweep, args)
  todo = [c for c in chosen if states[c.id].word != folder.DONE]
  skipped = []
  if not args.retry:
    skipped = [c for c in todo if states[c.id].is_passed_over]
  todo = [c for c in todo if c not in skipped]
  if todo:
    branches.check_rates(sweep.cells)
  done = [c for c in chosen if states[c.id].word == folder.DONE]
  say(f"{len(chosen)} cells: {len(done)} done, {len(todo)} to run")
  refused = [] if args.only else sweep.refused
  for one in refused:
    say(f"refused: {one.title}: {one.reason}")
  queue = _Queue(root, todo, args)
  code = queue.run()
  failed = [*queue.failed, *skipped]
  for cell in skipped:
    reason = states[cell.id].reason
    say(f"failed before: {cell.id} {cell.title}: {reason}")
  if failed:
    ids = ",".join(c.id for c in failed)
    say(f"to run these again: the same command with --retry --only={ids}")
  words = {c.id: folder.read(root, c.id).word for c in failed}
  if folder.DIVERGED in words.values():
    say("what diverged will diverge again: a run is the same each time")
  for cell in queue.elsewhere:
    where = folder.read(root, cell.id).reason
    say(f"run elsewhere: {cell.id} {cell.title}: {where}")
  if code is None and queue.stopped:
    code = exits.PREEMPTED  # told by another than this process
  if code is not None:
    left = len(queue.waiting) + len(queue.stopped)
    say(f"stopped, {left} cells are left; go on with the same command")
    return code
  return exits.FAILED if failed or refused or queue.lost else 0


def choose(sweep: Sweep, args) -> list[Cell]:
  """Returns the cells of --only, all without it.

  Raises:
    InputError: an id is not of this sweep.
  """
  if args.only is None:
    return sweep.cells
  ids = args.only.split(",")
  for word in ids:
    found = [c for c in sweep.cells if c.id.startswith(word)]
    if len(found) != 1 or not word:
      have = f"{len(found)} cells" if found else "no cell"
      raise InputError(
        f"--only names {word!r}, which is the id of {have} of this sweep; "
        "list shows them"
      )
  return [c for c in sweep.cells if c.id.startswith(tuple(ids))]


class _Queue:
  """Cells that are to be run, are being run and have been run.

  Attributes:
    waiting: in order.
    failed, stopped, finished: that ended here.
    elsewhere: held by another process.
    lost: whose trunk failed.
    first, work: {cell id: first step, FLOPs from there on}.
    rates, rests: of finished cells, seconds a FLOP and seconds not of steps.
    shares: cores of each worker, empty where all have all.
  """

  def __init__(self, root: str, cells: list[Cell], args):
    self.root, self.args = root, args
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
    self.shares = share_cores(args.workers)
    self.said = time.monotonic()

  def run(self) -> int | None:
    """Returns once all has ended; the exit code if a signal came."""
    if not self.waiting:
      return None
    # What this process was started to ignore stays ignored.
    heard = [s for s in STOPPING if signal.getsignal(s) != signal.SIG_IGN]
    old = {s: signal.signal(s, self._note) for s in heard}
    is_told = False
    try:
      while self.waiting or self.workers:
        if self.signal is not None and not is_told:
          is_told = True
          say(f"stopping {len(self.workers)} cells, which save")
        self._collect()
        if self.signal is None:
          self._fill()
        elif not self.workers:
          break
        for worker in self.workers:
          if self.signal is not None and not worker.told:
            worker.pass_on(self.signal)  # it came while this one was started
        self._say()
        time.sleep(POLL_SECONDS)
    finally:
      for number, handler in old.items():
        signal.signal(number, handler)
      for worker in self.workers:  # by an error of this process alone
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
      if len(self.workers) >= self.args.workers:
        return
      if cell.trunk is not None and not self._is_ready(cell):
        continue
      self.waiting.remove(cell)
      self._begin(cell)
    held = {w.cell.id for w in self.workers} | {c.id for c in self.waiting}
    for cell in list(self.waiting):
      # Nobody will bring its trunk to that step.
      if cell.trunk[0] not in held:
        self.waiting.remove(cell)
        self.lost.append(cell)
        word = folder.read(self.root, cell.trunk[0]).word
        line = f"not run: {cell.id} {cell.title}: its trunk {cell.trunk[0]} is"
        say(f"{line} {word}")

  def _is_ready(self, cell: Cell) -> bool:
    path = folder.path_of(self.root, cell.id)
    if folder.list_steps(path) or branches.is_ready(self.root, cell):
      return True
    return folder.is_done(self.root, cell.trunk[0])

  def _begin(self, cell: Cell) -> None:
    fault = ""
    with contextlib.suppress(InputError):  # no vocabulary yet: the run tells
      fault = plan.fault_of(plan.with_vocab(cell.config, self.root), self.args)
    if not folder.claim(self.root, cell):
      self.elsewhere.append(cell)
      return
    path = folder.path_of(self.root, cell.id)
    begun = ""
    try:
      if cell.trunk is not None and not fault:
        step = branches.start(self.root, cell)
        if step:
          begun = f" from step {step:,} of {cell.trunk[0]}"
    except InputError as error:
      fault = str(error)
    except OSError as error:
      fault = f"its trunk cannot be copied: {error}"
    if fault:
      ended = {"code": 2, "is_stopped": False, "reason": fault}
      folder.release(path, ended)
      self._end(cell, ended)
      return
    memory = self.args.memory
    memory = None if memory is None else int(memory * 2**30)
    taken = set().union(*(w.cores for w in self.workers))
    cores = next((c for c in self.shares if not c & taken), set())
    self.workers.append(Worker(self.root, cell, memory, cores))
    say(f"started  {cell.id} {cell.title}{begun}")

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
    say(f"{line}  [{ended_count} of {self.count}]")

  def _say(self) -> None:
    """Prints how far the whole is, now and then."""
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
    say(f"{ended_count} of {self.count} ended{left}; {'; '.join(now)}")

  def _seconds_left(self) -> float | None:
    """Returns the time left by what finished cells took; None without one.

    A cell takes what its steps do, and what comes before and after them; both
    as they were while as many workers shared the machine.
    """
    if not self.rates:
      return None
    rate, rest = map(statistics.median, (self.rates, self.rests))
    whole = lambda cell: rest + rate * self.work[cell.id]
    left = sum(whole(cell) for cell in self.waiting)
    for worker in self.workers:
      left += max(0.0, whole(worker.cell) - (self.said - worker.started))
    return left / min(self.args.workers, len(self.waiting) + len(self.workers))

  def _learn(self, cell: Cell, ended: dict) -> None:
    """Notes what a finished cell took."""
    rows = folder.read(self.root, cell.id).rows
    times = [r[metrics.STEP_SECONDS] for r in rows if metrics.STEP_SECONDS in r]
    if times and self.work[cell.id]:
      steps = cell.config.train.num_steps - self.first[cell.id]
      seconds = min(statistics.median(times) * steps, ended["seconds"])
      self.rates.append(seconds / self.work[cell.id])
      self.rests.append(ended["seconds"] - seconds)


def share_cores(workers: int) -> list[set[int]]:
  """Returns the cores of each worker: threads that take turns on a core wait
  for each other at every product.
  """
  if workers == 1 or not hasattr(os, "sched_getaffinity"):
    return []
  cores = sorted(os.sched_getaffinity(0))
  if workers > len(cores):
    return []
  return [set(cores[index::workers]) for index in range(workers)]


def _work(root: str, cell: Cell) -> tuple[int, float]:
  """Returns the first step and the FLOPs of all from there on.

  Steps in place of FLOPs where the vocabulary is not known.
  """
  there = folder.list_steps(folder.path_of(root, cell.id))
  first = max(there, default=cell.trunk[1] if cell.trunk else 0)
  work = float(cell.config.train.num_steps - first)
  with contextlib.suppress(InputError):
    work *= plan.step_flops(plan.with_vocab(cell.config, root))
  return first, work


def _count_kills() -> int:
  """Returns how many processes the kernel has killed here for memory."""
  try:
    with open("/sys/fs/cgroup/memory.events") as file:
      rows = dict(line.split() for line in file)
    return int(rows["oom_kill"])
  except (OSError, KeyError, ValueError):
    return 0


def emit(sweep: Sweep, root: str, args) -> int:
  """Writes a line of arguments a cell that can be run now, for SLURM."""
  ready, later = [], []
  branches.check_rates(sweep.cells)
  for cell in choose(sweep, args):
    state, path = folder.read(root, cell.id), folder.path_of(root, cell.id)
    if state.word in (folder.DONE, folder.RUNNING):
      continue
    if state.is_passed_over and not args.retry:
      continue
    is_startable = cell.trunk is None or (
      folder.list_steps(path)
      or branches.is_ready(root, cell)
      or folder.is_done(root, cell.trunk[0])
    )
    (ready if is_startable else later).append((cell, command(cell, path)))
  lines = []
  for cell, line in ready:
    path = folder.path_of(root, cell.id)
    if not folder.claim(root, cell):
      continue
    try:
      if cell.trunk is not None:
        branches.start(root, cell)
    finally:
      folder.release(path, None)
    folder.forget_end(path)
    lines.append(line)
  if not lines:
    raise InputError(f"no cell of {root} can be run now; list shows why")
  target = os.path.abspath(args.emit)
  files.write_text(target, "".join(line + "\n" for line in lines))
  for line in lines[:SHOWN]:
    say(f"python -m gpt_jax.train {line}")
  if len(lines) > SHOWN:
    say(f"# and {len(lines) - SHOWN} more")
  say(f"# {len(lines)} cells in {args.emit}; as jobs of SLURM:")
  say(f"# bash launch/slurm.sh --cells={shlex.quote(args.emit)} --")
  if later:
    names = ", ".join(f"{c.id} {c.title}" for c, _ in later)
    say(f"# when their trunks are there, --emit again for {names}")
  return 0
