"""Train a model, or resume a run: python -m gpt_jax.train --help.

Flags and config are read and checked before jax is imported.
"""

import argparse
import dataclasses
import shlex
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.machine import processes, runtime, signals
from gpt_jax.runs import scratch, workdir


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "train",
    "Train a model, or resume a run.",
    default_config=f"that of the run in --workdir, else {cli.DEFAULT_CONFIG}",
  )
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR|ADDRESS",
    help="folder of the run, or its address; an existing run is resumed",
  )
  parser.set_defaults(config=None)
  parser.add_argument(
    "--replay",
    type=int,
    metavar="STEP",
    help="recompute this step of an existing run twice, from the nearest "
    "checkpoint, and say whether the bits agree; writes nothing",
  )
  args, overrides = cli.parse(parser, argv)
  config = _read_config(args, overrides)
  command = shlex.join([sys.executable, "-m", "gpt_jax.train", *argv])
  return run(config, args.workdir, command, args.devices, args.replay)


def run(
  config: config_lib.Config,
  workdir: str,
  command: str,
  devices: int | None = None,
  replay: int | None = None,
) -> int:
  """Trains in this process; returns the exit code.

  Args:
    config, workdir, command, replay: as in training.loop.train.
    devices: number of devices that the CPU shall appear as; None: unchanged.
  """
  stop = signals.Stop(command)
  try:
    runtime.start(devices)
    processes.join(
      {"--workdir": workdir, "--devices": devices} | config_lib.flatten(config)
    )

    from gpt_jax.training import loop

    with processes.watched(scratch.place_of(workdir)):
      return loop.train(config, workdir, command, stop, replay)
  finally:
    stop.close()


def _read_config(args: argparse.Namespace, overrides: dict[str, str]):
  """Returns the frozen config: of --config, else of the existing run."""
  if args.config is not None or not workdir.has_record(args.workdir):
    path = args.config or cli.DEFAULT_CONFIG
    return config_lib.freeze(cli.load_config(path, overrides))
  nested = dataclasses.asdict(workdir.read_config(args.workdir))
  for key, text in overrides.items():
    cli.set_key(nested, key, text)
  return config_lib.freeze(nested)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:], is_run=True)
