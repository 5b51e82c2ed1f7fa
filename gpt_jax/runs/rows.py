"""Reads the rows of metrics.jsonl, and rewinds them when a run resumes.

Only the last line may be cut off, by a process that was killed while it wrote.
An invalid line elsewhere means that something else has written to the file:
then the file is copied to a backup, and every row that can be read is kept.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable

from gpt_jax import files
from gpt_jax.exits import InputError
from gpt_jax.runs import goodput

# Limits, in bytes, of a line and of the file.
MAX_LINE = 1 << 20
MAX_BYTES = 8 << 30
# Metrics of time, speed and memory, which differ when a run is repeated.
TIMED = ("time/", "perf/", "mem/")


def without_time(row: dict) -> dict:
  """Returns the part of a row that is identical if the run is repeated."""
  return {k: v for k, v in row.items() if not k.startswith(TIMED)}


def read_rows(path: str) -> list[dict]:
  """Returns the rows {"step": int, "name": finite number, ...} of a file.

  Invalid lines are left out; a missing file has no rows.

  Raises:
    InputError: it is not a regular file, or too large.
  """
  return [row for row, _ in _read(path)[0]]


def read_objects(path: str) -> list[dict]:
  """Returns the JSON objects in a file of lines; other lines are skipped."""
  found = []
  for line, _ in _lines(path):
    try:
      value = files.parse_json(line)
    except files.Damage:
      continue
    if isinstance(value, dict):
      found.append(value)
  return found


class Seal:
  """A running hash of the rows of a file, without TIMED metrics.

  Each checkpoint stores the seal of the rows written before it. Comparing seals
  detects a changed digit, and the rows of another run.
  """

  def __init__(self, rows: Iterable[dict] = ()):
    self._count, self._hash = 0, hashlib.sha256()
    for row in rows:
      self.add(row)

  def add(self, row: dict) -> None:
    """Adds the next row."""
    self._count += 1
    self._hash.update(json.dumps(without_time(row), sort_keys=True).encode())

  def value(self) -> list:
    """Returns [number of rows, 16 hex digits], a JSON value."""
    return [self._count, self._hash.hexdigest()[:16]]


def rewind(
  path: str,
  step: int,
  is_dropped: Callable[[dict], bool] = lambda row: False,
  say: Callable[[str], None] = print,
  seal: list | None = None,
):
  """Drops the rows after `step`, atomically.

  Args:
    is_dropped: function of a row; rows for which it is true are dropped too.
    say: prints a line if a line is invalid, or rows are missing or changed.
    seal: Seal.value() of the rows when `step` was saved, if known.

  Returns:
    (carried, seal): the last kept row, with the seconds of dropped rows added
    as lost (if no row is kept, only those seconds); and the Seal of all kept
    rows.
  """
  rows, wrong, is_torn = _read(path)
  kept = [
    (row, line)
    for row, line in rows
    if row["step"] <= step and not is_dropped(row)
  ]
  before = [row for row, _ in kept]
  is_other = bool(rows) and seal is not None
  is_other = is_other and Seal(before[: seal[0]]).value() != seal
  if wrong or is_other:
    aside = _set_aside(path)
    what = "line " + ", ".join(f"{n:,}" for n in wrong[:3])
    what += f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
    what += " held no row of metrics"
    if not wrong:
      what = f"its rows are not those that were written before step {step:,} "
      what += "was saved"
    say(
      f"{path}: {what}; the original file is {aside}, and all rows that could "
      "be read stay"
    )
  carried = goodput.carry(
    kept[-1][0] if kept else {}, rows[-1][0] if rows else {}
  )
  if kept and carried is not kept[-1][0]:
    kept[-1] = carried, json.dumps(carried) + "\n"
  if wrong or is_torn or len(kept) < len(rows):
    files.write_text(path, "".join(line for _, line in kept))
  if step and (not kept or min(row["step"] for row, _ in kept) > 1):
    where = f"begins at step {kept[0][0]['step']:,}" if kept else "has no rows"
    say(
      f"{path} {where}, but {step:,} steps are done: earlier rows were removed "
      "or are in another file; later ones are appended"
    )
  return carried, Seal(row for row, _ in kept)


def _read(path: str):
  """Returns ([(row, line)], numbers of invalid lines, is the end cut off)."""
  rows, wrong, is_torn = [], [], False
  for number, (line, is_whole) in enumerate(_lines(path), 1):
    row = _parse(line)
    if row is not None:
      rows.append((row, line.decode().rstrip("\r\n") + "\n"))
    elif is_whole and line.strip():
      wrong.append(number)
    is_torn |= not is_whole or not line.strip()
  return rows, wrong, is_torn


def _lines(path: str):
  """Yields (line, whether it is complete); b"?" for a line that is too long."""
  try:
    with files.open_bytes(path) as file:
      if os.fstat(file.fileno()).st_size > MAX_BYTES:
        raise files.Damage(f"is larger than {MAX_BYTES:,} bytes")
      while line := file.readline(MAX_LINE):
        is_long = False
        while len(line) == MAX_LINE and not line.endswith(b"\n"):
          is_long, line = True, file.readline(MAX_LINE)
        is_whole = line.endswith(b"\n")
        yield b"?" if is_long else line, is_whole
  except files.Damage as error:
    # A dangling link is an error: do not write through it.
    if not error.is_missing or os.path.islink(path):
      raise InputError(
        f"{path} {error}; it must be the file that a run has written: put it "
        "back, or remove it"
      ) from None


def _parse(line: bytes) -> dict | None:
  try:
    row = files.parse_json(line, is_bounded=False)
  except files.Damage:
    return None
  if not isinstance(row, dict) or type(row.get("step")) is not int:
    return None
  # A null stands for a number that was not finite.
  row = {name: value for name, value in row.items() if value is not None}
  if not all(type(v) in (int, float) and _is_finite(v) for v in row.values()):
    return None
  return row if row["step"] >= 0 else None


def _is_finite(value: float) -> bool:
  if type(value) is int:
    return abs(value) < files.MAX_INT
  return math.isfinite(value)


def _set_aside(path: str) -> str:
  """Copies a file within its folder; returns the name of the copy."""
  number = 1
  while os.path.lexists(f"{path}.damaged-{number}"):
    number += 1
  name = f"{path}.damaged-{number}"
  temporary = f"{path}.{os.getpid()}.tmp"
  try:
    shutil.copyfile(path, temporary)
    os.rename(temporary, name)
  except OSError:
    if os.path.exists(temporary):
      os.remove(temporary)
    raise
  return os.path.basename(name)


def to_line(step: int, values: dict) -> str:
  """Returns the line of a row; its values are finite."""
  return json.dumps({"step": step, **values}, allow_nan=False) + "\n"
