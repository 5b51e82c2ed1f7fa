"""The messages that the processes of a run exchange while it runs.

Process 0 is the hub of a star; each process has a thread that listens.
"""

import contextlib
import json
import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gpt_jax import exits
from gpt_jax.config import InputError
from gpt_jax.machine import meeting, runtime, watchdog


class Channel:
  """This process's end of the messages; processes.py documents the calls.

  Attributes:
    place: this process's index, and the number of processes.
    waker: a pipe; an exit code written to it (a signal handler may) asks all
      processes to stop.
  """

  def __init__(self, place: runtime.Place, lines: dict[int, meeting.Line]):
    self.place, self.lines = place, lines
    self.is_hub = place.index == 0
    self.lock = threading.Condition()
    # Values from process 0, each with its number in the order of calls.
    self.shared, self.num_shared = queue.SimpleQueue(), 0
    self.given = {}
    # Stopping: calls of `check` so far, the call to stop at.
    self.passed, self.stop_at, self.code = 0, None, None
    self.is_held, self.votes = False, None
    # Progress
    self.progress = watchdog.Progress(place.stuck_seconds, is_alone=False)
    self.folder = "."
    self.heard = {k: (0, time.monotonic()) for k in lines}
    self.reported = 0.0
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

  def share(self, make: Callable[[], Any]):
    self.num_shared += 1
    if self.is_hub:
      value = make()
      self._tell({"shared": value, "number": self.num_shared})
      return value
    number, value = self.shared.get()
    if number != self.num_shared:
      raise RuntimeError(f"got value {number}, expected {self.num_shared}")
    return value

  def agree(self, name: str, value: Any) -> None:
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
      # The hub prints the reason and answers with "end".
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

  # Called by the listening thread

  def _serve(self) -> None:
    with selectors.DefaultSelector() as selector:
      selector.register(self.wake, selectors.EVENT_READ, None)
      for k, line in self.lines.items():
        selector.register(line.link, selectors.EVENT_READ, k)
        # Messages that were read together with the welcome.
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
        # Most errors occur in every process; give process 0 time for its own.
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
    assert self.votes is not None and self.code is not None  # _ask set them
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
    if not self.is_hub and now - self.reported > min(10.0, floor / 4):
      self.reported = now
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
        return  # process 0 ends the run
    self._end_stuck(progress.waited)

  def _end_stuck(self, waited: float) -> None:
    why = self._stuck_sentence(waited)
    where = watchdog.write_stacks(self.folder)
    self._finish(exits.PREEMPTED, f"{why}; {where}", is_stuck=True)

  def _stuck_sentence(self, waited: float) -> str:
    """Returns each process's step: a stuck one is behind, or silent."""
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
      "of the processes is stuck; saved checkpoints are intact: start again to "
      "continue"
    )

  def _lose(self, k: int) -> None:
    if self.is_ended:
      return
    if self.is_hub and self.ending is not None and self.ending[1] == k:
      return  # it has sent its reason
    self._finish(
      exits.PREEMPTED,
      f"process {k} of {self.place.count} disappeared: killed, out of memory "
      "or with its machine; saved checkpoints are intact: start again, with "
      "as many processes as there are now, to continue",
    )

  def _finish(
    self, code: int, why: str | None = None, is_stuck: bool = False
  ) -> None:
    """Prints why and ends this process; process 0 ends the others first.

    If one of them is stuck, each writes the stacks of its threads.
    """
    with self.lock:
      is_first, self.is_ended = not self.is_ended, True
    if not is_first:
      time.sleep(4 * meeting.SOON)  # the other thread is ending the process
    if why is not None:
      who = "" if self.is_hub else f"process {self.place.index}: "
      # Silence jax's threads, which would report the same failure after this.
      with contextlib.suppress(OSError):
        own = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(own, f"\ngpt_jax: {who}{why}\n".encode())
    if self.is_hub:
      self._tell({"end": code, "why": why, "is_stuck": is_stuck})
      # jax's coordination service ends with process 0 and aborts the others:
      # wait until they have closed their connections.
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
      # The listening thread notices a lost peer.
      with contextlib.suppress(OSError):
        line.write(message)
