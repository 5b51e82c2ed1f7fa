"""Many runs of one config: python -m gpt_jax.lab.sweep VERB.

A thin door: verb, flags and the config file's sweep(add) are read and checked
before anything is run or written.
"""

import os
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import runtime

VERBS = {
  "plan": "what it will cost, a row a cell; nothing is written",
  "run": "run what is not done, each cell in a process of its own",
  "list": "state, final loss, age, reason of failure",
  "report": "one HTML file with curves, table, comparisons; a CSV beside it",
}


def main(argv: list[str]) -> int:
  parser = _build_parser()
  is_named = bool(argv) and not argv[0].startswith("-")
  if not is_named and not {"--help", "-h", "--version"} & set(argv):
    raise InputError(f"the first word must be what to do: {', '.join(VERBS)}")
  if is_named and argv[0] not in VERBS:
    raise InputError(
      f"there is no verb {argv[0]!r}; {config_lib.nearest(argv[0], VERBS)}"
    )
  args, overrides = cli.parse(parser, argv)
  _check(args, overrides)
  runtime.start()

  from gpt_jax.lab.sweep import cells

  sweep = None
  if args.config is not None:
    sweep = cells.load(args.config, overrides, args.code, args.devices)
  root = args.workdir
  if args.verb == "plan":
    from gpt_jax.lab.sweep import plan

    return plan.run(sweep, root, args)
  if args.verb == "run":
    from gpt_jax.lab.sweep import run

    os.makedirs(root, exist_ok=True)
    return (run.emit if args.emit else run.run)(sweep, root, args)
  if not os.path.isdir(root):
    raise InputError(f"{root} does not exist; give the --workdir of a sweep")
  if args.verb == "list":
    from gpt_jax.lab.sweep import listing

    return listing.run(sweep, root, args)
  from gpt_jax.lab.sweep import report

  return report.run(sweep, root, args)


def _build_parser():
  words = "\n".join(f"  {name:8}{what}" for name, what in VERBS.items())
  parser = cli.build_parser(
    "lab.sweep",
    "Runs the cells that sweep(add) of a config file asks for.\n\n"
    f"verbs:\n{words}",
  )
  parser.set_defaults(config=None)
  add = parser.add_argument
  add("verb", nargs="?", metavar="VERB", help="what to do, the first word")
  add(
    "--workdir",
    metavar="ROOT",
    help="folder of the sweep; each cell is a workdir in ROOT/cells",
  )
  add(
    "--workers",
    type=int,
    default=1,
    metavar="N",
    help="run: cells at a time (default %(default)s)",
  )
  add("--only", metavar="ID,...", help="run: these cells alone")
  add(
    "--retry",
    action="store_true",
    help="run: also cells that failed, which are passed over otherwise",
  )
  add(
    "--emit",
    metavar="FILE",
    help="run: run nothing; write a line of arguments a cell, for "
    "launch/slurm.sh --cells=FILE, and print the commands",
  )
  add(
    "--memory",
    type=float,
    metavar="GIB",
    help="run, plan: what one cell may take (default: all of this machine's)",
  )
  add(
    "--topology",
    metavar="CHIP:SHAPE",
    help="plan: for this slice, as lab.plan does, instead of this machine",
  )
  add(
    "--measure",
    type=int,
    default=3,
    metavar="N",
    help="plan: shapes to time a step of (default %(default)s)",
  )
  add(
    "--code",
    metavar="HASH",
    help="name cells by these sources, which list shows, and not today's",
  )
  add(
    "--baseline",
    metavar="NAME",
    help="report: what the others are compared with (default: the first)",
  )
  add("--out", metavar="FILE", help="report: default ROOT/report.html")
  add("--json", action="store_true", help="list: as JSON")
  return parser


def _check(args, overrides) -> None:
  for name in ("workers", "measure"):
    value = getattr(args, name)
    if value < 1:
      raise InputError(f"--{name} is {value}; it must be 1 or more")
  if args.memory is not None and not args.memory > 0:
    raise InputError(f"--memory is {args.memory:g}; it must be above 0")
  if args.memory is not None and sys.platform != "linux":
    raise InputError("--memory limits processes on Linux alone; leave it out")
  if args.config is None and (args.verb in ("plan", "run") or overrides):
    raise InputError(
      "--config=FILE is missing: the config file whose sweep(add) asks for the "
      "cells"
    )
  if args.workdir is None and args.verb != "plan":
    raise InputError("--workdir=ROOT is missing: the folder of the sweep")
