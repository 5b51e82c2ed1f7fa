"""Train a model, or go on with a run: python -m gpt_jax.train --help.

A thin door: flags and config are read and checked before jax is imported.
"""

import shlex
import sys

from gpt_jax import cli, files, processes, runtime
from gpt_jax import config as config_lib


def main(argv: list[str]) -> int:
  parser = cli.build_parser("train", "Train a model, or go on with a run.")
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="folder of the run; a run that is there goes on where it was",
  )
  args, overrides = cli.parse(parser, argv)
  args.workdir = files.user_path("--workdir", args.workdir)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)
  processes.join(
    {"--workdir": args.workdir, "--devices": args.devices}
    | config_lib.flatten(config)
  )

  from gpt_jax import loop

  command = shlex.join([sys.executable, "-m", "gpt_jax.train", *argv])
  return loop.train(config, args.workdir, command)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
