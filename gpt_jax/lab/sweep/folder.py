"""A cell's folder, which holds everything that is known of the cell.

ROOT/cells/ID is the workdir of a run, with three more files:

cell.json     what the sweep asked for
running.json  the process that runs the cell, touched every 5 s
ended.json    how its last process ended

Nothing is stored elsewhere: copying folders from another machine's ROOT merges
its results.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import socket
import time
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import exits, files, metric_names
from gpt_jax.config import Config, InputError
from gpt_jax.lab.sweep.cells import Cell
from gpt_jax.machine import console
from gpt_jax.runs import metrics, workdir

# A process touches its running.json every BEAT_SECONDS. If that is older than
# STALE_SECONDS, the process counts as gone.
BEAT_SECONDS, STALE_SECONDS = 5.0, 120.0
WAITING, RUNNING, STOPPED = "waiting", "running", "stopped"
DONE, FAILED, UNREADABLE = "done", "failed", "unreadable"
DIVERGED = "diverged"
# A process id fits a C int.
MAX_PID = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class State:
  """What a folder says about its cell.

  Attributes:
    id: the folder's name.
    path: the folder.
    word: the state, WAITING to DIVERGED.
    step, total: steps done, and steps of the whole run; 0 if not known.
    rows: the rows of metrics.jsonl.
    loss: the last training loss; None where it was not finite.
    final: (metric, value) at the end of the run; None before the end, and
      where the last evaluation was not finite.
    bits: bits per byte at the end of the run, or None.
    changed: when one of its files last changed, in seconds since the epoch;
      None without files.
    reason: why the cell failed, or where it runs.
    record: content of cell.json; empty where there is none.
    ended: content of ended.json; empty where there is none.
    config: frozen; None where there is none yet.
  """

  id: str
  path: str
  word: str
  step: int
  total: int
  rows: list[dict]
  loss: float | None
  final: tuple[str, float] | None
  bits: float | None
  changed: float | None
  reason: str
  record: dict
  ended: dict
  config: Config | None

  @property
  def name(self) -> str:
    return self.record.get("name", self.id)

  def the_config(self) -> Config:
    """Returns the config of a cell that is known to have one."""
    assert self.config is not None, f"{self.path} has no config"
    return self.config

  def the_final(self) -> tuple[str, float]:
    """Returns (metric, value) of a run that is known to have ended."""
    assert self.final is not None, f"{self.path} has not ended"
    return self.final

  @property
  def is_passed_over(self) -> bool:
    """Whether `run` skips the cell unless --retry is given.

    An interrupted cluster job is resumed, even after a loss that isn't finite.
    """
    is_sure = bool(self.ended) or self.step >= self.total
    words = (FAILED, UNREADABLE, *([DIVERGED] if is_sure else []))
    return self.word in words

  @property
  def seconds(self) -> float | None:
    """Duration of the cell's last process in seconds."""
    return self.ended.get("seconds")

  @property
  def seed(self) -> int | None:
    return None if self.config is None else self.config.seed


def path_of(root: str, cell_id: str) -> str:
  """Returns the folder of a cell."""
  return os.path.join(root, "cells", cell_id)


def list_ids(root: str) -> list[str]:
  """Returns the ids of all folders in ROOT, in the order of the sweep."""
  folder = os.path.join(root, "cells")
  if not os.path.isdir(folder):
    return []
  ids = [n for n in os.listdir(folder) if os.path.isdir(path_of(root, n))]
  place = lambda i: (_read_cell(path_of(root, i))[0].get("place", 0), i)
  return sorted(ids, key=place)


def read(root: str, cell_id: str) -> State:
  """Returns the State of a cell: WAITING where it has no folder."""
  return read_path(path_of(root, cell_id))


