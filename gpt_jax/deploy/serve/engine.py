"""The engine: one thread that prefills prompts and runs decode steps.

This is continuous batching. Requests wait in a queue per client (turns.py). In
each turn of the engine's loop, free rows take waiting jobs, a chunk of several
prompts is prefilled, and one decode step draws a token in every row in use. So
a request joins while others are being answered, and its row is free in the turn
after its last token.

A step begins before the tokens of the step before it are decoded to text and
sent, so that the two overlap. What it draws for a text that has ended
meanwhile is thrown away.
"""

import collections
import concurrent.futures
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax

from gpt_jax.deploy.serve.jobs import WAITING, Event, Job, Reading, Token
from gpt_jax.deploy.serve.metrics import Histogram
from gpt_jax.deploy.serve.turns import Turns
from gpt_jax.inference.drafts import Lookup
from gpt_jax.inference.drawing import Drawn
from gpt_jax.inference.rows import NARROWER

# All clients together may have this many times the waiting jobs of one client.
MAX_CLIENTS = 4


class NoRows:
  """Stands in for Rows, for a run that does not continue texts."""

  num_rows, num_drafts, pages = 0, 0, None


class Busy(Exception):
  """The engine takes no more jobs now."""


class Engine:
  """Answers jobs in a thread of its own.

  Args:
    make_rows: returns Rows; called in the engine's thread, and again after a
      fault.
    mesh: the run's mesh.
    max_waiting: most jobs of a client that may wait for a row; all clients
      together may have MAX_CLIENTS times as many.

  Attributes:
    counts: Counter of tokens drawn, guessed_tokens (those of them that were
      accepted drafts), prompt_tokens, reused_tokens (prompt tokens from the
      prefix cache), steps, faults, and "jobs_END" for each END of a job.
    gaps: Histogram of the seconds from one step's end to the next's.
  """

  def __init__(self, make_rows: Callable[[], Any], mesh, max_waiting: int):
    self._make_rows, self._mesh, self.max_waiting = make_rows, mesh, max_waiting
    self._waiting = Turns()
    self._calls: collections.deque = collections.deque()
    self._active: list[Job] = []
    # (what Rows.begin returned, its jobs) of the step that has begun, or None.
    self._begun: tuple | None = None
    # Turns in a row in which prefilled jobs waited for others (_is_gathering).
    self._num_gathered = 0
    self._changed = threading.Condition()
    self._is_draining, self._last = False, 0.0
    self.counts: collections.Counter = collections.Counter()
    self.gaps = Histogram("from a step to the next while texts are written")
    self.error: BaseException | None = None
    self.is_ready = threading.Event()
    self._thread = threading.Thread(
      target=self._run, name="engine", daemon=True
    )

  def start(self) -> None:
    """Starts the thread; returns once its programs are compiled."""
    self._thread.start()
    self.is_ready.wait()
    if self.error is not None:
      raise self.error

  @property
  def num_waiting(self) -> int:
    return len(self._waiting)

  @property
  def num_active(self) -> int:
    return len(self._active)

  @property
  def num_rows(self) -> int:
    return self.rows.num_rows

  @property
  def num_pages(self) -> int:
    return 0 if self.rows.pages is None else self.rows.pages.num_held

  @property
  def is_alive(self) -> bool:
    return self._thread.is_alive() and not self._is_draining

  def submit(self, jobs: list[Job], client) -> None:
    """Queues all of a client's jobs, or raises Busy and queues none."""
    with self._changed:
      new = len(jobs) - (self.num_rows - len(self._active))
      own, all_clients = self._waiting.count(client), len(self._waiting)
      is_full = own + new > self.max_waiting
      is_full |= all_clients + new > MAX_CLIENTS * self.max_waiting
      if self._is_draining or is_full:
        raise Busy
      self._waiting.add(jobs, client)
      self._changed.notify()

  def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
    """Runs a function between two steps; raises Busy if too many wait."""
    future = concurrent.futures.Future()
    with self._changed:
      if self._is_draining or len(self._calls) >= self.max_waiting:
        raise Busy
      self._calls.append((function, future))
      self._changed.notify()
    return future

  def drain(self, seconds: float) -> bool:
    """Takes no more jobs; returns whether all ended within that time."""
    with self._changed:
      self._is_draining = True
      self._changed.notify()
    self._thread.join(seconds)
    if self._thread.is_alive():
      with self._changed:
        for job in [*self._active, *self._waiting]:
          job.cancel()
        self._changed.notify()
      self._thread.join(5)
      return False
    return True

  def _run(self) -> None:
    with jax.set_mesh(self._mesh):
      try:
        self.rows = self._make_rows()
        self._warm_up()
      except BaseException as error:  # the caller of `start` raises it
        self.error = error
        return
      finally:
        self.is_ready.set()
      while self._turn():
        pass

  def _warm_up(self) -> None:
    """Compiles what the first requests run."""
    if self.num_rows:
      self.rows.warm_up()

  def _turn(self) -> bool:
    """Runs one turn of the engine's loop; returns whether to go on."""
    with self._changed:
      while not (self._waiting or self._active or self._calls):
        if self._is_draining:
          return False
        self._changed.wait()
        self._last = time.monotonic()
      self._sweep()
      self._admit()
      call = self._calls.popleft() if self._calls else None
    if call is not None:
      _settle(*call)
    try:
      self._read()
      if not self._is_gathering():
        self._step()
    except Exception:
      traceback.print_exc(file=sys.stderr)
      self._recover()
    return True

  def _sweep(self) -> None:
    """Ends jobs that were cancelled or are past their deadline."""
    now = time.monotonic()
    for job in [*self._active, *self._waiting]:
      if job.is_cancelled or now > job.deadline:
        if job.row == WAITING:
          self._waiting.remove(job)
        self._end(job, "cancelled" if job.is_cancelled else "timeout")

  def _admit(self) -> None:
    held = {job.row for job in self._active}
    free = [row for row in range(self.rows.num_rows) if row not in held]
    num_held = collections.Counter(job.client for job in self._active)
    while free and self._waiting:
      job = self._waiting.pop(num_held)
      num_held[job.client] += 1
      job.row = free.pop(0)
      self._active.append(job)

  def _read(self) -> None:
    """Prefills a chunk of the first prompts; jobs that are read join a row."""
    rows, prompts = self.rows, []
    unread = [job for job in self._active if not rows.is_held_R[job.row]]
    readings = dict.fromkeys(job.reading for job in unread)
    num_begun = sum(job.num_begun > 0 for job in self._active)
    # The wide prefill slows the texts that are being generated, and is worth it
    # only if many more jobs wait for their prompts.
    is_narrow = rows.narrow is not None and (
      len(unread) <= max(NARROWER * num_begun, rows.narrow.num_places)
    )
    home = rows.narrow if is_narrow else rows.prefill
    for reading in readings:
      if reading.prompt is None and home.num_free:
        self._start(reading, is_narrow)
      if reading.prompt is not None and not reading.prompt.is_read:
        prompts.append(reading.prompt)
    if prompts:
      rows.read(prompts)
    for job in unread:
      if job.reading.prompt is not None and job.reading.prompt.is_read:
        self._join(job)

  def _start(self, reading: Reading, is_narrow: bool) -> None:
    reading.prompt = self.rows.start(reading.ids, is_narrow)
    reading.num_reused = reading.prompt.num_read
    self.counts["reused_tokens"] += reading.num_reused
    self.counts["prompt_tokens"] += len(reading.ids)

  def _join(self, job: Job) -> None:
    self.rows.join(job.row, job.reading.prompt, job.settings)
    self._let_go(job.reading)
    is_guessed = self.rows.num_drafts and self.rows.drafter is None
    if is_guessed and job.matcher is None:
      job.lookup = Lookup(job.reading.ids.tolist())

  def _let_go(self, reading: Reading) -> None:
    """Counts off a job that has joined or ended; the last drops the prompt."""
    reading.num_waiting -= 1
    if not reading.num_waiting and reading.prompt is not None:
      self.rows.drop(reading.prompt)
      reading.prompt = None

  def _writing(self) -> list[Job]:
    """Returns the jobs whose texts are being generated."""
    return [job for job in self._active if self.rows.is_held_R[job.row]]

  def _is_gathering(self) -> bool:
    """Returns whether prefilled jobs should wait for the prompts of others.

    A step takes the same time however few rows are in use. So when many
    requests arrive together, all finish sooner if they begin together. They
    wait for at most num_rows turns, and not while a text is being generated.
    """
    writing = self._writing()
    is_new = writing and all(job.num_begun == 0 for job in writing)
    if is_new and len(writing) < len(self._active):
      self._num_gathered += 1
      return self._num_gathered <= self.num_rows
    self._num_gathered = 0
    return False

  def _step(self) -> None:
    """Begins a step, and takes the tokens of the one before it."""
    writing = self._writing()
    # A schema's mask and the drafts depend on the token before, so these steps
    # cannot overlap.
    is_slow = self.rows.num_drafts or any(job.matcher for job in writing)
    if is_slow:
      self._end_step()
      writing = [job for job in writing if not job.has_ended]
    jobs = [job for job in writing if job.num_begun < job.num_tokens]
    before, self._begun = self._begun, None
    if jobs:
      for job in jobs:
        if job.matcher is not None:
          job.matcher.fill(self.rows.mask_RW[job.row])
        job.num_begun += 1
      self._begun = self.rows.begin(self._guess(jobs)), jobs
    self._take_all(before)
    if is_slow:
      self._end_step()

  def _end_step(self) -> None:
    before, self._begun = self._begun, None
    self._take_all(before)

  def _take_all(self, begun: tuple | None) -> None:
    """Takes the tokens of a step, once they are drawn."""
    if begun is None:
      return
    drawn, jobs = self.rows.end(begun[0]), begun[1]
    now = time.monotonic()
    self.gaps.observe(now - self._last)
    self._last = now
    self.counts["steps"] += 1
    for job in jobs:
      if job.has_ended:
        continue
      for t in range(drawn.num_R[job.row]):
        self.counts["tokens"] += 1
        self.counts["guessed_tokens"] += t > 0
        if not self._take(job, drawn, t):
          break
      job.num_begun = max(job.num_begun, job.num_made)

  def _guess(self, writing: list[Job]) -> dict[int, list[int]]:
    """Returns {row: drafts}; jobs with a matcher have no lookup, so no drafts.

    A matcher knows only the mask of the next token, not of the one after it.
    """
    count = self.rows.num_drafts
    if not count:
      return {}
    return {
      job.row: job.lookup.guess(count)
      for job in writing
      if job.lookup is not None
    }

  def _take(self, job: Job, drawn: Drawn, t: int) -> bool:
    """Adds a token to a job's text; returns whether the text goes on."""
    i = int(drawn.ids_RT[job.row, t])
    if i < 0:
      self._end(job, "error")
      return False
    job.num_made += 1
    job.speech.push(i)
    if job.lookup is not None:
      job.lookup.push(i)
    if job.matcher is not None:
      job.matcher.push(i)
      job.speech.is_done |= job.matcher.is_done
      if job.matcher.is_lost:
        self._end(job, "lost")
        return False
    token = Token(i, 0.0, [])
    if job.settings.has_log_probs:
      likeliest = zip(
        drawn.likeliest_RTE[job.row, t].tolist(),
        drawn.their_log_probs_RTE[job.row, t].tolist(),
        strict=True,
      )
      own = float(drawn.log_probs_RT[job.row, t])
      token = Token(i, own, list(likeliest))
    if job.speech.is_done:
      self._end(job, "stop", token)
    elif job.num_made == job.num_tokens:
      self._end(job, "length", token)
    else:
      job.tell(Event(job.speech.take(), token))
      return True
    return False

  def _end(self, job: Job, how: str, token: Token | None = None) -> None:
    """Frees a job's row, and sends its last event, with how it ended."""
    job.has_ended = True
    if job in self._active:
      self._active.remove(job)
    if job.row != WAITING and self.rows.is_held_R[job.row]:
      self.rows.leave(job.row)
    else:
      self._let_go(job.reading)
    self.counts[f"jobs_{how}"] += 1
    job.tell(Event(job.speech.take(is_last=True), token, how))

  def _recover(self) -> None:
    """Ends all active jobs after a fault, and makes new Rows."""
    self.counts["faults"] += 1
    self._begun = None
    for job in list(self._active):
      self._active.remove(job)
      job.tell(Event("", None, "error"))
      self.counts["jobs_error"] += 1
    # Jobs that wait for a row must prefill again: their prompt's cache is gone.
    with self._changed:
      left = collections.Counter(job.reading for job in self._waiting)
    for reading, count in left.items():
      reading.num_waiting, reading.prompt = count, None
    self.rows = self._make_rows()


def _settle(function, future) -> None:
  if not future.set_running_or_notify_cancel():
    return
  try:
    future.set_result(function())
  except BaseException as error:
    future.set_exception(error)
