"""The reference model's log-probabilities of the answers of preferences.

They are computed once for a whole set and stored beside the prepared data, so
that no train step runs the reference model. The file's name has a digest of all
that its numbers depend on: the parameters of the reference, its model section,
the ids and how they are read. If one of these changes, a new file is written.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import digest, files, judging, objective, sharding, tree
from gpt_jax.config import Config, InputError
from gpt_jax.data import objectives, preferences
from gpt_jax.data.shards import TokenSet
from gpt_jax.inference import scoring
from gpt_jax.machine import processes
from gpt_jax.models import Model, build_model
from gpt_jax.runs import bases, restore
from gpt_jax.runs import workdir as workdir_lib

FORMAT = 1
# Most bytes of a file's first line, its header.
MAX_HEADER = 1 << 12


def is_needed(config: Config) -> bool:
  """Returns whether a run's loss needs stored log-probabilities (as DPO's)."""
  return config_lib.OBJECTIVES[config.data.objective].has_reference


def is_recorded(config: Config) -> bool:
  """Returns whether a run records the step of its reference."""
  return is_needed(config) or config.train.kl_weight > 0


def describe_model(config: Config) -> tuple[Model, dict[str, str]]:
  """Returns (the reference's model, tree.describe_shapes of its parameters)."""
  model = build_model(config.model, config.mesh.rules)
  return model, tree.describe_shapes(model.abstract_params()[0])


def find_of_run(workdir: str, config: Config) -> bases.Base:
  """Returns the reference that a run was begun with.

  Raises:
    InputError: the workdir has no record of a reference.
  """
  found = workdir_lib.read_base(workdir)
  if found is None:
    raise InputError(
      f"{workdir} does not say which step of {config.train.init_from} it was "
      "begun from; restore the config.json that it wrote"
    )
  return found


def attach(
  sets: Sequence[TokenSet],
  config: Config,
  reference: bases.Base,
  mesh: jax.sharding.Mesh,
  say: Callable[[str], None],
) -> None:
  """Gives each set its `reference`, computed and stored where it is missing.

  Args:
    sets: of preferences; empty ones are left alone.
    config: its train.init_from is the workdir of the reference.
    reference: the step of that workdir, and its fingerprint.
    mesh: where it is computed.
    say: prints a line for each set that is computed.

  Raises:
    InputError: log-probabilities are missing, and the reference's step is gone
      or has changed.
  """
  sets = [one for one in sets if one.num_documents]
  paths = {one: _path(one, config, reference) for one in sets}
  layout = objectives.find_layout(config, _no_tokenizer)
  for one, path in paths.items():
    rows = preferences.preference_rows(one, layout, None)
    one.reference = _read(path, rows.num_all)
  missing = [one for one in sets if _is_missing(one)]
  if not missing:
    return
  for one, values in _compute(missing, config, reference, mesh, say).items():
    processes.in_turn(lambda p=paths[one], v=values: _write(p, v))
    one.reference = values


def _path(one: TokenSet, config: Config, reference: bases.Base) -> str:
  section = {
    key: value
    for key, value in config_lib.flatten(config).items()
    if key.startswith("model.") and not config_lib.is_free(key)
  }
  facts = [
    FORMAT,
    reference.fingerprint,
    section,
    one.fingerprint,
    config.data.seq_len,
    config.data.objective,
    *([config.adapter.base] if config.adapter.base != "full" else []),
  ]
  folder, split = os.path.split(one.name)
  beside = os.path.dirname(os.path.abspath(one.folder))
  name = f"{folder}-{split}-{digest.of_json(facts)[:16]}.bin"
  return os.path.join(beside, "references", name)


def _is_missing(one: TokenSet) -> bool:
  """Returns whether some process has not found a set's log-probabilities."""
  is_missing = one.reference is None
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.array(is_missing))
    is_missing = bool(found.any())
  return is_missing


def _read(path: str, num_pairs: int) -> np.ndarray | None:
  """Returns stored log-probabilities; None if they are missing or damaged."""
  try:
    data = files.read_bytes(path, MAX_HEADER + 8 * num_pairs)
    header, _, content = data.partition(b"\n")
    noted = json.loads(header)
    if noted != _header(content, num_pairs):
      return None
  except (files.Damage, OSError, ValueError):
    return None
  return np.frombuffer(content, "<f4").reshape(num_pairs, -1)


