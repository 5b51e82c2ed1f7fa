"""Finished runs as points of a scaling law: parameters, tokens, FLOPs, loss.

Runs are read from columns of a CSV file or from workdirs. Every value is
checked, because one bad cell would silently change every coefficient.
"""

import csv
import dataclasses
import io
import math
import os
from typing import TypeGuard

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import digest, files, metric_names
from gpt_jax import flops as flops_lib
from gpt_jax.config import InputError, require_choice
from gpt_jax.lab.scaling import units
from gpt_jax.runs import metrics, workdir

# Largest number of rows that an error sentence names.
_MAX_NAMED = 5
# The quantities of a run that are known before it is trained.
_SIZES = ("params", "tokens", "flops")
# Key of the time at which a row of metrics.jsonl was written.
TIME = "time/unix"


@dataclasses.dataclass(frozen=True)
class Points:
  """P runs as arrays with one element per run; all values positive and finite.

  Attributes:
    params, tokens, flops, loss: [P].
    names: [P], "line 7" or a workdir.
    source: the file or the glob that they were read from.
    convention: a key of flops.CONVENTIONS, or "as given" if parameters, tokens
      and FLOPs were all columns.
    counts: {convention: ([P] params, [P] FLOPs per token)} for all conventions
      that can be computed; a CSV file has only "as given" and "6N".
    budgets: [P] values of the column that names each run's compute budget, or
      None.
    num_found: number of runs in the source, including those left out.
    left_out: sentences that name the runs left out.
  """

  params: np.ndarray
  tokens: np.ndarray
  flops: np.ndarray
  loss: np.ndarray
  names: tuple[str, ...]
  source: str
  convention: str
  counts: dict
  budgets: np.ndarray | None
  num_found: int
  left_out: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.loss)

  def describe(self, i: int) -> dict:
    """Returns run i in JSON's types, without its loss."""
    numbers = {k: float(getattr(self, k)[i]) for k in _SIZES}
    return {"name": self.names[i], **numbers}

  def take(self, kept, *why: str) -> "Points":
    """Returns the points at the indices `kept`, or where it is a true mask.

    Args:
      why: sentences on the points left out.
    """
    kept = np.arange(len(self))[kept]
    return dataclasses.replace(
      self,
      params=self.params[kept],
      tokens=self.tokens[kept],
      flops=self.flops[kept],
      loss=self.loss[kept],
      names=tuple(self.names[i] for i in kept),
      counts={k: (n[kept], c[kept]) for k, (n, c) in self.counts.items()},
      budgets=None if self.budgets is None else self.budgets[kept],
      left_out=self.left_out + why,
    )

  def drop_highest(self, count: int) -> "Points":
    """Returns the points without the `count` highest losses."""
    if not count:
      return self
    if count >= len(self):
      raise InputError(
        f"--drop-highest is {count} and there are {len(self)} points; leave "
        "some to fit"
      )
    order = np.argsort(self.loss, kind="stable")
    kept = np.sort(order[: len(self) - count])
    return self.take(kept, f"the {count} highest losses")

  def without_copies(self) -> "Points":
    """Returns the points without repeats of the same N, D, C and loss.

    Losses of different runs, even of one config with two seeds, differ in their
    last digits. Equal ones are one run twice, which would narrow all intervals.
    """
    first: dict[tuple, int] = {}
    copies: dict[int, list[str]] = {}
    for i, row in enumerate(
      zip(self.params, self.tokens, self.flops, self.loss, strict=True)
    ):
      of = first.setdefault(row, i)
      if of != i:
        copies.setdefault(of, []).append(self.names[i])
    why = tuple(
      f"{name_some(names)}: the same run as {self.names[of]}, counted once"
      for of, names in copies.items()
    )
    return self.take(list(first.values()), *why) if why else self

  def fingerprint(self) -> str:
    """Returns the SHA-256 of parameters, tokens and losses, in hex.

    The same whatever the order of the runs.
    """
    values = np.stack([self.params, self.tokens, self.loss])
    values = values[:, np.lexsort(values)]
    return digest.of_bytes(values.astype("<f8").tobytes())


def name_some(names: list[str]) -> str:
  """Returns the first names, and the number of the others, as text."""
  more = len(names) - _MAX_NAMED
  return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" * (more > 0))


