"""Arrays on disk: Orbax behind one door, kept quiet and within bounds.

Nothing else imports Orbax or TensorStore. Three habits of theirs are mended
here: they log what they raise, they take a path for a pattern, and they leak
memory with every save.
"""

import functools
import logging
import os
import pathlib
import re
import sys
import tempfile
import threading
import traceback
from typing import Any

import jax

from gpt_jax import tree
from gpt_jax.files import Damage

STATE, META = "state", "meta"
# Characters of a path that neither glob nor TensorStore reads as more than
# themselves.
_PLAIN = re.compile(r"[\w ./+=,@-]*")


_IMPORTING = threading.Lock()


def import_orbax():
  """Returns orbax.checkpoint, which takes a second the first time."""
  with _IMPORTING:
    _hush_orbax()
    import orbax.checkpoint as ocp

    bound_memory()
  return ocp


# One of these is in the traceback or the text of whatever Orbax leaves behind.
_SIGNS = (f"{os.sep}orbax{os.sep}", "TensorStore", "OCDBT", "loop is closed")


@functools.cache
def _hush_orbax() -> None:
  """Keeps off the terminal what Orbax prints about errors that it raises.

  It logs them with tracebacks through absl. And after one read or write has
  failed, it leaves the others to asyncio's log, or to end in a loop that is
  closed, in threads of TensorStore, where Python can but print them.
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
  """Keeps saves from growing the process by 25 KiB and more each.

  TensorStore 0.1.86 never frees the text of what it hands to Python as JSON
  (tests/orbax_memory.py shows it by itself). Orbax asks for such JSON at each
  save: for counters of bytes, which only its log shows, and for the address of
  each leaf, which for a local folder is what was put in.
  """
  from orbax.checkpoint._src.serialization import tensorstore_utils

  tensorstore = getattr(tensorstore_utils, "ts", None)
  count = "get_tensorstore_raw_bytes"
  if tensorstore is None or not hasattr(tensorstore_utils, count):
    return  # a version of Orbax that is laid out otherwise
  store = _Overlay(tensorstore.KvStore, Spec=_make_spec)
  changed = {
    "ts": _Overlay(tensorstore, KvStore=store),
    count: lambda *_, **__: 0,
  }
  for name, value in changed.items():
    setattr(tensorstore_utils, name, value)


class _Overlay:
  """An object, but for the attributes that are given here."""

  def __init__(self, below, **attributes):
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


def open_manager(directory: str):
  """Returns a CheckpointManager that deletes nothing by itself.

  Args:
    directory: of checkpoints; made if absent.
  """
  ocp = import_orbax()
  os.makedirs(directory, exist_ok=True)
  return ocp.CheckpointManager(
    plain_path(directory),
    item_handlers={STATE: _state_handler(), META: ocp.JsonCheckpointHandler()},
    options=ocp.CheckpointManagerOptions(
      # What may go is decided once the newer step has been opened.
      preservation_policy=ocp.checkpoint_managers.EveryNSteps(1),
      cleanup_tmp_directories=True,
      save_root_metadata=False,
      lightweight_initialize=True,
    ),
  )


def start_save(manager: Any, step: int, flat: dict, meta: dict) -> None:
  """Starts to save {"a/b": leaf} and the JSON beside it."""
  ocp = import_orbax()
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


def _state_handler():
  # Weights shrink by 7 % and take three times as long to write compressed.
  return import_orbax().PyTreeCheckpointHandler(use_compression=False)


def read_arrays(directory: str, step: int, flat: dict) -> list:
  """Returns the leaves of a step in the order of {"a/b": abstract leaf}.

  Raises:
    Damage: they cannot be read.
  """
  ocp = import_orbax()
  item = _nest(flat)
  try:
    restored = _state_handler().restore(
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
    raise Damage(f"its arrays are unreadable ({short(error)})") from None


def list_leaves(directory: str, step: int) -> set[str]:
  """Returns the names of the arrays that a step's index holds.

  Reads the index alone: a few milliseconds, whatever the size of the arrays.

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
    raise Damage(f"its arrays are unreadable ({short(error)})") from None
  ending = "/.zarray"
  return {
    name.removesuffix(ending).replace(".", "/")
    for name in names
    if name.endswith(ending)
  }


# {(device, inode): path} of folders whose own path is not plain.
_ALIASES: dict[tuple[int, int], str] = {}


def plain_path(directory: str) -> str:
  """Returns a path of an existing folder that is nothing but a path.

  Orbax looks for what it has written by glob, in which brackets anywhere above
  are a pattern, and TensorStore reads some paths as addresses. Where a path
  has such characters, it is given by a descriptor of the opened folder
  instead. The descriptor stays open: TensorStore caches by path, so that a
  number must not be given to another folder later.
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
    # No Linux: a link in a folder of this process alone.
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
