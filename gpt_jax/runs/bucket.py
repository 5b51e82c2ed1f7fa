"""The layout of a run in a bucket, and the transfer of its steps.

  config.json tokenizer.json samples/ plots/ ...   as in a workdir
  metrics/000003.000001.000000001234.jsonl   the rows from byte 1,234 on
  checkpoints/500/000003.00/0/...        files of step 500 that process 0 wrote
  steps/500.000003.00.0-of-2.json        their names, sizes and hashes
  lock/000003.json                       lease.py

A note under steps/ is written after the files that it lists, and removed before
them. A step counts only if the notes of all its processes exist under one tag,
which consists of the number of a lease and how often its holder has gone back
to an earlier step. So what a killed run leaves behind is not read, and no two
writers write the same object.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable

from gpt_jax import digest, files
from gpt_jax.files import Damage
from gpt_jax.machine import places
from gpt_jax.runs import contents

STEPS, DATA, METRICS = "steps", "checkpoints", "metrics"
_NOTE = re.compile(r"(\d{1,10})\.(\d{6}\.\d{2})\.(\d+)-of-(\d+)\.json")
_ROWS = re.compile(r"(\d{6}\.\d{6})\.(\d{12})\.jsonl")
# The files that describe a step, without its arrays.
META = f"{contents.META}/"


@dataclasses.dataclass(frozen=True, order=True)
class Kept:
  """A step at an address: number, tag, and how many processes wrote it."""

  step: int
  tag: str
  count: int

  def notes(self) -> list[str]:
    """Returns the keys of its notes."""
    return [note_of(self, index) for index in range(self.count)]


def note_of(kept: Kept, index: int) -> str:
  return f"{STEPS}/{kept.step}.{kept.tag}.{index}-of-{kept.count}.json"


def index_of(note: str) -> int:
  """Returns the index of the process that writes a note."""
  return int(note.rpartition(".json")[0].rpartition(".")[2].partition("-")[0])


def list_steps(address: str) -> tuple[dict[int, Kept], set[Kept]]:
  """Returns ({number: complete step}, steps of which a note is missing)."""
  found: dict[Kept, set[int]] = {}
  for key in places.find(places.join(address, STEPS)):
    match = _NOTE.fullmatch(key)
    if match is not None:
      kept = Kept(int(match[1]), match[2], int(match[4]))
      found.setdefault(kept, set()).add(int(match[3]))
  whole = {
    kept for kept, indices in found.items() if len(indices) == kept.count
  }
  return {kept.step: kept for kept in sorted(whole)}, found.keys() - whole


def list_files(folder: str, index: int, count: int) -> list[str]:
  """Returns the files of a step's folder that this process sends.

  If there are several processes, each wrote to folders of its own, which
  storage.merge merges after they are fetched.
  """
  keys = sorted(
    os.path.relpath(os.path.join(inside, name), folder)
    for inside, _, names in os.walk(folder)
    for name in names
  )
  if count == 1:
    return keys
  own = {f"ocdbt.process_{index}", f"process_{index}"}
  if index:
    return [key for key in keys if own & set(key.split(os.sep))]
  merged = tuple(os.path.join(contents.STATE, n) for n in contents.MERGED)
  return [key for key in keys if not key.startswith(merged)]


def send_step(
  address: str,
  folder: str,
  kept: Kept,
  index: int,
  before_note: Callable[[], object],
) -> None:
  """Sends the files of a step that this process wrote, and then its note."""
  at = _data_of(address, kept, index)
  keys = list_files(folder, index, kept.count)

  def send(key: str) -> tuple[str, list]:
    path = os.path.join(folder, key)
    row = [os.path.getsize(path), _hash(path)]
    places.put(path, places.join(at, key))
    return key, row

  note = {"files": dict(places.each(send, keys))}
  before_note()
  text = json.dumps(files.seal(note), indent=1).encode()
  places.write(places.join(address, note_of(kept, index)), text)


def fetch_step(address: str, kept: Kept, into: str, is_wanted=None) -> None:
  """Fetches the files of a step into a folder, and checks their hashes.

  Args:
    is_wanted: function of a file's path in the step that tells whether to fetch
      it; None fetches all files.

  Raises:
    Damage: a note or a file is not what was sent.
    Unreached: a note or a file no longer exists, or the store is unreachable.
  """
  wanted = [
    (places.join(_data_of(address, kept, index), key), key, row)
    for index, rows in enumerate(read_notes(address, kept))
    for key, row in rows.items()
    if is_wanted is None or is_wanted(key)
  ]

  def fetch(one: tuple[str, str, list]) -> None:
    at, key, (size, expected) = one
    path = os.path.join(into, key)
    places.fetch(at, path)
    if os.path.getsize(path) != size or _hash(path) != expected:
      raise Damage(f"{at} is not what was sent")

  places.each(fetch, wanted)
  state = os.path.join(into, contents.STATE)
  if kept.count > 1 and os.path.isdir(state):
    from gpt_jax.runs import storage

    storage.merge(state, kept.count)


def read_notes(address: str, kept: Kept) -> list[dict[str, list]]:
  """Returns {path in the step: [size, hash]} for each process.

  Raises:
    Damage: a note is not what a run writes.
  """
  found = []
  for key in kept.notes():
    note = files.parse_json(places.read(places.join(address, key)))
    rows = note.get("files") if isinstance(note, dict) else None
    if not isinstance(rows, dict) or note != files.seal(note):
      raise Damage(f"{places.join(address, key)} is damaged")
    for path in rows:
      # The path comes from a bucket, and a file will be written there.
      if os.path.isabs(path) or ".." in path.split("/"):
        raise Damage(f"{places.join(address, key)} names {path!r}")
    found.append(rows)
  return found


def count_bytes(address: str, kept: Kept) -> int:
  rows = [row for note in read_notes(address, kept) for row in note.values()]
  return sum(size for size, _ in rows)


def drop_step(address: str, kept: Kept) -> None:
  """Removes a step, its notes first."""
  try:
    notes = read_notes(address, kept)
  except (Damage, places.Unreached):
    notes = []  # its files are removed when the next run begins
  for key in kept.notes():
    places.remove(places.join(address, key))
  keys = [
    places.join(_data_of(address, kept, index), key)
    for index, rows in enumerate(notes)
    for key in rows
  ]
  places.each(places.remove, keys)


def sweep(address: str, steps: dict[int, Kept], torn: set[Kept]) -> None:
  """Removes incomplete steps' notes, and files that belong to no step."""
  for kept in torn:
    for key in kept.notes():
      places.remove(places.join(address, key))
  alive = {f"{kept.step}/{kept.tag}" for kept in steps.values()}
  at = places.join(address, DATA)
  gone = [k for k in places.find(at) if "/".join(k.split("/")[:2]) not in alive]
  places.each(places.remove, [places.join(at, key) for key in gone])


