"""A process that is timed: it builds, then runs when it is told to.

One JSON object a line each way. Between two commands it waits in a read and
takes no processor time, so that whoever runs meanwhile has the whole machine;
it says how much it took all the same.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime

# Who is timed -> the module that builds it.
BUILDERS = {
  "gpt_jax": "ours",
  "torch eager": "peers",
  "torch compile": "peers",
  "transformers": "peers",
}

# Shown of what a worker of ours wrote before it failed.
LOG_CHARS = 4000


class Failed(Exception):
  """A worker could not do what it was told; the message is one line."""


class Worker:
  """The other end of a worker.

  Raises:
    InputError: from any method, where it says what the user can mend.
    Failed: from any method, where it ended otherwise.
  """

  def __init__(
    self,
    who: str,
    subject: str,
    config: Config,
    devices: int | None = None,
    variables: dict[str, str] | None = None,
    **options,
  ):
    self.who = who
    started = time.perf_counter()
    self.log = tempfile.TemporaryFile()
    self.process = subprocess.Popen(
      [sys.executable, "-m", "gpt_jax.lab.bench.worker"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.log,
      env=runtime.make_team(1)[0] | (variables or {}),
      text=True,
    )
    try:
      self.built = self.ask(
        who=who,
        subject=subject,
        config=dataclasses.asdict(config),
        devices=devices,
        options=options,
      )
      self.built["ready_seconds"] = time.perf_counter() - started
    except BaseException:
      self.close()
      raise

  def ask(self, **command) -> dict:
    """Returns the answer to a command."""
    try:
      self.process.stdin.write(json.dumps(command) + "\n")
      self.process.stdin.flush()
      line = self.process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      raise Failed(self._end())
    answer = json.loads(line)
    if "input_error" in answer:
      raise InputError(answer["input_error"])
    if "failed" in answer:
      self._tell_log()
      raise Failed(f"{self.who}: {answer['failed']}")
    return answer

  def _end(self) -> str:
    code = self.process.wait()
    if code == -signal.SIGKILL:
      return f"{self.who} was killed; is there memory enough?"
    self._tell_log()
    return f"{self.who} ended with code {code}"

  def _tell_log(self) -> None:
    """Shows what ours last wrote; a peer that cannot run is no fault here."""
    if self.who == "gpt_jax":
      self.log.seek(0)
      text = self.log.read().decode(errors="replace")
      print(text[-LOG_CHARS:], file=sys.stderr)

  def close(self) -> None:
    """Ends the process."""
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()
    with contextlib.suppress(BrokenPipeError):  # what it did not read is left
      self.process.stdin.close()
    self.process.stdout.close()
    self.log.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def serve(lines, answer) -> None:
  """Builds what the first line asks for and does what the others say.

  Args:
    lines: JSON texts.
    answer: takes the dict that answers each.
  """
  first = json.loads(next(lines))
  if first["who"] == "gpt_jax":
    runtime.start(first["devices"])
  module = importlib.import_module(
    f"gpt_jax.lab.bench.{BUILDERS[first['who']]}"
  )
  subject = module.build(
    first["who"],
    first["subject"],
    config_lib.freeze(first["config"]),
    **first["options"],
  )
  answer(subject.describe())
  rested, used = time.perf_counter(), time.process_time()
  for line in lines:
    command = json.loads(line)
    idle = {
      "seconds": time.perf_counter() - rested,
      "processor_seconds": time.process_time() - used,
    }
    answer(getattr(subject, command.pop("do"))(**command) | {"idle": idle})
    rested, used = time.perf_counter(), time.process_time()


def main() -> None:
  # What libraries print must not come between the answers.
  channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

  def answer(content: dict) -> None:
    channel.write(json.dumps(content) + "\n")
    channel.flush()

  try:
    serve(iter(sys.stdin.readline, ""), answer)
  except InputError as error:
    answer({"input_error": str(error)})
  except Exception as error:  # of a peer's libraries: all kinds
    traceback.print_exc()
    first = (str(error).strip().splitlines() or [""])[0]
    answer({"failed": f"{type(error).__name__}: {first}"[:300]})


if __name__ == "__main__":
  main()
