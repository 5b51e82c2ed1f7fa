"""Several processes of one run: they connect, agree, stop and end together.

The processes connect (meeting.py) before jax takes over the coordinator's port,
and keep these connections while they run (channel.py).

Design choice: a channel of our own beside jax's coordination service, which
aborts a process from C++ when a peer does not answer or has died, replaces the
handler of SIGTERM, and does not notice a peer that is alive but stuck. Here
each of these ends with a sentence, where possible before anything is compiled.
A step costs no message; only a signal does.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gpt_jax.machine import channel as channel_lib
from gpt_jax.machine import meeting, runtime, streams, watchdog

_channel = None
_watchdog = None


def index() -> int:
  """Returns the index of this process; process 0 writes the files."""
  return 0 if _channel is None else _channel.place.index


def count() -> int:
  """Returns the number of processes of this run."""
  return 1 if _channel is None else _channel.place.count


def note(line: str) -> None:
  """Prints a comment on standard error, once for all processes of a run."""
  if index() == 0:
    print(line, file=sys.stderr)


def join(facts: dict) -> None:
  """Connects to the other processes of this run, if there are any.

  Call it before jax looks for devices, and after the checks that one process
  can do alone. With one process it does nothing.

  Args:
    facts: {name: JSON value}; must be the same in all processes.

  Raises:
    InputError: in every process: one of them did not connect in time, or was
      started with other facts.
  """
  global _channel
  place = runtime.find_place()
  if place is None:
    return
  # Convert through JSON, like the facts of the others: tuples become lists.
  facts = json.loads(json.dumps(facts | meeting.own_facts()))
  channel = channel_lib.Channel(place, meeting.meet(place, facts))
  _channel = channel
  channel.start()
  streams.keep_stdout_for_python()
  _delay_abort()

  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # The service would replace the handler of SIGTERM; see `check`.
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
    # The channel notices a lost process sooner, and says so.
    heartbeat_timeout_seconds=day,
    shutdown_timeout_seconds=300,
  )


def share(make: Callable[[], Any]):
  """Calls `make` in process 0 alone and returns its result in every process.

  For decisions that depend on a file, a clock or a signal and that all
  processes must take alike. An error in `make` ends all processes.

  Args:
    make: returns a JSON value.
  """
  return make() if _channel is None else _channel.share(make)


def in_turn(make: Callable[[], Any]):
  """Calls `make` in every process, in process 0 first; returns its result.

  For cached files: processes that share a disk find there what process 0 has
  written; the others each write their own.
  """
  if index() == 0:
    made = make()
    share(lambda: None)
    return made
  share(lambda: None)
  return make()


def agree(name: str, value: Any) -> None:
  """Raises InputError in every process unless all pass the same value."""
  if _channel is not None:
    _channel.agree(name, value)


def check(step: int) -> int | None:
  """Returns the exit code to stop with now, or None; the same in all processes.

  All processes must call it equally often. Once one of them is asked to stop,
  each is held at its next call until the hub knows how many calls each has
  made; all then run to the largest of these counts and stop at the next call.

  Args:
    step: named in the error if this process gets stuck.
  """
  if _channel is not None:
    return _channel.check(step)
  if _watchdog is not None:
    _watchdog.progress.note(step)
  return None


def ask_to_stop(code: int) -> None:
  """Makes `check` return this code soon, in all processes.

  Safe in a signal handler.
  """
  if _channel is not None:
    os.write(_channel.waker, bytes([code]))


def mark(is_result: bool = True) -> None:
  """Notes that this process has made progress and is not stuck.

  Args:
    is_result: a step or a batch was finished, so that the time until the next
      one is comparable.
  """
  watched = _watchdog if _channel is None else _channel
  if watched is not None:
    watched.progress.mark() if is_result else watched.progress.note()


@contextlib.contextmanager
def watched(folder: str):
  """Within this context, ends a process that makes no progress.

  Time counts from the first call of `mark` or `check`.

  Args:
    folder: where the stacks of a stuck process are written.
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
  """Ends all processes at once; process 0 prints why.

  Returns only if there is one process, or if process 0 does not answer: the
  caller then prints why.
  """
  if _channel is not None:
    _channel.end(code, why)


def settle() -> None:
  """Waits a moment after an error, which a lost peer may have caused.

  The listening thread then reports the peer and ends this process.
  """
  if _channel is not None:
    time.sleep(meeting.SOON)


def leave() -> None:
  """Waits until all processes are done, and closes the channel."""
  global _channel
  if _channel is not None:
    _channel.leave()
    _channel = None


def _delay_abort() -> None:
  """Makes abort() wait for 6 seconds.

  When process 0 dies, jax's client aborts this process from C++ within the
  millisecond in which the channel notices; the delay lets the channel report
  it first. The handler is the C library's sleep, called with the number of the
  signal, SIGABRT = 6.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
