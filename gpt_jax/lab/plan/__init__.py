"""What a run will need and how fast it can be: python -m gpt_jax.lab.plan.

Flags, config and topology are read and checked before jax is imported. For a
TPU slice or GPUs, the real train step is compiled, without the chips. For a
CPU, and for GPUs without their compiler (extra plan-gpu), the figures are
estimates, and say so.
"""

import json
import math
import os

from gpt_jax import cli, exits
from gpt_jax import config as config_lib
from gpt_jax.machine import chips, runtime


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
  runtime.start_compiler(topology.platform)

  from gpt_jax.lab.plan import table  # with rich, which a mistake need not load

  say = (lambda line: None) if args.json else table.say
  typed = [a for a in argv if a.startswith("--config")]
  plan = make(config, topology, args.search, args.minutes, typed, say)
  return report(plan | {"price": args.price}, args.out, args.json, say)


def make(config, topology, is_search=False, minutes=10.0, typed=(), say=print):
  """Returns the plan of a config, or of the best that a search found.

  Args:
    config: frozen; its vocabulary may be unknown.
    is_search: look for the fastest mesh, microbatches and remat policy.
    minutes: how long the search may compile.
    typed: the arguments of the command line that name the config.
    say: called with lines about what is being done.
  """
  from gpt_jax.data import tokenizers
  from gpt_jax.lab.plan import planner, remedy, search, table

  config = tokenizers.resolve_vocab(config)
  if is_search:
    return search.run(config, topology, minutes * 60, typed, say)
  say(table.heading(config, topology))
  plan = planner.make(config, topology)
  if not plan["memory"]["fits"]:
    plan["remedy"] = remedy.find(plan, config, topology, planner.make, say)
  return plan


def report(plan: dict, folder: str | None, is_json: bool, say=print) -> int:
  """Prints a plan, writes it if a folder is given; returns the exit code."""
  from gpt_jax.lab.plan import planner, table

  if folder:
    planner.write(plan, folder)
  if is_json:
    print(json.dumps(plan, indent=1))
    say = lambda line: None
  for line in table.lines(plan):
    say(line)
  if folder:
    say(f"written to {os.path.join(folder, 'plan.json')}")
  return 0 if plan["memory"]["fits"] else exits.DOES_NOT_FIT
