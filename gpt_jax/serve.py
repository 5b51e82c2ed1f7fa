"""Serve a run with OpenAI's API: python -m gpt_jax.serve --help."""

import gc
import socket
import sys
import threading

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime, signals


def _build_parser():
  parser = cli.build_parser(
    "serve",
    "Serve a trained model over HTTP, with OpenAI's API: completions, chats, "
    "embeddings.",
    needs_config=False,
  )
  cli.add_run(parser)
  add = parser.add_argument
  add("--host", default="127.0.0.1", help="default %(default)s")
  add("--port", type=int, default=8000, help="0: any (default %(default)s)")
  add("--name", help="what the API calls the model; default: the folder's name")
  add(
    "--template",
    help="chat template of dialogues; default: the run's own, else chatml",
  )
  add(
    "--rows",
    type=int,
    default=8,
    metavar="N",
    help="texts that are generated at once (default %(default)s)",
  )
  add(
    "--prefix_tokens",
    type=int,
    default=8192,
    metavar="N",
    help="tokens of the cache of prompts, with which a prompt that begins like "
    "an earlier one is not read again; 0: none (default %(default)s)",
  )
  add(
    "--drafts",
    type=int,
    default=0,
    metavar="N",
    help="speculative decoding: tokens guessed in each step, from the text so "
    "far; for few rows and repetitive texts (default %(default)s)",
  )
  add(
    "--draft",
    metavar="DIR",
    help="workdir of a small run with the same tokenizer, which guesses the "
    "tokens of --drafts instead",
  )
  _add_bounds(add)
  cli.add_weights(parser)
  return parser


def _add_bounds(add) -> None:
  """Adds the flags that limit clients."""
  add(
    "--max_waiting",
    type=int,
    default=64,
    metavar="N",
    help="texts of one client that may wait, and four times as many of all "
    "clients; more are refused with 429 (default %(default)s)",
  )
  add(
    "--max_tokens",
    type=int,
    default=0,
    metavar="N",
    help="most tokens of a generated text; 0: as many as the model's positions",
  )
  add(
    "--seconds",
    type=float,
    default=600.0,
    metavar="S",
    help="seconds after which a text ends unfinished (default %(default)s)",
  )
  add(
    "--drain_seconds",
    type=float,
    default=30.0,
    metavar="S",
    help="seconds that texts have to end after SIGTERM (default %(default)s)",
  )
  add(
    "--body_bytes",
    type=int,
    default=1 << 20,
    metavar="N",
    help="bytes of the largest request body (default %(default)s)",
  )
  add(
    "--keys",
    metavar="FILE",
    help="API keys, a line each: KEY NAME REQUESTS_PER_MINUTE; without a file "
    "no key is needed",
  )


def _check(args) -> None:
  """Raises InputError where a flag is out of its range."""
  ranges = {
    "port": (0, 65_535),
    "rows": (1, 4_096),
    "prefix_tokens": (0, 2**31 - 1),
    "drafts": (0, 64),
    "max_waiting": (0, 1_000_000),
    "max_tokens": (0, 2**31 - 1),
    "body_bytes": (1_024, 1 << 30),
    "seconds": (0.1, 1e6),
    "drain_seconds": (0, 1e6),
  }
  for name, (low, high) in ranges.items():
    value = getattr(args, name)
    if not low <= value <= high:
      raise InputError(
        f"--{name} is {value}; it must be from {low:g} to {high:g}"
      )


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  _check(args)
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("a run is served by one process; start one")
  try:
    import uvicorn
  except ImportError as error:
    raise InputError(
      f"serving needs {error.name}; install it with {files.pip('serve')}"
    ) from None

  from gpt_jax.deploy.serve import opening, tasks
  from gpt_jax.deploy.serve.asgi import Bounds
  from gpt_jax.deploy.serve.http import Server
  from gpt_jax.deploy.serve.keys import Keys
  from gpt_jax.runs import workdir

  keys = Keys(args.keys)
  listening = _listen(args.host, args.port)
  note = processes.note
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  run = opening.describe(args.workdir, config, model, tokenizer, args)
  draft = opening.open_draft(config, tokenizer, overrides, note, args)
  engine = opening.build_engine(
    model, params, mesh, run.vocab_size, args, draft
  )
  labels = workdir.read_labels(args.workdir)
  own = tasks.build(config, model, params, tokenizer, mesh, labels)
  engine.start()
  bounds = Bounds(
    args.body_bytes,
    body_seconds=30.0,
    send_seconds=30.0,
    head_seconds=10.0,
    refusals=100.0,
  )
  server = Server(run, engine, own, keys, bounds)
  settings = uvicorn.Config(
    server,
    **server.web,
    log_level="warning",
    timeout_graceful_shutdown=int(args.drain_seconds) + 1,
  )
  # A full garbage collection spends 0.1 s on objects that live as long as the
  # server, and all texts wait for it.
  gc.collect()
  gc.freeze()
  _serve(uvicorn.Server(settings), server, listening)
  engine.drain(args.drain_seconds)
  return 0


def _listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens; raises InputError where it cannot."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family, backlog=1024)
  except OSError as error:
    raise InputError(
      f"cannot listen at {host} port {port}: {error.strerror or error}; give "
      "another --host or --port"
    ) from None


def _serve(web, server, listening: socket.socket) -> None:
  """Serves until a signal, and then until the texts have ended."""

  def stop(number: int) -> None:
    if server.is_draining:
      web.force_exit = True
    server.is_draining = web.should_exit = True

  listener = signals.Listener(stop)
  thread = threading.Thread(target=web.run, args=([listening],))
  thread.start()
  host, port = listening.getsockname()[:2]
  print(f"{server.run.name} is served at http://{host}:{port}/v1", flush=True)
  thread.join()
  listener.close()


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
