"""The traced train step, stored, so that a later start need not trace it again.

Tracing and lowering a step take a second of Python. jax's own cache of compiled
programs is looked up by the result, so it saves none of it. What is stored here
is the StableHLO module of `jax.export`, in the cache folder, under a hash of
all that tracing depends on; jax's cache then finds the compiled program.

Design choice: not `jax.experimental.serialize_executable`, which pickles, and
whose programs cannot be stored again once they came from a cache on a CPU. Nor
`Exported.serialize`, which needs another package: of an Exported only the
module's bytes are stored, and all else is taken from an export of a function of
the same arguments and results that does nothing.

A file is used only if its digest matches. No fault of the cache fails a
run: the step is then traced.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from gpt_jax import config as config_lib
from gpt_jax import digest, files
from gpt_jax.config import Config, InputError
from gpt_jax.machine import meeting, runtime

# Number of files that are kept, the most recently written.
MOST = 64
MAX_BYTES = 64 << 20
# Fields of an Exported in which a step must equal one that does nothing.
_SHARED = (
  "in_tree",
  "in_avals",
  "in_shardings_hlo",
  "out_tree",
  "out_avals",
  "out_shardings_hlo",
  "nr_devices",
  "platforms",
  "ordered_effects",
  "unordered_effects",
  "uses_global_constants",
  "calling_convention_version",
)


def is_served(mesh: Any) -> bool:
  """Returns whether steps on this mesh are stored: one CPU device."""
  is_alone = mesh.size == 1 and jax.process_count() == 1
  return is_alone and mesh.devices.flat[0].platform == "cpu"


def path_of(config: Config, mesh: Any, teacher: Any = None) -> str:
  """Returns the path of a config's step: a hash of all that tracing depends on.

  Args:
    teacher: the Teacher of the step, whose model is in another run's config.
  """
  device = mesh.devices.flat[0]
  content = [
    {key: repr(value) for key, value in config_lib.flatten(config).items()},
    meeting.own_facts(),
    {name: repr(value) for name, value in jax.config.values.items()},
    runtime.compile_facts(),
    [device.device_kind, device.client.platform_version],
    repr(teacher),
  ]
  name = digest.of_json(content)[:32]
  return os.path.join(runtime.cache_dir(), "steps", name)


def lower(
  path: str, wrap: Callable, step: Callable, abstract: Any, batch: Any
) -> jax.stages.Lowered | None:
  """Returns the lowered step, read from `path`, or traced and written there.

  None if the step cannot be stored: the caller then lowers it directly.

  Args:
    path: from path_of.
    wrap: jax.jit with donated arguments and shardings of the results.
    step: (state, batch) -> (state, scalars by name).
    abstract, batch: its abstract arguments.
  """
  try:
    exported = _read(path, wrap, abstract, batch)
    if exported is None:
      exported = export.export(wrap(step))(abstract, batch)
      exported = _write(path, exported, wrap, abstract, batch)
    return wrap(exported.call).lower(abstract, batch)
  except InputError:
    raise
  except Exception:  # the file is damaged, or jax cannot export it
    _remove(path)
    return None


def _read(path: str, wrap, abstract, batch) -> export.Exported | None:
  try:
    data = files.read_bytes(path, MAX_BYTES)
  except files.Damage as damage:
    if not damage.is_missing:
      _remove(path)
    return None
  seal, _, rest = data.partition(b"\n")
  if seal != digest.of_bytes(rest).encode():
    _remove(path)
    return None
  head, _, module = rest.partition(b"\n")
  about = files.parse_json(head)
  like = _export_nothing(wrap, abstract, batch, about["metrics"])
  return _put_into(like, module, about["arguments"])


def _write(
  path: str, exported: export.Exported, wrap, abstract, batch
) -> export.Exported:
  """Stores a step that differs from an empty one by module and arguments alone.

  Any other is returned as it is. A stored one is returned in the form in which
  _read returns it later: an Exported fresh from jax has private fields that a
  read one lacks, and lowers to another text. That text is jax's key for the
  compiled program, so both must be the same.
  """
  avals = exported.out_tree.unflatten(exported.out_avals)[1]
  metrics = {name: str(aval.dtype) for name, aval in avals.items()}
  like = _export_nothing(wrap, abstract, batch, metrics)
  if any(getattr(like, name) != getattr(exported, name) for name in _SHARED):
    return exported
  module = exported.mlir_module_serialized
  arguments = exported.module_kept_var_idx
  about = {"metrics": metrics, "arguments": arguments}
  rest = json.dumps(about).encode() + b"\n" + module
  if len(rest) >= MAX_BYTES:
    return exported
  with contextlib.suppress(OSError):
    files.write_bytes(path, digest.of_bytes(rest).encode() + b"\n" + rest)
    _prune(os.path.dirname(path))
  return _put_into(like, module, arguments)


def _put_into(like: export.Exported, module: bytes, arguments: Sequence[int]):
  """Returns `like` with the module of a step and the arguments it uses."""
  return dataclasses.replace(
    like, mlir_module_serialized=module, module_kept_var_idx=tuple(arguments)
  )


def _export_nothing(wrap, abstract, batch, metrics: dict) -> export.Exported:
  """Returns a step that changes nothing, exported: it takes no time to trace.

  Args:
    metrics: {name: dtype} of its metrics.
  """
  zeros = {name: jnp.zeros((), dtype) for name, dtype in metrics.items()}
  return export.export(wrap(lambda state, _: (state, zeros)))(abstract, batch)


def _prune(folder: str) -> None:
  with os.scandir(folder) as entries:
    found = [(entry.stat().st_mtime, entry.path) for entry in entries]
  for _, path in sorted(found)[:-MOST]:
    _remove(path)


def _remove(path: str) -> None:
  with contextlib.suppress(OSError):
    os.remove(path)
