"""The run contract: what a workdir holds and how a finished run is opened.

config.json    resolved config, commit, versions, fingerprints
metrics.jsonl  one object a row
tokenizer.json, checkpoints/, samples/, plots/, tensorboard/, profile/
"""

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError

# Keys that what reads a finished run may change.
OVERRIDABLE = ("mesh.", "data.dir")
# Seconds until a shared disk shows everywhere what one machine wrote.
SHARED_SECONDS = 60.0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_config(workdir: str, config: Config, data_fingerprint: str) -> None:
  """Writes config.json, atomically."""
  record = {
    "config": config_lib.flatten(config),
    "fingerprint": config_lib.fingerprint(config),
    "data_fingerprint": data_fingerprint,
    "commit": find_commit(),
    "versions": {
      "gpt_jax": gpt_jax.__version__,
      "python": sys.version.split()[0],
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }
  write_text(os.path.join(workdir, "config.json"), json.dumps(record, indent=2))


def read_record(workdir: str) -> dict:
  """Returns config.json.

  Raises:
    InputError: there is no run in this folder, or its record is damaged.
  """
  path = os.path.join(workdir, "config.json")
  if not os.path.isfile(path):
    what = "is not a folder" if os.path.exists(workdir) else "does not exist"
    what = "has no config.json" if os.path.isdir(workdir) else what
    raise InputError(f"{workdir} {what}; give the --workdir of a training run")
  try:
    with open(path, encoding="utf-8") as file:
      record = json.load(file)
    record["config"].items(), record["data_fingerprint"][:12]
  except (ValueError, KeyError, TypeError, AttributeError):
    raise InputError(
      f"{path} is damaged: it must be the JSON that a run has written; put it "
      "back, or give another --workdir"
    ) from None
  return record


def read_config(
  workdir: str, overrides: dict[str, str] | None = None
) -> Config:
  """Returns the config of a run; overrides may change OVERRIDABLE keys."""
  from gpt_jax import cli

  nested: dict = {}
  record = read_record(workdir)
  for dotted, value in record["config"].items():
    node = nested
    *sections, key = dotted.split(".")
    for section in sections:
      node = node.setdefault(section, {})
    node[key] = value
  try:
    config = config_lib.freeze(nested)
  except InputError as error:
    commit = record.get("commit")
    hint = f"; the run is of commit {commit}, which reads it" if commit else ""
    raise InputError(f"{workdir}/config.json: {error}{hint}") from None
  for dotted, text in (overrides or {}).items():
    if dotted in config_lib.KEYS and not dotted.startswith(OVERRIDABLE):
      raise InputError(
        f"{dotted} is part of the run in {workdir} and cannot be changed "
        "here; mesh.* and data.dir can"
      )
    cli.set_key(nested, dotted, text)
  return config_lib.freeze(nested) if overrides else config


def check_same_run(workdir: str, config: Config, data_fingerprint: str) -> None:
  """Raises InputError if the workdir was made by another config or data."""
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


def write_text(path: str, text: str) -> None:
  """Writes a whole file or nothing."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  temporary = f"{path}.{os.getpid()}.tmp"
  try:
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
    os.replace(temporary, path)
  except OSError as error:
    if os.path.exists(temporary):
      os.remove(temporary)
    error.filename = path
    raise


def await_file(path: str) -> None:
  """Returns once a file is seen that process 0 has written.

  Raises:
    InputError: it does not appear: this machine has another disk there.
  """
  deadline = time.monotonic() + SHARED_SECONDS
  while not os.path.isfile(path):
    if time.monotonic() > deadline:
      raise InputError(
        f"{path} was written by process 0 and is not seen here on "
        f"{socket.gethostname()}; --workdir must be on a disk that all "
        "processes share"
      )
    # Listed anew: a network disk may remember for a while that it was absent.
    with contextlib.suppress(OSError):
      os.listdir(os.path.dirname(path))
    time.sleep(0.1)


def find_commit() -> str | None:
  """Returns the commit of this source tree, "+" if changed; None outside."""
  here = os.path.dirname(os.path.abspath(__file__))
  git = lambda *words: subprocess.run(
    ["git", "-C", here, *words], capture_output=True, text=True, timeout=10
  )
  try:
    head = git("rev-parse", "HEAD")
    if head.returncode:
      return None
    changed = git("status", "--porcelain", "--untracked-files=no").stdout
  except (OSError, subprocess.TimeoutExpired):
    return None
  return head.stdout.strip() + ("+" if changed.strip() else "")


def open_run(
  workdir: str,
  overrides: dict[str, str] | None = None,
  say=print,
  weights: str = "full",
  average: str | None = None,
):
  """Returns (config, model, params, tokenizer, mesh) of a run to read from.

  The mesh is the config's where it fits the devices here, else all devices
  along `data`.

  Args:
    weights: word of config.WEIGHTS.
    average: as in checkpoint.restore_params.
  """
  import dataclasses

  import jax

  from gpt_jax import checkpoint, sharding
  from gpt_jax.data import tokenizer as tokenizer_lib
  from gpt_jax.models import build_model

  checkpoint.read_average(average)
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
  tokenizer = tokenizer_lib.load(os.path.join(workdir, "tokenizer.json"))
  platform = mesh.devices.flat[0].platform
  model = build_model(config.model, config.mesh.rules, platform, weights)
  shapes, specs = model.abstract_params()
  placed = sharding.shardings_of(shapes, specs, config.mesh.rules, mesh)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    placed,
  )
  params = checkpoint.restore_params(workdir, abstract, say, average)
  return config, model, params, tokenizer, mesh