def read_path(path: str) -> State:
  """Returns the State of a folder, or of any run's workdir."""
  record, fault = _read_cell(path)
  ended = _read_ended(path)
  held = _read(path, "running.json")
  rows = read_rows(path)
  step = max((r["step"] for r in rows), default=0)
  changed = max(
    (
      os.path.getmtime(os.path.join(path, name))
      for name in ("metrics.jsonl", "ended.json", "running.json", "cell.json")
      if os.path.exists(os.path.join(path, name))
    ),
    default=None,
  )
  config, word, reason, final, bits = None, WAITING, "", None, None
  is_begun = os.path.exists(os.path.join(path, "config.json"))
  try:
    if fault:
      raise InputError(fault)
    if is_begun:
      config = workdir.read_config(path)
    elif record:
      config = _config_of(record)
  except InputError as error:
    word, reason = UNREADABLE, str(error)
  total = config.train.num_steps if config else 0
  where = _holder(path, held)
  if word == UNREADABLE:
    pass
  elif where:
    word, reason = RUNNING, where
  elif is_begun and _has_reported(path) and step >= total:
    word = DONE
    final, bits, reason = final_loss(rows, total)
    if reason:
      word = DIVERGED
    fault = _check_own(record, config) if config else ""
    if fault:
      word, reason, final, bits = FAILED, fault, None, None
  elif ended and ended.get("code") not in (0, None):
    word = STOPPED if ended.get("is_stopped") else FAILED
    if ended["code"] == exits.DIVERGED:
      word = DIVERGED
    reason = ended.get("reason", "")
  elif is_begun:
    word = STOPPED
    # A cluster's job writes neither running.json nor ended.json.
    if changed and time.time() - changed < STALE_SECONDS and not ended:
      word, reason = RUNNING, "its figures are fresh"
    elif not ended and _is_lost(rows):
      word, reason = DIVERGED, "its last logged loss is not finite"
  return State(
    id=os.path.basename(os.path.normpath(path)),
    path=path,
    word=word,
    step=step,
    total=total,
    rows=rows,
    loss=last_loss(rows),
    final=final,
    bits=bits,
    changed=changed,
    reason=reason,
    record=record,
    ended=ended,
    config=config,
  )


def is_done(root: str, cell_id: str) -> bool:
  """Returns whether a cell is done."""
  return read(root, cell_id).word == DONE


def list_steps(path: str) -> list[int]:
  """Returns the steps of a run's complete checkpoints, from folder names."""
  folder = os.path.join(path, "checkpoints")
  if not os.path.isdir(folder):
    return []
  is_number = lambda n: n.isascii() and n.isdecimal() and len(n) <= 10
  steps = (int(n) for n in os.listdir(folder) if is_number(n))
  return sorted(step for step in steps if step < 2**31)


def read_rows(path: str) -> list[dict]:
  """Returns the rows of a run's metrics.jsonl that hold a step."""
  rows = metrics.read_rows(os.path.join(path, "metrics.jsonl"))
  is_step = lambda value: type(value) is int and value >= 0
  return [r for r in rows if isinstance(r, dict) and is_step(r.get("step"))]


def number(row: dict, key: str) -> float | None:
  """Returns a row's value, None where it is missing or no finite number."""
  value: Any = row.get(key)
  if type(value) not in (int, float) or not math.isfinite(value):
    return None
  return value


def last_loss(rows: list[dict]) -> float | None:
  """Returns the loss of the last training row, None where it has none.

  A loss that is not finite is not written to a row.
  """
  trained = [r for r in rows if any(key in r for key in _TRAINED)]
  return number(trained[-1], metric_names.LOSS) if trained else None


# A training row has at least one of these, even if its loss is not finite.
_TRAINED = (
  metric_names.LOSS,
  metric_names.LEARNING_RATE,
  metric_names.NUM_SKIPPED,
)


def _is_lost(rows: list[dict]) -> bool:
  """Returns whether the last training row has no finite loss."""
  is_trained = any(key in row for row in rows for key in _TRAINED)
  return is_trained and last_loss(rows) is None


def final_loss(
  rows: list[dict], total: int
) -> tuple[tuple[str, float] | None, float | None, str]:
  """Returns ((metric, loss), bits per byte, fault) of a finished run.

  A run ends with an evaluation over whole sets; the loss is that of the first
  set by name. A run that never evaluates has its last training loss. Where
  that value is not finite the loss is None, and the fault says so.
  """
  end: dict = {}
  for row in rows:
    if row["step"] == total:
      end |= row
  sets = sorted(
    k.removesuffix("num_tokens")
    for k in end
    if k.startswith("eval/") and k.endswith("/num_tokens")
  )
  if sets:
    name = f"{sets[0]}loss"
    loss, bits = number(end, name), number(end, f"{sets[0]}bits_per_byte")
    if loss is None:
      return None, None, f"{name} is not finite at the end"
    return (name, loss), bits, ""
  if any(k.startswith("eval/") for row in rows for k in row):
    return None, None, ""  # the last evaluation is missing
  loss = number(end, metric_names.LOSS)
  if loss is None:
    return None, None, f"{metric_names.LOSS} is not finite at the end"
  return (metric_names.LOSS, loss), None, ""