def read_csv(
  path: str, columns: dict[str, str | None], is_trusted: bool = False
) -> Points:
  """Returns the points of a CSV file with a header line.

  Args:
    columns: {"loss", "params", "tokens", "flops", "budgets": name or None}.
      Two of params, tokens and flops are enough: C = 6 N D gives the third.
    is_trusted: skip units.require_plausible.

  Raises:
    InputError: the file cannot be read, a column is not there, a value is not
      a positive finite number (rows are named by their line), or columns are
      in other units than parameters, tokens, FLOPs and nats.
  """
  wanted = {k: v for k, v in columns.items() if v is not None}
  _check_columns(wanted)
  rows, header = _read_rows(path)
  for role, column in wanted.items():
    times = header.count(column)
    if len(header) == 1 and not times:
      _require_commas(path, header[0])
    if times != 1:
      found = "stands twice in" if times else "is not in"
      raise InputError(
        f"--{role}={column} {found} the header of {path}; "
        f"{config_lib.nearest(column, header)}"
      )
  if not rows:
    raise InputError(f"{path} has a header and no rows; give one for each run")
  values = {
    role: _read_column(path, rows, header.index(column), column, role)
    for role, column in wanted.items()
  }
  given = [k for k in ("params", "tokens", "flops") if k in values]
  if "flops" not in given:
    values["flops"] = 6 * values["params"] * values["tokens"]
  elif "tokens" not in given:
    values["tokens"] = values["flops"] / (6 * values["params"])
  elif "params" not in given:
    values["params"] = values["flops"] / (6 * values["tokens"])
  convention = "as given" if len(given) == 3 else "6N"
  if not is_trusted:
    names = [f"line {line}" for line, _ in rows]
    units.require_plausible(values, wanted, names, path)
  params = values["params"]
  counts = {convention: (params, values["flops"] / values["tokens"])}
  counts.setdefault("6N", (params, 6 * params))
  return Points(
    *(values[k] for k in ("params", "tokens", "flops", "loss")),
    names=tuple(f"line {line}" for line, _ in rows),
    source=path,
    convention=convention,
    counts=counts,
    budgets=values["budgets"] if "budgets" in values else None,
    num_found=len(rows),
    left_out=(),
  ).without_copies()


def _check_columns(wanted: dict[str, str]) -> None:
  if "loss" not in wanted:
    raise InputError("--loss is missing; name the CSV file's column of losses")
  sizes = [k for k in ("params", "tokens", "flops") if k in wanted]
  if len(sizes) < 2:
    found = f"only --{sizes[0]}" if sizes else "none"
    raise InputError(
      f"two of --params, --tokens and --flops must name columns; found {found}"
    )
  owners: dict[str, str] = {}
  for role in (*sizes, "loss"):
    owner = owners.setdefault(wanted[role], role)
    if owner != role:
      raise InputError(
        f"--{owner} and --{role} both name the column {wanted[role]}; each "
        "needs one of its own"
      )


def _require_commas(path: str, header: str) -> None:
  """Raises InputError for a header whose names have another separator."""
  for mark in (";", "\t", "|", " "):
    if header.count(mark) >= 2:  # a table has three columns at least
      raise InputError(
        f"{path} has {mark!r} between its columns; --csv takes commas between "
        "columns and points in numbers"
      )


def _read_rows(path: str):
  """Returns ([(line number, cells)], header cells) without blank lines."""
  try:
    # Spreadsheets write a byte order mark before the first name.
    text = files.read_text(path).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, start = [], 1
    for cells in reader:
      if any(cell.strip() for cell in cells):
        rows.append((start, [cell.strip() for cell in cells]))
      start = reader.line_num + 1
  except files.Damage as error:
    raise InputError(
      f"{path} {error}; --csv takes a UTF-8 file of comma-separated values "
      "with a header line"
    ) from None
  except csv.Error as error:
    raise InputError(
      f"{path}, line {reader.line_num}: {error}; --csv takes "
      "comma-separated values"
    ) from None
  if not rows:
    raise InputError(f"{path} is empty; --csv takes a file with a header line")
  return rows[1:], rows[0][1]


def _read_column(path, rows, index, column, role) -> np.ndarray:
  values, faults = [], {}
  for line, cells in rows:
    text = cells[index] if index < len(cells) else ""
    try:
      # float() would accept 1_000.
      value = None if "_" in text else float(text)
    except ValueError:
      value = None
    fault = _fault_of(text, value)
    if fault is None:
      values.append(value)
    else:
      faults.setdefault(fault, []).append((line, text))
  if faults:
    parts = []
    for fault, found in faults.items():
      named = [
        f"line {line}" + (f" ({text[:40]})" if text else "")
        for line, text in found
      ]
      parts.append(f"{fault} in {name_some(named)}")
    raise InputError(
      f"{path}: column {column} (--{role}) is {'; '.join(parts)}; every value "
      "must be a finite number above 0"
    )
  return np.array(values)


