"""Do activations keep their size as a model grows? lab.transfer.coordinates.

The coordinate check (Yang et al. 2022, D.1). Models of several widths, or
depths, take a few steps at one learning rate. After each step the mean absolute
activation is measured on a batch that is never trained on. Under a correct
parametrization it does not depend on the size: fitted as a power of the size,
its exponent is near zero. The exponent of the change since initialization is
printed too, because activations also keep their size in a model that does not
learn.

At initialization the logits are sums of uncorrelated terms and, under muP, fall
as 1 / sqrt(width); this initial part still matters in the first steps. In the
same way, under CompleteP the sum of the blocks' outputs falls as
1 / sqrt(depth). Therefore the logits, and over depth the residual stream, are
judged only by the second half of the steps. If the output matrix starts at zero
(model.unembed_init_std), so do the logits, which are then judged from the first
step on.

From a notebook: check(config, axis, sizes, steps), then judged(traces, axis).
"""

import dataclasses
import json
import math
import os
import sys

from gpt_jax import cli, files, metric_names
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime

TAPS = ("embed", "attn", "mlp", "residual", "logits")
WIDTHS, DEPTHS = "64,128,256,512,1024", "2,4,8,16,32"
# Axis -> taps that are judged only by the second half of the steps.
LATE = {"width": ("logits",), "depth": ("logits", "residual")}
# Activations are measured on the batch of this step, which is never trained on.
PROBE = 10_000
# How far from zero an exponent may be.
TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Trace:
  """Activations of one size; all values are means over seeds.

  Attributes:
    size: the width, or the number of blocks.
    levels: tap -> mean absolute value before the first step and after each.
    moves: tap -> mean absolute change from the initial activation, also before
      the first step (zero) and after each.
    losses: the training loss of each step.
  """

  size: int
  levels: dict[str, list[float]]
  moves: dict[str, list[float]]
  losses: list[float]


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.transfer.coordinates",
    "Growth of activations with width, or depth, over the first steps.",
  )
  parser.set_defaults(config="configs/mup.py")
  parser.add_argument(
    "--widths", metavar="D,...", help=f"model.model_dim (default {WIDTHS})"
  )
  parser.add_argument(
    "--depths",
    metavar="L,...",
    help=f"model.num_layers, in place of widths; such as {DEPTHS}",
  )
  parser.add_argument(
    "--growing",
    default="heads",
    metavar="WHAT",
    help="what grows with width: heads (more of them) or head_dim (default "
    "%(default)s)",
  )
  parser.add_argument(
    "--steps",
    type=int,
    default=10,
    metavar="N",
    help="steps to take, without warm-up (default %(default)s)",
  )
  parser.add_argument(
    "--seeds",
    type=int,
    default=4,
    metavar="N",
    help="number of seeds to average over, from config.seed on (default "
    "%(default)s)",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder for coordinates.json and a figure"
  )
  args, overrides = cli.parse(parser, argv)
  for flag in ("steps", "seeds"):
    if vars(args)[flag] < 1:
      raise InputError(f"--{flag} is {vars(args)[flag]}; it must be 1 or more")
  config_lib.require_choice("--growing", args.growing, ("heads", "head_dim"))
  if args.widths and args.depths:
    raise InputError("--widths and --depths are both given; give one")
  axis = "depth" if args.depths else "width"
  text = args.depths or args.widths or WIDTHS
  sizes = parse_sizes(f"--{axis}s", text)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  runtime.start(args.devices)
  traces = check(
    config, axis, sizes, args.steps, args.seeds, args.growing, say=print
  )
  print(describe(traces, config, axis))
  if args.out:
    write(traces, config, axis, args.out)
    print(f"written to {args.out}: coordinates.json, coordinates.svg")
  return 0 if is_flat(traces, axis) else 1


