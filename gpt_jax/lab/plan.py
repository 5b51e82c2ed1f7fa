"""What a run will need and how fast it can be: python -m gpt_jax.lab.plan.

A thin door: flags, config and topology are read and checked before jax is
imported. For a TPU slice the real step is compiled, without a TPU; for GPUs
and for a CPU the figures are estimates, and say so.
"""

import math
import sys

from gpt_jax import chips, cli, runtime
from gpt_jax import config as config_lib


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.plan", "What a run will need and how fast it can be, before it runs."
  )
  parser.add_argument(
    "--topology",
    required=True,
    metavar="CHIP:SHAPE",
    help=f"one of {chips.list_topologies()}",
  )
  parser.add_argument(
    "--slices",
    type=int,
    default=1,
    metavar="N",
    help="TPU slices joined by the data-centre network (default %(default)s)",
  )
  parser.add_argument(
    "--search",
    action="store_true",
    help="look for the mesh, the microbatches and the remat policy that are "
    "predicted to be fastest",
  )
  parser.add_argument(
    "--minutes",
    type=float,
    default=10.0,
    metavar="N",
    help="how long --search may compile (default %(default)s)",
  )
  parser.add_argument(
    "--price",
    type=float,
    metavar="PER_CHIP_HOUR",
    help="price of a chip for an hour, in any currency; the plan then says "
    "what the run costs",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder to write plan.json into"
  )
  parser.add_argument(
    "--json", action="store_true", help="print plan.json instead of text"
  )
  args, overrides = cli.parse(parser, argv)
  for name in ("minutes", "price"):
    value = getattr(args, name)
    if value is not None and not 0 < value < math.inf:
      raise config_lib.InputError(
        f"--{name} is {value:g}; it must be more than 0 and finite"
      )
  topology = chips.parse_topology(args.topology, args.slices)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)
  if topology.platform == "tpu":
    runtime.start_tpu_compiler()

  from gpt_jax.lab import planner

  typed = [a for a in argv if a.startswith("--config")]
  return planner.run(config, topology, args, typed)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
