"""One config on several slices: python -m gpt_jax.lab.plan.slices --help.

The batch grows with the slice, so that every chip has the same tokens to do
and what changes is how far the state is spread.
"""

import dataclasses
import json
import os
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import chips, runtime

_LINE = "{:12} {:>6} {:>10} {:>10} {:>10} {:>11} {:>11} {:>10} {:>6} {:>7}"


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.plan.slices",
    "Memory and speed of one config, compiled for several TPU slices.",
  )
  parser.add_argument(
    "--topologies",
    required=True,
    metavar="CHIP:SHAPE,...",
    help="slices, the first the one that train.global_batch_size is for; on "
    "the others it grows with the chips",
  )
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="folder to write slices.json and memory.svg into",
  )
  args, overrides = cli.parse(parser, argv)
  topologies = [
    chips.parse_topology(word, 1) for word in args.topologies.split(",")
  ]
  if any(t.platform != "tpu" for t in topologies):
    raise InputError(
      f"--topologies is {args.topologies!r}; only TPU slices are compiled for"
    )
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)
  runtime.start_tpu_compiler()

  from gpt_jax.lab.plan import aot, planner

  config = aot.resolve_vocab(config)
  names = ("parameters", "moments", "gradients", "activations", "temporaries")
  print(_LINE.format("slice", "chips", *names, "in all", "of HBM", "MFU"))
  plans = []
  for topology in topologies:
    grown = _with_batch(config, topologies[0], topology)
    plan = planner.make(grown, topology)
    plans.append(plan)
    print(_row(plan, names), flush=True)
  if args.out:
    _write(plans, names, args.config, args.out)
  return 0


def _with_batch(config, first: chips.Topology, topology: chips.Topology):
  """Returns the config with as many sequences on each chip as on the first."""
  size = config.train.global_batch_size * topology.num_chips
  if size % first.num_chips:
    raise InputError(
      f"train.global_batch_size is {config.train.global_batch_size} on "
      f"{first.name}; on {topology.name} it would not be a whole number: give "
      "a multiple of the chips"
    )
  train = dataclasses.replace(
    config.train, global_batch_size=size // first.num_chips
  )
  return dataclasses.replace(config, train=train)


def _row(plan: dict, names) -> str:
  from gpt_jax.machine import console

  memory, where = plan["memory"], plan["topology"]
  size = lambda n: console.format_bytes(n)
  mfu = plan["roofline"] and plan["roofline"]["mfu"]
  return _LINE.format(
    where["name"],
    where["chips"],
    *(size(memory["kinds"].get(name, 0)) for name in names),
    size(memory["peak"]) if memory["fits"] else "too much",
    f"{100 * memory['peak'] / memory['available']:.0f} %",
    f"{100 * mfu:.1f} %" if mfu else "-",
  )


def _write(plans: list[dict], names, title: str, folder: str) -> None:
  from gpt_jax.runs import plot, workdir

  text = json.dumps(plans, indent=1)
  workdir.write_text(os.path.join(folder, "slices.json"), text)
  chips_of = lambda p: p["topology"]["chips"]
  curve = lambda size_of: [(chips_of(p), size_of(p) / 2**30) for p in plans]
  # A gradient has the bytes of its parameter: two curves in one place.
  layers = [
    plot.Layer(
      "line",
      curve(lambda p, name=name: p["memory"]["kinds"].get(name, 0)),
      color,
      name,
      is_dashed=name == "gradients",
    )
    for name, color in zip(names, plot.COLORS, strict=False)
  ]
  whole = curve(lambda p: p["memory"]["peak"])
  layers.append(plot.Layer("line", whole, plot.COLORS[-1], "in all"))
  svg = plot.draw_layers(
    f"{title}: memory of each chip", "chips", "GiB", layers
  )
  workdir.write_text(os.path.join(folder, "memory.svg"), svg)
  print(f"written to {folder}: slices.json, memory.svg")


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
