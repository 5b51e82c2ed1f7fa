"""A cell's folder, which is all that is known of the cell.

ROOT/cells/ID is the workdir of a run, with three files of the sweep's:

cell.json     what was asked for
running.json  who runs it, touched while it runs
ended.json    how its last process ended

Nothing is kept elsewhere, so that folders copied from another machine's ROOT
are that machine's results.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import socket
import time

from gpt_jax import config as config_lib
from gpt_jax import metrics, workdir
from gpt_jax.config import Config, InputError
from gpt_jax.lab.sweep.cells import Cell

# Seconds between touches of running.json, and after which they are missed.
BEAT_SECONDS, STALE_SECONDS = 5.0, 120.0
WAITING, RUNNING, STOPPED = "waiting", "running", "stopped"
DONE, FAILED, UNREADABLE = "done", "failed", "unreadable"


@dataclasses.dataclass(frozen=True)
class State:
  """What a folder says of its cell.

  Attributes:
    id: the folder's name.
    path: the folder.
    word: one of the above.
    step, total: done and in all; 0 where nothing is there.
    rows: of metrics.jsonl.
    loss: last logged, of training.
    final: (metric, value) that the run ended with; None before its end.
    changed: seconds since the epoch of its last sign, None if there is none.
    reason: why it failed, or where it runs.
    record: cell.json; empty where there is none.
    ended: ended.json; empty where there is none.
    config: None before there is one.
  """

  id: str
  path: str
  word: str
  step: int
  total: int
  rows: list[dict]
  loss: float | None
  final: tuple[str, float] | None
  changed: float | None
  reason: str
  record: dict
  ended: dict
  config: Config | None

  @property
  def name(self) -> str:
    return self.record.get("name", self.id)

  @property
  def seed(self) -> int | None:
    return None if self.config is None else self.config.seed


def path_of(root: str, cell_id: str) -> str:
  """Returns the folder of a cell."""
  return os.path.join(root, "cells", cell_id)


def list_ids(root: str) -> list[str]:
  """Returns the ids of all folders of a sweep, in the order of the sweep."""
  folder = os.path.join(root, "cells")
  if not os.path.isdir(folder):
    return []
  ids = [n for n in os.listdir(folder) if os.path.isdir(path_of(root, n))]
  place = lambda i: (_read(path_of(root, i), "cell.json").get("place", 0), i)
  return sorted(ids, key=place)


def read(root: str, cell_id: str) -> State:
  """Returns the State of a cell; one that is not there yet waits."""
  return read_path(path_of(root, cell_id))


def read_path(path: str) -> State:
  """Returns the State of a folder, or of any run's workdir."""
  record = _read(path, "cell.json")
  ended = _read(path, "ended.json")
  held = _read(path, "running.json")
  rows = metrics.read_rows(os.path.join(path, "metrics.jsonl"))
  rows = [r for r in rows if isinstance(r, dict) and "step" in r]
  losses = [r[metrics.LOSS] for r in rows if metrics.LOSS in r]
  step = max((r["step"] for r in rows), default=0)
  changed = max(
    (
      os.path.getmtime(os.path.join(path, name))
      for name in ("metrics.jsonl", "ended.json", "running.json", "cell.json")
      if os.path.exists(os.path.join(path, name))
    ),
    default=None,
  )
  config, word, reason, final = None, WAITING, "", None
  is_begun = os.path.exists(os.path.join(path, "config.json"))
  try:
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
    word, final = DONE, final_loss(rows, total)
    fault = _check_own(record, config)
    if fault:
      word, reason = FAILED, fault
  elif ended and ended.get("code") not in (0, None):
    word = STOPPED if ended.get("is_stopped") else FAILED
    reason = ended.get("reason", "")
  elif is_begun:
    word = STOPPED
    if changed and time.time() - changed < STALE_SECONDS and not ended:
      # A job of a cluster, which keeps no running.json.
      word, reason = RUNNING, "its figures are fresh"
  return State(
    id=os.path.basename(os.path.normpath(path)),
    path=path,
    word=word,
    step=step,
    total=total,
    rows=rows,
    loss=losses[-1] if losses else None,
    final=final,
    changed=changed,
    reason=reason,
    record=record,
    ended=ended,
    config=config,
  )


