"""Several processes of one run: how they meet, agree, stop and end together.

The processes meet (meeting.py) before jax takes the coordinator's port over,
and keep these connections for as long as they run: process 0 is the hub, and a
thread in each process listens.

The questionable decision: a channel of our own beside jax's coordination
service. That one aborts a process from C++ where nobody answers or a peer has
died, replaces the handler of SIGTERM, and knows nothing of a peer that is
alive and stuck. Here all four end in a sentence, before anything is compiled
where they can, and a step costs no message: only a signal does.
"""

import contextlib
import ctypes
import json
import os
import queue
import selectors
import signal
import sys
import threading
import time

from gpt_jax import exits
from gpt_jax.config import InputError
from gpt_jax.machine import meeting, runtime, streams, watchdog

_channel = None
_watchdog = None


def index() -> int:
  """Returns which of the processes this is; 0 is the one that writes."""
  return 0 if _channel is None else _channel.place.index


def count() -> int:
  """Returns how many processes work on this run."""
  return 1 if _channel is None else _channel.place.count


def join(facts: dict) -> None:
  """Meets the other processes of this run, if there are any.

  Called before jax has looked for devices, after what one process alone can
  find wrong. With one process it costs nothing and leaves jax alone.

  Args:
    facts: {name: value} of JSON's types, to be the same in all processes.

  Raises:
    InputError: in every process: one of them did not come in time, or was
      started with something else.
  """
  global _channel
  place = runtime.find_place()
  if place is None:
    return
  # By way of JSON, as the others' come.
  facts = json.loads(json.dumps(facts | meeting.own_facts()))
  channel = _Channel(place, meeting.meet(place, facts))
  _channel = channel
  channel.start()
  streams.keep_stdout_for_python()
  _delay_abort()

  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would replace the handler of SIGTERM; see Channel.check.
  jax.config.update("jax_enable_preemption_service", False)
  day = 24 * 3600
  is_free = place.index == 0 and place.bind is None
  host = meeting.bind_host(place) if is_free else ""
  host = f"[{host}]" if ":" in host else host
  jax.distributed.initialize(
    place.address,
    place.count,
    place.index,
    place.local_devices,
    cluster_detection_method="deactivate",
    coordinator_bind_address=f"{host}:{place.port}" if host else None,
    initialization_timeout=max(60, int(place.join_seconds)),
    # The channel notices a lost process, sooner and in words.
    heartbeat_timeout_seconds=day,
    shutdown_timeout_seconds=300,
  )


def share(make):
  """Returns what `make` returns in process 0, in every process.

  For whatever depends on a file, a clock or a signal and decides what all
  processes do next. Only process 0 calls `make`; an error there ends all.

  Args:
    make: returns a value of JSON's types.
  """
  return make() if _channel is None else _channel.share(make)


def in_turn(make):
  """Returns what `make` returns in each process; process 0's comes first.

  For what is kept in a folder: where processes share a disk, the others find
  there what process 0 has made; where they do not, each makes its own.
  """
  if index() == 0:
    made = make()
    share(lambda: None)
    return made
  share(lambda: None)
  return make()


def agree(name: str, value) -> None:
  """Raises InputError in every process unless all give the same value."""
  if _channel is not None:
    _channel.agree(name, value)


def check(step: int) -> int | None:
  """Returns the exit code to stop with now, or None: the same everywhere.

  To be called equally often by all processes. Where one of them was asked to
  stop, all are held at their next call until the hub knows how far each has
  come; then each goes on to the furthest of these calls and stops at the next.

  Args:
    step: what is told of this process where it is stuck.
  """
  if _channel is not None:
    return _channel.check(step)
  if _watchdog is not None:
    _watchdog.progress.note(step)
  return None


def ask_to_stop(code: int) -> None:
  """Has `check` return this code soon, everywhere; for signal handlers."""
  if _channel is not None:
    os.write(_channel.waker, bytes([code]))


def mark(is_result: bool = True) -> None:
  """Notes that something was done: this process is waited for, not stuck.

  Args:
    is_result: a step's or a batch's, for which others wait as long.
  """
  watched = _watchdog if _channel is None else _channel
  if watched is not None:
    watched.progress.mark() if is_result else watched.progress.note()


@contextlib.contextmanager
def watched(folder: str):
  """Within it, a process that makes no progress is ended.

  It counts from the first call of `mark`.

  Args:
    folder: for the stacks of a process that is stuck.
  """
  global _watchdog
  if _channel is not None:
    _channel.folder = folder
    yield
    return
  _watchdog = watchdog.Watchdog(folder, runtime.stuck_seconds())
  try:
    yield
  finally:
    _watchdog.close()
    _watchdog = None


def end(code: int, why: str) -> None:
  """Ends all processes at once, with one sentence of process 0.

  Returns only where there are none, or where process 0 does not answer: the
  caller then says why.
  """
  if _channel is not None:
    _channel.end(code, why)


def settle() -> None:
  """Waits a moment after an error: where a peer was lost, that is its cause,
  and the thread that listens says so and ends this process."""
  if _channel is not None:
    time.sleep(meeting.SOON)


