"""Does the best learning rate stay the same as a model grows? lab.transfer.

Trains short runs over a grid of parametrizations, widths (or depths), learning
rates and seeds, and finds the learning rate with the lowest validation loss for
each parametrization and size. The step is compiled once for each of these
pairs. Each finished run is appended to transfer.jsonl. A repeated command skips
the runs that are already there, so extending the grid trains only new ones.

From a notebook: run(config, words, axis, sizes, powers, seeds, folder), then
verdict(cells, word).
"""

import dataclasses
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Sequence

from gpt_jax import cli, digest, files
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime

WIDTHS, SEEDS, WORDS = "64,128,256,512", "0,1,2", "standard,mup"
# Powers of two: one step of the grid is a factor of 2.
RATES = "-11,-10,-9,-8,-7,-6,-5,-4"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of the grid.

  Attributes:
    word: the parametrization.
    size: the width, or the number of blocks.
    power: the learning rate is 2^power.
    seed: seed of the parameters and of the data order.
    loss: validation loss in nats per token; inf where it is not finite.
    identity: hash of config, data and number of evaluated batches.
  """

  word: str
  size: int
  power: float
  seed: int
  loss: float
  identity: str


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.transfer",
    "The best learning rate against width, or depth, by parametrization.",
  )
  parser.set_defaults(config="configs/mup.py")
  parser.add_argument(
    "--widths", metavar="D,...", help=f"model.model_dim (default {WIDTHS})"
  )
  parser.add_argument(
    "--depths", metavar="L,...", help="model.num_layers, in place of widths"
  )
  parser.add_argument(
    "--powers",
    default=RATES,
    metavar="K,...",
    help="learning rates, as powers of two (default %(default)s)",
  )
  parser.add_argument(
    "--seeds", default=SEEDS, metavar="N,...", help="(default %(default)s)"
  )
  parser.add_argument(
    "--parametrizations",
    default=WORDS,
    metavar="NAME,...",
    help="(default %(default)s)",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder for transfer.jsonl and the figures"
  )
  args, overrides = cli.parse(parser, argv)
  if args.out is None:
    raise InputError("--out is missing; give the folder to keep the runs in")
  if args.widths and args.depths:
    raise InputError("--widths and --depths are both given; give one")
  axis = "depth" if args.depths else "width"
  sizes = numbers(f"--{axis}s", args.depths or args.widths or WIDTHS)
  powers, seeds = (
    numbers("--powers", args.powers),
    numbers("--seeds", args.seeds),
  )
  words = args.parametrizations.split(",")
  for word in words:
    config_lib.require_choice(
      "--parametrizations",
      word,
      config_lib.KEYS["model.parametrization"].options,
    )
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)
  say = functools.partial(print, flush=True)
  cells = run(config, words, axis, sizes, powers, seeds, args.out, say)
  print(describe(cells, axis))
  names = write(cells, config, axis, args.out)
  print(f"written to {args.out}: {', '.join(names)}")
  return 0


def numbers(flag: str, text: str) -> list[int]:
  """Returns the whole numbers in a text such as "1,2", sorted.

  Raises:
    InputError: the text has something else.
  """
  try:
    return sorted({int(word) for word in text.split(",")})
  except ValueError:
    raise InputError(
      f"{flag} is {text!r}; it must be whole numbers with commas between them"
    ) from None


def run(
  config: Config,
  words: list[str],
  axis: str,
  sizes: list[int],
  powers: Sequence[float],
  seeds: list[int],
  folder: str,
  say=print,
) -> list[Cell]:
  """Returns the cells of a grid; cells found in the folder are not run again.

  Args:
    words: values of model.parametrization.
    axis: width | depth.
    powers: learning rates, as powers of two.
    folder: where transfer.jsonl is read and continued.
    say: called with lines about what is being done.

  Raises:
    InputError: a size or parametrization is not possible, or there is no
      validation text.
  """
  from gpt_jax.lab.transfer import family

  grow = {"width": family.at_width, "depth": family.at_depth}[axis]
  plans = []
  for word in words:
    for size in sizes:
      sized = grow(config, size)
      model = dataclasses.replace(sized.model, parametrization=word)
      sized = dataclasses.replace(sized, model=model)
      plans.append((word, size, sized))
  # Every config is checked before the first is run.
  for _, _, sized in plans:
    config_lib.freeze(dataclasses.asdict(sized))
  _, prepared = family.prepare(config, say)
  if not prepared.valid:
    raise InputError(
      "data.valid_frac is 0 and data.valid_source None; rates are compared by "
      "the loss of a validation text"
    )
  path = os.path.join(folder, "transfer.jsonl")
  known = read(path)
  total, found = len(plans) * len(powers) * len(seeds), []
  os.makedirs(folder, exist_ok=True)
  for word, size, sized in plans:
    member = None
    for power in powers:
      for seed in seeds:
        name = identify(sized, prepared.fingerprint, power, seed)
        cell = known.get(name)
        if cell is None:
          if member is None:
            resolved = prepared.resolve_vocab(sized)
            member = family.Member(resolved, prepared)
          began = time.perf_counter()
          loss = member.train(seed, 2.0**power)
          seconds = time.perf_counter() - began
          cell = Cell(word, size, power, seed, loss, name)
          with open(path, "a") as file:
            file.write(json.dumps(dataclasses.asdict(cell)) + "\n")
          say(
            f"{len(found) + 1} of {total}: {word} {axis} {size:,} rate "
            f"2^{power} seed {seed}: loss {loss:.4f}, {seconds:.1f} s"
          )
        found.append(cell)
  return found


def identify(config: Config, data: str, power: float, seed: int) -> str:
  """Returns a run's identity, 16 hex digits.

  Args:
    data: fingerprint of the prepared data.
    power: the learning rate is 2^power.
  """
  optim = dataclasses.replace(config.optim, learning_rate=2.0**power)
  config = dataclasses.replace(config, optim=optim, seed=seed)
  text = f"{config_lib.fingerprint(config)} {data} {config.eval.num_batches}"
  return digest.of_text(text)[:16]


def read(path: str) -> dict[str, Cell]:
  """Returns {identity: cell} of a transfer.jsonl; skips a cut last line."""
  from gpt_jax.runs import rows

  return {row["identity"]: Cell(**row) for row in rows.read_objects(path)}


def means(cells: list[Cell], word: str, size: int) -> dict[float, float]:
  """Returns {power: mean loss over seeds} of a parametrization and size."""
  grouped: dict[float, list[float]] = {}
  for c in cells:
    if (c.word, c.size) == (word, size):
      grouped.setdefault(c.power, []).append(c.loss)
  return {p: statistics.fmean(v) for p, v in sorted(grouped.items())}


def best(cells: list[Cell], word: str, size: int) -> float:
  """Returns log2 of the learning rate with the lowest mean loss."""
  row = means(cells, word, size)
  return min(row, key=lambda power: row[power])


def between(cells: list[Cell], word: str, size: int) -> float:
  """Returns log2 of the best learning rate, interpolated by a parabola.

  The parabola goes through the best power of the grid and its two neighbours.
  Returns that power itself if it is at the grid's edge, if one of the three
  losses is not finite, or if they lie on a line.
  """
  row, middle = means(cells, word, size), best(cells, word, size)
  powers = sorted(row)
  at = powers.index(middle)
  if at in (0, len(powers) - 1):
    return middle
  (x, a), (y, b), (z, c) = ((p, row[p]) for p in powers[at - 1 : at + 2])
  if not math.isfinite(a + b + c) or a + c == 2 * b:
    return middle
  rise, fall = (b - a) / (y - x), (c - b) / (z - y)
  return (x + y) / 2 - rise * (z - x) / (2 * (fall - rise))


def verdict(cells: list[Cell], word: str) -> dict:
  """Returns how far the best rate moves, and where a larger size is worse.

  Returns:
    best: log2 of the best learning rate of each size.
    moved: the largest of `best` minus the smallest, in powers of two.
    between: `best`, but interpolated by a parabola.
    worse: [(size, next size, rise)] where the mean loss rises from one size to
      the next; all sizes at the best rate of the smallest.
  """
  sizes = sorted({c.size for c in cells if c.word == word})
  bests = [best(cells, word, size) for size in sizes]
  at = [means(cells, word, size)[bests[0]] for size in sizes]
  pairs = zip(sizes, sizes[1:], at, at[1:], strict=False)
  worse = [(a, b, y - x) for a, b, x, y in pairs if not y <= x]
  return {
    "best": bests,
    "moved": max(bests) - min(bests),
    "between": [between(cells, word, size) for size in sizes],
    "worse": worse,
  }


def describe(cells: list[Cell], axis: str) -> str:
  """Returns a table and a verdict for each parametrization."""
  lines = []
  for word in dict.fromkeys(c.word for c in cells):
    sizes = sorted({c.size for c in cells if c.word == word})
    powers = sorted({c.power for c in cells if c.word == word})
    seeds = len({c.seed for c in cells if c.word == word})
    count = f"{seeds} seeds" if seeds > 1 else "one seed"
    lines.append(f"{word}: loss at rate 2^k, mean of {count}")
    lines.append(f"{axis:>8}" + "".join(f"{p:>9}" for p in powers))
    for size in sizes:
      row, least = means(cells, word, size), best(cells, word, size)
      texts = [f"{row[p]:.4f}" + (" *"[p == least]) for p in powers]
      lines.append(f"{size:>8,}" + "".join(f"{t:>9}" for t in texts))
    found = verdict(cells, word)
    lines.append(
      f"  best rate 2^{found['best'][0]} at {sizes[0]:,} and "
      f"2^{found['best'][-1]} at {sizes[-1]:,}; it moves over "
      f"{found['moved']} steps of the grid"
    )
    shown = ", ".join(f"{power:.2f}" for power in found["between"])
    lines.append(f"  between the steps, by a parabola, 2 to the {shown}")
    if not found["worse"]:
      lines.append(f"  no {axis} is worse than the one before at the first's")
    for a, b, gap in found["worse"]:
      lines.append(
        f"  at the best rate of {sizes[0]:,}, {axis} {b:,} is worse than "
        f"{a:,} by {gap:.4f}"
      )
    edges = {min(powers), max(powers)} & set(found["best"])
    if edges and len(powers) > 1:
      lines.append("  a best rate is at the grid's edge: widen --powers")
  return "\n".join(lines)


def draw(cells: list[Cell], word: str, axis: str) -> str:
  """Returns an SVG of loss against learning rate, with a line for each size."""
  from gpt_jax.runs import plot

  sizes = sorted({c.size for c in cells if c.word == word})
  layers = []
  for index, size in enumerate(sizes):
    color = plot.shade(index / max(1, len(sizes) - 1))
    row = means(cells, word, size)
    points = [(2.0**p, v) for p, v in row.items() if math.isfinite(v)]
    layers.append(plot.Layer("line", points, color, f"{axis} {size:,}"))
    least = best(cells, word, size)
    if math.isfinite(row[least]):
      layers.append(plot.Layer("dots", [(2.0**least, row[least])], color))
  return plot.draw_layers(word, "learning rate", "validation loss", layers)


def write(
  cells: list[Cell], config: Config, axis: str, folder: str
) -> list[str]:
  """Writes transfer.json and a figure for each parametrization.

  Returns:
    The names of the files.
  """

  words = list(dict.fromkeys(c.word for c in cells))
  content = {
    "config": config_lib.flatten(config),
    "axis": axis,
    "cells": [dataclasses.asdict(c) for c in cells],
    "verdicts": {word: verdict(cells, word) for word in words},
  }
  text = json.dumps(content, indent=1) + "\n"
  files.write_text(os.path.join(folder, "transfer.json"), text)
  names = ["transfer.json"]
  for word in words:
    names.append(f"transfer-{word}.svg")
    files.write_text(os.path.join(folder, names[-1]), draw(cells, word, axis))
  return names
