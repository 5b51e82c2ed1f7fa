"""How a step's cost grows: python -m gpt_jax.lab.bench.growth.

Measures time and temporary memory of the real step as width, layers, sequence
length, batch or vocabulary grows from a small base, and compares them with the
ledger (flops.py). Measured and predicted values are divided by the base's, so
that growth is compared and not the machine's speed. From a notebook:
measure(config).
"""

import dataclasses
import functools
import json
import os
import statistics
import sys

from gpt_jax import cli, files, flops
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime

# Axis -> factors by which the base's size is multiplied.
AXES = {
  "width": (1, 2, 3, 4),
  "layers": (1, 2, 3, 4),
  "length": (1, 2, 4, 8),
  "batch": (1, 2, 4, 8),
  "vocabulary": (1, 4, 8, 16),
}
# A measurement lasts LEAST_SECONDS or, if that comes first, MOST_STEPS steps.
LEAST_SECONDS, MOST_STEPS = 1.0, 50
_LINE = "{:10} {:>8} {:>10} {:>8} {:>8} {:>11} {:>8} {:>8}"


@dataclasses.dataclass(frozen=True)
class Point:
  """A measured step of one size.

  Attributes:
    axis: a key of AXES.
    value: the size along the axis.
    milliseconds: median of the steps.
    spread: (least, most) milliseconds of a step.
    temporary_bytes: memory beyond the state, as compiled.
    flops: FLOPs of a step, by the ledger.
    bytes: temporary bytes of a step, by the ledger's estimate.
  """

  axis: str
  value: int
  milliseconds: float
  spread: tuple[float, float]
  temporary_bytes: int
  flops: int
  bytes: int


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.bench.growth",
    "Time and memory of a step as a model grows, against the ledger.",
  )
  parser.set_defaults(config="configs/bench.py:growth")
  parser.add_argument(
    "--axes",
    default=",".join(AXES),
    metavar="NAME,...",
    help="which sizes grow (default %(default)s)",
  )
  parser.add_argument(
    "--repeats",
    type=int,
    default=5,
    metavar="N",
    help="least number of steps to time; the median counts (default "
    "%(default)s)",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder to write growth.json and plots into"
  )
  args, overrides = cli.parse(parser, argv)
  axes = args.axes.split(",")
  for axis in axes:
    if axis not in AXES:
      raise InputError(
        f"--axes has no {axis!r}; {config_lib.nearest(axis, AXES)}"
      )
  if args.repeats < 1:
    raise InputError(f"--repeats is {args.repeats}; it must be 1 or more")
  base = config_lib.freeze(cli.load_config(args.config, overrides))
  if base.model.vocab_size is None:
    raise InputError(
      "model.vocab_size is None and no text is read here; set "
      "--config.model.vocab_size"
    )
  runtime.start(args.devices)
  head = ("axis", "value", "ms", "grows", "ledger", "MiB", "grows", "ledger")
  print(_LINE.format(*head))
  say = functools.partial(print, flush=True)
  points = measure(base, axes, args.repeats, say)
  if args.out:
    names = write(points, base, args.out)
    print(f"written to {args.out}: {', '.join(names)}")
  return 0


def grow(base: Config, axis: str, factor: int) -> tuple[int, Config]:
  """Returns (value along the axis, config) of `factor` times the base."""
  m, d, t = base.model, base.data, base.train
  if axis == "width":
    # As in larger models, the number of heads grows, and not their width.
    m = dataclasses.replace(
      m,
      model_dim=m.model_dim * factor,
      num_heads=m.num_heads * factor,
      num_kv_heads=m.num_kv_heads and m.num_kv_heads * factor,
      mlp_dim=m.mlp_dim * factor,
    )
    value = m.model_dim
  elif axis == "layers":
    m = dataclasses.replace(m, num_layers=m.num_layers * factor)
    value = m.num_layers
  elif axis == "length":
    d = dataclasses.replace(d, seq_len=d.seq_len * factor)
    m = dataclasses.replace(m, max_len=max(m.max_len, d.seq_len))
    value = d.seq_len
  elif axis == "batch":
    t = dataclasses.replace(t, global_batch_size=t.global_batch_size * factor)
    value = t.global_batch_size
  else:
    m = dataclasses.replace(m, vocab_size=config_lib.vocab_size(m) * factor)
    value = config_lib.vocab_size(m)
  return value, dataclasses.replace(base, model=m, data=d, train=t)


