"""One config on several slices: python -m gpt_jax.lab.plan.slices --help.

The batch grows with the slice, so that every chip has the same number of tokens
and only the sharding of the state changes. From a notebook: make(config,
topologies).
"""

import dataclasses
import json
import os
import sys

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import chips, runtime

# Kinds of memory that the table shows.
KINDS = ("parameters", "moments", "gradients", "activations", "temporaries")
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
    help="slices; train.global_batch_size is for the first and grows with the "
    "chips on the others",
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

  from gpt_jax.data import tokenizers

  config = tokenizers.resolve_vocab(config)
  print(_LINE.format("slice", "chips", *KINDS, "in all", "of HBM", "MFU"))
  plans = []
  for plan in make(config, topologies):
    plans.append(plan)
    print(_row(plan), flush=True)
  if args.out:
    write(plans, args.config, args.out)
    print(f"written to {args.out}: slices.json, memory.svg")
  return 0


def make(config, topologies: list[chips.Topology]):
  """Yields the plan of a config on each slice, from planner.make.

  Args:
    config: frozen, with a known vocabulary; its batch is for the first slice.

  Raises:
    InputError: on a slice, the batch would not be a whole number.
  """
  from gpt_jax.lab.plan import planner

  for topology in topologies:
    grown = _with_batch(config, topologies[0], topology)
    yield planner.make(grown, topology)


def _with_batch(config, first: chips.Topology, topology: chips.Topology):
  """Returns the config with its batch scaled to the chips of a topology.

  Args:
    first: the topology that the config's batch is for.
  """
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


def _row(plan: dict) -> str:
  from gpt_jax.machine import console

  memory, where = plan["memory"], plan["topology"]
  size = lambda n: console.format_bytes(n)
  mfu = plan["roofline"] and plan["roofline"]["mfu"]
  return _LINE.format(
    where["name"],
    where["chips"],
    *(size(memory["kinds"].get(name, 0)) for name in KINDS),
    size(memory["peak"]) if memory["fits"] else "too much",
    f"{100 * memory['peak'] / memory['available']:.0f} %",
    f"{100 * mfu:.1f} %" if mfu else "-",
  )


def write(plans: list[dict], title: str, folder: str) -> None:
  """Writes slices.json and memory.svg into a folder."""
  from gpt_jax.runs import plot

  text = json.dumps(plans, indent=1)
  files.write_text(os.path.join(folder, "slices.json"), text)
  chips_of = lambda p: p["topology"]["chips"]
  curve = lambda size_of: [(chips_of(p), size_of(p) / 2**30) for p in plans]
  # Gradients take as many bytes as parameters, so the two curves coincide.
  layers = [
    plot.Layer(
      "line",
      curve(lambda p, name=name: p["memory"]["kinds"].get(name, 0)),
      color,
      name,
      is_dashed=name == "gradients",
    )
    for name, color in zip(KINDS, plot.COLORS, strict=False)
  ]
  whole = curve(lambda p: p["memory"]["peak"])
  layers.append(plot.Layer("line", whole, plot.COLORS[-1], "in all"))
  svg = plot.draw_layers(
    f"{title}: memory of each chip", "chips", "GiB", layers
  )
  files.write_text(os.path.join(folder, "memory.svg"), svg)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
