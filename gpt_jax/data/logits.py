"""A teacher's largest logits, stored: one row for each sequence of a run.

A folder has logits.json, which is sealed and records the data and the order
that the rows follow, and two files of raw little-endian numbers. For each
token they hold the ids of the K likeliest next tokens (uint32), and K + 1
log-probabilities (float32): those of the K, and that of all others together.

Design choice: row g is the g-th sequence that a run reads (order.py), not the
g-th of the text. So any objective and mixture can use stored logits, and a
student reads the sequences that it would read with the teacher in memory. A run
with another seed reads in another order and needs its own folder.
"""

import functools
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import digest, files
from gpt_jax.config import Config, InputError
from gpt_jax.data.objectives import Task
from gpt_jax.data.prepare import PreparedData
from gpt_jax.machine import cache

# Fields of a batch, and names of the files that they are read from.
FIELDS = IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"
DTYPES = {IDS: np.dtype("<u4"), LOG_PROBS: np.dtype("<f4")}
RECORD = "logits.json"


class Logits(NamedTuple):
  """A folder of stored logits.

  Attributes:
    folder: its path.
    num_rows: the number of sequences, of seq_len tokens each.
    top_k: K.
    digest: the seal of its logits.json, 16 hex digits; it covers the files.
  """

  folder: str
  num_rows: int
  seq_len: int
  top_k: int
  digest: str

  def count_bytes(self, name: str) -> int:
    """Returns the size of the file of one of FIELDS."""
    shape = self.num_rows, *widths(self.top_k, self.seq_len)[name]
    return math.prod(shape) * DTYPES[name].itemsize

  def open(self, name: str, mode: Any = "r") -> np.ndarray:
    """Returns one of FIELDS as a memory map of (num_rows, T, K or K + 1)."""
    shape = self.num_rows, *widths(self.top_k, self.seq_len)[name]
    path = os.path.join(self.folder, name)
    return np.memmap(path, DTYPES[name], mode, shape=shape)

  def read(self, g: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the FIELDS of a batch of the sequences g."""
    ids, log_probs = (np.array(self.open(name)[g]) for name in FIELDS)
    return {IDS: ids.astype(np.int32), LOG_PROBS: log_probs}


def widths(top_k: int, seq_len: int) -> dict[str, tuple[int, int]]:
  """Returns the shape of a row of each of FIELDS."""
  return {IDS: (seq_len, top_k), LOG_PROBS: (seq_len, top_k + 1)}


def add_to(task: Task, logits: Logits) -> Task:
  """Returns the task with FIELDS added to its batches."""
  return task._replace(make=functools.partial(_make, task.make, logits))


def _make(make, logits: Logits, batch: dict, seed: int, g: np.ndarray) -> dict:
  return make(batch, seed, g) | logits.read(g)


def describe_rows(config: Config, prepared: PreparedData) -> dict:
  """Returns what rows of stored logits depend on, except for the teacher."""
  keys = config_lib.flatten(config)
  section = {
    key: value
    for key, value in keys.items()
    if key.startswith("data.") and not config_lib.is_free(key)
  }
  return {
    "data": digest.of_json([prepared.fingerprint, section])[:16],
    "seed": config.seed,
    "temperature": config.distill.temperature,
  }


def count_rows(config: Config) -> int:
  """Returns the number of sequences that a run reads."""
  return config_lib.count_sequences(config.train, config.train.num_steps)


def write_record(
  folder: str, config: Config, prepared: PreparedData, top_k: int, teacher: str
) -> None:
  """Writes logits.json, once the files beside it are complete.

  Args:
    teacher: the teacher's workdir, as information for the user.
  """
  record = describe_rows(config, prepared) | {
    "num_rows": count_rows(config),
    "seq_len": config_lib.row_lengths(config).target,
    "top_k": top_k,
    "teacher": teacher,
    "files": {name: _digest(os.path.join(folder, name)) for name in FIELDS},
  }
  text = json.dumps(files.seal(record), indent=2) + "\n"
  files.write_text(os.path.join(folder, RECORD), text)


def open_logits(config: Config, prepared: PreparedData) -> Logits:
  """Returns the stored logits in distill.teacher, if they suit this run.

  Raises:
    InputError: the folder holds none, is damaged, or its logits are of other
      data, another order or temperature, fewer rows, or another top_k.
  """
  folder, d = config.distill.teacher, config.distill
  asked = f"distill.teacher is {folder!r} and distill.top_k is {d.top_k}"
  remake = "make them again by python -m gpt_jax.deploy.logits"
  assert folder is not None and d.top_k is not None
  folder = cache.local_folder(folder)
  try:
    record = files.read_json(os.path.join(folder, RECORD))
    if not isinstance(record, dict) or record != files.seal(record):
      raise files.Damage("does not match its own digest")
    wanted = describe_rows(config, prepared)
    there = {name: record[name] for name in (*wanted, "num_rows", "top_k")}
    digests, T = dict(record["files"]), record["seq_len"]
    sizes = there["num_rows"], there["top_k"], T
    if not all(type(size) is int and size > 0 for size in sizes):
      raise files.Damage(f"holds the sizes {sizes}")
  except (files.Damage, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{asked}, and {RECORD} in that folder {_fault(error)}; give a folder of "
      "stored logits, or for a run's workdir leave top_k None"
    ) from None
  wanted["top_k"] = d.top_k
  for name, value in wanted.items():
    if there[name] != value:
      raise InputError(
        f"{asked}, whose logits are of {name} {there[name]}, and here it is "
        f"{value}; {remake} with this config"
      )
  if there["num_rows"] < count_rows(config):
    raise InputError(
      f"{asked}, which holds {there['num_rows']:,} sequences, and this run "
      f"reads {count_rows(config):,}; {remake} with this train.num_steps"
    )
  stored = Logits(folder, there["num_rows"], T, d.top_k, record["digest"])
  for name in FIELDS:
    path = os.path.join(folder, name)
    try:
      is_whole = os.path.getsize(path) == stored.count_bytes(name)
      found = _digest(path) if is_whole else None
    except OSError as error:
      raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if found != digests.get(name) or not is_whole:
      raise InputError(
        f"{path} is damaged: it does not match what {RECORD} says; {remake}"
      )
  return stored


def _fault(error: Exception) -> str:
  return str(error) if isinstance(error, files.Damage) else "lacks some entries"


def _digest(path: str) -> str:
  with open(path, "rb") as file:
    return digest.of_file(file)
