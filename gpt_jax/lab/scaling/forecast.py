"""Predictions of runs: held out, registered before a run, scored after it.

A prediction's interval is for a single run, not for the curve. A residual of
the fit is added to each resampled curve, scaled up for the degrees of freedom
that the fit used, and the interval is widened by the factor that rolling
hold-outs measure (rolling.py).

A registered file carries a checksum, which shows changes made by mistake. It
does not stop a forger: only a commit, or someone else's copy, proves the date.
"""

import dataclasses
import datetime
import json
import math
import os

import numpy as np

from gpt_jax import digest, files
from gpt_jax import flops as flops_lib
from gpt_jax.config import InputError
from gpt_jax.lab.scaling import frontier, parametric, rolling
from gpt_jax.lab.scaling import points as points_lib
from gpt_jax.lab.scaling.points import Points
from gpt_jax.runs import workdir

# Largest relative difference between a run's N and D and the registered ones.
_SAME = 0.01
# A prediction may extrapolate at most this many times as far as hold-outs did.
_TOO_FAR = 10.0
_MAX_RESIDUALS = 200
# Largest size of a registered file.
_MAX_BYTES = 1 << 20
_NUMBERS = (
  "params tokens flops predicted low high level times_largest_fitted_flops "
  "num_points"
).split()
_WORDS = ("convention", "registered", "checksum")
_KINDS = ("text", "number")


def predict(fit: parametric.Fit, params, tokens, factor: float = 1.0):
  """Returns (loss [P], low [P], high [P]) of runs of given sizes.

  Args:
    params, tokens: [P].
    factor: factor by which intervals are widened, see rolling.measure; 1 allows
      for noise alone.
  """
  x, y = np.log(params), np.log(tokens)
  central = np.exp(parametric.log_predict(fit.theta, x, y))
  count = len(fit.residuals)
  wide = math.sqrt(count / (count - parametric.NUM_COEFFICIENTS))
  # Every resample is combined with every residual (or with 200 quantiles of
  # them), so that the interval depends on no random draw or order of runs.
  noise = np.sort(fit.residuals)
  if count > _MAX_RESIDUALS:
    levels = (np.arange(_MAX_RESIDUALS) + 0.5) / _MAX_RESIDUALS
    noise = np.quantile(noise, levels)
  spread = parametric.log_predict(fit.thetas, x, y)
  pairs = np.array(
    [
      frontier.interval(np.add.outer(column, wide * noise).ravel())
      for column in spread.T
    ]
  )
  # Percentiles of a skewed bootstrap may exclude the prediction itself.
  low = np.minimum(pairs[:, 0] - np.log(central), 0)
  high = np.maximum(pairs[:, 1] - np.log(central), 0)
  return (
    central,
    central * np.exp(factor * low),
    central * np.exp(factor * high),
  )


