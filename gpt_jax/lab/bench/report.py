"""Formats a measurement as text, and writes it as bench.json."""

import json
import os

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import Config
from gpt_jax.lab.bench import machine
from gpt_jax.lab.bench.samples import Measurement, Pairs, Row, format_number
from gpt_jax.runs import workdir

_LINE = "{:34} {:>10} {:>10}  {:23} {:>7}"


def describe(found: Measurement, config_file: str, load: float) -> dict:
  """Returns what bench.json says about a measurement besides its figures.

  Args:
    config_file: what the config was loaded from.
    load: processes that ran on this machine before, see machine.read_load.
  """
  return {
    "subject": found.subject,
    "config_file": config_file,
    "config": config_lib.flatten(found.config),
    "commit": workdir.find_commit(),
    "machine": machine.describe(found.packages) | {"load": load},
    **found.about,
  }


def lines(found: Measurement, about: dict) -> list[str]:
  """Returns a measurement as text.

  Args:
    about: of describe.
  """
  model = describe_model(found.config)
  text = [f"{found.subject} of {about['config_file']}: {model}"]
  text += machine_lines(about["machine"], found.about, found.config)
  text += table(found.rows)
  for name, word in found.about.get("waiting", {}).items():
    text.append(
      f"{name}: its threads {word} while they wait, the faster in a trial"
    )
  for pairs in found.pairs:
    text += ["", *pair_lines(pairs)]
  return text


def write(found: Measurement, about: dict, folder: str) -> str:
  """Writes bench.json into a folder; returns its path.

  Args:
    about: of describe.
  """
  content = {
    **about,
    "rows": [row.to_json() for row in found.rows],
    "pairs": [pair.to_json() for pair in found.pairs],
  }
  path = os.path.join(folder, "bench.json")
  files.write_text(path, json.dumps(content, indent=1) + "\n")
  return path


def describe_model(config: Config) -> str:
  """Returns a line with the model's sizes and precision."""
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
    words = f"{here['load']:.1f} other processes were running"
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
  """Returns a table: predicted, measured with its spread, and their ratio."""
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
  """Returns a table of all rounds, the median ratios and the best peer."""
  names = list(pairs.peers)
  width = max([12, *map(len, names)])
  cell = lambda text: f"{text:>{width}}"
  head = [cell("gpt_jax")]
  for name in names:
    head += [cell(name), f"{'ratio':>7}"]
  lines = [f"{pairs.quantity}, ms; ratio above 1: gpt_jax is faster"]
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
