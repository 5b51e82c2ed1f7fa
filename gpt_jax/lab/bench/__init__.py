"""Compares gpt_jax's speed with its prediction and with other libraries.

python -m gpt_jax.lab.bench SUBJECT. Subject, flags and config are read and
checked before jax or a peer is imported. Each timed program runs in its own
process. From a notebook: train.measure(config) and
likewise for the other subjects; report.lines(found) is the table.
"""

import importlib
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import runtime

SUBJECTS = {
  "train": "a training step, compiled as in training",
  "decode": "prefill, and the loop that makes tokens one by one",
  "serve": "a server under load: tokens per second, gaps between tokens",
  "data": "text to shards, and shards to batches",
  "start": "from typing a command to its first step",
  "memory": "attention and cross-entropy, in parts and at once",
}
PEERS = ("torch", "transformers")


def main(argv: list[str]) -> int:
  parser = _build_parser()
  is_named = bool(argv) and not argv[0].startswith("-")
  if not is_named and not {"--help", "-h", "--version"} & set(argv):
    raise InputError(
      f"the first word must be what to time: {', '.join(SUBJECTS)}"
    )
  if is_named and argv[0] not in SUBJECTS:
    raise InputError(
      f"there is no subject {argv[0]!r}; "
      f"{config_lib.nearest(argv[0], SUBJECTS)}"
    )
  args, overrides = cli.parse(parser, argv)
  _check(args)
  batch_sizes = _batch_sizes_of(args.batch)
  least, most = _tokens_of(args.tokens, args.subject)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)

  from gpt_jax.lab.bench import machine, report, worker

  load = machine.read_load()
  values = {
    "train": {"num_steps": args.steps, "peer": args.peer},
    "decode": {
      "batch_sizes": batch_sizes,
      "num_tokens": most,
      "weights": args.weights,
      "peer": args.peer,
    },
    "serve": {
      "batch_sizes": batch_sizes,
      "num_tokens": most if least == most else (least, most),
      "weights": args.weights,
      "peer": args.peer,
    },
    "data": {"num_steps": args.steps},
    "start": {},
    "memory": {},
  }[args.subject]
  if args.repeats is not None:
    values["repeats"] = args.repeats
  if args.subject != "memory":
    values["devices"] = args.devices
  subject = importlib.import_module(f"gpt_jax.lab.bench.{args.subject}")
  try:
    found = subject.measure(config, **values)
  except worker.Failed as error:
    print(f"gpt_jax: {error}", file=sys.stderr)
    return 1
  about = report.describe(found, args.config, load)
  print("\n".join(report.lines(found, about)))
  if args.out is not None:
    print(f"\nwritten to {report.write(found, about, args.out)}")
  for line in found.remarks:
    print(line)
  return 0


def _build_parser():
  words = "\n".join(f"  {name:8}{what}" for name, what in SUBJECTS.items())
  parser = cli.build_parser(
    "lab.bench",
    "Times one subject: what was predicted, what was measured, their ratio."
    f"\n\nsubjects:\n{words}",
  )
  parser.add_argument(
    "subject", nargs="?", metavar="SUBJECT", help="what to time, the first word"
  )
  parser.add_argument(
    "--peer",
    metavar="NAME",
    help=f"also time {' or '.join(PEERS)}, in alternation (extra `peers`)",
  )
  parser.add_argument(
    "--repeats",
    type=int,
    metavar="N",
    help="number of measurements, whose median counts (default 5; 25 for train "
    "if a measurement has several steps)",
  )
  parser.add_argument(
    "--steps",
    type=int,
    metavar="N",
    help="train: steps in a measurement (default: as many as fit in 1/3 s)",
  )
  parser.add_argument(
    "--batch",
    default="1,8",
    metavar="N,...",
    help="decode: batch sizes to time; serve: numbers of clients (default "
    "%(default)s)",
  )
  parser.add_argument(
    "--tokens",
    default="128",
    metavar="N",
    help="decode, serve: tokens to make for each sequence (default "
    "%(default)s); serve: LEAST:MOST draws each text's",
  )
  cli.add_weights(parser)
  parser.add_argument("--out", metavar="DIR", help="folder for bench.json")
  return parser


def _batch_sizes_of(text: str) -> list[int]:
  try:
    sizes = [int(word) for word in text.split(",")]
  except ValueError:
    sizes = [0]
  if min(sizes) < 1:
    raise InputError(
      "--batch must be whole numbers of 1 or more, joined by commas: 1,8"
    )
  return sizes


def _tokens_of(text: str, subject: str | None) -> tuple[int, int]:
  """Returns the fewest and the most tokens per text, as --tokens gives them."""
  words = text.split(":")
  is_fine = all(word.isdecimal() and len(word) < 10 for word in words)
  found = [int(word) for word in words] if is_fine else [0]
  if len(words) > 2 or not 1 <= found[0] <= found[-1]:
    raise InputError(
      f"--tokens is {text}; it must be a whole number of 1 or more, or for "
      "serve the least and the most of them: 8:128"
    )
  if len(words) == 2 and subject != "serve":
    raise InputError(
      f"--tokens={text} is for serve, whose texts may differ; {subject} takes "
      "one number"
    )
  return found[0], found[-1]


def _check(args) -> None:
  for name in ("repeats", "steps"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise InputError(f"--{name} is {value}; it must be 1 or more")
  if args.peer is None:
    return
  if args.peer not in PEERS:
    raise InputError(
      f"there is no peer {args.peer!r}; {config_lib.nearest(args.peer, PEERS)}"
    )
  if args.subject not in ("train", "decode", "serve"):
    raise InputError(
      f"--peer is of train, decode and serve; {args.subject} has none"
    )
  if args.subject != "train" and args.peer == "torch":
    raise InputError(
      f"{args.subject} has no peer torch; take --peer=transformers"
    )
