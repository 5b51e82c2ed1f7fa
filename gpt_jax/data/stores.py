"""Prepared folders in a bucket: downloads them, or uploads new ones.

They are written and read in a folder of the local cache, by the same code as
any folder. An object store has no rename, so the manifest is uploaded last: a
set without one counts as missing, and is written again.

Design choice: a set is fetched whole. Windows are read in a random order over
all of it, so a machine needs all of it soon, and a part would be fetched and
dropped over and over.
"""

import os
import shutil

from gpt_jax.data import folders
from gpt_jax.machine import cache, places

MANIFEST = "manifest.json"


def local_dir(dir: str) -> str:
  """Returns the local folder that stands for an address in data.dir."""
  path = cache.hold(cache.name_of(dir, "sets"))
  places.call_by(path, dir)
  return path


def is_prepared(at: str) -> bool:
  """Returns whether there is a complete set at an address."""
  return places.read_if_there(places.join(at, MANIFEST)) is not None


def bring(address: str, dir: str, name: str) -> None:
  """Fetches a prepared folder, if it is at the address.

  Args:
    address: data.dir, as the user gave it.
    dir: as local_dir returns it.
    name: of the folder; at the address it may end in folders.APART.
  """
  for full in (name, name + folders.APART):
    at = places.join(address, full)
    if is_prepared(at):
      _fetch(at, os.path.join(dir, full))
      return


def bring_shards(address: str, dir: str, name: str) -> None:
  """Fetches what other machines encoded of a set (`--shard=I/N`)."""
  found = places.find(address)
  start = f"{name}.shard-"
  for shard in sorted({k.split("/")[0] for k in found if k.startswith(start)}):
    if not os.path.isdir(os.path.join(dir, shard)):
      _fetch(places.join(address, shard), os.path.join(dir, shard))


def send(address: str, path: str) -> None:
  """Uploads a folder, its manifest last, unless it is there already."""
  at = places.join(address, os.path.basename(path))
  if is_prepared(at):
    return
  keys = [
    os.path.relpath(os.path.join(folder, name), path)
    for folder, _, names in os.walk(path)
    for name in names
  ]
  put = lambda key: places.put(os.path.join(path, key), places.join(at, key))
  places.each(put, [key for key in keys if key != MANIFEST])
  if MANIFEST in keys:
    put(MANIFEST)


def _fetch(at: str, path: str) -> None:
  found = places.find(at)
  temporary = f"{path}.{os.getpid()}.fetched"
  cache.make_room(sum(one.size for one in found.values()))
  fetch = lambda key: places.fetch(
    places.join(at, key), os.path.join(temporary, key), found[key]
  )
  try:
    places.each(fetch, list(found))
    os.rename(temporary, path)
  except OSError:
    if not folders.is_prepared(path):  # another process was faster
      raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