def predict(config: Config, platform: str) -> tuple[int, int]:
  """Returns (FLOPs, temporary bytes) of a step, by the ledger."""
  from gpt_jax.models import attend

  tokens = config.train.global_batch_size * config.data.seq_len
  work = flops.train_flops_per_token(config.model, config.data.seq_len)
  # Only dense attention stores the scores: T per token and head.
  reach = config.data.seq_len
  if attend.choose(config.model, platform, reach) != "dense":
    reach = 1
  model = dataclasses.replace(config.model, max_len=reach)
  parts = config.train.num_microbatches
  return work * tokens, flops.estimate_temporary_bytes(model, tokens // parts)


def measure(
  base: Config, axes: list[str] | None = None, repeats: int = 5, say=print
) -> list[Point]:
  """Returns the points of each axis, the base first.

  Args:
    base: frozen, with a known vocabulary.
    axes: keys of AXES; None takes all.
    repeats: the least number of steps that are timed.
    say: called with a line for each point.
  """
  points, known = [], None
  for axis in axes or AXES:
    for factor in AXES[axis]:
      value, config = grow(base, axis, factor)
      if factor == 1 and known is not None:
        # All axes share the base.
        point = dataclasses.replace(known, axis=axis, value=value)
      else:
        point = measure_one(axis, value, config, repeats)
      known = known or point
      points.append(point)
      say(describe(point, known))
  return points


def measure_one(axis: str, value: int, config: Config, repeats: int) -> Point:
  """Returns the point of one config."""
  from gpt_jax.lab.bench import ours

  subject = ours.Train(config)
  first = min(subject.run(3)["seconds"])
  # Short steps are timed more often, above all the base, to which all other
  # points are relative.
  count = max(repeats, min(int(LEAST_SECONDS / first), MOST_STEPS))
  found = [1e3 * s for s in subject.run(count)["seconds"]]
  spread = min(found), max(found)
  return Point(
    axis,
    value,
    statistics.median(found),
    spread,
    subject.temporary_bytes,
    *predict(config, subject.describe()["platform"]),
  )


def ratios(point: Point, base: Point) -> tuple[float, float, float, float]:
  """Returns (time, FLOPs, temporary memory, ledger's bytes) over the base's."""
  return (
    point.milliseconds / base.milliseconds,
    point.flops / base.flops,
    point.temporary_bytes / base.temporary_bytes,
    point.bytes / base.bytes,
  )


def describe(point: Point, base: Point) -> str:
  """Returns a line of the table."""
  time, work, memory, passing = (f"{r:.2f}" for r in ratios(point, base))
  return _LINE.format(
    point.axis,
    f"{point.value:,}",
    f"{point.milliseconds:,.1f}",
    time,
    work,
    f"{point.temporary_bytes / 2**20:,.1f}",
    memory,
    passing,
  )


def draw(axis: str, points: list[Point]) -> str:
  """Returns an SVG of growth along an axis, measured and by the ledger."""
  from gpt_jax.runs import plot

  names = ("time", "time, ledger", "memory", "memory, ledger")
  layers = []
  for index, name in enumerate(names):
    curve = [(p.value, ratios(p, points[0])[index]) for p in points]
    color, is_ledger = plot.COLORS[1 + index // 2], bool(index % 2)
    layers.append(plot.Layer("line", curve, color, name, is_ledger))
    if not is_ledger:
      layers.append(plot.Layer("dots", curve, color))
  title = f"a step against {axis}; dashed: the ledger"
  return plot.draw_layers(title, axis, "times the base", layers)


def write(points: list[Point], base: Config, folder: str) -> list[str]:
  """Writes growth.json and a plot for each axis; returns their names."""
  from gpt_jax.lab.bench import machine

  content = {
    "config": config_lib.flatten(base),
    "machine": machine.describe(),
    "points": [dataclasses.asdict(point) for point in points],
  }
  text = json.dumps(content, indent=1) + "\n"
  files.write_text(os.path.join(folder, "growth.json"), text)
  names = ["growth.json"]
  for axis in dict.fromkeys(point.axis for point in points):
    svg = draw(axis, [p for p in points if p.axis == axis])
    names.append(f"growth-{axis}.svg")
    files.write_text(os.path.join(folder, names[-1]), svg)
  return names


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
