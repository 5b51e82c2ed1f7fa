"""What a sweep found: report.html, which opens from disk, and report.csv.

Everything is read from the folders of the cells. Runs that differ in the seed
alone are one group; groups are compared by paired.py with one of them, in the
unit that losses.py finds for the two. A run that diverged has no loss.
"""

import csv
import dataclasses
import io
import json
import math
import os
import statistics

from gpt_jax import config as config_lib
from gpt_jax import files, flops
from gpt_jax.config import InputError, nearest
from gpt_jax.lab.sweep import folder, listing, losses, page, paired
from gpt_jax.lab.sweep.cells import Refusal, Sweep
from gpt_jax.machine import console
from gpt_jax.runs import metrics, plot

# Points that a curve is thinned to, by means.
CURVE_POINTS = 120
# Groups that get a color each; more are shaded by their loss.
MAX_COLORS = 8
# Legible on white and on black.
COLORS = (
  *("#3b82c4", "#d1602f", "#3f9d5a", "#9a68cc"),
  *("#b8860b", "#c8508a", "#2a9d9d", "#808080"),
)
# Of a name beside a figure.
LEGEND_CHARS = 36
# Column of metrics.noise_scale, in sequences; left out where none is known.
NOISE = "noise scale"
# Lines of a figure that are named.
MAX_LINES = 6


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in the seed alone.

  Attributes:
    name: unique.
    states: of its cells.
  """

  name: str
  states: list[folder.State]

  @property
  def ended(self) -> list[folder.State]:
    """Its runs that have ended with a loss."""
    return [s for s in self.states if s.final is not None]

  def losses(self, unit: str = losses.NATS) -> dict[int, float]:
    """Returns {seed: final loss} of what has ended, inf where it diverged."""
    lost = [s.seed for s in self.states if s.word == folder.DIVERGED]
    found = {s.seed: losses.value(s, unit) for s in self.ended}
    return found | dict.fromkeys(lost, math.inf)

  @property
  def is_sound(self) -> bool:
    """Whether something has ended, and nothing has diverged."""
    found = self.losses().values()
    return bool(found) and all(map(math.isfinite, found))


def run(sweep: Sweep | None, root: str, args) -> int:
  """Writes the report; returns the exit code."""
  states, titles = listing.states_of(sweep, root)
  refused = sweep.refused if sweep else []
  if not states and not refused:
    raise InputError(f"{root} holds no cell; give the --workdir of a sweep")
  names = {c.id: c.name for c in sweep.cells} if sweep else {}
  groups = group(states, names)
  comparisons = compare(groups, args.baseline)
  axes = axes_of(states)
  out = args.out or os.path.join(root, "report.html")
  table = os.path.splitext(out)[0] + ".csv"
  title = os.path.basename(os.path.abspath(root))
  unit, why = find_unit(states)
  swept = numeric(axes, states) if unit else []
  drawn = {axis: draw_axis(axis, states, unit) for axis in swept}
  columns = ["cell", "name", "seed", *map(_short, axes), *_FIGURES]
  rows = [_row(s, titles[s.id], names, axes, root, out) for s in states]
  at = columns.index(NOISE)
  if not any(row[at].text for row in rows):
    columns.pop(at)
    rows = [row[:at] + row[at + 1 :] for row in rows]
  text = page.write(
    title=title,
    facts=facts(states, refused, groups, unit),
    curves=draw_curves(groups),
    telemetry=draw_telemetry(groups),
    comparisons=comparisons,
    sensitivity=[svg for svg in drawn.values() if svg],
    confounded=[axis for axis, svg in drawn.items() if not svg],
    why=why,
    columns=columns,
    rows=rows,
    troubles=troubles(states, titles, refused),
    branches=branch_lines(states, titles),
    common=common(states, axes),
  )
  files.write_text(os.path.abspath(out), text)
  files.write_text(os.path.abspath(table), csv_text(states, names, axes))
  tables = [os.path.basename(table)]
  if comparisons:
    second = f"{os.path.splitext(out)[0]}-comparisons.csv"
    files.write_text(os.path.abspath(second), comparisons_text(comparisons))
    tables.append(os.path.basename(second))
  for one in comparisons:
    print(console.plain(one.sentence))
  print(console.plain(f"written to {out} and {', '.join(tables)}"))
  return 0


_FIGURES = ("params", "FLOPs", "steps", "loss", "time", NOISE, "state")


def group(states: list[folder.State], names: dict[str, str]) -> list[Group]:
  """Returns the groups, in the order of the cells."""
  found: dict[str, list[folder.State]] = {}
  for state in states:
    if state.config is None:
      continue
    kept = {
      k: v
      for k, v in asked(state).items()
      if k != "seed" and not config_lib.is_free(k)
    }
    code = state.record.get("code")
    key = json.dumps([kept, state.record.get("data"), code], sort_keys=True)
    found.setdefault(key, []).append(state)
  groups, taken = [], set()
  for members in found.values():
    first = members[0]
    name = names.get(first.id, first.name)
    if name in taken:  # of other sources, or of another sweep
      name = f"{name} ({first.id})"
    taken.add(name)
    groups.append(Group(name, members))
  return groups


def asked(state: folder.State) -> dict:
  """Returns the flat config of a cell, as it was asked for.

  Its vocabulary may be None, which a run fills in once text is prepared.
  """
  flat = config_lib.flatten(state.config)
  size = state.record.get("config", flat).get("model.vocab_size")
  return flat | {"model.vocab_size": size}


def compare(
  groups: list[Group], baseline: str | None
) -> list[paired.Comparison]:
  """Returns the other groups against one.

  Where none is named that is the first that has ended and has not diverged.

  Raises:
    InputError: there is no such group.
  """
  named = [g.name for g in groups]
  if baseline is not None and baseline not in named:
    raise InputError(
      f"--baseline={baseline} is no name of a cell; {nearest(baseline, named)}"
    )
  groups = [g for g in groups if g.losses() or g.name == baseline]
  if len(groups) < 2:
    return []
  first = next((g for g in groups if g.is_sound), groups[0])
  base = next((g for g in groups if g.name == baseline), first)
  found = []
  for one in groups:
    if one is base:
      continue
    unit, why = find_unit(base.states + one.states)
    if unit:
      pair = (base.name, base.losses(unit)), (one.name, one.losses(unit))
      found.append(paired.pair(*pair, "" if unit == losses.NATS else unit))
    else:
      found.append(paired.Comparison(one.name, base.name, (), why=why))
  return paired.judge(found)


def find_unit(states: list[folder.State]) -> tuple[str, str]:
  """Returns losses.find_unit of those that have ended with a loss."""
  ended = [s for s in states if s.final is not None]
  return losses.find_unit(ended) if ended else (losses.NATS, "")


def axes_of(states: list[folder.State]) -> list[str]:
  """Returns the keys that differ among cells, the seed and free ones apart."""
  flats = [asked(s) for s in states if s.config is not None]
  return [
    key
    for key in config_lib.KEYS
    if key != "seed"
    and not config_lib.is_free(key)
    and len({flat[key] for flat in flats}) > 1
  ]


def numeric(axes: list[str], states: list[folder.State]) -> list[str]:
  """Returns the axes that runs which have ended have several numbers of."""
  out = []
  for key in axes:
    values = {asked(s)[key] for s in states if _height(s) is not None}
    if len(values) > 1 and all(type(v) in (int, float) for v in values):
      out.append(key)
  return out


def _height(state: folder.State, unit: str = losses.NATS) -> float | None:
  """Returns what is drawn of a run: its loss, inf where it diverged."""
  if state.final is not None:
    return losses.value(state, unit)
  return math.inf if state.word == folder.DIVERGED and state.config else None


def facts(states, refused, groups, unit) -> list[tuple[str, str]]:
  """Returns what stands at the head: names and values."""
  words = [s.word for s in states] + ["refused"] * len(refused)
  counts = {w: words.count(w) for w in dict.fromkeys(words)}
  rows = [
    ("cells", ", ".join(f"{n} {w}" for w, n in counts.items())),
  ]
  sound = [g for g in groups if g.is_sound] if unit else []
  means = [(statistics.fmean(g.losses(unit).values()), g) for g in sound]
  if means:
    loss, best = min(means, key=lambda pair: pair[0])
    count = len(best.losses())
    of = "one run" if count == 1 else f"the mean of {count} seeds"
    rows.append(("lowest loss", f"{loss:.4f} {unit}, {best.name}, {of}"))
  if any(s.final is not None for s in states):
    kinds = sorted({s.final[0] for s in states if s.final is not None})
    rows.append(("loss is", ", ".join(kinds)))
  seconds = sum(s.seconds or 0 for s in states)
  if seconds:
    rows.append(("time of workers", console.format_seconds(seconds)))
  return rows


def draw_curves(
  groups: list[Group],
  title="training loss",
  label="nats per token",
  points=None,
) -> str:
  """Returns the SVG of all training losses, "" where there are none.

  Args:
    points: of a run, what is drawn instead: [(tokens, value), ...].
  """
  points = points or curve
  finals = [s.final[1] for g in groups for s in g.ended]
  low, high = min(finals, default=0.0), max(finals, default=1.0)
  layers = []
  for index, one in enumerate(groups):
    is_named = False
    for state in one.states:
      line = points(state)
      if not line:
        continue
      color = COLORS[index % len(COLORS)]
      if len(groups) > MAX_COLORS:
        color = "#808080"
        if state.final is not None:
          color = plot.shade((state.final[1] - low) / (high - low or 1))
      name = None
      if len(groups) <= MAX_COLORS and not is_named:
        lost = sum(s.word == folder.DIVERGED for s in one.states)
        name = _cut(one.name + (f" ({lost} diverged)" if lost else ""))
        is_named = True
      # A line of one point cannot be seen.
      kind = "line" if len(line) > 1 else "dots"
      layers.append(plot.Layer(kind, line, color, name))
  if not layers:
    return ""
  if len(groups) > MAX_COLORS:
    title += ", from the lowest final loss (light blue) to the highest (red)"
  return plot.draw_layers(title, "tokens", label, layers, "y")


def draw_telemetry(groups: list[Group]) -> list[str]:
  """Returns an SVG for every figure of telemetry that some run has.

  What there is of every layer is drawn as the largest over layers.
  """
  kinds: dict[str, None] = {}
  for one in groups:
    for state in one.states:
      kinds |= dict.fromkeys(_kind(k) for row in state.rows for k in row)
  kinds.pop("", None)
  svgs = []
  for kind in sorted(kinds, key=lambda k: (k not in _FIRST, k)):
    values = lambda state, kind=kind: curve(state, kind)
    title = kind.removesuffix("/layers") + (
      ", the largest over layers" if kind.endswith("/layers") else ""
    )
    svgs.append(draw_curves(groups, title, kind, values))
  return [svg for svg in svgs if svg]


# What goes up first where a run goes wrong.
_FIRST = ("attn_logit_max/layers", "logit_max", "residual_rms")


def _kind(key: str) -> str:
  """Returns what a metric is drawn as: "" for none, NAME/layers for a layer."""
  if not key.startswith("telemetry/") or key in (
    metrics.GRAD_SQUARE,
    metrics.GRAD_VARIANCE,
  ):
    return ""
  name, slash, last = key.removeprefix("telemetry/").partition("/")
  return f"{name}/layers" if last.isdecimal() else name + slash + last


def curve(state: folder.State, kind: str = "") -> list[tuple[float, float]]:
  """Returns (tokens, loss) of a run, or another figure, thinned by means."""
  c = state.config
  tokens = lambda step: (
    config_lib.count_sequences(c.train, step) * c.data.seq_len
  )
  rows = []
  for row in state.rows:
    names = [k for k in row if kind and _kind(k) == kind]
    found = [
      folder.number(row, k) for k in names or [metrics.LOSS] * (not kind)
    ]
    values = [value for value in found if value is not None]
    if values and max(values) > 0:
      rows.append((tokens(row["step"]), max(values)))
  size = max(1, math.ceil(len(rows) / CURVE_POINTS))
  parts = [rows[i : i + size] for i in range(0, len(rows), size)]
  return [
    (statistics.fmean(x for x, _ in p), statistics.fmean(y for _, y in p))
    for p in parts
  ]


def draw_axis(
  key: str, states: list[folder.State], unit: str = losses.NATS
) -> str:
  """Returns the SVG of the final loss over one swept key.

  "" where no two runs differ in it alone.

  A line joins the means over seeds of runs that have all other keys the same;
  what diverged is a cross at the upper edge, and the line breaks off there.
  """
  lines: dict[str, dict[float, list[float]]] = {}
  for state in states:
    height = _height(state, unit)
    if height is None:
      continue
    flat = asked(state)
    rest = {
      k: v
      for k, v in flat.items()
      if k not in (key, "seed") and not config_lib.is_free(k)
    }
    line = lines.setdefault(json.dumps(rest, sort_keys=True), {})
    line.setdefault(flat[key], []).append(height)
  if all(len(line) < 2 for line in lines.values()):
    return ""
  heights = [y for line in lines.values() for ys in line.values() for y in ys]
  if not any(map(math.isfinite, heights)):
    return ""
  flats = [json.loads(text) for text in lines]
  differing = [k for k in flats[0] if len({repr(f[k]) for f in flats}) > 1]
  layers = []
  for index, (flat, line) in enumerate(zip(flats, lines.values(), strict=True)):
    color = COLORS[index % len(COLORS)]
    what = ", ".join(f"{_short(k)} {flat[k]}" for k in differing)
    name = _cut(what) if what and len(lines) <= MAX_LINES else None
    for piece in _unbroken(line):
      layers.append(plot.Layer("line", piece, color, name))
      name = None
    dots = [(x, y) for x, ys in line.items() for y in ys]
    sound = [(x, y) for x, y in dots if math.isfinite(y)]
    lost = [(x, y) for x, y in dots if not math.isfinite(y)]
    layers.append(plot.Layer("dots", sound, color, name))
    layers.append(plot.Layer("crosses", lost, color))
  xs = [x for line in lines.values() for x in line]
  log = "x" if min(xs) > 0 and max(xs) / min(xs) >= 8 else ""
  return plot.draw_layers(f"final loss by {key}", key, unit, layers, log)


def _unbroken(line: dict[float, list[float]]) -> list[list]:
  """Returns runs of neighbouring (x, mean) in which no seed diverged."""
  pieces: list[list] = [[]]
  for x, ys in sorted(line.items()):
    if all(map(math.isfinite, ys)):
      pieces[-1].append((x, statistics.fmean(ys)))
    else:
      pieces.append([])
  return [piece for piece in pieces if piece]


def troubles(states, titles, refused: list[Refusal]) -> list[tuple[str, ...]]:
  """Returns (cell, title, state, reason) of what did not work."""
  rows = [
    (s.id, titles[s.id], s.word, s.reason)
    for s in states
    if s.word in (folder.FAILED, folder.DIVERGED, folder.UNREADABLE)
  ]
  return rows + [("", r.title, "refused", r.reason) for r in refused]


def branch_lines(states, titles) -> list[str]:
  """Returns a line for each branch: where from, and what that saves."""
  lines = []
  for state in states:
    trunk = state.record.get("trunk")
    if trunk and state.config is not None:
      share = 100 * trunk[1] / state.config.train.num_steps
      lines.append(
        f"{titles[state.id]} from step {trunk[1]:,} of "
        f"{titles.get(trunk[0], trunk[0])}: {share:.0f} % of its "
        f"{state.config.train.num_steps:,} steps are its trunk's"
      )
  return lines


def common(states, axes) -> list[tuple[str, str]]:
  """Returns the keys and values that all cells share."""
  config = next((s.config for s in states if s.config is not None), None)
  if config is None:
    return []
  flat = config_lib.flatten(config)
  return [(k, str(v)) for k, v in flat.items() if k not in (*axes, "seed")]


def _row(state, title, names, axes, root, out) -> list[page.Value]:
  value = page.Value
  path = os.path.relpath(folder.path_of(root, state.id), os.path.dirname(out))
  row = [
    value(state.id, link=path.replace(os.sep, "/")),
    value(names.get(state.id, state.name)),
    value(_text(state.seed), state.seed),
  ]
  flat = asked(state) if state.config else {}
  for key in axes:
    row.append(value(_text(flat.get(key)), flat.get(key)))
  sizes = _sizes(state)
  seconds = state.seconds
  loss = state.final[1] if state.final else None
  shown = "" if loss is None else f"{loss:.4f}"
  if state.word == folder.DIVERGED:
    loss, shown = math.inf, "-"
  noise = metrics.noise_scale(state.rows)
  return row + [
    value(f"{sizes['params']:,}", sizes["params"]) if sizes else value(""),
    value(f"{sizes['flops']:.3g}", sizes["flops"]) if sizes else value(""),
    value(f"{state.step:,} / {state.total:,}", state.step),
    value(shown, loss),
    value("" if seconds is None else console.format_seconds(seconds), seconds),
    value("" if noise is None else f"{noise:,.1f}", noise),
    value(state.word, kind=state.word),
  ]


def _sizes(state: folder.State) -> dict:
  """Returns N in the convention 6N, D, and C as `plan` and MFU count it.

  Empty without a vocabulary.
  """
  config = state.config
  if config is None or config.model.vocab_size is None:
    return {}
  length = config.data.seq_len
  params, _ = flops.count_by_convention(config.model, length, "6N")
  per_token = flops.train_flops_per_token(config.model, length)
  t = config.train
  tokens = config_lib.count_sequences(t, t.num_steps) * length
  return {"params": params, "tokens": tokens, "flops": per_token * tokens}


def csv_text(states, names, axes) -> str:
  """Returns the CSV of the finished runs, as lab.scaling reads it."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  sizes = ("params", "tokens", "flops")
  writer.writerow(
    ["cell", "name", "seed", *axes, *sizes]
    + ["loss", "metric", "bits_per_byte", "seconds"]
  )
  for state in states:
    if state.final is None:
      continue
    flat, size = asked(state), _sizes(state)
    writer.writerow(
      [
        *map(inert, (state.id, names.get(state.id, state.name), state.seed)),
        *(inert(flat[key]) for key in axes),
        *(size[key] for key in sizes),
        *(state.final[1], inert(state.final[0]), state.bits, state.seconds),
      ]
    )
  return out.getvalue()


def comparisons_text(found: list[paired.Comparison]) -> str:
  """Returns the CSV of the comparisons, as the page and the sentences say."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(
    ["name", "baseline", "pairs", "unit", "difference", "low", "high", "p"]
    + ["verdict", "why"]
  )
  for one in found:
    writer.writerow(
      [
        *(inert(one.name), inert(one.baseline), len(one.seeds)),
        *(one.unit or losses.NATS, one.mean, one.low, one.high, one.adjusted),
        *(one.verdict, inert(one.why)),
      ]
    )
  return out.getvalue()


def inert(value):
  """Returns a field that no spreadsheet takes for a formula.

  Text that begins like one gets an apostrophe before it; numbers stay.
  """
  if not isinstance(value, str):
    return value
  text = console.plain(value)
  return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _short(key: str) -> str:
  return key.rpartition(".")[2]


def _text(value) -> str:
  if value is None:
    return ""
  return f"{value:g}" if type(value) is float else str(value)


def _cut(text: str) -> str:
  """Returns a name that fits beside a figure."""
  if len(text) <= LEGEND_CHARS:
    return text
  return f"{text[: LEGEND_CHARS - 1]}…"
