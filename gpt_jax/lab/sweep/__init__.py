"""Many runs of one config: python -m gpt_jax.lab.sweep VERB.

Verb, flags and the config file's sweep(add) are checked before anything is run
or written. From a notebook:

  sweep = asked.load("configs/x.py", {})
  plan.make(sweep), run.run(sweep, root), listing.read(sweep, root),
  report.make(sweep, root)
"""

import json
import os
import shlex
import sys

from gpt_jax import cli, exits
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import console, runtime

# Number of lines of --emit that are also printed.
SHOWN = 3

VERBS = {
  "plan": "what each cell will cost; writes nothing",
  "run": "run the cells that are not done, each in its own process",
  "list": "each cell's state, final loss, age, reason of failure",
  "report": "one HTML file with curves, table, comparisons; CSV beside it",
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

  from gpt_jax.lab.sweep import asked

  sweep = None
  if args.config is not None:
    sweep = asked.load(args.config, overrides, args.code, args.devices)
  if args.verb == "plan":
    return _plan(sweep, args)
  if args.verb == "run":
    os.makedirs(args.workdir, exist_ok=True)
    return _emit(sweep, args) if args.emit else _run(sweep, args)
  if not os.path.isdir(args.workdir):
    raise InputError(
      f"{args.workdir} does not exist; give the --workdir of a sweep"
    )
  return _list(sweep, args) if args.verb == "list" else _report(sweep, args)


def _plan(sweep, args) -> int:
  from gpt_jax.lab.sweep import listing, plan

  limits = plan.Limits(args.memory, args.topology, args.devices, args.measure)
  bills = plan.make(sweep, args.workdir, limits)
  workers = 1 if args.topology else args.workers
  others = listing.lines_of_others(sweep, args.workdir)
  _print([*plan.lines(sweep, bills, workers), *others])
  return exits.DOES_NOT_FIT if plan.find_faults(sweep, bills) else 0


def _run(sweep, args) -> int:
  from gpt_jax.lab.sweep import listing, run

  for line in listing.lines_of_others(sweep, args.workdir):
    run.say(line)
  return run.run(
    sweep,
    args.workdir,
    num_workers=args.workers,
    only=_split(args.only),
    is_retried=args.retry,
    memory=args.memory,
  ).code


def _emit(sweep, args) -> int:
  from gpt_jax.lab.sweep import run

  lines, later = run.emit(
    sweep, args.workdir, args.emit, _split(args.only), args.retry
  )
  for line in lines[:SHOWN]:
    run.say(f"python -m gpt_jax.train {line}")
  if len(lines) > SHOWN:
    run.say(f"# and {len(lines) - SHOWN} more")
  run.say(f"# {len(lines)} cells in {args.emit}; as jobs of SLURM:")
  run.say(f"# bash launch/slurm.sh --cells={shlex.quote(args.emit)} --")
  if later:
    names = ", ".join(f"{c.id} {c.title}" for c in later)
    run.say(f"# when their trunks are there, --emit again for {names}")
  return 0


def _list(sweep, args) -> int:
  from gpt_jax.lab.sweep import listing

  found = listing.read(sweep, args.workdir)
  if args.json:
    print(json.dumps(listing.rows(found), indent=1))
  else:
    others = listing.lines_of_others(sweep, args.workdir)
    _print([*listing.lines(found), *others])
  return 0


def _report(sweep, args) -> int:
  from gpt_jax.lab.sweep import listing, report

  out = args.out or os.path.join(args.workdir, "report.html")
  found = report.make(sweep, args.workdir, args.baseline, os.path.dirname(out))
  tables = report.write(found, out)
  names = ", ".join(map(os.path.basename, tables))
  sentences = [one.sentence for one in found.comparisons]
  others = listing.lines_of_others(sweep, args.workdir)
  _print([*sentences, f"written to {out} and {names}", *others])
  return 0


def _print(lines) -> None:
  for line in lines:
    print(console.plain(line))


def _split(words: str | None) -> list[str] | None:
  return None if words is None else words.split(",")


def _build_parser():
  words = "\n".join(f"  {name:8}{what}" for name, what in VERBS.items())
  parser = cli.build_parser(
    "lab.sweep",
    "Runs the cells that sweep(add) of a config file asks for.\n\n"
    f"verbs:\n{words}",
    default_config="that of the sweep in --workdir",
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
    help="run: number of cells at a time (default %(default)s)",
  )
  add("--only", metavar="ID,...", help="run: only these cells")
  add(
    "--retry",
    action="store_true",
    help="run: also run cells that failed",
  )
  add(
    "--emit",
    metavar="FILE",
    help="run: run nothing; write each cell's arguments as a line of FILE, for "
    "launch/slurm.sh --cells=FILE",
  )
  add(
    "--memory",
    type=float,
    metavar="GIB",
    help="run, plan: memory of one cell (default: all of this machine's)",
  )
  add(
    "--topology",
    metavar="CHIP:SHAPE",
    help="plan: for this TPU slice, as lab.plan does, not for this machine",
  )
  add(
    "--measure",
    type=int,
    default=3,
    metavar="N",
    help="plan: number of shapes to time a step of (default %(default)s)",
  )
  add(
    "--code",
    metavar="HASH",
    help="make ids with this code version, which list shows, not today's",
  )
  add(
    "--baseline",
    metavar="NAME",
    help="report: the group to compare the others with (default: the first)",
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
