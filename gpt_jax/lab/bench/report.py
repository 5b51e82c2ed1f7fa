"""A measurement as text and as bench.json."""

import json
import os

from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.lab.bench import machine
from gpt_jax.lab.bench.samples import Pairs, Row, format_number
from gpt_jax.runs import workdir

_LINE = "{:34} {:>10} {:>10}  {:23} {:>7}"


def publish(
  subject: str,
  config: Config,
  args,
  rows: list[Row],
  pairs: list[Pairs] = (),
  about: dict | None = None,
  packages=(),
) -> None:
  """Prints a measurement, and writes it where --out asks for it.

  Args:
    about: what else there is to say: {"mesh": ..., "rates": ..., ...}.
    packages: whose versions matter beside ours.
  """
  about = about or {}
  here = machine.describe(packages) | {"load": args.load}
  print(f"{subject} of {args.config}: {describe_model(config)}")
  for line in (*machine_lines(here, about, config), *table(rows)):
    print(line)
  for name, word in about.get("waiting", {}).items():
    print(f"{name}: its threads {word} while they wait, the faster in a trial")
  for pair in pairs:
    print()
    for line in pair_lines(pair):
      print(line)
  if args.out is None:
    return
  content = {
    "subject": subject,
    "config_file": args.config,
    "config": config_lib.flatten(config),
    "commit": workdir.find_commit(),
    "machine": here,
    **about,
    "rows": [row.to_json() for row in rows],
    "pairs": [pair.to_json() for pair in pairs],
  }
  path = os.path.join(args.out, "bench.json")
  workdir.write_text(path, json.dumps(content, indent=1) + "\n")
  print(f"\nwritten to {path}")


def describe_model(config: Config) -> str:
  """Returns one line of sizes and precision."""
  m = config.model
  return (
    f"{m.num_layers} layers, {m.num_heads} heads, width {m.model_dim}, "
    f"T={config.data.seq_len}, B={config.train.global_batch_size}, "
    f"V={m.vocab_size}, {m.compute_dtype}"
  )


def machine_lines(here: dict, about: dict, config: Config) -> list[str]:
  """Returns lines on the machine, versions and date."""
  half = "with" if here["has_bfloat16"] else "no"
  words = [f"{here['cores']} cores of {here['processor']}"]
  words.append(f"{half} bfloat16 instructions")
  if about.get("platform", "cpu") != "cpu":
    words = [about["device"]]
  versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items())
  lines = [
    f"  machine    {', '.join(words)}",
    f"  versions   {versions}",
    f"  precision  {config.model.compute_dtype}, parameters "
    f"{config.model.param_dtype}",
  ]
  if "mesh" in about:
    lines.append(f"  mesh       {about['mesh']}")
  if about.get("rates"):
    lines.append(f"  rates      {rates_line(about['rates'])}")
  if here["load"] > 0.5:
    words = f"{here['load']:.1f} processes, none of them ours"
    lines.append(f"  load       before it, {words}: spreads and medians suffer")
  return [*lines, f"  date       {here['date']}"]


def rates_line(rates: dict) -> str:
  if rates["flops"] is None:
    return rates["origin"]
  return (
    f"{rates['flops'] / 1e9:,.0f} GFLOP/s, {rates['bytes'] / 1e9:,.1f} GB/s "
    f"({rates['origin']})"
  )


def table(rows: list[Row]) -> list[str]:
  """Returns lines: predicted, measured with its spread, and their ratio."""
  lines = [
    "",
    _LINE.format(
      "", "predicted", "measured", "(least to most)", "ratio"
    ).rstrip(),
  ]
  for row in rows:
    spread = ""
    if len(row.values) > 1:
      low, high = min(row.values), max(row.values)
      spread = f"({format_number(low)} to {format_number(high)})"
    line = _LINE.format(
      f"{row.name}, {row.unit}" if row.unit else row.name,
      "-" if row.predicted is None else format_number(row.predicted),
      format_number(row.median),
      spread,
      "-" if row.ratio is None else f"{row.ratio:.2f}",
    )
    lines.append(f"{line.rstrip()}  {row.note}".rstrip())
  return lines


def pair_lines(pairs: Pairs) -> list[str]:
  """Returns lines: every round, then the median ratios and the best peer."""
  names = list(pairs.peers)
  width = max([12, *map(len, names)])
  cell = lambda text: f"{text:>{width}}"
  head = [cell("gpt_jax")]
  for name in names:
    head += [cell(name), f"{'ratio':>7}"]
  lines = [f"{pairs.quantity}, {pairs.unit}; ratio above 1: gpt_jax is faster"]
  lines.append(f"{'round':8}" + " ".join(head))
  for index, ours in enumerate(pairs.ours):
    cells = [cell(format_number(ours))]
    for name in names:
      cells.append(cell(format_number(pairs.peers[name][index])))
      cells.append(f"{pairs.ratios(name)[index]:7.2f}")
    lines.append(f"{index + 1:<8}" + " ".join(cells))
  found = pairs.to_json()
  for name in names:
    lines.append(
      f"{name}: median ratio {found['peers'][name]['median_ratio']:.2f}"
    )
  for name, why in pairs.failed.items():
    lines.append(f"{name}: did not run ({why})")
  if len(names) > 1:
    ratio = found["peers"][pairs.best]["median_ratio"]
    lines.append(f"against the better one, {pairs.best}: {ratio:.2f}")
  return lines
