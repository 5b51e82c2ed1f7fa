"""Reads and writes arrays: the only module that imports Orbax and TensorStore.

It works around three of their faults: they log the errors that they raise, they
interpret a path as a pattern or an address, and they leak memory at each save.
"""

import functools
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import traceback
from typing import Any

import jax
import numpy as np

from gpt_jax import encryption, tree
from gpt_jax.files import Damage
from gpt_jax.machine import signals
from gpt_jax.runs.contents import MERGED, META, STATE

# Least limits on the bytes of arrays that are written, or read, concurrently.
MIN_COPIED = 1 << 28
MIN_READ = 1 << 27
# The most bytes of leaves to read in one call; a larger leaf is read alone.
MAX_GROUP = 1 << 24
# Path characters without a special meaning to glob or TensorStore.
_PLAIN = re.compile(r"[\w ./+=,@-]*")


_IMPORTING = threading.Lock()


def import_orbax():
  """Returns orbax.checkpoint, which takes a second the first time."""
  with _IMPORTING:
    _hush_orbax()
    import orbax.checkpoint as ocp

    bound_memory()
  return ocp


# Leftover errors of Orbax contain one of these in their traceback or text.
_SIGNS = (f"{os.sep}orbax{os.sep}", "TensorStore", "OCDBT", "loop is closed")


@functools.cache
def _hush_orbax() -> None:
  """Silences what Orbax prints about errors that it also raises.

  Orbax logs their tracebacks through absl. After one read or write has failed,
  the errors of the others end up in asyncio's log, or are printed by Python
  because they occur in TensorStore's threads, on a closed event loop.
  """

  def is_not_from_orbax(record) -> bool:
    stack = traceback.walk_stack(sys._getframe())
    files = (frame.f_code.co_filename for frame, _ in stack)
    return not any(_SIGNS[0] in file for file in files)

  def is_not_about_orbax(record) -> bool:
    text = record.getMessage()
    if record.exc_info:
      text += "".join(traceback.format_exception(*record.exc_info))
    return not any(sign in text for sign in _SIGNS)

  hook = sys.unraisablehook

  def unraisable(event) -> None:
    error = traceback.format_exception(event.exc_value)
    if not any(sign in "".join(error) for sign in _SIGNS):
      hook(event)

  logging.getLogger("absl").addFilter(is_not_from_orbax)
  logging.getLogger("asyncio").addFilter(is_not_about_orbax)
  sys.unraisablehook = unraisable


@functools.cache
def bound_memory() -> None:
  """Stops a leak of 25 KiB or more per save.

  TensorStore 0.1.86 never frees the text of JSON that it returns to Python
  (tests/orbax_memory.py reproduces this alone). At each save Orbax asks for
  such JSON: for byte counters, which only its log shows, and for the address
  of each leaf, which for a local folder equals the address it passed in.
  """
  from orbax.checkpoint._src.serialization import tensorstore_utils

  tensorstore = getattr(tensorstore_utils, "ts", None)
  count = "get_tensorstore_raw_bytes"
  if tensorstore is None or not hasattr(tensorstore_utils, count):
    return  # another version of Orbax
  store = _Overlay(tensorstore.KvStore, Spec=_make_spec)
  changed = {
    "ts": _Overlay(tensorstore, KvStore=store),
    count: lambda *_, **__: 0,
  }
  for name, value in changed.items():
    setattr(tensorstore_utils, name, value)


class _Overlay:
  """An object with some attributes replaced."""

  def __init__(self, below: Any, **attributes: Any):
    self._below = below
    self.__dict__.update(attributes)

  def __getattr__(self, name: str):
    return getattr(self._below, name)


def _make_spec(spec: dict):
  import tensorstore

  made = tensorstore.KvStore.Spec(spec)
  if spec.keys() == {"driver", "path"} and spec["driver"] == "file":
    return _Overlay(made, to_json=lambda: dict(spec))
  return made


