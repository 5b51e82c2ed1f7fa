"""Encodes chunks in several worker processes.

Design choice: a worker is a program of its own (chunk_worker.py) and not a
fork: the caller may have threads, compiled programs and gigabytes of memory.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from gpt_jax import files
from gpt_jax.data import chunks
from gpt_jax.data.chunks import Chunk, Plan
from gpt_jax.data.sources.document import Divisible, Unreachable
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError
from gpt_jax.machine import cores

TOKENIZER = "tokenizer.json"


class Killed(InputError):
  """A worker was killed; the chunks encoded before are not lost."""


def encode_all(
  source: Divisible,
  encoder: Tokenizer,
  folder: str,
  plan: Plan,
  missing: list[Chunk],
  count: int | None,
  add: Callable[[int], None],
) -> None:
  """Writes chunks into a folder.

  Args:
    missing: the chunks of the plan that are to be written.
    count: the most worker processes; None for one for each core.
    add: called with the bytes of text that were encoded since the last call.

  Raises:
    InputError: as chunks.encode, or a worker was killed.
    OSError: the disk is full or cannot be written.
  """
  count = min(count or cores.count_cores(), len(missing))
  if count <= 1:
    for chunk in missing:
      chunks.encode(source, encoder, folder, plan, chunk, add)
    return
  files.write_text(os.path.join(folder, TOKENIZER), encoder.to_json())
  waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
  for chunk in missing:
    waiting.put(chunk)
  lock, errors = threading.Lock(), []
  job = {
    "spec": source.spec,
    "folder": folder,
    "plan": plan._replace(secret=None),
    # Sent through the pipe, which no other process can read.
    "key": plan.secret and [plan.secret.secret.hex(), plan.secret.origin],
  }
  workers = [_start(job) for _ in range(count)]

  def drive(worker: subprocess.Popen) -> None:
    try:
      while not errors:
        chunk = waiting.get_nowait()
        _ask(worker, chunk, lambda size: _locked(lock, add, size))
    except queue.Empty:
      pass
    except Exception as error:
      errors.append(error)
      _kill(workers)  # so that the other threads stop waiting

  threads = [threading.Thread(target=drive, args=(w,)) for w in workers]
  try:
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  finally:
    _kill(workers)
    for thread in threads:
      if thread.ident is not None:
        thread.join()
    for worker in workers:
      worker.communicate()
  if errors:
    raise errors[0]


def _kill(workers: list[subprocess.Popen]) -> None:
  for worker in workers:
    worker.kill()


def _locked(lock: threading.Lock, add: Callable[[int], None], size: int):
  with lock:
    add(size)


def _start(job: dict[str, Any]) -> subprocess.Popen:
  worker = subprocess.Popen(
    [sys.executable, "-m", "gpt_jax.data.chunk_worker"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=cores.worker_environment(),
    text=True,
  )
  _send(worker, job)
  return worker


def _send(worker: subprocess.Popen, content: Any) -> None:
  assert worker.stdin is not None
  with contextlib.suppress(BrokenPipeError):  # _ask finds why it ended
    worker.stdin.write(json.dumps(content) + "\n")
    worker.stdin.flush()


def _ask(
  worker: subprocess.Popen, chunk: Chunk, add: Callable[[int], None]
) -> None:
  """Makes a worker encode a chunk; returns when it is stored."""
  assert worker.stdout is not None
  _send(worker, [chunk.index, [list(unit) for unit in chunk.units]])
  for line in worker.stdout:
    said = json.loads(line)
    if "bytes" in said:
      add(said["bytes"])
      continue
    if "error" not in said:
      return
    if "errno" in said:
      raise OSError(said["errno"], said["error"], said["path"])
    raise (Unreachable if said["is_unreachable"] else InputError)(said["error"])
  status = worker.wait()
  if status < 0:
    raise Killed(
      f"a process that encoded text was killed by signal {-status}; if memory "
      "ran out, give fewer with --workers; what is encoded is kept, and the "
      "same command goes on"
    )
  raise RuntimeError(f"a worker ended with status {status}")