def hold_out(points: Points, above: float, num_resamples: int, seed: int):
  """Fits the runs up to a compute budget, and predicts the others.

  Args:
    above: FLOPs; runs with more are predicted.

  Returns:
    The errors, the widening and a row for each predicted run, as a dict.

  Raises:
    InputError: no run has more FLOPs, or too few have as many or fewer.
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
  widening = rolling.measure(below, predict, seed)
  value, low, high = predict(fit, rest.params, rest.tokens, widening.factor)
  error = value / rest.loss - 1
  rows = [
    {
      **rest.describe(i),
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
    "widening": dataclasses.asdict(widening),
    "rows": rows,
  }


def register(
  path: str, fit: parametric.Fit, points: Points, params, tokens, seed: int
) -> dict:
  """Writes a prediction of one run and returns it.

  Raises:
    InputError: the file exists, the runs do not determine the exponents, or
      the predicted run is too far from the fitted ones.
  """
  check_new(path)
  unknown = parametric.undetermined(fit.theta, points.params, points.tokens)
  if "a" in unknown:
    raise InputError(
      f"nothing is registered: the fit is not determined ({unknown['a']}); fit "
      "runs of more sizes and lengths"
    )
  cost = frontier.cost_of(*points.counts[points.convention])
  flops = cost[0] * params ** cost[1] * tokens
  times = flops / float(points.flops.max())
  widening = rolling.measure(points, predict, seed)
  if times > _TOO_FAR * widening.times:
    raise InputError(
      f"nothing is registered: the run has {times:.3g} times the largest "
      f"compute that was fitted, and hold-outs of these runs reach "
      f"{widening.times:.3g} times; register one of at most "
      f"{_TOO_FAR * widening.times:.3g} times, or fit larger runs"
    )
  value, low, high = predict(
    fit, np.array([params]), np.array([tokens]), widening.factor
  )
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
    "times_largest_fitted_flops": times,
    "widening": {
      k: None if v != v else v for k, v in dataclasses.asdict(widening).items()
    },
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
  files.write_text(os.path.abspath(path), json.dumps(record, indent=2) + "\n")
  return record


def check_new(path: str) -> None:
  """Raises InputError where a file of this name exists."""
  if os.path.exists(path):
    raise InputError(
      f"{path} is there already; a prediction is registered once: give "
      "--register another name"
    )


def checksum(record: dict) -> str:
  """Returns the SHA-256 of a prediction, excluding its checksum field."""
  return digest.seal_of(record, "checksum")


def load(path: str) -> dict:
  """Returns a registered prediction.

  Raises:
    InputError: the file cannot be read, or was changed since it was registered.
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
  """Returns why a prediction cannot be scored, as a clause, or None."""
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


def measure(record: dict, folder: str, metric: str | None, path: str) -> float:
  """Returns the loss of the finished run that a prediction is about.

  Args:
    folder: workdir of the run.
    metric: as in points.read_workdir.
    path: file of the prediction, for error sentences.

  Raises:
    InputError: the run is not finished, or is not the one that was predicted.
  """
  run = points_lib.read_workdir(folder, metric)
  if isinstance(run, str):
    raise InputError(f"{run}; it is scored when it is finished")
  check_run(record, run, path, folder)
  return run["loss"]


def check_run(record: dict, run: dict, path: str, folder: str) -> None:
  """Raises InputError unless a run is the one that was predicted.

  Args:
    run: as points.read_workdir returns it.
    path, folder: of the prediction and of the run, for error sentences.
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
  # Use the time in the run's rows: in a copied folder, file times are new.
  if run["began"] < datetime.datetime.fromisoformat(registered).timestamp():
    raise InputError(
      f"{folder} was started before {path} was registered ({registered}); what "
      "is known is not predicted"
    )


def describe_widening(widening: dict, times: float) -> list[str]:
  """Returns sentences on how far a prediction's interval was tested.

  Args:
    widening: a rolling.Widening as a dict.
    times: the prediction's compute over the largest fitted compute.
  """
  if not widening["num_fits"]:
    said = [
      "too few runs to hold any out: the interval knows noise alone, and not "
      "whether the form holds beyond the runs"
    ]
  else:
    held = f"{100 * widening['inside_noise']:.0f} %"
    part = widening["inside"]
    after = ""
    if part is not None and part == part:
      after = (
        f", {100 * part:.0f} % inside widened ones (each fit's by the others)"
      )
    said = [
      f"rolling hold-outs, {widening['num_fits']} fits of lower budgets: "
      f"{widening['num_losses']} losses at up to {widening['times']:.3g} times "
      f"the compute, {held} inside intervals of noise alone{after}; intervals "
      f"are widened {widening['factor']:.2f} times"
    ]
  if times > widening["times"]:
    said.append(
      f"warning: {times:.3g} times the largest fitted compute is farther than "
      f"any hold-out ({widening['times']:.3g} times); the interval is not "
      "measured there"
    )
  return said


def score(record: dict, measured: float) -> dict:
  """Returns a prediction compared with the measured loss."""
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
