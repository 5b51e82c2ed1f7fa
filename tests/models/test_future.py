"""Blocks that predict further tokens than the next (Gloeckle et al. 2024)."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from forms import SMALL, T, apply, model_config, tokens_of

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import flops, objective, sharding, tree
from gpt_jax.config import InputError
from gpt_jax.metric_names import FUTURE_LOSS, LOSS
from gpt_jax.models import build_model
from gpt_jax.training import optim, state, step

ROWS = 8


def config_of(ahead: int = 3, model=(), **sections):
  config = base.get_config()
  with config.unlocked():
    config.model.update(
      SMALL | dict(num_layers=2, num_future_tokens=ahead) | dict(model)
    )
    config.data.seq_len = T
    config.train.update(num_steps=3, global_batch_size=ROWS)
    config.optim.update(warmup_steps=0, learning_rate=1e-2)
    for name, values in sections.items():
      getattr(config, name).update(values)
  return config_lib.freeze(config)


def make(config):
  model = build_model(config.model, config.mesh.rules)
  return model, jax.jit(lambda: state.init_params(model, 0))()


@functools.partial(jax.jit, static_argnums=0)
def look_ahead(model, params, tokens):
  return model.apply(params, tokens, needs_future=True)


def batch_of(seed: int = 0) -> dict:
  ids = tokens_of(seed, ROWS, T + 1)
  mask = np.random.default_rng(seed).integers(0, 2, (ROWS, T))
  mask[-1] = 0  # microbatches have other numbers of targets
  return {
    "tokens": ids[:, :-1],
    "targets": ids[:, 1:],
    "mask": mask.astype(np.float32),
  }


def test_each_block_is_asked_for_the_token_after_that_of_the_one_before():
  model, params = make(config_of())
  batch = batch_of()
  _, futures = look_ahead(model, params, batch["tokens"])
  losses, counts = [], []
  for ahead, logits in enumerate(futures, 1):
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    for row in range(ROWS):
      for t in range(T - ahead):
        if batch["mask"][row, t + ahead]:
          losses.append(-logs[row, t, batch["targets"][row, t + ahead]])
          counts.append(ahead)
  assert set(counts) == {1, 2}
  minimise = objective.make_objective(model, config_of())
  totals = objective.count_totals(batch, 3)
  minimised, metrics = minimise(params, batch, None, totals)
  np.testing.assert_allclose(metrics[FUTURE_LOSS], np.mean(losses), rtol=1e-5)
  expected = metrics[LOSS] + 2 * metrics[FUTURE_LOSS]
  np.testing.assert_allclose(minimised, expected, rtol=1e-6)


def test_a_target_of_another_document_does_not_count():
  ids = np.arange(6, dtype=np.int32)[None]
  segments = np.array([[0, 0, 0, 0, 1, 1]], np.int32)
  batch = {"targets": ids, "segments": segments}
  (one, mask_one), (two, mask_two) = objective.shift_targets(batch, 3)
  np.testing.assert_array_equal(one[0], [1, 2, 3, 4, 5, 0])
  np.testing.assert_array_equal(mask_one[0], [1, 1, 1, 0, 1, 0])
  np.testing.assert_array_equal(two[0], [2, 3, 4, 5, 0, 0])
  np.testing.assert_array_equal(mask_two[0], [1, 1, 0, 0, 0, 0])


@functools.cache
def gradient_of(config):
  model, params = make(config)
  return jax.jit(step.make_gradient(model, config))(params, batch_of(), None)


@pytest.mark.parametrize(
  "changes",
  [
    dict(train=dict(num_microbatches=4)),
    dict(train=dict(num_loss_chunks=4)),
    dict(model=dict(remat="full", scan_layers=True)),
  ],
)
def test_the_gradient_is_the_same_in_parts_scanned_and_recomputed(changes):
  grads, metrics = gradient_of(config_of())
  other, found = gradient_of(config_of(**changes))
  for name in (LOSS, FUTURE_LOSS):
    np.testing.assert_allclose(metrics[name], found[name], rtol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
    assert np.abs(a).max() > 0
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.wide
@pytest.mark.parametrize("axes", [dict(fsdp=2, seq=2, tensor=2), dict(fsdp=8)])
def test_a_mesh_trains_the_same(axes):
  found = []
  for parts, devices in (dict.fromkeys(axes, 1), 1), (axes, 8):
    whole = dict.fromkeys(sharding.AXES, 1) | parts
    config = config_of(model=dict(attention="blocks"), mesh=whole)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    model = build_model(config.model, config.mesh.rules)
    tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
    schedule = optim.build_schedule(config.optim, 3)
    now = state.init_state(model, tx, config, mesh)
    place = sharding.batch_sharding(mesh, config.mesh.rules)
    train_step = jax.jit(step.make_train_step(model, tx, schedule, config))
    with jax.set_mesh(mesh):
      for seed in range(2):
        batch = jax.device_put(batch_of(seed), place)
        now, metrics = jax.block_until_ready(train_step(now, batch))
        found.append((metrics[LOSS], metrics[FUTURE_LOSS]))
  one, many = np.array(found, np.float64).reshape(2, 2, 2)
  np.testing.assert_allclose(one, many, rtol=1e-5)
  assert np.ptp(one[:, 1]) > 1e-3  # the control: it moves


def test_no_block_sees_a_later_token():
  model, params = make(config_of())
  tokens = tokens_of(rows=1)
  changed = tokens.copy()
  changed[0, 9] += 1
  futures = lambda ids: np.stack(look_ahead(model, params, ids % 61)[1])
  moved = np.abs(futures(tokens) - futures(changed))[..., :61].max((1, 3))
  assert np.all(moved[:, :9] == 0) and np.all(moved[:, 9] > 1e-4)


def test_generation_reads_the_model_without_them():
  model, params = make(config_of())
  plain = build_model(dataclasses.replace(model.config, num_future_tokens=1))
  own = {k: v for k, v in params.items() if not k.startswith("future")}
  assert len(params) == len(own) + 2
  ready = jax.eval_shape(model.prepare_for_decoding, params)
  assert jax.tree.structure(ready) == jax.tree.structure(
    jax.eval_shape(plain.prepare_for_decoding, own)
  )
  np.testing.assert_array_equal(
    apply(model, params, tokens_of()), apply(plain, own, tokens_of())
  )


def test_the_ledger_counts_them():
  model = model_config(num_future_tokens=3, bias=True, mlp="swiglu")
  shapes, _ = build_model(model).abstract_params()
  count = lambda m: sum(flops.count_parameters(m).values())
  assert count(model) == tree.count_elements(shapes) - 3 * model.model_dim
  plain = dataclasses.replace(model, num_future_tokens=1)
  extra = count(model) - count(plain) + 2 * 61 * model.model_dim
  scores = 12 * 2 * model.model_dim * T
  assert flops.train_flops_per_token(model, T) == (
    flops.train_flops_per_token(plain, T) + 6 * extra + scores
  )


@pytest.mark.parametrize(
  "ahead,model,sentence",
  [
    (2, dict(family="encoder"), "whose tokens see those after them"),
    (T + 1, {}, "at most data.seq_len 16"),
  ],
)
def test_what_cannot_predict_them_is_refused(ahead, model, sentence):
  with pytest.raises(InputError, match=sentence):
    config_of(ahead, model)
