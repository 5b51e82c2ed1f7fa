"""One battery for every sum over a batch. A new metric is a row of FORMULAS."""

import functools

import jax
import numpy as np
import pytest
from forms import T, apply, make

from gpt_jax import objective, sharding
from gpt_jax.config import MeshConfig
from gpt_jax.metric_names import ACCURACY, LOSS, NUM_TARGETS, Z_LOSS

B, V = 8, 61
MESH = dict(fsdp=2, seq=2, tensor=2)


def log_z(x_BTV):
  return np.log(np.exp(x_BTV).sum(-1))


def pick(x_BTV, targets_BT):
  return np.take_along_axis(x_BTV, targets_BT[..., None], -1)[..., 0]


# {public name: its value at each target, of float64 logits}
FORMULAS = {
  LOSS: lambda x_BTV, targets_BT: log_z(x_BTV) - pick(x_BTV, targets_BT),
  NUM_TARGETS: lambda x_BTV, targets_BT: np.ones(targets_BT.shape),
  ACCURACY: lambda x_BTV, targets_BT: x_BTV.argmax(-1) == targets_BT,
  Z_LOSS: lambda x_BTV, targets_BT: log_z(x_BTV) ** 2,
}


@functools.cache
def make_case():
  """Returns (model, params, batch, the model's logits x_BTV)."""
  model, params = make("llama")
  params = jax.tree.map(lambda p: 2 * p, params)  # so that logits differ
  rng = np.random.default_rng(0)
  ids_BT, targets_BT = rng.integers(0, V, (2, B, T)).astype(np.int32)
  x_BTV = np.asarray(apply(model, params, ids_BT), np.float64)[..., :V]
  targets_BT[::2] = x_BTV[::2].argmax(-1)  # some are the likeliest token
  mask_BT = (rng.random((B, T)) < 0.7).astype(np.float32)
  batch = {"tokens": ids_BT, "targets": targets_BT, "mask": mask_BT}
  return model, params, batch, x_BTV


@functools.cache
def sums_of(num_chunks: int, has_mask: bool = True, **axes) -> dict:
  """Returns {public name: sum}, computed on a mesh of these axes."""
  model, params, batch, _ = make_case()
  if not has_mask:
    batch = {k: x for k, x in batch.items() if k != "mask"}
  sizes = dict.fromkeys(sharding.AXES, 1) | axes
  devices = jax.devices()[: int(np.prod([*sizes.values()]))]
  section = MeshConfig(**sizes, rules="standard")
  sums = jax.jit(objective.make_loss(model, num_chunks, tuple(FORMULAS)))
  with jax.set_mesh(sharding.make_mesh(section, devices)):
    return jax.device_get(sums(params, batch))


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_sum_is_that_of_its_formula(name, num_chunks, has_mask):
  _, _, batch, x_BTV = make_case()
  value_BT = FORMULAS[name](x_BTV, batch["targets"])
  if has_mask:
    value_BT = value_BT * batch["mask"]
  found = sums_of(num_chunks, has_mask)[name]
  np.testing.assert_allclose(found, value_BT.sum(), rtol=1e-5)


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_sum_is_the_same_on_a_mesh(name, num_chunks):
  found = sums_of(num_chunks, **MESH)[name]
  np.testing.assert_allclose(found, sums_of(1)[name], rtol=1e-5)
