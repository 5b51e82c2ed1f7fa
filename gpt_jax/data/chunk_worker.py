"""A worker process that encodes chunks; workers.py starts it.

It reads JSON lines from standard input: first the job, then one chunk per line.
It writes JSON lines to standard output: {"bytes": n} as it goes, {"done": i}
when a chunk is stored, {"error": ...} if it fails and exits.
"""

import json
import os
import signal
import sys

from gpt_jax.data import chunks, sources, tokenizers
from gpt_jax.data.chunks import Chunk, Plan
from gpt_jax.data.sources.document import Divisible, Unit, Unreachable
from gpt_jax.data.workers import TOKENIZER
from gpt_jax.encryption import Key
from gpt_jax.exits import InputError
from gpt_jax.machine import cores


def main() -> None:
  # Ctrl-C reaches the whole process group; the parent decides what to do.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # keeps what libraries print out of the JSON lines

  def say(**content) -> None:
    try:
      print(json.dumps(content), file=out, flush=True)
    except BrokenPipeError:
      os._exit(1)  # the parent process is gone

  try:
    _work(say)
  except InputError as error:
    say(error=str(error), is_unreachable=isinstance(error, Unreachable))
  except OSError as error:
    say(error=error.strerror, errno=error.errno or 0, path=error.filename)


def _work(say) -> None:
  job = json.loads(sys.stdin.readline())
  source = sources.open_source(job["spec"])
  assert isinstance(source, Divisible)
  folder = job["folder"]
  encoder = tokenizers.load(os.path.join(folder, TOKENIZER))
  plan = Plan(*job["plan"])
  if job["key"] is not None:
    secret, origin = job["key"]
    plan = plan._replace(secret=Key(bytes.fromhex(secret), origin))
  for line in sys.stdin:
    index, units = json.loads(line)
    chunk = Chunk(index, tuple(Unit(*unit) for unit in units))
    chunks.encode(source, encoder, folder, plan, chunk, lambda n: say(bytes=n))
    cores.give_back()
    say(done=index)


if __name__ == "__main__":
  main()