def claim(root: str, cell: Cell) -> bool:
  """Marks a cell as run by this process; False where another runs it.

  A lock on ROOT/.claims lets one process claim at a time. On a disk without
  locks two processes that claim at the same moment may both get the cell; a
  warning says so.
  """
  path = path_of(root, cell.id)
  os.makedirs(path, exist_ok=True)
  with open(os.path.join(root, ".claims"), "a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      _say_no_locks(root, error.strerror)
    if _holder(path, _read(path, "running.json")):
      return False
    _write(path, "cell.json", cell.record())
    hold(path, os.getpid())
  return True


@functools.cache
def _say_no_locks(root: str, why: str) -> None:
  console.tell(
    f"gpt_jax: {root} is on a disk without locks ({why}); start one `run` of "
    "this sweep at a time"
  )


def hold(path: str, pid: int) -> None:
  """Records which process runs a cell."""
  host = socket.gethostname()
  _write(path, "running.json", {"pid": pid, "host": host})


def beat(path: str) -> None:
  """Records that the cell still runs."""
  with contextlib.suppress(FileNotFoundError):
    os.utime(os.path.join(path, "running.json"))


def release(path: str, ended: dict | None) -> None:
  """Records that no process runs the cell any more, and how the last ended."""
  if ended is not None:
    _write(path, "ended.json", ended)
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(path, "running.json"))


def forget_end(path: str) -> None:
  """Removes the record of an earlier end."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(path, "ended.json"))


def _holder(path: str, held: dict) -> str:
  """Returns which process runs a cell, "" if none does."""
  pid, host = held.get("pid"), held.get("host")
  if type(pid) is not int or not 0 < pid <= MAX_PID or type(host) is not str:
    return ""
  if host == socket.gethostname():
    return f"process {pid}" if _is_alive(pid) else ""
  try:
    age = time.time() - os.path.getmtime(os.path.join(path, "running.json"))
  except FileNotFoundError:
    return ""
  return f"process {pid} on {host}" if age < STALE_SECONDS else ""


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  try:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
      # The kernel may have reused the process id for another program.
      return b"gpt_jax" in file.read()
  except OSError:
    return True


def _has_reported(path: str) -> bool:
  return os.path.exists(os.path.join(path, "plots", "loss.svg"))


def _check_own(record: dict, config: Config) -> str:
  """Returns how a run's config differs from its cell's, "" if it does not."""
  if not record:
    return ""
  there = config_lib.flatten(config)
  wrong = [
    f"{key} ({value!r} asked for, {there[key]!r} there)"
    for key, value in record["config"].items()
    if key in there
    and there[key] != value
    and not config_lib.is_free(key)
    and not (key == "model.vocab_size" and value is None)
  ]
  if not wrong:
    return ""
  return (
    f"it was run with {'; '.join(wrong)}: the config file was changed "
    "meanwhile; remove this folder"
  )


def _config_of(record: dict) -> Config:
  try:
    nested = config_lib.nest(record["config"])
  except ValueError as error:
    raise InputError(f"its cell.json {error}") from None
  return config_lib.freeze(nested)


# Types of the fields of cell.json that are read.
_CELL = {"id": str, "name": str, "place": int, "values": dict, "config": dict}
_CELL |= {"data": str, "code": str}


def _read_cell(path: str) -> tuple[dict, str]:
  """Returns (content of cell.json, "").

  ({}, why) where the file is damaged, ({}, "") where there is none.
  """
  try:
    record = files.read_json(os.path.join(path, "cell.json"))
  except files.Damage as error:
    is_absent = error.is_missing and not os.path.islink(f"{path}/cell.json")
    return {}, "" if is_absent else f"its cell.json {error}"
  if not isinstance(record, dict):
    return {}, "its cell.json is not the JSON object that a sweep writes"
  wrong = [k for k, kind in _CELL.items() if type(record.get(k)) is not kind]
  wrong += ["text"] * (type(record.get("text", "")) is not str)  # newer
  trunk = record.get("trunk")
  if trunk is not None and not (
    isinstance(trunk, list) and [type(part) for part in trunk] == [str, int]
  ):
    wrong.append("trunk")
  if wrong:
    return {}, f"its cell.json has no {', '.join(wrong)} that a sweep writes"
  return record, ""


def _read_ended(path: str) -> dict:
  """Returns the content of ended.json, {} where `run` has written none."""
  ended = _read(path, "ended.json")
  reason, seconds = ended.get("reason", ""), ended.get("seconds", 0)
  is_sound = type(ended.get("code")) is int and type(reason) is str
  return ended if is_sound and type(seconds) in (int, float) else {}


def _read(path: str, name: str) -> dict:
  try:
    content = files.read_json(os.path.join(path, name))
  except files.Damage:
    return {}
  return content if isinstance(content, dict) else {}


def _write(path: str, name: str, content: dict) -> None:
  files.write_text(os.path.join(path, name), json.dumps(content, indent=1))