def _fault_of(text: str, value: float | None) -> str | None:
  if not text:
    return "missing"
  if value is None:
    return "not a number"
  if not math.isfinite(value):
    return "not finite"
  if value < 0:
    return "negative"
  return "zero" if value == 0 else None


def read_workdirs(pattern: str, metric: str | None, convention: str) -> Points:
  """Returns the points of finished runs.

  N is counted by flops.py, D is progress/tokens, and the loss is that of the
  evaluation over the whole set that ends a run.

  Args:
    pattern: glob of workdirs; files that match are ignored.
    metric: "eval/<set>/loss"; None if runs were evaluated on one set.
    convention: a key of flops.CONVENTIONS.

  Raises:
    InputError: there is no such convention, no workdir matches, none is
      finished, a record is damaged or of an older version, or a loss is not
      finite.
  """
  require_choice("convention", convention, flops_lib.CONVENTIONS)
  pattern = files.user_path("--workdirs", pattern)
  found = [f for f in files.expand_glob(pattern) if os.path.isdir(f)]
  if not found:
    raise InputError(f"--workdirs={pattern} matches no folder")
  runs, names, left_out = [], [], []
  for folder in found:
    run = read_workdir(folder, metric)
    if isinstance(run, str):
      left_out.append(run)
    else:
      runs.append(run)
      names.append(folder)
  if not runs:
    raise InputError(
      f"--workdirs={pattern} matches no finished run: {left_out[0]}"
    )
  tokens = np.array([float(run["tokens"]) for run in runs])
  counts = {}
  for name in flops_lib.CONVENTIONS:
    pairs = [
      flops_lib.count_by_convention(run["model"], run["seq_len"], name)
      for run in runs
    ]
    counts[name] = tuple(np.array(pairs, float).T)
  params, per_token = counts[convention]
  return Points(
    params=params,
    tokens=tokens,
    flops=per_token * tokens,
    loss=np.array([run["loss"] for run in runs]),
    names=tuple(names),
    source=pattern,
    convention=convention,
    counts=counts,
    budgets=None,
    num_found=len(found),
    left_out=tuple(left_out),
  ).without_copies()


def read_workdir(folder: str, metric: str | None) -> dict | str:
  """Returns a run's {"model", "seq_len", "tokens", "loss", "began"}.

  `began` is the time of its first row in seconds since 1970, None if rows have
  no times. For a run that is not finished, returns a sentence that says so.
  """
  is_cell = os.path.exists(os.path.join(folder, "cell.json"))
  if is_cell and not os.path.exists(os.path.join(folder, "config.json")):
    return f"{folder} is a cell of a sweep that has not begun"
  config = workdir.read_config(folder)
  path = os.path.join(folder, "metrics.jsonl")
  rows = metrics.read_rows(path)
  total = config.train.num_steps
  last = max((row["step"] for row in rows), default=0)
  if last < total:
    return f"{folder} is at step {last:,} of {total:,}"
  end = {}
  for row in rows:
    if row["step"] == total:
      end |= row
  names = [
    k
    for k in end
    if k.startswith("eval/")
    and k.endswith("/loss")
    and k.removesuffix("loss") + "num_tokens" in end
  ]
  if metric is None and len(names) > 1:
    raise InputError(
      f"{folder} was evaluated on {len(names)} sets; --loss must be one of "
      f"{', '.join(names)}"
    )
  metric = metric or (names[0] if names else "eval/valid/loss")
  if metric not in names or metric_names.TOKENS not in end:
    if metric not in names and names:
      raise InputError(
        f"--loss={metric} is not in {path}; {config_lib.nearest(metric, names)}"
      )
    return f"{folder} has no {metric} over its whole set at step {total:,}"
  for name, kind in ((metric, "a loss"), (metric_names.TOKENS, "a count")):
    value = end[name]
    if not (_is_number(value) and math.isfinite(value) and value > 0):
      raise InputError(
        f"{folder}: {name} is {value!r} at step {total:,}; {kind} must be a "
        "finite number above 0: leave this run out of --workdirs"
      )
  began = rows[0][TIME] if TIME in rows[0] else None
  return {
    "model": config.model,
    "seq_len": config.data.seq_len,
    "tokens": end[metric_names.TOKENS],
    "loss": end[metric],
    "began": began if _is_number(began) and math.isfinite(began) else None,
  }


def _is_number(value) -> TypeGuard[int | float]:
  return isinstance(value, int | float) and not isinstance(value, bool)
