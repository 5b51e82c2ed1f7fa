"""Verbs started from a process that has already imported jax.

A fork takes milliseconds where a new interpreter takes seconds, so that a
thousand damaged runs can be tried. No device is touched before the fork, and
the verb then runs and ends as `python -m` would have it.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
# One device, and little of LLVM's optimisation.
QUICK = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
# A verb that asks for more than this has believed a file that it should not.
MEMORY = 8 << 30
# Seconds after which a verb counts as hung.
PATIENCE = 90.0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a verb ended.

  Attributes:
    code: exit code; -N after signal N; None where it hung and was killed.
    peak: its largest resident memory, in bytes.
  """

  code: int | None
  out: str
  err: str
  peak: int

  @property
  def is_sentence(self) -> bool:
    """Whether it refused as it should: one line and a code above 0."""
    lines = self.err.splitlines()
    return self.code == 2 and len(lines) >= 1 and lines[-1].startswith("gpt_")

  @property
  def has_traceback(self) -> bool:
    return "Traceback" in self.out + self.err or "panicked" in self.err


class Child:
  """A verb that was started; also has what tests use of subprocess.Popen."""

  returncode: int | None = None

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.pid = int(_await(folder / "pid", PATIENCE))

  def signal(self, number: int) -> None:
    try:
      if self.is_running():
        os.kill(self.pid, number)
    except ProcessLookupError:
      pass

  send_signal = signal

  def kill(self) -> None:
    self.signal(signal.SIGKILL)

  def poll(self) -> int | None:
    return None if self.is_running() else self.wait().code

  def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
    outcome = self.wait(timeout)
    self.returncode = outcome.code
    return outcome.out, outcome.err

  def is_running(self) -> bool:
    return not (self.folder / "status").exists()

  def wait(self, seconds: float = PATIENCE) -> Outcome:
    """Returns how it ended; kills it after so many seconds."""
    try:
      status = _await(self.folder / "status", seconds)
      is_hung = False
    except TimeoutError:
      is_hung = True
      self.signal(signal.SIGKILL)
      status = _await(self.folder / "status", PATIENCE)
    code, peak = json.loads(status)
    read = lambda name: (self.folder / name).read_text(errors="replace")
    return Outcome(
      None if is_hung else code, read("out"), read("err"), peak << 10
    )


class Nursery:
  """Starts verbs; a context manager."""

  def __init__(self, **env: str):
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix="nursery-"))
    self.count = 0
    self.process = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | QUICK | env,
    )

  def start(self, verb: str, *words, **settings) -> Child:
    """Starts `python -m gpt_jax.<verb> <words>`.

    Args:
      settings: stop_at=N ends a training as a signal would, after step N;
        ignored=[numbers] of signals that it starts with ignored; env={} beside
        the nursery's own; cwd, its folder; before, Python that it runs first.
    """
    folder = self.folder / str(self.count)
    self.count += 1
    folder.mkdir()
    order = {
      "folder": str(folder),
      "verb": verb,
      "words": list(map(str, words)),
    }
    self.process.stdin.write(json.dumps(order | settings) + "\n")
    self.process.stdin.flush()
    return Child(folder)

  def run(self, verb: str, *words, **settings) -> Outcome:
    return self.start(verb, *words, **settings).wait()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.stdin.close()
    self.process.wait(30)


def _await(path: pathlib.Path, seconds: float) -> str:
  deadline = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > deadline:
      raise TimeoutError(path)
    time.sleep(0.01)
  return path.read_text()


def _serve() -> None:
  """The nursery itself: forks for each line that comes."""
  sys.path[:1] = [str(ROOT)]
  from gpt_jax.machine import runtime

  runtime.start()
  # What verbs import, but no verb: each runs as a new module.
  rooms = ("training.loop", "runs.workdir", "inference.generation")
  for name in ("cli", "machine.processes", "inference.scoring", *rooms):
    importlib.import_module(f"gpt_jax.{name}")
  for name in ("orbax.checkpoint", "tensorboardX.event_file_writer"):
    importlib.import_module(name)
  # Half a second of all cores, in each run; MFU is not what is tested here.
  sys.modules["gpt_jax.runs.metrics"].measure_cpu_peak = lambda: 1e11
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  for line in sys.stdin:
    order = json.loads(line)
    if os.fork() == 0:
      _watch(order)


def _watch(order: dict) -> None:
  """Forks the verb, waits for it, and writes down how it ended."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  folder = order["folder"]
  for name in ("out", "err"):
    _write(folder, name, "")
  pid = os.fork()
  if pid == 0:
    _become(order)
  _write(folder, "pid", str(pid))
  _, status, usage = os.wait4(pid, 0)
  code = os.waitstatus_to_exitcode(status)
  _write(folder, "status", json.dumps([code, usage.ru_maxrss]))
  os._exit(0)


def _become(order: dict) -> None:
  """Runs the verb in this process."""
  os.setsid()
  for number in order.get("ignored", []):
    signal.signal(number, signal.SIG_IGN)
  streams = [os.open(os.devnull, os.O_RDONLY)]
  flags = os.O_WRONLY | os.O_CREAT
  streams += [
    os.open(os.path.join(order["folder"], name), flags, 0o644)
    for name in ("out", "err")
  ]
  for number, stream in enumerate(streams):
    os.dup2(stream, number)
  sys.stdout = open(1, "w", closefd=False)
  sys.stderr = open(2, "w", buffering=1, closefd=False)
  resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
  from gpt_jax.machine import signals

  if "stop_at" in order:
    signals.Stop.check = lambda self, step: (
      75 if step >= order["stop_at"] else None
    )
  os.environ.update(order.get("env", {}))
  os.chdir(order.get("cwd", ROOT))
  exec(order.get("before", ""), {})
  sys.argv = ["", *order["words"]]
  runpy.run_module(
    f"gpt_jax.{order['verb']}", run_name="__main__", alter_sys=True
  )
  sys.exit()


def _write(folder: str, name: str, text: str) -> None:
  path = os.path.join(folder, name)
  with open(path + ".new", "w") as file:
    file.write(text)
  os.rename(path + ".new", path)


if __name__ == "__main__":
  _serve()