def _header(content: bytes, num_pairs: int) -> dict:
  return {
    "format": FORMAT,
    "num_pairs": num_pairs,
    "sha256": digest.of_bytes(content),
  }


def _write(path: str, values: np.ndarray) -> None:
  content = values.astype("<f4").tobytes()
  header = json.dumps(_header(content, len(values))).encode()
  try:
    files.write_bytes(path, header + b"\n" + content)
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror}; the reference's "
      "log-probabilities are stored beside the prepared text: set data.dir to "
      "a folder that can be written"
    ) from error


def _compute(missing, config: Config, reference, mesh, say) -> dict:
  """Returns {set: float32 (pairs, 2)}; NaN for pairs too long for a row."""
  model, _ = describe_model(config)
  model = dataclasses.replace(model, platform=mesh.devices.flat[0].platform)
  params = restore_reference(config, reference, mesh, say)
  task = objectives.build_task(config, _no_tokenizer)
  evaluate = functools.partial(_compile(model), params)
  return {
    one: _score(evaluate, one, config, mesh, task, say) for one in missing
  }


def restore_reference(
  config: Config,
  reference: bases.Base,
  mesh: jax.sharding.Mesh,
  say: Callable[[str], None],
) -> Any:
  """Returns the parameters of the reference on a mesh.

  Raises:
    InputError: the reference's step is gone or has changed.
  """
  source = config.train.init_from
  assert source is not None  # by config/check_preferences.py
  model, shapes = describe_model(config)
  bases.check_base(source, shapes, reference)
  facts = processes.share(lambda: workdir_lib.read_facts(source))
  params = restore.restore_params(
    source,
    sharding.abstract_of(*model.abstract_params(), config.mesh.rules, mesh),
    say,
    facts=facts,
    step=reference.step,
  )
  return params if config.adapter.base == "full" else _round(params, config)


def _round(params: Any, config: Config) -> Any:
  """Returns parameters, rounded as an adapter's frozen base (adapter.base)."""
  mesh = config.mesh
  model = build_model(config.model, mesh.rules, adapter=config.adapter)
  return jax.jit(
    lambda params: model.merge(model.round_base(params)),
    donate_argnums=0,
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params),
  )(params)


def _no_tokenizer() -> Any:
  raise AssertionError("preferences are stored as ids")


@functools.cache
def _compile(model: Model) -> Callable:
  """Returns jitted (params, batch) -> log-probabilities, (B, 2)."""

  def score(params, batch):
    logits_BTV = model.apply(params, **objective.inputs_of(batch, model))
    return judging.answers_of(logits_BTV, batch).log_p_B2

  return jax.jit(score)


def _score(evaluate, one: TokenSet, config: Config, mesh, task, say):
  rows = preferences.preference_rows(one, task.pairs, None)
  found: list[np.ndarray] = []
  t, table = config.train, sharding.RULES[config.mesh.rules]
  shards = int(np.prod([mesh.shape[axis] for axis in table["batch"]]))
  size = t.global_batch_size // t.num_microbatches
  say(
    f"computing the reference's log-probabilities of {rows.num_rows:,} "
    f"preferences of {one.name}, once"
  )
  scoring.run_batches(
    evaluate,
    lambda log_p_B2: found.append(sharding.fetch(log_p_B2)),
    one,
    seq_len=config.data.seq_len,
    batch_size=-(-size // shards) * shards,
    packing=config.data.packing,
    mesh=mesh,
    rules=config.mesh.rules,
    task=task,
  )
  values = np.full((rows.num_all, preferences.SIDES), np.nan, np.float32)
  log_p_P2 = np.concatenate(found)[: rows.num_rows]
  if not np.isfinite(log_p_P2).all():
    raise InputError(
      f"train.init_from is {config.train.init_from!r}, whose log-probabilities "
      f"of {one.name} are not finite; it must be a model that has learned"
    )
  values[rows.pairs] = log_p_P2
  return values
