"""How fast is it, beside the prediction and beside what else one could take?

python -m gpt_jax.lab.bench SUBJECT. A thin door: subject, flags and config are
read and checked before anything that computes is imported. Whatever is timed
then runs in a process of its own, with nothing of another in it.
"""

import importlib
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import runtime

SUBJECTS = {
  "train": "a training step: compiled and donated as in training",
  "decode": "prefill, and the loop that makes tokens one by one",
  "data": "text to shards, and shards to batches",
  "start": "from typing a command to its first step",
  "memory": "attention and cross-entropy, in parts and at once",
}
PEERS = ("torch", "transformers")
# Measurements of which the median counts, where nothing else is asked for.
REPEATS = 5


def main(argv: list[str]) -> int:
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
    help=f"time {' or '.join(PEERS)} in alternation (extra `peers`)",
  )
  parser.add_argument(
    "--repeats",
    type=int,
    metavar="N",
    help="measurements, of which the median counts (default 5; 25 of steps "
    "so short that several are taken at a time)",
  )
  parser.add_argument(
    "--steps",
    type=int,
    metavar="N",
    help="train: steps in a measurement (default: a third of a second's)",
  )
  parser.add_argument(
    "--batch",
    default="1,8",
    metavar="N,...",
    help="decode: rows at a time (default %(default)s)",
  )
  parser.add_argument(
    "--tokens",
    type=int,
    default=128,
    metavar="N",
    help="decode: tokens made of each row (default %(default)s)",
  )
  cli.add_weights(parser)
  parser.add_argument(
    "--out", metavar="DIR", help="folder to write bench.json into"
  )
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
  if args.subject != "train":
    args.repeats = args.repeats or REPEATS
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)

  from gpt_jax.lab.bench import machine, worker

  args.load = machine.read_load()
  subject = importlib.import_module(f"gpt_jax.lab.bench.{args.subject}")
  try:
    return subject.run(config, args)
  except worker.Failed as error:
    print(f"gpt_jax: {error}", file=sys.stderr)
    return 1


def _check(args) -> None:
  for name in ("repeats", "steps", "tokens"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise InputError(f"--{name} is {value}; it must be 1 or more")
  try:
    args.batch = [int(word) for word in args.batch.split(",")]
  except ValueError:
    args.batch = [0]
  if min(args.batch) < 1:
    raise InputError(
      "--batch must be whole numbers of 1 or more, joined by commas: 1,8"
    )
  if args.peer is None:
    return
  if args.peer not in PEERS:
    raise InputError(
      f"there is no peer {args.peer!r}; {config_lib.nearest(args.peer, PEERS)}"
    )
  if args.subject not in ("train", "decode"):
    raise InputError(f"--peer is of train and decode; {args.subject} has none")
  if (args.subject, args.peer) == ("decode", "torch"):
    raise InputError("decode has no peer torch; take --peer=transformers")
