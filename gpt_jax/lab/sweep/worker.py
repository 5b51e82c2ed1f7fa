"""The process of one cell, and why it ended."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time

from gpt_jax import exits
from gpt_jax.lab.sweep import folder
from gpt_jax.lab.sweep.cells import Cell

TRAIN = (sys.executable, "-m", "gpt_jax.train")
# Characters at the end of a log in which a reason is looked for.
LOG_CHARS = 20_000
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError", "bad_alloc", "ENOMEM")


class Worker:
  """The process of one cell.

  It runs in its own session, so that Ctrl-C reaches only the sweep's process,
  which passes it on so that every cell saves a checkpoint.

  Attributes:
    cores: the cores that the process may use; empty allows all.
    told: the signals that were sent to the process.
  """

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
    # Set limits from the parent: with jax's threads, running Python between
    # fork and exec (preexec_fn) is unsafe.
    with contextlib.suppress(ProcessLookupError):
      if cores:
        os.sched_setaffinity(self.process.pid, cores)
      if memory is not None:
        resource.prlimit(
          self.process.pid, resource.RLIMIT_DATA, (memory, memory)
        )
    folder.hold(self.path, self.process.pid)

  def poll(self) -> dict | None:
    """Returns the content of ended.json, None while the process runs."""
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


def _count_kills() -> int:
  """Returns how many processes this container's memory limit has killed."""
  try:
    with open("/sys/fs/cgroup/memory.events") as file:
      rows = dict(line.split() for line in file)
    return int(rows["oom_kill"])
  except (OSError, KeyError, ValueError):
    return 0