def is_done(root: str, cell_id: str) -> bool:
  """Returns whether a cell has come to its end."""
  return read(root, cell_id).word == DONE


def list_steps(path: str) -> list[int]:
  """Returns the committed steps of a run, as checkpoint.py names folders."""
  folder = os.path.join(path, "checkpoints")
  if not os.path.isdir(folder):
    return []
  return sorted(int(n) for n in os.listdir(folder) if n.isdecimal())


def final_loss(rows: list[dict], total: int) -> tuple[str, float] | None:
  """Returns (metric, loss) of a finished run.

  That of the evaluation over a whole set that ends a run, of the first set by
  name; without one, the last logged loss of training.
  """
  end: dict = {}
  for row in rows:
    if row["step"] == total:
      end |= row
  sets = sorted(
    k
    for k in end
    if k.startswith("eval/")
    and k.endswith("/loss")
    and k.removesuffix("loss") + "num_tokens" in end
  )
  for name in [*sets, metrics.LOSS]:
    if name in end and math.isfinite(end[name]):
      return name, end[name]
  return None


def claim(root: str, cell: Cell) -> bool:
  """Makes the folder and marks it as run from here; False where it is held.

  One claim at a time, by a lock on ROOT/.claims.
  """
  path = path_of(root, cell.id)
  os.makedirs(path, exist_ok=True)
  with open(os.path.join(root, ".claims"), "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if _holder(path, _read(path, "running.json")):
      return False
    _write(path, "cell.json", cell.record())
    hold(path, os.getpid())
  return True


def hold(path: str, pid: int) -> None:
  """Says which process runs a cell."""
  host = socket.gethostname()
  _write(path, "running.json", {"pid": pid, "host": host})


def beat(path: str) -> None:
  """Says that the cell is still run."""
  with contextlib.suppress(FileNotFoundError):
    os.utime(os.path.join(path, "running.json"))


def release(path: str, ended: dict | None) -> None:
  """Says that the cell is run no more, and how its process ended."""
  if ended is not None:
    _write(path, "ended.json", ended)
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(path, "running.json"))


def forget_end(path: str) -> None:
  """Removes what is known of an earlier end."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(path, "ended.json"))


def _holder(path: str, held: dict) -> str:
  """Returns where a cell is being run, "" if it is not."""
  if not held:
    return ""
  pid, host = held.get("pid"), held.get("host")
  if host == socket.gethostname():
    return f"process {pid}" if _is_alive(pid) else ""
  try:
    age = time.time() - os.path.getmtime(os.path.join(path, "running.json"))
  except FileNotFoundError:
    return ""
  return f"process {pid} on {host}" if age < STALE_SECONDS else ""


def _is_alive(pid) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (PermissionError, TypeError):
    return isinstance(pid, int)
  try:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
      # A number is given again: to something else.
      return b"gpt_jax" in file.read()
  except OSError:
    return True


def _has_reported(path: str) -> bool:
  return os.path.exists(os.path.join(path, "plots", "loss.svg"))


def _check_own(record: dict, config: Config) -> str:
  """Returns what is wrong with a finished run that is not its cell's."""
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
  nested: dict = {}
  try:
    for dotted, value in record["config"].items():
      *sections, key = dotted.split(".")
      node = nested
      for section in sections:
        node = node.setdefault(section, {})
      node[key] = value
  except (KeyError, AttributeError):
    raise InputError("its cell.json is damaged") from None
  return config_lib.freeze(nested)


def _read(path: str, name: str) -> dict:
  try:
    with open(os.path.join(path, name), encoding="utf-8") as file:
      content = json.load(file)
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _write(path: str, name: str, content: dict) -> None:
  workdir.write_text(os.path.join(path, name), json.dumps(content, indent=1))
