"""The run contract: the files of a workdir, and how a finished run is opened.

config.json    resolved config, commit, versions, fingerprints
metrics.jsonl  one JSON object per line
tokenizer.json, checkpoints/, samples/, plots/, tensorboard/, profile/
"""

import contextlib
import functools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import Config, InputError
from gpt_jax.machine import runtime
from gpt_jax.runs import scratch

# Keys, or prefixes of keys, that a reader of a finished run may override.
OVERRIDABLE = ("mesh.", "data.dir")
# Seconds within which a shared disk shows one machine's file to all others.
SHARED_SECONDS = 60.0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_config(
  workdir: str,
  config: Config,
  data_fingerprint: str,
  tokenizer_fingerprint: str | None,
  labels: Any = None,
  others: dict[str, Any] | None = None,
) -> None:
  """Writes config.json atomically, sealed by a digest of its content.

  Args:
    tokenizer_fingerprint: None in a branch of a run that recorded none.
    labels: the run's data.labels.Labels, or None.
    others: {name of a bases.Role: the bases.Base in that role, or None}.
  """
  import importlib.metadata  # slow to import, and no --help needs it

  record = {
    "config": config_lib.flatten(config),
    "fingerprint": config_lib.fingerprint(config),
    "data_fingerprint": data_fingerprint,
    "tokenizer_fingerprint": tokenizer_fingerprint,
    "commit": find_commit(),
    "versions": {
      "gpt_jax": gpt_jax.__version__,
      "python": sys.version.split()[0],
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }
  if labels is not None:
    record["labels"] = {"kind": labels.kind, "classes": list(labels.classes)}
  for name, base in (others or {}).items():
    if base is not None:
      record[name] = base._asdict()
  text = json.dumps(files.seal(record), indent=2) + "\n"
  files.write_text(os.path.join(workdir, "config.json"), text)


def has_record(workdir: str) -> bool:
  """Returns whether there is a run at a path or an address."""
  return os.path.lexists(os.path.join(scratch.local(workdir), "config.json"))


def read_record(workdir: str) -> dict:
  """Returns config.json.

  Raises:
    InputError: there is no run in this folder, or its record is damaged.
  """
  workdir = scratch.local(workdir)
  path = os.path.join(workdir, "config.json")
  try:
    record = files.read_json(path)
  except files.Damage as error:
    if not os.path.lexists(path):
      what = "is not a folder" if os.path.exists(workdir) else "does not exist"
      inside = "has no config.json" if error.is_missing else str(error)
      what = inside if os.path.isdir(workdir) else what
      told = f"{workdir} {what}; give the --workdir of a training run"
      raise InputError(told) from None
    raise _damaged(path, str(error)) from None
  texts = "data_fingerprint", "fingerprint"
  if not (
    isinstance(record, dict)
    and isinstance(record.get("config"), dict)
    and all(isinstance(record.get(name), str) for name in texts)
  ):
    raise _damaged(path, "is not the JSON that a run writes")
  # Runs of earlier versions are not sealed: see read_values.
  if "digest" in record and record != files.seal(record):
    raise _damaged(path, "does not match its own digest")
  return record


def _damaged(path: str, clause: str) -> InputError:
  return InputError(
    f"{path} is damaged: it {clause}; restore the file that the run wrote, or "
    "give another --workdir"
  )


def read_values(workdir: str) -> dict:
  """Returns a run's config as nested values, like cli.load_config.

  Raises:
    InputError: as read_record; or the values are of another version, or not
      those that the run was started with.
  """
  path = os.path.join(workdir, "config.json")
  record = read_record(workdir)
  try:
    nested = config_lib.nest(record["config"])
  except ValueError as error:
    raise _damaged(path, str(error)) from None
  try:
    config = config_lib.freeze(nested)
  except InputError as error:
    commit = record.get("commit")
    hint = f"; the run is of commit {commit}, which reads it" if commit else ""
    raise InputError(f"{path}: {error}{hint}") from None
  is_sealed = "digest" in record
  if not is_sealed and record["fingerprint"] != config_lib.fingerprint(config):
    raise _damaged(path, "does not match its own fingerprint")
  return nested


def read_config(
  workdir: str, overrides: dict[str, str] | None = None
) -> Config:
  """Returns the config of a run; overrides may change OVERRIDABLE keys.

  Raises:
    InputError: as read_values, or a key cannot be changed.
  """
  from gpt_jax import cli

  values = read_values(workdir)
  for dotted, text in (overrides or {}).items():
    if dotted in config_lib.KEYS and not dotted.startswith(OVERRIDABLE):
      raise InputError(
        f"{dotted} is part of the run in {workdir} and cannot be changed "
        "here; mesh.* and data.dir can"
      )
    cli.set_key(values, dotted, text)
  return config_lib.freeze(values)


def read_tokenizer(workdir: str):
  """Returns the tokenizer of a run.

  Raises:
    InputError: it is missing, damaged, or not the one that the run was
      trained with.
  """
  from gpt_jax.data import tokenizers

  path = os.path.join(scratch.local(workdir), "tokenizer.json")
  tokenizer = tokenizers.load(path)
  recorded = read_record(workdir).get("tokenizer_fingerprint")
  if recorded is not None and recorded != tokenizer.fingerprint():
    raise InputError(
      f"{path} is another tokenizer ({tokenizer.name}, {tokenizer.vocab_size} "
      f"tokens, {tokenizer.fingerprint()[:12]}) than this run was trained with "
      f"({recorded[:12]} in config.json); restore that one"
    )
  return tokenizer


def read_labels(workdir: str):
  """Returns the data.labels.Labels that a run learns, or None.

  Raises:
    InputError: as read_record.
  """
  from gpt_jax.data import labels as labels_lib

  found = read_record(workdir).get("labels")
  if found is None:
    return None
  try:
    return labels_lib.Labels(found["kind"], tuple(found["classes"]))
  except (KeyError, TypeError):
    path = os.path.join(workdir, "config.json")
    raise _damaged(path, "has labels without their classes") from None


def read_base(workdir: str, name: str = "base"):
  """Returns the bases.Base in a role that a run's record names, or None.

  Args:
    name: of the bases.Role: "base", which the run adapts or is compared with,
      or "teacher".

  Raises:
    InputError: as read_record.
  """
  from gpt_jax.runs import bases

  found = read_record(workdir).get(name)
  if found is None:
    return None
  try:
    return bases.Base(int(found["step"]), str(found["fingerprint"]))
  except (KeyError, TypeError, ValueError):
    path = os.path.join(workdir, "config.json")
    raise _damaged(path, f"has a {name} without its step") from None


def facts_of(config: Config, prepared: Any) -> dict[str, str]:
  """Returns the integrity.FACTS that each checkpoint of a run stores."""
  return {
    "config_fingerprint": config_lib.fingerprint(config),
    "data_fingerprint": prepared.fingerprint,
    "tokenizer_fingerprint": prepared.tokenizer.fingerprint(),
  }


def read_facts(workdir: str) -> dict[str, str | None]:
  """Returns a run's integrity.FACTS from its config.json.

  {} for a folder without config.json; a value is None if an earlier version
  did not record it.
  """
  if not has_record(workdir):
    return {}
  record = read_record(workdir)
  return {
    "config_fingerprint": record["fingerprint"],
    "data_fingerprint": record["data_fingerprint"],
    "tokenizer_fingerprint": record.get("tokenizer_fingerprint"),
  }


def check_same_run(workdir: str, config: Config, data_fingerprint: str) -> None:
  """Raises InputError if a run's config, data or tokenizer differ."""
  record = read_record(workdir)
  keys = config_lib.differing_keys(read_config(workdir), config)
  if keys:
    raise InputError(
      f"{workdir} was made with another config: {'; '.join(keys)}; give "
      "another --workdir"
    )
  if record["data_fingerprint"] != data_fingerprint:
    raise InputError(
      f"{workdir} was trained on other data (prepared set "
      f"{record['data_fingerprint'][:12]} there, {data_fingerprint[:12]} here);"
      " give another --workdir"
    )
  read_tokenizer(workdir)


def await_file(path: str) -> None:
  """Waits until a file written by process 0 appears on this machine.

  Raises:
    InputError: it does not: the folder is not on a shared disk.
  """
  deadline = time.monotonic() + SHARED_SECONDS
  while not os.path.isfile(path):
    if time.monotonic() > deadline:
      raise InputError(
        f"{path} was written by process 0 and is not seen here on "
        f"{socket.gethostname()}; --workdir must be on a disk that all "
        "processes share"
      )
    # Listing the folder makes a network disk forget that the file was absent.
    with contextlib.suppress(OSError):
      os.listdir(os.path.dirname(path))
    time.sleep(0.1)


def find_commit(source: str = gpt_jax.__file__) -> str | None:
  """Returns the commit of this package, with "+" if tracked files changed.

  It is read from the repository, if that tracks the package's __init__.py (an
  installed package may be inside another repository); else from the _commit.txt
  that `git archive` wrote; else it is None.

  Args:
    source: the package's __init__.py.
  """
  import subprocess

  here = os.path.dirname(os.path.abspath(source))
  top = os.path.dirname(here)
  # GIT_DIR and the like would select another repository.
  environment = runtime.environment_without("GIT_")
  git = lambda *words: subprocess.run(
    ["git", "-C", top, *words],
    capture_output=True,
    text=True,
    timeout=10,
    env=environment,
    errors="replace",
  )
  try:
    found = git("rev-parse", "--show-toplevel", "HEAD")
    lines = found.stdout.splitlines()
    tracked = git("ls-files", "--error-unmatch", "--", os.path.abspath(source))
    is_ours = (
      found.returncode == tracked.returncode == 0
      and len(lines) == 2
      and os.path.realpath(lines[0]) == os.path.realpath(top)
    )
    if is_ours:
      changed = git("status", "--porcelain", "--untracked-files=no").stdout
      return lines[1] + ("+" if changed.strip() else "")
  except (OSError, subprocess.TimeoutExpired):
    pass
  try:
    archived = files.read_text(os.path.join(here, "_commit.txt"), 1 << 10)
  except files.Damage:
    return None
  is_commit = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", archived.strip())
  return archived.strip() if is_commit else None


def open_run(
  workdir: str,
  overrides: dict[str, str] | None = None,
  say: Callable[[str], None] = print,
  weights: str = "full",
  average: str | None = None,
  step: int | None = None,
):
  """Returns (config, model, params, tokenizer, mesh) of a run, for reading.

  Adapters are merged into the parameters that they adapt. The mesh is the
  config's if it fits the devices here, else all devices along `data`.

  Args:
    overrides: {"a.b": text} of OVERRIDABLE keys.
    weights: an entry of config.WEIGHTS.
    average, step: as in restore.restore_params.
  """
  import dataclasses

  import jax

  from gpt_jax import sharding
  from gpt_jax.models import build_model
  from gpt_jax.runs import restore, rounded

  restore.read_average(average)
  config = read_config(workdir, overrides)
  named = [k for k in overrides or {} if k.startswith("mesh.")]
  try:
    mesh = sharding.make_mesh(config.mesh)
  except InputError:
    if named:
      raise
    alone = dict.fromkeys(sharding.AXES, 1) | {"data": -1}
    config = dataclasses.replace(
      config, mesh=dataclasses.replace(config.mesh, **alone)
    )
    mesh = sharding.make_mesh(config.mesh)
  tokenizer = read_tokenizer(workdir)
  platform = mesh.devices.flat[0].platform
  model = build_model(
    config.model, config.mesh.rules, platform, weights, config.adapter
  )
  read = lambda where, shapes, specs, **which: restore.restore_params(
    where,
    sharding.abstract_of(shapes, specs, config.mesh.rules, mesh),
    say,
    facts=read_facts(where),
    **which,
  )
  read_own = functools.partial(read, workdir, average=average, step=step)
  params = rounded.read_params(workdir, read_record(workdir), model, read_own)
  if model.adapter is not None:
    source, base = _checked_base(workdir, config, model)
    frozen = read(source, *model.abstract_params(), step=base.step)
    params = jax.jit(
      lambda learned, frozen: model.merge(
        model.attach(learned, model.round_base(frozen))
      ),
      donate_argnums=1,
      out_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
    )(params, frozen)
    model = dataclasses.replace(model, adapter=None)
  return config, model, params, tokenizer, mesh


def open_adapters(
  workdir: str,
  say: Callable[[str], None] = print,
  average: str | None = None,
  step: int | None = None,
):
  """Returns (model, adapters, base) of a run, on one device.

  The base is read only for DoRA, and is None otherwise.

  Args:
    average, step: as in restore.restore_params.

  Raises:
    InputError: the run has no adapters.
  """
  import dataclasses

  import jax

  from gpt_jax import sharding
  from gpt_jax.models import build_model
  from gpt_jax.runs import restore

  config = read_config(workdir)
  if not config.adapter.rank.parts:
    raise InputError(f"{workdir} is a run without adapters: it is one model")
  alone = dataclasses.replace(config.mesh, **dict.fromkeys(sharding.AXES, 1))
  mesh = sharding.make_mesh(alone, jax.devices()[:1])
  model = build_model(config.model, alone.rules, adapter=config.adapter)
  read = lambda where, parts, **which: restore.restore_params(
    where,
    sharding.abstract_of(*parts, alone.rules, mesh),
    say,
    facts=read_facts(where),
    **which,
  )
  own = read(workdir, model.abstract_learned(), average=average, step=step)
  if config.adapter.kind == "lora":
    return model, own, None
  source, base = _checked_base(workdir, config, model)
  frozen = read(source, model.abstract_params(), step=base.step)
  return model, own, model.merge(model.round_base(frozen))


def _checked_base(workdir: str, config: Config, model: Any):
  """Returns (workdir of the base, its bases.Base), checked to be unchanged."""
  from gpt_jax import tree
  from gpt_jax.runs import bases

  source, shapes = config.train.init_from, model.abstract_params()[0]
  assert source is not None  # by config/check.py
  described = tree.describe_shapes(shapes)
  return source, bases.check_base(source, described, read_base(workdir))
