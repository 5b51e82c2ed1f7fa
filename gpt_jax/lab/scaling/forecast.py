"""Predictions of runs: held out, registered before a run, scored after it.

A prediction's interval is of a run, not of the curve: to the resampled curves a
residual of the fit is added, widened for the coefficients that the fit took. A
registered file carries a checksum, which shows that it was altered; whoever
would forge one can, so that a commit, or another's copy, is what dates it.
"""

import datetime
import hashlib
import json
import math
import os

import numpy as np

from gpt_jax import files, workdir
from gpt_jax import flops as flops_lib
from gpt_jax.config import InputError
from gpt_jax.lab.scaling import frontier, parametric
from gpt_jax.lab.scaling import points as points_lib
from gpt_jax.lab.scaling.points import Points

# How far a run's N and D may be from those that were registered.
_SAME = 0.01
# Of a registered file.
_MAX_BYTES = 1 << 20
_NUMBERS = (
  "params tokens flops predicted low high level times_largest_fitted_flops "
  "num_points"
).split()
_WORDS = ("convention", "registered", "checksum")
_KINDS = ("text", "number")


def predict(fit: parametric.Fit, params, tokens, seed: int):
  """Returns (loss [P], low [P], high [P]) of runs of given sizes.

  Args:
    params, tokens: [P].
    seed: of the residuals that are added.
  """
  x, y = np.log(params), np.log(tokens)
  central = np.exp(parametric.log_predict(fit.theta, x, y))
  rng = np.random.default_rng(seed)
  count = len(fit.residuals)
  wide = math.sqrt(count / (count - parametric.NUM_COEFFICIENTS))
  spread = parametric.log_predict(fit.thetas, x, y)
  spread = spread + wide * rng.choice(fit.residuals, spread.shape)
  pairs = [frontier.interval(np.exp(column)) for column in spread.T]
  low, high = np.array(pairs).T
  return central, low, high


def hold_out(points: Points, above: float, num_resamples: int, seed: int):
  """Returns the fit below a compute and its errors above it, as a dict.

  Raises:
    InputError: no run lies above, or too few below.
  """
  is_above = points.flops > above
  if not is_above.any():
    raise InputError(
      f"--hold-above is {above:.3g} and no run has more FLOPs; the largest has "
      f"{points.flops.max():.3g}"
    )
  below, rest = points.take(~is_above), points.take(is_above)
  try:
    fit = parametric.fit(
      below.params, below.tokens, below.loss, num_resamples, seed
    )
  except InputError as error:
    raise InputError(f"--hold-above is {above:.3g}; below, {error}") from None
  value, low, high = predict(fit, rest.params, rest.tokens, seed)
  error = value / rest.loss - 1
  rows = [
    {
      "name": rest.names[i],
      "params": float(rest.params[i]),
      "tokens": float(rest.tokens[i]),
      "flops": float(rest.flops[i]),
      "measured": float(rest.loss[i]),
      "predicted": float(value[i]),
      "low": float(low[i]),
      "high": float(high[i]),
      "relative_error": float(error[i]),
      "is_inside": bool(low[i] <= rest.loss[i] <= high[i]),
    }
    for i in np.argsort(rest.flops, kind="stable")
  ]
  return {
    "above": above,
    "num_fitted": len(below),
    "extrapolation": float(rest.flops.max() / below.flops.max()),
    "median_relative_error": float(np.median(abs(error))),
    "mean_relative_error": float(error.mean()),
    "largest_relative_error": float(abs(error).max()),
    "num_inside": sum(row["is_inside"] for row in rows),
    "rows": rows,
  }


def register(
  path: str, fit: parametric.Fit, points: Points, params, tokens, seed: int
) -> dict:
  """Writes a prediction of one run and returns it.

  Raises:
    InputError: the file is there already.
  """
  check_new(path)
  value, low, high = predict(fit, np.array([params]), np.array([tokens]), seed)
  cost = frontier.cost_of(*points.counts[points.convention])
  flops = cost[0] * params ** cost[1] * tokens
  names = parametric.NAMES
  record = {
    "params": params,
    "tokens": tokens,
    "flops": flops,
    "convention": points.convention,
    "predicted": float(value[0]),
    "low": float(low[0]),
    "high": float(high[0]),
    "level": frontier.LEVEL,
    "times_largest_fitted_flops": flops / float(points.flops.max()),
    "coefficients": dict(
      zip(names, map(float, parametric.coefficients(fit.theta)), strict=False)
    ),
    "num_points": len(points),
    "num_resamples": len(fit.thetas),
    "seed": seed,
    "source": points.source,
    "data_fingerprint": points.fingerprint(),
    "commit": workdir.find_commit(),
    "registered": _now().isoformat(timespec="seconds"),
  }
  record["checksum"] = checksum(record)
  workdir.write_text(os.path.abspath(path), json.dumps(record, indent=2) + "\n")
  return record