def parse_sizes(flag: str, text: str) -> list[int]:
  """Returns the sizes in a text such as "64,128", sorted.

  Raises:
    InputError: they are not two or more positive whole numbers.
  """
  try:
    sizes = sorted({int(word) for word in text.split(",")})
  except ValueError:
    sizes = []
  if len(sizes) < 2 or sizes[0] < 1:
    raise InputError(
      f"{flag} is {text!r}; it must be two or more whole numbers with commas "
      "between them"
    )
  return sizes


def check(
  config: Config,
  axis: str,
  sizes: list[int],
  steps: int,
  seeds: int = 1,
  growing: str = "heads",
  say=lambda line: None,
) -> list[Trace]:
  """Returns the traces of all sizes.

  Args:
    axis: width | depth.
    steps: number of steps at the config's learning rate, without warm-up.
    seeds: number of seeds to average over, from config.seed on.
    growing: heads | head_dim, see family.at_width.
    say: called with lines about what is being done.
  """
  from gpt_jax.lab.transfer import family

  config = dataclasses.replace(
    config,
    optim=dataclasses.replace(
      config.optim, schedule="constant", warmup_steps=0
    ),
  )
  grow = {
    "width": lambda size: family.at_width(config, size, growing),
    "depth": lambda size: family.at_depth(config, size),
  }[axis]
  members = [grow(size) for size in sizes]  # all are checked before any runs
  _, prepared = family.prepare(config, say)
  traces = []
  for size, member in zip(sizes, members, strict=True):
    traces.append(trace(size, member, prepared, steps, seeds))
    losses = traces[-1].losses
    say(f"{axis} {size:,}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
  return traces


def trace(size: int, config: Config, prepared, steps: int, seeds: int) -> Trace:
  """Returns the Trace of one model over its first steps."""
  import jax
  import jax.numpy as jnp

  from gpt_jax.lab.transfer import family

  config = prepared.resolve_vocab(config)
  member = family.Member(config, prepared)
  probe = member.batch(config.seed, PROBE)["tokens"]
  V = config.model.vocab_size

  @jax.jit
  def look(params):
    logits_BTV, taps = member.model.apply_tapped(params, probe)
    return taps | {"logits": logits_BTV[..., :V]}

  @jax.jit
  def sizes_of(now, start):
    mean = lambda x: jnp.abs(x.astype(jnp.float32)).mean()
    moved = jax.tree.map(lambda a, b: mean(a - b), now, start)
    return jax.tree.map(mean, now), moved

  def run(seed):
    state = member.start(seed)
    start = look(state.params)
    seen, losses = [sizes_of(start, start)], []
    batches = member.batches(seed)
    for _ in range(steps):
      state, result = member.step(
        state, next(batches), config.optim.learning_rate
      )
      losses.append(result[metric_names.LOSS])
      seen.append(sizes_of(look(state.params), start))
    return jax.device_get((seen, losses))

  runs = [run(config.seed + i) for i in range(seeds)]
  mean = lambda *values: float(sum(values) / seeds)
  seen, losses = jax.tree.map(mean, *runs)
  levels, moves = (
    {tap: [pair[i][tap] for pair in seen] for tap in TAPS} for i in (0, 1)
  )
  return Trace(size, levels, moves, losses)


def exponent(sizes: list[int], values: list[float]) -> float:
  """Returns k of values ~ sizes^k, by least squares of the logarithms.

  NaN if a value is not positive and finite.
  """
  if not all(v > 0 and math.isfinite(v) for v in values):
    return math.nan
  x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
  x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
  above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
  return above / sum((a - x_mean) ** 2 for a in x)


def exponents(traces: list[Trace], what: str = "levels") -> dict[str, list]:
  """Returns {tap: exponents in the size, before the first step and after each}.

  Args:
    what: "levels" or "moves", see Trace.
  """
  sizes = [t.size for t in traces]
  rows = {tap: [getattr(t, what)[tap] for t in traces] for tap in TAPS}
  return {
    tap: [exponent(sizes, list(at)) for at in zip(*row, strict=True)]
    for tap, row in rows.items()
  }


def judged(traces: list[Trace], axis: str) -> dict[str, float]:
  """Returns {tap: the exponent farthest from zero}, NaN if one is NaN.

  Taps in LATE are judged only by the second half of the steps. A tap that is
  zero before training is judged from the first step on.
  """
  found = {}
  for tap, row in exponents(traces).items():
    if not any(t.levels[tap][0] for t in traces):
      row = row[1:]
    elif tap in LATE[axis]:
      row = row[len(row) // 2 :]
    found[tap] = next((k for k in row if math.isnan(k)), max(row, key=abs))
  return found


def is_flat(traces: list[Trace], axis: str) -> bool:
  """Returns whether all exponents of `judged` are within TOLERANCE of zero."""
  return all(abs(k) <= TOLERANCE for k in judged(traces, axis).values())


def describe(traces: list[Trace], config: Config, axis: str) -> str:
  """Returns a table of exponents and the verdict, as text."""
  sizes = ", ".join(f"{t.size:,}" for t in traces)
  steps = len(traces[0].losses)
  shown = sorted({round(i * steps / min(steps, 8)) for i in range(9)} - {0})
  shown = [0] + [s for s in shown if s <= steps]
  line = lambda name, cells: f"{name:10}" + "".join(f"{c:>7}" for c in cells)
  number = lambda k: "" if math.isnan(k) else f"{k:+.2f}"
  most = judged(traces, axis)
  lines = [
    f"{config.model.parametrization}, {axis} {sizes}, rate "
    f"{config.optim.learning_rate:g}: exponents of mean |activation|",
    line("after step", [*shown, "most"]),
  ]
  for tap, row in exponents(traces).items():
    cells = [number(k) for k in [*(row[i] for i in shown), most[tap]]]
    is_fine = abs(most[tap]) <= TOLERANCE
    lines.append(line(tap, cells) + ("" if is_fine else "  not flat"))
  lines.append("of mean |change since the start|")
  for tap, row in exponents(traces, "moves").items():
    lines.append(line(tap, [number(row[i]) for i in shown]))
  word = "flat" if is_flat(traces, axis) else "NOT flat"
  lines.append(f"{word}: each is to be within {TOLERANCE} of zero")
  return "\n".join(lines)


def draw(traces: list[Trace], title: str, axis: str) -> str:
  """Returns an SVG of activations against size.

  A tap has three lines: before training, after the first step, after the last.
  """
  from gpt_jax.runs import plot

  steps = len(traces[0].losses)
  layers = []
  for index, tap in enumerate(TAPS):
    color = plot.COLORS[index]
    for step in sorted({0, 1, steps}):
      points = [(t.size, t.levels[tap][step]) for t in traces]
      points = [p for p in points if p[1] > 0 and math.isfinite(p[1])]
      name = tap if step == steps else None
      layers.append(plot.Layer("line", points, color, name, step < steps))
      if step == steps:
        layers.append(plot.Layer("dots", points, color))
  return plot.draw_layers(title, axis, "mean |activation|", layers)


def write(traces: list[Trace], config: Config, axis: str, out: str) -> None:
  """Writes coordinates.json and coordinates.svg."""

  content = {
    "config": config_lib.flatten(config),
    "axis": axis,
    "traces": [dataclasses.asdict(t) for t in traces],
    "exponents": exponents(traces),
    "exponents_of_moves": exponents(traces, "moves"),
    "is_flat": is_flat(traces, axis),
  }
  text = json.dumps(content, indent=1) + "\n"
  files.write_text(os.path.join(out, "coordinates.json"), text)
  title = (
    f"{config.model.parametrization}: after {len(traces[0].losses)} steps; "
    "dashed: before the first and after it"
  )
  svg = draw(traces, title, axis)
  files.write_text(os.path.join(out, "coordinates.svg"), svg)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
