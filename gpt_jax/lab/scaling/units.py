"""Checks that a table's columns are in parameters, tokens, FLOPs and nats.

A fit accepts any units, and with most of them its exponents look right. So
columns are checked against typical runs: C near 6 N D, a usual number of tokens
per parameter, and losses that a model can reach.
"""

import math
import re

import numpy as np

from gpt_jax.config import InputError

# Bounds of the median of C / (6 N D). In small models, attention and output
# heads that N does not count raise it to 2 or 3.
_COST = (0.4, 4.0)
# Largest factor between one run's C / (6 N D) and the median.
_APART = 10.0
# Bounds of the median of D / N, which is 5 to 200 in published tables.
_TOKENS_PER_PARAMETER = (0.2, 2e4)
_LEAST_PARAMS, _LEAST_FLOPS = 1e3, 1e9
# Bounds of the loss in nats per token. A uniform guess among a million tokens
# has 13.8; text has more than 0.4 nats per byte.
_LOSSES = (0.05, 13.8)

_TRUST = "or give --trust-units"
_SCALES = {3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}
_PREFIXES = {3: "kilo", 6: "mega", 9: "giga", 12: "tera", 15: "peta", 18: "exa"}
_PETAFLOP_DAY = 8.64e19
# Words in a column's name that indicate another unit or role.
_NAMES = {
  "loss": {
    "bits": "in bits; multiply it by ln 2 = 0.6931, for nats",
    "bit": "in bits; multiply it by ln 2 = 0.6931, for nats",
    "bpb": "in bits per byte; multiply it by ln 2 = 0.6931, for nats",
    "bpc": "in bits per character; multiply it by ln 2 = 0.6931, for nats",
    "ppl": "a perplexity; take its logarithm",
    "perplexity": "a perplexity; take its logarithm",
  },
  "params": {
    "tokens": "of tokens; name the column of parameters",
    "d": "of tokens; name the column of parameters",
  },
  "tokens": {
    "params": "of parameters; name the column of tokens",
    "parameters": "of parameters; name the column of tokens",
    "n": "of parameters; name the column of tokens",
  },
}


def require_plausible(values: dict, columns: dict, names, source: str) -> None:
  """Raises InputError if a column cannot be the quantity it is given as.

  Args:
    values: {"params", "tokens", "flops", "loss": [P]}; one of the first three
      may have been computed from the others.
    columns: {key of values: column's name} of the columns that were given.
    names: [P] of the runs.
    source: name of the table, for error sentences.
  """
  for role, hints in _NAMES.items():
    if role not in columns:
      continue
    for word in re.split(r"[^a-z]+", columns[role].lower()):
      if word in hints:
        raise InputError(
          f"{source}: column {columns[role]} (--{role}) is by its name "
          f"{hints[word]}, {_TRUST}"
        )
  params, tokens, flops = (values[k] for k in ("params", "tokens", "flops"))
  _check_losses(values["loss"], source)
  if all(k in columns for k in ("params", "tokens", "flops")):
    _check_cost(params, tokens, flops, names, source)
  _check_sizes(params, tokens, flops, columns, source)


def _check_losses(loss, source) -> None:
  low, high = _LOSSES
  middle, count = float(np.median(loss)), int((loss > high).sum())
  # A single such row is an outlier, which the report names.
  if count > max(1, len(loss) / 10):
    raise InputError(
      f"{source}: {count} of {len(loss)} losses are above {high} nats, which a "
      "uniform guess among a million tokens has; give nats per token, not "
      f"perplexities or sums, {_TRUST}"
    )
  if middle < low:
    raise InputError(
      f"{source}: the median loss is {middle:.4g} nats, less than any text's "
      f"entropy; give cross-entropies in nats per token, {_TRUST}"
    )