def check_new(path: str) -> None:
  """Raises InputError where a prediction would overwrite a file."""
  if os.path.exists(path):
    raise InputError(
      f"{path} is there already; a prediction is registered once: give "
      "--register another name"
    )


def checksum(record: dict) -> str:
  """Returns the SHA-256 of a prediction, its own checksum left out."""
  kept = {k: v for k, v in record.items() if k != "checksum"}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load(path: str) -> dict:
  """Returns a registered prediction.

  Raises:
    InputError: it cannot be read, or is not what was registered.
  """
  try:
    record = files.read_json(path, _MAX_BYTES)
  except files.Damage as error:
    raise InputError(
      f"{path} {error}; --score takes a file that --register has written"
    ) from None
  fault = _fault_of(record)
  if fault is not None:
    raise InputError(
      f"{path} is not a prediction: {fault}; --score takes a file that "
      "--register has written"
    )
  sealed = record["checksum"]
  if sealed != checksum(record):
    raise InputError(
      f"{path} was altered after it was registered: its checksum is "
      f"{str(sealed)[:12]} and its content's {checksum(record)[:12]}; it is "
      "not scored: put the registered file back"
    )
  return record


def _fault_of(record) -> str | None:
  """Returns what a prediction lacks that scoring needs, as a clause."""
  if not isinstance(record, dict):
    return "it is no JSON object"
  for name in (*_NUMBERS, *_WORDS):
    if name not in record:
      return f"{name} is missing"
    value, is_number = record[name], name in _NUMBERS
    kind = (int, float) if is_number else str
    if not isinstance(value, kind) or isinstance(value, bool):
      return f"{name} is {str(value)[:40]!r}, not a {_KINDS[is_number]}"
  for name in ("params", "tokens", "flops", "predicted"):
    if record[name] <= 0:
      return f"{name} is {record[name]}, not above 0"
  try:
    date = datetime.datetime.fromisoformat(record["registered"])
    date.timestamp()
  except (ValueError, OverflowError):
    return f"registered is {record['registered'][:40]!r}, not a date"
  if date.tzinfo is None:
    return f"registered is {record['registered']}, without a time zone"
  return None


def check_run(record: dict, run: dict, path: str, folder: str) -> None:
  """Raises InputError unless a run is the one that was predicted.

  Args:
    run: of points.read_workdir.
    path, folder: of the prediction and the run, for the sentence.
  """
  if record["convention"] not in flops_lib.CONVENTIONS:
    raise InputError(
      f"{path} counts parameters as a CSV file did, {folder} cannot be checked "
      "against it; give --measured"
    )
  params, _ = flops_lib.count_by_convention(
    run["model"], run["seq_len"], record["convention"]
  )
  for name, got in (("params", params), ("tokens", run["tokens"])):
    wanted = record[name]
    if abs(got / wanted - 1) > _SAME:
      raise InputError(
        f"{folder} has {got:,.0f} {name} and {path} predicts {wanted:,.0f}; "
        "score the run that was predicted"
      )
  registered = record["registered"]
  if run["began"] is None:
    raise InputError(
      f"{folder} does not say when it was trained: the first row of its "
      f"metrics.jsonl has no {points_lib.TIME}, so that it cannot be called "
      f"later than {path}; give --measured"
    )
  # By the run's own rows, which a copy keeps: files are as young as the copy.
  if run["began"] < datetime.datetime.fromisoformat(registered).timestamp():
    raise InputError(
      f"{folder} was started before {path} was registered ({registered}); what "
      "is known is not predicted"
    )


def score(record: dict, measured: float) -> dict:
  """Returns a prediction set beside what was measured."""
  return {
    "measured": measured,
    "predicted": record["predicted"],
    "low": record["low"],
    "high": record["high"],
    "relative_error": record["predicted"] / measured - 1,
    "is_inside": record["low"] <= measured <= record["high"],
    "scored": _now().isoformat(timespec="seconds"),
    "prediction": record,
  }


def _now() -> datetime.datetime:
  return datetime.datetime.now(datetime.UTC)
