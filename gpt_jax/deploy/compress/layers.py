"""Drops layers one by one, each time the one that raises the loss least."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.models import Model
from gpt_jax.parametrization import residual_multiplier


def drop(
  config: Config, model: Model, params: Any, count: int, rows_BT: np.ndarray
) -> tuple[Config, Any]:
  """Returns (config, params) without `count` layers.

  Design choice: before each drop, the loss on the calibration text is computed
  without each of the L remaining layers in turn, in L passes. Scores of one
  pass (Men et al. 2024) would not see that two layers make up for each other.

  Args:
    params: stacked.
    rows_BT: ids of calibration text.

  Raises:
    InputError: the layers are not all of one kind, or too few.
  """
  c = config.model
  kinds = {*config_lib.layer_kinds(c)}, {*config_lib.mlp_kinds(c)}
  is_alike = all(len(kind) == 1 for kind in kinds)
  if not is_alike or residual_multiplier(c) != 1:
    raise InputError(
      "layers are left out of models whose layers are all of one kind and "
      "whose residual has no multiplier; this run has others"
    )
  if count >= c.num_layers:
    raise InputError(
      f"--method is layers:{count} and the run has {c.num_layers} layers; "
      "leave one at least"
    )
  for _ in range(count):
    L = config.model.num_layers
    smaller = dataclasses.replace(config.model, num_layers=L - 1)
    model = dataclasses.replace(model, config=smaller)
    tried = [_without(params, layer) for layer in range(L)]
    losses = [
      float(_loss(model)(one, jnp.asarray(rows_BT, jnp.int32))) for one in tried
    ]
    params = tried[int(np.argmin(losses))]
    config = dataclasses.replace(config, model=smaller)
  return config, params


def _without(params: Any, layer: int):
  cut = lambda x: jnp.delete(x, layer, axis=0, assume_unique_indices=True)
  return params | {"blocks": jax.tree.map(cut, params["blocks"])}


@functools.cache
def _loss(model: Model):
  def loss(params, rows_BT):
    logits_BTV = model.apply(params, rows_BT)[:, :-1]
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    own = jnp.take_along_axis(log_p_BTV, rows_BT[:, 1:, None], -1)
    return -own.mean()

  return jax.jit(loss)