def _check_cost(params, tokens, flops, names, source) -> None:
  ratio = flops / (6 * params * tokens)
  middle = float(np.median(ratio))
  if not _COST[0] <= middle <= _COST[1]:
    raise InputError(
      f"{source}: C / (6 N D) is {middle:.3g} on the median, and should be "
      f"near 1: {_guess_cost(middle, params, tokens)}, {_TRUST}"
    )
  apart = np.maximum(ratio / middle, middle / ratio)
  rows = np.flatnonzero(apart > _APART)
  if len(rows):
    i = rows[0]
    raise InputError(
      f"{source}: C / (6 N D) is {ratio[i]:.3g} in {names[i]} and "
      f"{middle:.3g} on the median ({len(rows)} such of {len(ratio)}); mend "
      f"its N, D or C, {_TRUST}"
    )


def _guess_cost(ratio: float, params, tokens) -> str:
  """Returns a sentence on why C / (6 N D) is probably off, with the remedy."""
  if 0.4 < ratio * _PETAFLOP_DAY < 4:
    return "C is in petaflop-days; multiply it by 8.64e19"
  for part, why in ((3, "2 N D, the forward pass alone"), (6, "N D alone")):
    if abs(ratio * part - 1) < 0.05:
      return f"C is {why}; multiply it by {part}"
  power = _power_of(ratio)
  if -power in _PREFIXES:
    prefix = _PREFIXES[-power]
    return f"C is in {prefix}FLOPs; multiply it by 1e{-power}"
  if power > 0:
    # Whichever is too small for a training run is probably in other units.
    n, d = (_power_of(float(np.median(v)) / 1e9) for v in (params, tokens))
    size = f"N or D is 1e{power} times too small"
    if power in _SCALES and n <= -power < d:
      size = f"N is in {_SCALES[power]}"
    elif power in _SCALES and d <= -power < n:
      size = f"D is in {_SCALES[power]}"
    elif power in _SCALES:
      size = f"N or D is in {_SCALES[power]}"
    elif power > 3:
      size = f"N and D are in thousands, millions or billions, 1e{power} in all"
    return f"{size}; give numbers of parameters and of tokens"
  return (
    "the three columns are not of the same runs, or N counts parameters that "
    "a token does not use; give the active ones"
  )


def _power_of(ratio: float) -> int:
  """Returns a ratio's nearest power of ten that is a multiple of 3, or 0.

  0 if the ratio is not near it.
  """
  exact = math.log10(ratio)
  power = 3 * round(exact / 3)
  return power if abs(exact - power) < 0.7 else 0


def _check_sizes(params, tokens, flops, columns, source) -> None:
  n, d, c = (float(np.median(v)) for v in (params, tokens, flops))
  if n < _LEAST_PARAMS:
    raise InputError(
      f"{source}: the median run has N = {n:.3g}"
      f"{_derived('params', columns)}; give numbers of parameters, not "
      f"thousands, millions or billions of them, {_TRUST}"
    )
  ratio = float(np.median(tokens / params))
  low, high = _TOKENS_PER_PARAMETER
  if not low <= ratio <= high:
    is_swapped = (
      {"params", "tokens"} <= columns.keys() and 1e-3 < ratio and 1 / ratio > 1
    )
    if is_swapped:
      guess = (
        "--params and --tokens are exchanged, or D is in thousands; name the "
        "columns the other way round"
      )
    elif "flops" in columns and "tokens" not in columns:
      guess = (
        "D is C / (6 N), so C or N is in other units; give FLOPs, and numbers "
        "of parameters"
      )
    elif "flops" in columns and "params" not in columns:
      guess = (
        "N is C / (6 D), so C or D is in other units; give FLOPs, and numbers "
        "of tokens"
      )
    else:
      small = "D" if ratio < low else "N"
      guess = f"{small} is in thousands, millions or billions; give numbers"
    raise InputError(
      f"{source}: the median run has {ratio:.3g} tokens per parameter (N "
      f"{n:.3g}, D {d:.3g}), and runs have {low:g} to {high:g}: {guess}, "
      f"{_TRUST}"
    )
  if c < _LEAST_FLOPS:
    raise InputError(
      f"{source}: the median run has C = {c:.3g} FLOPs"
      f"{_derived('flops', columns)}, a moment's work of one processor; give "
      f"numbers of parameters, tokens and FLOPs, {_TRUST}"
    )


def _derived(role: str, columns: dict) -> str:
  formulas = {"params": "C / (6 D)", "flops": "6 N D"}
  return "" if role in columns else f" by {formulas[role]}"
