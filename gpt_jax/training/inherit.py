"""Initial parameters from another run: all, the trunk or some layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding, tree
from gpt_jax.config import Config, InputError, ModelConfig
from gpt_jax.machine import processes
from gpt_jax.models import HEADS, build_model
from gpt_jax.models.stack import layer_places
from gpt_jax.runs import restore
from gpt_jax.runs import workdir as workdir_lib
from gpt_jax.training.build import Assembly


def read_params(
  assembly: Assembly,
  labels: Any,
  fresh: dict,
  say: Callable[[str], None],
  step: int | None = None,
) -> dict:
  """Returns initial parameters, read from the run of train.init_from.

  A classifier takes all but the head, unless the other run has learned the
  same labels.

  Args:
    labels: data.labels.Labels of this run, or None.
    fresh: initial parameters, whose head stays where none is taken.
    say: prints which parameters start fresh.
    step: checkpoint of that run; None for the newest.
  """
  source = assembly.config.train.init_from
  assert source is not None
  wanted, rows = assembly.abstract.params, {}
  if assembly.config.train.init_layers != "all":
    wanted, rows = _deep(assembly, source)
  facts = processes.share(lambda: workdir_lib.read_facts(source))
  # Shared as a bool: processes can share JSON, but not Labels.
  has_head = labels is None or processes.share(
    lambda: labels == workdir_lib.read_labels(source)
  )
  ignored = () if has_head else HEADS
  wanted = {k: v for k, v in wanted.items() if k not in ignored}
  params = restore.restore_params(
    source, wanted, say, facts=facts, step=step, ignored=ignored
  )
  if rows:
    params = _take(params, rows)
  head = {k: v for k, v in fresh.items() if k in ignored}
  if head:
    names = ", ".join(tree.flatten_with_names(head))
    say(f"the trunk is that of {source}; the head starts fresh: {names}")
  return params | head


def check_layers(config: Config) -> None:
  """Raises InputError if train.init_layers does not fit (pick_layers)."""
  source = config.train.init_from
  if source is not None and config.train.init_layers != "all":
    pick_layers(config, _read_model(source))


def _read_model(source: str) -> ModelConfig:
  values = processes.share(lambda: workdir_lib.read_values(source))
  return config_lib.freeze(values).model


def pick_layers(config: Config, there: ModelConfig) -> dict[str, list[int]]:
  """Returns {stack: indices in it} of the layers that train.init_layers takes.

  Args:
    there: model section of the other run.

  Raises:
    InputError: a layer does not exist there, their number is not that of this
      model's layers, or a layer's kind differs.
  """
  t, own = config.train, config.model
  asked = f"train.init_layers is {t.init_layers!r}"
  chosen = t.init_layers.pick(there.num_layers)
  if chosen[-1] >= there.num_layers:
    raise InputError(
      f"{asked} and {t.init_from} has {there.num_layers} layers, from 0 to "
      f"{there.num_layers - 1}; take some of these"
    )
  if len(chosen) != own.num_layers:
    raise InputError(
      f"{asked}, {len(chosen)} of the {there.num_layers} layers of "
      f"{t.init_from}, and model.num_layers is {own.num_layers}; they must be "
      "as many"
    )
  rows: dict[str, list[int]] = {}
  for layer, (stack, _) in enumerate(layer_places(own)):
    theirs, at = layer_places(there)[chosen[layer]]
    if theirs != stack:
      raise InputError(
        f"{asked}, so that layer {layer} starts from layer {chosen[layer]} of "
        f"{t.init_from}, one of its {theirs}, and it is one of {stack} here; "
        "take layers of the same kinds"
      )
    rows.setdefault(stack, []).append(at)
  return rows


def _deep(assembly: Assembly, source: str):
  """Returns (abstract parameters at the other run's depth, rows to take)."""
  c = assembly.config
  there = _read_model(source)
  rows = pick_layers(c, there)
  deep = dataclasses.replace(
    c.model, num_layers=there.num_layers, layer_pattern=there.layer_pattern
  )
  model = build_model(deep, c.mesh.rules, assembly.model.platform)
  parts = model.abstract_params()
  return sharding.abstract_of(*parts, c.mesh.rules, assembly.mesh), rows


def _take(params: dict, rows: dict[str, list[int]]) -> dict:
  """Returns params with some layers of each stack."""
  stacks = {name: params[name] for name in rows}
  places = jax.tree.map(lambda x: x.sharding, stacks)

  def take(stacks):
    return {
      name: jax.tree.map(lambda x, at=at: x[np.array(at)], stacks[name])
      for name, at in rows.items()
    }

  return params | jax.jit(take, out_shardings=places)(stacks)
