"""Checks that a step on disk is what was saved: files, record and arrays.

Orbax silently restores flipped bits, other dtypes and another run's arrays, and
opens anything (a pipe, a device) in place of a file. So each step has, beside
its arrays, a sealed record with the shapes and checksums of its leaves.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
import stat
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import files, tree
from gpt_jax.files import Damage
from gpt_jax.machine import cores
from gpt_jax.runs import contents, storage

# Leaves with LARGE elements or more are summed in up to MAX_BLOCKS blocks, a
# power of two.
LARGE, MAX_BLOCKS = 1 << 22, 64
# Hexadecimal digits of a leaf's tree.checksum.
DIGITS = 16
# Limit, in bytes, of each file of a step that is not array data.
MAX_BYTES = 256 << 20
# Keys of the record that identify the run, with their names in errors.
FACTS = {
  "config_fingerprint": "config",
  "data_fingerprint": "prepared data",
  "tokenizer_fingerprint": "tokenizer",
}


class Checksum:
  """tree.checksum and a check for NaN, compiled once per kind of leaf.

  A state has hundreds of leaves of a dozen kinds. One program for all of them
  takes longer to compile (0.6 s against 0.4 s at 61 leaves) and runs no faster.
  """

  def __init__(self):
    self._compiled = {}
    self._lock = threading.Lock()

  def __call__(self, leaves: Any) -> tuple[list[str], list[bool]]:
    """Returns each leaf's hexadecimal checksum, and whether it is finite."""
    rows = [self._inspect(leaf) for leaf in jax.tree.leaves(leaves)]
    rows = np.concatenate(jax.device_get(rows)).astype("<u4")
    return [row[:2].tobytes().hex() for row in rows], [*map(bool, rows[:, 2])]

  def _inspect(self, leaf):
    """Returns _inspect_leaf of a leaf, computed in blocks if it is large.

    XLA stores all hashes of a block, so blocks run one after another to bound
    the memory.
    """
    function, blocks = self._compile(leaf), _count_blocks(leaf)
    parts = [function(leaf, np.int32(0))]
    for index in range(1, blocks):
      parts[-1].block_until_ready()
      parts.append(function(leaf, np.int32(index)))
    if cores.are_simulated(leaf.sharding.addressable_devices):
      parts[-1].block_until_ready()
    if blocks == 1:
      return parts[0]
    found = np.concatenate(jax.device_get(parts))
    sums = found[:, :2].sum(0, dtype=np.uint32)
    return np.append(sums, found[:, 2].min())[None]

  @contextlib.contextmanager
  def compiled_beside(self, abstract: Any):
    """Compiles in a thread while the body runs, which mostly reads the disk."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      compiling = pool.submit(self.compile, abstract)
      yield
      compiling.result()

  def compile(self, abstract: Any) -> None:
    """Compiles for the shapes, dtypes and shardings of these leaves."""
    for leaf in jax.tree.leaves(abstract):
      self._compile(leaf)

  def _compile(self, leaf):
    key = leaf.shape, leaf.dtype, leaf.sharding
    with self._lock:
      if key not in self._compiled:
        place = None
        if isinstance(leaf.sharding, NamedSharding):
          # Replicated, as every process reads the result.
          place = NamedSharding(leaf.sharding.mesh, P())
        inspect = functools.partial(_inspect_leaf, blocks=_count_blocks(leaf))
        function = jax.jit(inspect, out_shardings=place)
        index = jax.ShapeDtypeStruct((), np.int32)
        abstract = jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=leaf.sharding
        )
        self._compiled[key] = function.lower(abstract, index).compile()
      return self._compiled[key]


def _count_blocks(leaf) -> int:
  """Returns the number of blocks to sum a leaf in, to bound memory.

  Blocks divide the first dim; if that is sharded, there is one block.
  """
  spec = getattr(leaf.sharding, "spec", ())
  is_split = len(spec) > 0 and spec[0] is not None
  if math.prod(leaf.shape) < LARGE or is_split:
    return 1
  return math.gcd(leaf.shape[0], MAX_BLOCKS)


def _inspect_leaf(x, index, blocks: int):
  """Returns uint32[1, 3]: tree.checksum, and 1 if x is finite, else 0.

  Args:
    index, blocks: as in tree.checksum; both results are of this block.
  """
  is_finite = jnp.bool_(True)
  if jnp.issubdtype(x.dtype, jnp.inexact):
    part = tree.take_block(x, index, blocks) if blocks > 1 else x
    is_finite = jnp.isfinite(part).all()
  flag = is_finite.astype(jnp.uint32).reshape(1, 1)
  return jnp.concatenate([tree.checksum([x], index, blocks), flag], axis=1)


def check_files(directory: str, step: int) -> None:
  """Raises Damage unless a step's folder holds only regular files of its own.

  Opening a pipe or reading a device might never end, so each entry is checked
  before Orbax opens it.
  """
  top = os.path.join(directory, str(step))
  home = os.path.realpath(top)
  folders = [top]
  while folders:
    folder = folders.pop()
    try:
      with os.scandir(folder) as entries:
        for entry in entries:
          name = os.path.relpath(entry.path, top)
          if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.commonpath([home, target]) != home:
              raise Damage(f"{name} is a link that leads outside of the step")
          found = entry.stat()
          if stat.S_ISDIR(found.st_mode):
            if entry.is_symlink():
              raise Damage(f"{name} is a link to a folder")
            folders.append(entry.path)
            continue
          try:
            files.require_regular(found)
          except Damage as damage:
            raise Damage(f"{name} {damage}") from None
          is_data = os.path.basename(folder) == "d"
          if found.st_size > MAX_BYTES and not is_data:
            raise Damage(f"{name} is larger than {MAX_BYTES:,} bytes")
    except OSError as error:
      name = os.path.relpath(error.filename or folder, top)
      raise Damage(f"{name} cannot be read: {error.strerror}") from None


def check_opens(directory: str, step: int) -> None:
  """Raises Damage unless a step can be opened and holds all of its leaves.

  Reads its record and its index, but no array.
  """
  meta = read_meta(directory, step)
  missing = meta["shapes"].keys() - storage.list_leaves(directory, step)
  if missing:
    raise Damage(f"its arrays lack {some(sorted(missing))}")


def read_meta(directory: str, step: int) -> dict:
  """Returns the record of a step, after checking its files.

  Raises:
    Damage: the record cannot be read, or does not match its seal.
  """
  check_files(directory, step)
  path = os.path.join(directory, str(step), contents.META, "metadata")
  name = f"{contents.META}/metadata"
  try:
    meta = files.read_json(path, MAX_BYTES)
  except Damage as damage:
    raise Damage(f"{name} {damage}") from None
  try:
    if meta != files.seal(meta) or meta["step"] != step:
      raise Damage(f"{name} does not match its own digest")
    rows_by_name(meta)
  except Damage:
    raise
  except (ValueError, KeyError, TypeError, AttributeError):
    raise Damage(f"{name} is not the record of a step") from None
  return meta


def is_good(meta: dict) -> bool:
  """Returns whether the record shows a finite state that skips no updates."""
  return not meta.get("nonfinite") and not meta.get("is_skipping", False)


def find_stranger(meta: dict, facts: dict) -> str | None:
  """Returns a clause if a step belongs to another run, else None.

  Args:
    meta: record of the step; those of earlier versions lack some FACTS.
    facts: FACTS of the run in whose folder the step is.
  """
  for key, name in FACTS.items():
    there, here = meta.get(key), facts.get(key)
    if there is not None and here is not None and there != here:
      return f"its {name} is {str(there)[:12]} and the run's {here[:12]}"
  return None


def rows_by_name(meta: dict) -> dict[str, str]:
  """Returns {"a/b": checksum} from a record."""
  text, names = meta["checksum"], meta["shapes"]
  rows = [text[i : i + DIGITS] for i in range(0, len(text), DIGITS)]
  return dict(zip(names, rows, strict=True))


def some(names: list[str]) -> str:
  """Returns the first three of names, and how many more there are."""
  more = len(names) - 3
  return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