def open_manager(directory: str, flat: dict, is_shared: bool = True):
  """Returns a CheckpointManager that never deletes a step on its own.

  Args:
    directory: of checkpoints; created if absent.
    flat: {"a/b": leaf} of what it will save.
    is_shared: whether all processes share this folder. If not, each writes its
      own part of a step to its own folder, and `merge` merges the parts.
  """
  ocp = import_orbax()
  os.makedirs(directory, exist_ok=True)
  own, later = ocp.options.MultiprocessingOptions(), ocp.options.AsyncOptions()
  if not is_shared:
    # No barriers: if one process cannot write, the others would wait for it in
    # Orbax's threads, and it for them. Folders are not made asynchronously: the
    # message that another process has made its folder would count for this
    # process's folder.
    here = jax.process_index()
    own = ocp.options.MultiprocessingOptions(None, {here}, f"process {here}")
    later.create_directories_asynchronously = False
  handler = _state_handler(_most_copied(flat), own)
  if not is_shared and jax.process_count() > 1:
    # Orbax would look for all arrays in this process's part. Merged arrays are
    # verified by their checksums when they are read.
    handler._handler_impl._enable_post_merge_validation = False
  return ocp.CheckpointManager(
    plain_path(directory),
    item_handlers={
      STATE: handler,
      META: ocp.JsonCheckpointHandler(multiprocessing_options=own),
    },
    options=ocp.CheckpointManagerOptions(
      # Checkpointer.wait deletes steps once a newer one has been opened.
      preservation_policy=ocp.checkpoint_managers.EveryNSteps(1),
      cleanup_tmp_directories=True,
      save_root_metadata=False,
      lightweight_initialize=True,
      create=False,
      multiprocessing_options=own,
      async_options=later,
    ),
  )


def start_save(
  manager: Any, step: int, flat: dict, meta: dict, key: encryption.Key | None
) -> None:
  """Starts to save the leaves {"a/b": leaf} and their record `meta`.

  With a key, each leaf is stored as the bytes of its encrypted values.
  """
  ocp = import_orbax()
  if key is not None:
    flat = {name: _encrypt(name, leaf, key) for name, leaf in flat.items()}
  manager.save(
    step,
    args=ocp.args.Composite(
      **{
        STATE: ocp.args.PyTreeSave(_nest(flat)),
        META: ocp.args.JsonSave(meta),
      }
    ),
    force=True,
  )


def _state_handler(num_bytes: int | None = None, own: Any = None):
  # Compression would save 7 % of space and take three times as long.
  size: Any = None if num_bytes is None else num_bytes / 10**9
  ocp = import_orbax()
  return ocp.PyTreeCheckpointHandler(
    use_compression=False,
    save_concurrent_gb=size,
    restore_concurrent_gb=size,
    multiprocessing_options=own or ocp.options.MultiprocessingOptions(),
  )


def _most_copied(flat: dict) -> int:
  """Returns the limit on bytes that are copied and written concurrently.

  Without a limit, Orbax copies a whole state. A device's shard of a leaf is
  written as a whole, so the limit must be above the largest one.
  """
  parts = [leaf.addressable_shards[0].data.nbytes for leaf in flat.values()]
  return max(MIN_COPIED, *parts) + 1000


def _most_read(flat: dict) -> int:
  """Returns the limit on bytes that are read concurrently, each into a copy.

  It allows for the whole of each leaf at 4 bytes an element: a shard may have
  to be read from a file with the whole leaf, in a wider dtype.
  """
  return max([MIN_READ, *(4 * leaf.size for leaf in flat.values())]) + 1000


def merge(state: str, count: int) -> None:
  """Merges the indices that the processes wrote into the index of a state.

  Raises:
    Damage: the parts cannot be merged.
  """
  import_orbax()
  import tensorstore

  for name in MERGED:
    path = os.path.join(state, name)
    if os.path.isdir(path):
      shutil.rmtree(path)
    elif os.path.exists(path):
      os.unlink(path)
  state = plain_path(state)
  at = lambda path: {
    "driver": "ocdbt",
    "base": {"driver": "file", "path": os.path.join(path, "")},
  }
  parts = [os.path.join(state, f"ocdbt.process_{i}") for i in range(count)]
  # Ranges are copied between stores of one context only.
  own = tensorstore.Context()
  open_ = lambda path: tensorstore.KvStore.open(at(path), context=own).result()
  try:
    whole = open_(state)
    transaction = tensorstore.Transaction(atomic=True)
    into = whole.with_transaction(transaction)
    for part in filter(os.path.isdir, parts):
      open_(part).experimental_copy_range_to(into).result()
    transaction.commit_async().result()
  except Exception as error:
    raise Damage(f"its parts cannot be merged ({short(error)})") from None


def _encrypt(name: str, leaf: jax.Array, key: encryption.Key) -> jax.Array:
  data = encryption.encrypt(np.asarray(leaf).tobytes(), key, name)
  here = jax.local_devices()[0]
  return jax.device_put(np.frombuffer(data, np.uint8), here)


def _decrypt(name: str, stored: jax.Array, leaf, key: encryption.Key):
  """Returns the decrypted array that `leaf` describes; raises Damage."""
  try:
    data = encryption.decrypt(np.asarray(stored).tobytes(), key, name)
  except Damage as damage:
    raise Damage(f"its {name} {damage}") from None
  values = np.frombuffer(data, leaf.dtype).reshape(leaf.shape)
  return jax.device_put(values, leaf.sharding)


