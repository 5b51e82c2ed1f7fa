"""The step: what a bad number may not touch, and what it must count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import guard_transfers

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names, tree
from gpt_jax.models import build_model
from gpt_jax.ops import cross_entropy
from gpt_jax.training import optim, state, step


def small_config(**train):
  config = base.get_config()
  with config.unlocked():
    config.model.update(
      num_layers=2, model_dim=32, mlp_dim=64, max_len=16, vocab_size=50
    )
    config.data.seq_len = 16
    config.optim.update(warmup_steps=0, schedule="constant", clip_norm=1.0)
    config.train.update(num_steps=20, global_batch_size=4, **train)
  return config_lib.freeze(config)


def make(config):
  model = build_model(config.model)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  train_step = jax.jit(step.make_train_step(model, tx, schedule, config))
  params = jax.jit(lambda: state.init_params(model, 0))()
  zero = jnp.int32(0)
  now = state.TrainState(zero, params, tx.init(params), zero, zero)
  return guard_transfers(train_step), now


def batch_of(seed: int, mask=None) -> dict:
  ids = np.random.default_rng(seed).integers(0, 50, (4, 17)).astype(np.int32)
  batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
  return batch if mask is None else batch | {"mask": mask}


def poisoned(now: state.TrainState) -> state.TrainState:
  params = jax.tree.map(lambda x: x, now.params)
  table = params["embed"]["tokens"].at[0, 0].set(jnp.nan)
  return now.replace(
    params=params | {"embed": params["embed"] | {"tokens": table}}
  )


def test_a_loss_that_is_not_finite_changes_only_the_counters():
  train_step, now = make(small_config())
  now, _ = train_step(now, batch_of(0))
  mask = np.full((4, 16), np.inf, np.float32)
  after, result = train_step(now, batch_of(1, mask))
  assert not np.isfinite(float(result[metric_names.LOSS]))
  for part in ("params", "opt_state"):
    old = tree.flatten_with_names(getattr(now, part))
    new = tree.flatten_with_names(getattr(after, part))
    for name in old:
      np.testing.assert_array_equal(old[name], new[name], name)
  assert int(after.step) == 2
  assert int(after.num_skipped) == int(after.skipped_in_row) == 1
  again, _ = train_step(after, batch_of(2))
  assert int(again.num_skipped) == 1 and int(again.skipped_in_row) == 0
  old = now.params["embed"]["tokens"]
  assert not np.array_equal(old, again.params["embed"]["tokens"])  # control


def test_a_gradient_whose_square_no_float_holds_changes_only_the_counters():
  train_step, now = make(small_config(z_loss_weight=1e18))
  after, result = train_step(now, batch_of(0))
  assert np.isfinite(float(result[metric_names.LOSS]))
  assert step.MAX_GRAD_NORM < float(result[metric_names.GRAD_NORM]) < 1e38
  assert int(after.num_skipped) == 1
  for part in ("params", "opt_state"):
    old = tree.flatten_with_names(getattr(now, part))
    new = tree.flatten_with_names(getattr(after, part))
    for name in old:
      np.testing.assert_array_equal(old[name], new[name], name)


def test_a_spike_is_skipped_once_norms_are_known_and_no_mean_forgets_it():
  train_step, now = make(small_config(spike_factor=3.0, z_loss_weight=1.0))
  zero = {"mean": jnp.float32(0), "count": jnp.int32(0)}
  now = now.replace(norm_mean=zero)
  usual = batch_of(0)
  for _ in range(step.SPIKE_HISTORY):
    now, result = train_step(now, usual)
    assert not result[step.IS_SPIKE]
  # Parameters as they never are, for one step: the gradient is far larger.
  wild = now.replace(params=jax.tree.map(lambda p: 30 * p, now.params))
  after, result = train_step(wild, usual)
  assert result[step.IS_SPIKE] and np.isfinite(float(result[metric_names.LOSS]))
  assert float(result[metric_names.GRAD_NORM]) > 3 * float(
    now.norm_mean["mean"]
  )
  assert int(after.num_skipped) == int(after.skipped_in_row) == 1
  for name, old in tree.flatten_with_names(wild.params).items():
    new = tree.flatten_with_names(after.params)[name]
    np.testing.assert_array_equal(old, new, name)
  assert float(after.norm_mean["mean"]) == float(now.norm_mean["mean"])
  assert int(result[metric_names.BATCH_HASH]) == int(tree.hash_batch(usual))
  # The control: with little history it is let through.
  young = wild.replace(norm_mean={**now.norm_mean, "count": jnp.int32(19)})
  after, result = train_step(young, usual)
  assert not result[step.IS_SPIKE] and int(after.num_skipped) == 0


def test_the_same_batch_again_and_again_is_learned():
  train_step, now = make(small_config())
  seen = []
  for _ in range(20):
    now, result = train_step(now, batch_of(0))
    seen.append(float(result[metric_names.LOSS]))
  assert seen[-1] < seen[0] - 0.5


def test_masked_targets_do_not_count():
  config = small_config()
  train_step, now = make(config)
  mask = np.ones((4, 16), np.float32)
  mask[:, 8:] = 0
  batch = batch_of(0, mask)
  _, a = train_step(now, batch)
  batch["targets"] = np.where(mask > 0, batch["targets"], 7)
  _, b = train_step(now, batch)
  assert float(a[metric_names.LOSS]) == float(b[metric_names.LOSS])
  batch["targets"] = np.where(mask > 0, 7, batch["targets"])
  _, c = train_step(now, batch)
  assert float(a[metric_names.LOSS]) != float(
    c[metric_names.LOSS]
  )  # the control


def test_microbatches_with_unequal_masks_average_over_targets():
  mask = np.ones((4, 16), np.float32)
  mask[0, 1:] = 0
  mask[3, 5:] = 0
  results = []
  for parts in (1, 2, 4):
    train_step, now = make(small_config(num_microbatches=parts))
    after, result = train_step(now, batch_of(0, mask))
    results.append(
      (float(result[metric_names.LOSS]), float(result[metric_names.GRAD_NORM]))
    )
  np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
  np.testing.assert_allclose(results[2], results[0], rtol=1e-5)


def test_cross_entropy_equals_its_definition():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (2, 5, 11)).astype(np.float32)
  targets = rng.integers(0, 11, (2, 5))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = -np.log(np.take_along_axis(p, targets[..., None], -1)).sum()
  total, count = cross_entropy.cross_entropy(
    jnp.asarray(logits), jnp.asarray(targets)
  )
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 10
  half = np.zeros((2, 5), np.float32)
  half[0] = 1
  _, count = cross_entropy.cross_entropy(logits, jnp.asarray(targets), half)
  assert count == 5


@pytest.mark.parametrize("scan", [False, True])
def test_the_step_compiles_without_host_callbacks(scan):
  config = small_config()
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, scan_layers=scan)
  )
  train_step, now = make(config)
  text = jax.jit(train_step).lower(now, batch_of(0)).as_text()
  assert "callback" not in text


@pytest.mark.battery
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("chunks", [1, 2])
def test_the_z_loss_draws_logits_in_and_is_no_part_of_the_loss(parts, chunks):
  form = dict(num_microbatches=parts, num_loss_chunks=chunks)
  seen = {}
  for weight in (0.0, 1.0):
    train_step, now = make(small_config(z_loss_weight=weight, **form))
    found = [train_step(now, batch_of(0))[1]]
    for _ in range(3):
      now, result = train_step(now, batch_of(0))
      found.append(result)
    seen[weight] = found
  assert seen[0.0][0][metric_names.LOSS] == pytest.approx(
    float(seen[1.0][0][metric_names.LOSS])
  )
  assert metric_names.Z_LOSS not in seen[0.0][0]
  z = [float(result[metric_names.Z_LOSS]) for result in seen[1.0]]
  # Logits near zero: the denominator is the vocabulary.
  assert z[0] == pytest.approx(np.log(50) ** 2, rel=0.05)
  assert z[-1] < z[0]
  norms = [float(seen[w][0][metric_names.GRAD_NORM]) for w in (0.0, 1.0)]
  assert abs(norms[0] - norms[1]) > 1e-3


@pytest.mark.wide
@pytest.mark.parametrize("chunks", [1, 2])
def test_smoothing_is_minimised_and_the_plain_loss_is_reported(chunks):
  seen = {}
  for rate in (0.0, 0.1):
    form = dict(num_loss_chunks=chunks, num_microbatches=2, z_loss_weight=1e-3)
    train_step, now = make(small_config(label_smoothing=rate, **form))
    seen[rate] = train_step(now, batch_of(0))[1]
  names = metric_names.LOSS, metric_names.SMOOTHED_LOSS, metric_names.GRAD_NORM
  plain, smoothed, norm = (float(seen[0.1][name]) for name in names)
  assert float(seen[0.0][names[0]]) == plain != smoothed
  assert names[1] not in seen[0.0]
  # The smoothed loss has nine tenths of the plain one's gradient, and little
  # more; the reported loss has none.
  assert 0.8 < norm / float(seen[0.0][names[2]]) < 0.99


def test_the_average_follows_its_formula_and_no_bad_step():
  config = small_config(ema_decay=0.9)
  train_step, now = make(config)
  now = state.replace_params(now.replace(ema=now.params), now.params)
  expected = tree.flatten_with_names(now.ema)
  for seed in range(15):
    now, _ = train_step(now, batch_of(seed))
    kept = min(0.9, (1 + seed) / (10 + seed))
    for name, p in tree.flatten_with_names(now.params).items():
      expected[name] = kept * expected[name] + (1 - kept) * p
  found = tree.flatten_with_names(now.ema)
  for name in expected:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-4, atol=1e-6
    )
  bad, _ = train_step(now, batch_of(1, np.full((4, 16), np.inf, np.float32)))
  jax.tree.map(np.testing.assert_array_equal, bad.ema, now.ema)
  after, _ = train_step(now, batch_of(1))  # the control
  assert not np.array_equal(
    after.ema["embed"]["tokens"], now.ema["embed"]["tokens"]
  )


def test_a_batch_is_hashed_with_its_order():
  hash_batch = jax.jit(tree.hash_batch)
  batch = batch_of(0)
  first = int(hash_batch(batch))
  assert first == int(hash_batch(batch | {"mask": np.ones((4, 16))}))
  seen = {first}
  for change in (
    lambda x: x[::-1],  # rows
    lambda x: x[:, ::-1],  # places
    lambda x: np.where(np.arange(16) == 3, x ^ 1, x),  # one id a row
  ):
    seen.add(int(hash_batch(batch | {"tokens": change(batch["tokens"])})))
    seen.add(int(hash_batch(batch | {"targets": change(batch["targets"])})))
  assert len(seen) == 7
