"""Computes signatures of many texts in worker processes, in order.

Design choice: a worker is a program of its own, as in data/workers.py. It ends
when its input ends, so that no worker outlives a parent that was killed.
"""

import collections
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent import futures

from gpt_jax.data.cleaning import duplicates
from gpt_jax.data.cleaning.duplicates import Signature
from gpt_jax.data.grouping import group_texts
from gpt_jax.exits import InputError
from gpt_jax.machine import cores

# Characters that are signed in one call.
BATCH_CHARS = 1 << 20
# For each process, the most batches that are in progress or wait to be yielded.
AHEAD = 2


def sign_all(
  texts: Iterable[str], count: int | None = None
) -> Iterator[Signature]:
  """Yields the signature of each text, in the order of the texts.

  Args:
    count: the number of processes; None for one for each core. If all texts
      fit one batch, no process is started.

  Raises:
    InputError: a process was killed.
  """
  count = count or cores.count_cores()
  batches = group_texts(texts, BATCH_CHARS)
  first = next(batches, [])
  second = next(batches, None)
  if count == 1 or second is None:
    yield from map(duplicates.sign, first)
    for batch in (second or [], *batches):
      yield from map(duplicates.sign, batch)
    return
  with _Team(count) as team:
    waiting = collections.deque([team.ask(first), team.ask(second)])
    for batch in batches:
      waiting.append(team.ask(batch))
      if len(waiting) > AHEAD * count:
        yield from waiting.popleft().result()
    while waiting:
      yield from waiting.popleft().result()


class _Team:
  """Worker processes, and a thread for each to communicate with it."""

  def __init__(self, count: int):
    self._count = count

  def __enter__(self) -> "_Team":
    self._pool = futures.ThreadPoolExecutor(self._count)
    self._workers = [_start() for _ in range(self._count)]
    self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for worker in self._workers:
      self._idle.put(worker)
    return self

  def __exit__(self, *_) -> None:
    for worker in self._workers:
      worker.kill()  # so that the threads stop waiting
    self._pool.shutdown(cancel_futures=True)
    for worker in self._workers:
      with contextlib.suppress(BrokenPipeError):
        worker.communicate()

  def ask(self, texts: list[str]) -> futures.Future[list[Signature]]:
    return self._pool.submit(self._ask, texts)

  def _ask(self, texts: list[str]) -> list[Signature]:
    worker = self._idle.get()
    assert worker.stdin is not None and worker.stdout is not None
    try:
      pickle.dump(texts, worker.stdin, pickle.HIGHEST_PROTOCOL)
      worker.stdin.flush()
      found = pickle.load(worker.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
      raise InputError(
        f"a process that compared texts ended with status {worker.wait()}; if "
        "memory ran out, give it more, and run the same command"
      ) from None
    finally:
      self._idle.put(worker)
    return found


def _start() -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "gpt_jax.data.cleaning.signing"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=cores.worker_environment(),
  )


def _serve() -> None:
  """Signs lists of texts from the standard input until it ends."""
  # Ctrl-C reaches the whole process group; the parent decides what to do.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  out = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)  # keeps what libraries print out of the answers
  with contextlib.suppress(EOFError, BrokenPipeError):
    while True:
      texts = pickle.load(sys.stdin.buffer)
      found = [duplicates.sign(text) for text in texts]
      pickle.dump(found, out, pickle.HIGHEST_PROTOCOL)
      out.flush()


if __name__ == "__main__":
  _serve()
