"""A worker process for timing: builds its subject, then executes commands.

Commands and answers are lines of JSON. Between two commands the process blocks
in a read, so that another worker has the whole machine. Each answer includes
the processor time that the worker used while it waited.
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

# {program that is timed: module that builds it}.
BUILDERS = {
  "gpt_jax": "ours",
  "torch eager": "peers",
  "torch compile": "peers",
  "transformers": "peers",
}

# Number of characters shown from the end of a failed worker's log.
LOG_CHARS = 4000


class Failed(Exception):
  """A worker could not execute a command; the message is one line."""


class Worker:
  """A worker process, as its parent sees it.

  Every method may raise InputError if the user can fix the cause, and Failed if
  the worker ended otherwise.
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
    assert self.process.stdin and self.process.stdout  # both are pipes
    self.commands, self.answers = self.process.stdin, self.process.stdout
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
      self.commands.write(json.dumps(command) + "\n")
      self.commands.flush()
      line = self.answers.readline()
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
    """Prints the end of our worker's log. A peer may fail without notice."""
    if self.who == "gpt_jax":
      self.log.seek(0)
      text = self.log.read().decode(errors="replace")
      print(text[-LOG_CHARS:], file=sys.stderr)

  def close(self) -> None:
    """Ends the process."""
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()
    with contextlib.suppress(BrokenPipeError):  # a command it never read
      self.commands.close()
    self.answers.close()
    self.log.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def serve(lines, answer) -> None:
  """Builds the subject that the first line names, then executes the others.

  Args:
    lines: JSON texts.
    answer: called with the answer to each, a dict.
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
  # Libraries print to stdout; send that to stderr, away from the answers.
  channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

  def answer(content: dict) -> None:
    channel.write(json.dumps(content) + "\n")
    channel.flush()

  try:
    serve(iter(sys.stdin.readline, ""), answer)
  except InputError as error:
    answer({"input_error": str(error)})
  except Exception as error:  # a peer's libraries raise any class
    traceback.print_exc()
    first = (str(error).strip().splitlines() or [""])[0]
    answer({"failed": f"{type(error).__name__}: {first}"[:300]})


if __name__ == "__main__":
  main()