def leave() -> None:
  """Waits for all processes to come to their end, and lets them go."""
  global _channel
  if _channel is not None:
    _channel.leave()
    _channel = None


def _delay_abort() -> None:
  """Has abort() wait for some seconds.

  Where process 0 dies, jax's client aborts this process from C++ in the same
  millisecond in which the channel sees it; the channel is to have its say.
  The handler is the C library's sleep: it is given the signal's number, 6.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


# The channel


class _Channel:
  """What the processes tell each other while they run.

  Attributes:
    place: which process of how many.
    waker: a file to write exit codes to, as signal handlers may.
  """

  def __init__(self, place: runtime.Place, lines: dict[int, meeting.Line]):
    self.place, self.lines = place, lines
    self.is_hub = place.index == 0
    self.lock = threading.Condition()
    # What main waits for: shared values (with their number), verdicts.
    self.shared, self.num_shared = queue.SimpleQueue(), 0
    self.given = {}
    # Stopping: calls of `check` that were passed, the call to stop at.
    self.passed, self.stop_at, self.code = 0, None, None
    self.is_held, self.votes = False, None
    # Progress
    self.progress = watchdog.Progress(place.stuck_seconds, is_alone=False)
    self.folder = "."
    self.heard = {k: (0, time.monotonic()) for k in lines}
    self.told = 0.0
    # Ending
    self.ending, self.is_ended = None, False
    self.done, self.is_over = set(), threading.Event()
    self.is_leaving = False
    wake, self.waker = os.pipe()
    os.set_blocking(self.waker, False)
    self.wake = wake

  def start(self) -> None:
    threading.Thread(target=self._serve, daemon=True).start()

  # Called by the main thread

  def share(self, make):
    self.num_shared += 1
    if self.is_hub:
      value = make()
      self._tell({"shared": value, "number": self.num_shared})
      return value
    number, value = self.shared.get()
    if number != self.num_shared:
      raise RuntimeError(f"value {number} came, {self.num_shared} was due")
    return value

  def agree(self, name: str, value) -> None:
    facts = json.loads(json.dumps({name: value}))
    if not self.is_hub:
      self._tell({"given": facts})

    def compare():
      with self.lock:
        self.lock.wait_for(lambda: len(self.given) == len(self.lines))
        everyone, self.given = self.given | {0: facts}, {}
      return meeting.refusal_of(everyone)

    refusal = self.share(compare)
    if refusal:
      raise InputError(refusal)

  def check(self, step: int) -> int | None:
    with self.lock:
      self.progress.note(step)
      self.lock.wait_for(lambda: not self.is_held)
      if self.stop_at is not None and self.passed + 1 >= self.stop_at:
        return self.code
      self.passed += 1
      return None

  def end(self, code: int, why: str) -> None:
    if self.is_hub:
      self._finish(code)
    with contextlib.suppress(OSError):
      self.lines[0].write({"end": code, "why": why})
      # The hub says it, and ends this process by its answer.
      time.sleep(meeting.SOON)

  def leave(self) -> None:
    self.is_leaving = True
    if self.is_hub:
      with self.lock:
        self.lock.wait_for(lambda: len(self.done) == len(self.lines))
      self._tell({"over": True})
      self.is_over.set()
    else:
      self._tell({"done": True})
      self.is_over.wait()

  # Called by the thread that listens

  def _serve(self) -> None:
    with selectors.DefaultSelector() as selector:
      selector.register(self.wake, selectors.EVENT_READ, None)
      for k, line in self.lines.items():
        selector.register(line.link, selectors.EVENT_READ, k)
        # What came together with the welcome.
        for message in line.receive(meeting.SOON) if b"\n" in line.left else []:
          self._handle(k, message)
      while not self.is_over.is_set():
        for key, _ in selector.select(0.5):
          k = key.data
          if k is None:
            self._ask(os.read(self.wake, 1)[0])
            continue
          try:
            messages = self.lines[k].receive(meeting.SOON)
          except (OSError, ValueError):
            selector.unregister(self.lines[k].link)
            if not self.is_over.is_set() and k not in self.done:
              self._lose(k)
            continue
          for message in messages:
            self._handle(k, message)
        self._watch()

  def _handle(self, k: int, message: dict) -> None:
    self.heard[k] = (self.heard[k][0], time.monotonic())
    if "shared" in message:
      self.shared.put((message["number"], message["shared"]))
    elif "given" in message:
      with self.lock:
        self.given[k] = message["given"]
        self.lock.notify_all()
    elif "at" in message:
      self.heard[k] = (message["at"], time.monotonic())
    elif "ask" in message:
      self._ask(message["ask"])
    elif "hold" in message:
      self._tell({"passed": self._hold()})
    elif "passed" in message:
      self._vote(k, message["passed"])
    elif "stop_at" in message:
      self._set_stop(message["stop_at"], message["code"])
    elif "stuck" in message:
      self._end_stuck(message["stuck"])
    elif "end" in message and self.is_hub:
      if self.ending is None:
        # Most errors come in all processes; process 0 then says its own.
        self.ending = time.monotonic() + 1.0, k, message
    elif "end" in message:
      if message.get("is_stuck"):
        watchdog.write_stacks(self.folder)
      self._exit(message["end"])
    elif "done" in message:
      with self.lock:
        self.done.add(k)
        self.lock.notify_all()
    elif "over" in message:
      self.is_over.set()

  def _ask(self, code: int) -> None:
    if not self.is_hub:
      self._tell({"ask": code})
    elif self.votes is None and not self.is_leaving:
      self.votes, self.code = {}, code
      self._tell({"hold": True})
      self._vote(0, self._hold())

  def _hold(self) -> int:
    with self.lock:
      self.is_held = True
      return self.passed

  def _vote(self, k: int, passed: int) -> None:
    self.votes[k] = passed
    if len(self.votes) == self.place.count:
      stop_at = max(self.votes.values()) + 1
      self._tell({"stop_at": stop_at, "code": self.code})
      self._set_stop(stop_at, self.code)

  def _set_stop(self, stop_at: int, code: int) -> None:
    with self.lock:
      self.stop_at, self.code, self.is_held = stop_at, code, False
      self.lock.notify_all()

  def _watch(self) -> None:
    now = time.monotonic()
    if self.ending is not None and now > self.ending[0]:
      _, k, message = self.ending
      self._finish(message["end"], f"process {k}: {message['why']}")
    floor = self.place.stuck_seconds
    if not self.is_hub and now - self.told > min(10.0, floor / 4):
      self.told = now
      self._tell({"at": self.progress.step})
    progress = self.progress
    progress.tick()
    if self.is_leaving or not progress.is_stuck():
      return
    if not self.is_hub:
      with contextlib.suppress(OSError):
        self.lines[0].write({"stuck": progress.waited})
      answered = time.monotonic() - self.heard[0][1] < meeting.SOON
      if answered or not progress.is_stuck(meeting.SOON):
        return  # process 0 says it
    self._end_stuck(progress.waited)

  def _end_stuck(self, waited: float) -> None:
    why = self._stuck_sentence(waited)
    where = watchdog.write_stacks(self.folder)
    self._finish(exits.PREEMPTED, f"{why}; {where}", is_stuck=True)

  def _stuck_sentence(self, waited: float) -> str:
    """Returns who waits where; a stuck process is behind, or silent."""
    now = time.monotonic()
    own = f"process {self.place.index} is at step {self.progress.step:,}"
    others = []
    for k, (step, heard) in sorted(self.heard.items()):
      silent = now - heard
      if not self.is_hub:
        others.append("process 0 does not answer")
      elif silent > 2 * min(10.0, self.place.stuck_seconds / 4) + 1:
        others.append(
          f"process {k} has been silent for {silent:.0f} s, since step {step:,}"
        )
      else:
        others.append(f"process {k} at step {step:,}")
    more = [f"and {len(others) - 7} more"] if len(others) > 8 else []
    others = others[: 8 - len(more)] + more
    return (
      f"no step has ended for {waited:.0f} s: {', '.join([own, *others])}; one "
      "of the processes is stuck; saved checkpoints are whole: start again to "
      "go on"
    )

  def _lose(self, k: int) -> None:
    if self.is_ended:
      return
    if self.is_hub and self.ending is not None and self.ending[1] == k:
      return  # it has said why
    self._finish(
      exits.PREEMPTED,
      f"process {k} of {self.place.count} is gone without a word: killed, out "
      "of memory, or its machine was lost; saved checkpoints are whole: start "
      "again, with as many processes as there are now, to go on",
    )

  def _finish(
    self, code: int, why: str | None = None, is_stuck: bool = False
  ) -> None:
    """Says why and ends this process; process 0 has the others end first.

    Where one is stuck, each writes what its threads are at.
    """
    with self.lock:
      is_first, self.is_ended = not self.is_ended, True
    if not is_first:
      time.sleep(4 * meeting.SOON)  # the other thread is at it
    if why is not None:
      who = "" if self.is_hub else f"process {self.place.index}: "
      # The last word: what jax's own threads say of it after this is not heard.
      with contextlib.suppress(OSError):
        own = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(own, f"\ngpt_jax: {who}{why}\n".encode())
    if self.is_hub:
      self._tell({"end": code, "why": why, "is_stuck": is_stuck})
      # Its end takes jax's coordination service along, which aborts the rest.
      deadline = time.monotonic() + meeting.SOON
      for line in self.lines.values():
        with contextlib.suppress(OSError, ValueError):
          while time.monotonic() < deadline:
            line.receive(max(0.01, deadline - time.monotonic()))
    self._exit(code)

  def _exit(self, code: int) -> None:
    with contextlib.suppress(Exception):
      sys.stdout.flush()
    os._exit(code)

  def _tell(self, message: dict) -> None:
    for line in self.lines.values():
      # Who is gone is noticed by the thread that listens.
      with contextlib.suppress(OSError):
        line.write(message)
