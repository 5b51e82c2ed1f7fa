"""A sweep's tables: rows of the report's page, columns, and CSV files."""

import csv
import io
import math

from gpt_jax import config as config_lib
from gpt_jax import flops
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import folder, listing, losses, page, paired
from gpt_jax.lab.sweep.cells import short_name
from gpt_jax.lab.sweep.groups import asked, axes_of
from gpt_jax.machine import console
from gpt_jax.runs import metrics

# Column of metrics.noise_scale, in sequences; left out if no run has one.
NOISE = "noise scale"
_FIGURES = ("params", "FLOPs", "steps", "loss", "time", NOISE, "state")


def page_table(
  states: list[folder.State],
  titles: dict[str, str],
  names: dict[str, str],
  axes: list[str],
  link,
) -> tuple[list[str], list[list[page.Value]]]:
  """Returns the columns and the rows of the page's table of cells.

  Args:
    titles, names: {cell id: title or name}.
    axes: keys that differ among cells, a column each.
    link: cell id -> the address of its folder, relative to the page.
  """
  columns = ["cell", "name", "seed", *map(short_name, axes), *_FIGURES]
  rows = [_row(s, titles[s.id], names, axes, link(s.id)) for s in states]
  at = columns.index(NOISE)
  if not any(row[at].text for row in rows):
    columns.pop(at)
    rows = [row[:at] + row[at + 1 :] for row in rows]
  return columns, rows


def _row(state, title, names, axes, link) -> list[page.Value]:
  value = page.Value
  row = [
    value(state.id, link=link),
    value(names.get(state.id, state.name)),
    value(_text(state.seed), state.seed),
  ]
  flat = asked(state) if state.config else {}
  for key in axes:
    row.append(value(_text(flat.get(key)), flat.get(key)))
  sizes = sizes_of(state)
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


def sizes_of(state: folder.State) -> dict:
  """Returns {"params": N, "tokens": D, "flops": C} of a run.

  N by the convention 6N, C as `plan` and MFU count it. Empty where the
  vocabulary is not known.
  """
  config = state.config
  if config is None or config.model.vocab_size is None:
    return {}
  length = config.data.seq_len
  params, _ = flops.count_by_convention(config.model, length, "6N")
  per_token = flops.train_flops_of(config)
  t = config.train
  tokens = config_lib.count_sequences(t, t.num_steps) * length
  return {"params": params, "tokens": tokens, "flops": per_token * tokens}


def read(root: str) -> dict[str, list]:
  """Returns the cells in ROOT as {column: a value for each cell}.

  The columns are `state` and those of report.csv. Unlike report.csv, they
  include cells that have not ended or have no loss. Unknown values are None.

  Raises:
    InputError: ROOT holds no cell.
  """
  states, _ = listing.states_of(None, root)
  if not states:
    raise InputError(f"{root} holds no cell; give the folder of a sweep")
  words = {"state": [state.word for state in states]}
  return words | columns(states, {}, axes_of(states))


def columns(states, names, axes) -> dict[str, list]:
  """Returns {column: a value for each cell}.

  Args:
    names: {cell id: name}; other cells get the name in their folder.
    axes: keys that differ among cells, a column each.
  """
  flats = [asked(s) if s.config else {} for s in states]
  sizes = [sizes_of(s) for s in states]
  finals = [s.final or (None, None) for s in states]
  return {
    "cell": [s.id for s in states],
    "name": [names.get(s.id, s.name) for s in states],
    "seed": [s.seed for s in states],
    **{key: [flat.get(key) for flat in flats] for key in axes},
    **{
      k: [size.get(k) for size in sizes] for k in ("params", "tokens", "flops")
    },
    "loss": [value for _, value in finals],
    "metric": [metric for metric, _ in finals],
    "bits_per_byte": [s.bits for s in states],
    "seconds": [s.seconds for s in states],
  }


def csv_text(states, names, axes) -> str:
  """Returns the CSV of the finished runs, as lab.scaling reads it."""
  found = columns([s for s in states if s.final is not None], names, axes)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(found)
  for row in zip(*found.values(), strict=True):
    writer.writerow(map(inert, row))
  return out.getvalue()


def comparisons_text(found: list[paired.Comparison]) -> str:
  """Returns the CSV of the comparisons."""
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
  """Returns a CSV field that no spreadsheet evaluates as a formula.

  Text that begins like a formula is prefixed with an apostrophe; numbers are
  not changed.
  """
  if not isinstance(value, str):
    return value
  text = console.plain(value)
  return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _text(value) -> str:
  if value is None:
    return ""
  return f"{value:g}" if type(value) is float else str(value)
