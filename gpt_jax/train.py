"""Train a model, or go on with a run: python -m gpt_jax.train --help.

A thin door: flags and config are read and checked before jax is imported.
"""

import dataclasses
import os
import shlex
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.machine import processes, runtime, signals
from gpt_jax.runs import workdir


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "train",
    "Train a model, or go on with a run.",
    default_config=f"that of the run in --workdir, else {cli.DEFAULT_CONFIG}",
  )
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="folder of the run; a run that is there goes on where it was",
  )
  parser.set_defaults(config=None)
  parser.add_argument(
    "--replay",
    type=int,
    metavar="STEP",
    help="recompute a step of the run that is there, twice, from its nearest "
    "checkpoint, and say whether the bits agree; writes nothing",
  )
  args, overrides = cli.parse(parser, argv)
  config = _read_config(args, overrides)
  command = shlex.join([sys.executable, "-m", "gpt_jax.train", *argv])
  stop = signals.Stop(command)
  try:
    runtime.start(args.devices)
    processes.join(
      {"--workdir": args.workdir, "--devices": args.devices}
      | config_lib.flatten(config)
    )

    from gpt_jax.training import loop

    with processes.watched(args.workdir):
      return loop.train(config, args.workdir, command, stop, args.replay)
  finally:
    stop.close()


def _read_config(args, overrides: dict[str, str]):
  """Returns the frozen config: of --config, or of the run that is there."""
  is_there = os.path.lexists(os.path.join(args.workdir, "config.json"))
  if args.config is not None or not is_there:
    path = args.config or cli.DEFAULT_CONFIG
    return config_lib.freeze(cli.load_config(path, overrides))
  nested = dataclasses.asdict(workdir.read_config(args.workdir))
  for key, text in overrides.items():
    cli.set_key(nested, key, text)
  return config_lib.freeze(nested)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:], is_run=True)