def fetch_rows(address: str, path: str) -> None:
  """Writes the rows at an address to a file, if there are any."""
  parts: dict[str, list[tuple[int, str]]] = {}
  for key in places.find(places.join(address, METRICS)):
    match = _ROWS.fullmatch(key)
    if match is not None:
      parts.setdefault(match[1], []).append((int(match[2]), key))
  # The rows of a later tag begin with a copy of the valid earlier rows.
  whole = [tag for tag, found in parts.items() if min(found)[0] == 0]
  if not whole:
    return
  data = b""
  for start, key in sorted(parts[max(whole)]):
    if start != len(data):
      break  # a part is missing, so later ones are useless
    data += places.read(places.join(address, METRICS, key))
  files.write_bytes(path, data)


def send_rows(address: str, tag: str, start: int, data: bytes) -> None:
  """Sends the rows from byte `start` on."""
  places.write(places.join(address, METRICS, f"{tag}.{start:012d}.jsonl"), data)


def drop_rows(address: str, before: str) -> None:
  """Removes rows of earlier tags."""
  at = places.join(address, METRICS)
  gone = [key for key in places.find(at) if key[: len(before)] < before]
  places.each(places.remove, [places.join(at, key) for key in gone])


def _data_of(address: str, kept: Kept, index: int) -> str:
  return places.join(address, DATA, str(kept.step), kept.tag, str(index))


def _hash(path: str) -> str:
  with open(path, "rb") as file:
    return digest.of_file(file)