def read_encrypted(
  directory: str, step: int, flat: dict, key: encryption.Key
) -> list:
  """As read_arrays, for leaves that were saved with a key."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def stored(leaf):
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    size = encryption.stored_size(size)
    return jax.ShapeDtypeStruct((size,), np.uint8, sharding=here)

  wanted = {name: stored(leaf) for name, leaf in flat.items()}
  found = read_arrays(directory, step, wanted)
  pairs = zip(flat.items(), found, strict=True)
  return [_decrypt(name, data, leaf, key) for (name, leaf), data in pairs]


def group_leaves(flat: dict) -> list[dict]:
  """Returns groups of leaves to read together; a large leaf is alone.

  Orbax holds a copy of what it reads. A caller that frees memory after each
  group holds the copy of one group at a time. The largest leaves come first,
  while little else is in memory: reading GPT-2 124M (.50 GB) takes .63 GB in
  groups and 1.00 GB at once. Several processes read everything at once, since
  each read synchronizes them.
  """
  if jax.process_count() > 1:
    return [flat]
  size_of = lambda leaf: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
  groups: list[dict] = [{}]
  size = 0
  for name in sorted(flat, key=lambda name: size_of(flat[name]), reverse=True):
    own = size_of(flat[name])
    if groups[-1] and size + own > MAX_GROUP:
      groups.append({})
      size = 0
    groups[-1][name] = flat[name]
    size += own
  return groups


def read_arrays(directory: str, step: int, flat: dict) -> list:
  """Returns the leaves of a step in the order of {"a/b": abstract leaf}.

  Raises:
    Damage: the arrays cannot be read.
  """
  ocp = import_orbax()
  item = _nest(flat)
  try:
    restored = _state_handler(_most_read(flat)).restore(
      pathlib.Path(plain_path(directory), str(step), STATE),
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
      ),
    )
    restored = tree.flatten_with_names(restored)
    return [restored[name] for name in flat]
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # the machine's fault, not the file's
  except Exception as error:
    signals.require_uninterrupted()
    raise Damage(f"its arrays are unreadable ({short(error)})") from None


def list_leaves(directory: str, step: int) -> set[str]:
  """Returns the names of the arrays in a step's index.

  Reads only the index: a few milliseconds, whatever the size of the arrays.

  Raises:
    Damage: there is no index, or it cannot be read.
  """
  import_orbax()
  import tensorstore

  path = os.path.join(plain_path(directory), str(step), STATE, "")
  spec = {"driver": "ocdbt", "base": {"driver": "file", "path": path}}
  try:
    if not os.path.isfile(f"{path}manifest.ocdbt"):
      raise Damage(f"{STATE}/manifest.ocdbt does not exist")
    keys = tensorstore.KvStore.open(spec).result().list().result()
    names = [key.decode() for key in keys]
  except Damage:
    raise
  except Exception as error:
    signals.require_uninterrupted()
    raise Damage(f"its arrays are unreadable ({short(error)})") from None
  ending = "/.zarray"
  return {
    name.removesuffix(ending).replace(".", "/")
    for name in names
    if name.endswith(ending)
  }


# {(device, inode): alias} of folders whose own path is not plain.
_ALIASES: dict[tuple[int, int], str] = {}


def plain_path(directory: str) -> str:
  """Returns a path to an existing folder without special characters.

  Orbax finds its files by glob, to which brackets anywhere in the path are a
  pattern, and TensorStore reads some paths as addresses. A path with such
  characters is replaced by /proc/self/fd/N of the opened folder. The descriptor
  stays open: TensorStore caches by path, so N must not be reused.
  """
  path = os.path.abspath(directory)
  if _PLAIN.fullmatch(path):
    return path
  handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  found = os.fstat(handle)
  key = found.st_dev, found.st_ino
  if key in _ALIASES:
    os.close(handle)
    return _ALIASES[key]
  alias = f"/proc/self/fd/{handle}"
  if not (os.path.isdir(alias) and os.path.samefile(alias, path)):
    # Not Linux: a link in a temporary folder of this process.
    alias = os.path.join(tempfile.mkdtemp(prefix="gpt_jax-"), "checkpoints")
    os.symlink(path, alias)
  _ALIASES[key] = alias
  return alias


def _nest(flat: dict) -> dict:
  """Returns {"a": {"b": leaf}} of {"a/b": leaf}."""
  nested: dict = {}
  for name, leaf in flat.items():
    *folders, last = name.split("/")
    node = nested
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return nested


def short(error: BaseException) -> str:
  """Returns the first line of an error, at most 80 characters."""
  first = f"{type(error).__name__}: {error}".splitlines()[0]
  return first if len(first) <= 80 else f"{first[:77]}..."
