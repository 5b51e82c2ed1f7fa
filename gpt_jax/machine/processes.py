"""Several processes of one run: how they meet, agree, stop and end together.

The processes meet (meeting.py) before jax takes the coordinator's port over,
and keep these connections for as long as they run: process 0 is the hub, and a
thread in each process listens.

Design choice: a channel of our own beside jax's coordination
service. That one aborts a process from C++ where nobody answers or a peer has
died, replaces the handler of SIGTERM, and knows nothing of a peer that is
alive and stuck. Here all four end in a sentence, before anything is compiled
where they can, and a step costs no message: only a signal does.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from gpt_jax.machine import channel as channel_lib
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
  channel = channel_lib.Channel(place, meeting.meet(place, facts))
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


def share(make: Callable[[], Any]):
  """Returns what `make` returns in process 0, in every process.

  For whatever depends on a file, a clock or a signal and decides what all
  processes do next. Only process 0 calls `make`; an error there ends all.

  Args:
    make: returns a value of JSON's types.
  """
  return make() if _channel is None else _channel.share(make)


def in_turn(make: Callable[[], Any]):
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


def agree(name: str, value: Any) -> None:
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
