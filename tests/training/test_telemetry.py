"""Telemetry: every figure is what it is called, and the run is the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import apply
from harness import init_params

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names
from gpt_jax.models import attention, build_model
from gpt_jax.models.context import Context
from gpt_jax.ops.visibility import Rule
from gpt_jax.runs import metrics
from gpt_jax.training import optim, state, step, telemetry

T, V = 16, 50


def config_of(**model) -> config_lib.Config:
  config = base.get_config()
  config.model.update(
    num_layers=2, model_dim=32, mlp_dim=64, max_len=T, vocab_size=V
  )
  config.model.update(init_std=0.1, **model)
  config.data.seq_len = T
  config.optim.update(warmup_steps=0, schedule="constant", clip_norm=0.1)
  return config_lib.freeze(config)


def make(**model):
  config = config_of(**model)
  built = build_model(config.model)
  tx = optim.build_optimizer(config.optim, built.abstract_params()[1])
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  watch = jax.jit(telemetry.make_watch(built, tx, schedule, config))
  one = jax.jit(step.make_train_step(built, tx, schedule, config))
  params, zero = init_params(built, 0), jnp.int32(0)
  now = state.TrainState(zero, params, tx.init(params), zero, zero)
  ids = np.random.default_rng(0).integers(0, V, (4, T + 1)).astype(np.int32)
  return watch, one, now, {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


def rms(leaves) -> float:
  flat = np.concatenate([np.ravel(x) for x in leaves])
  return float(np.sqrt(np.mean(flat**2)))


@pytest.mark.parametrize("scan", [False, True])
def test_figures_are_those_of_the_step_that_follows(scan):
  watch, one, now, batch = make(scan_layers=scan, tied_embeddings=False)
  for _ in range(2):
    now, _ = one(now, batch)
  seen = {k: float(v) for k, v in watch(now, batch).items()}
  after, result = one(now, batch)
  roles = [v for k, v in seen.items() if k.startswith("telemetry/grad_norm")]
  total = float(np.sqrt(np.square(roles).sum()))
  assert total == pytest.approx(float(result["train/grad_norm"]), rel=1e-5)
  change = jax.tree.map(
    lambda a, b: np.asarray(a - b), now.params, after.params
  )
  for layer in range(2):
    moved = rms([x[layer] for x in jax.tree.leaves(change["blocks"])])
    found = seen[f"telemetry/update_rms/{layer:02}"]
    assert found == pytest.approx(moved, rel=1e-3)
  moved = rms([change["unembed"]])
  assert seen["telemetry/update_rms/unembed"] == pytest.approx(moved, rel=1e-3)
  assert seen["telemetry/update_rms/00"] != seen["telemetry/update_rms/01"]


def test_each_layer_answers_for_its_own_weights():
  watch, _, now, batch = make()
  before = watch(now, batch)
  grown = jax.tree.map(lambda x: x, now.params)
  grown["blocks"]["attn"]["q"] = grown["blocks"]["attn"]["q"].at[1].multiply(3)
  after = watch(now.replace(params=grown), batch)
  ratio = lambda name: float(after[name] / before[name])
  assert ratio("telemetry/attn_logit_max/01") == pytest.approx(3, rel=1e-5)
  assert ratio("telemetry/attn_logit_max/00") == pytest.approx(1, rel=1e-5)
  grown["embed"]["tokens"] = grown["embed"]["tokens"] * 2
  grown["embed"]["positions"] = grown["embed"]["positions"] * 2
  after = watch(now.replace(params=grown), batch)
  assert ratio("telemetry/embed_rms") == pytest.approx(2, rel=1e-5)


def test_the_largest_logit_is_that_of_the_forward_pass():
  watch, _, now, batch = make(logit_softcap=2.0)
  found = float(watch(now, batch)["telemetry/logit_max"])
  model = build_model(config_of(logit_softcap=2.0).model)
  logits = np.asarray(apply(model, now.params, batch["tokens"]))[..., :V]
  assert found == pytest.approx(float(np.abs(logits).max()), rel=1e-5)


def test_activations_are_those_of_rows_with_their_prefixes():
  watch, _, now, batch = make()
  slots = np.maximum(np.tile(np.arange(T, dtype=np.int32), (4, 1)), 9)
  model = build_model(config_of().model)
  seen = float(watch(now, batch | {"slots": slots})["telemetry/logit_max"])
  logits = apply(model, now.params, batch["tokens"], slots_BT=slots)
  most = float(np.abs(np.asarray(logits)[..., :V]).max())
  assert seen == pytest.approx(most, rel=1e-5)
  causal = float(watch(now, batch)["telemetry/logit_max"])  # the control
  assert abs(seen - causal) > 1e-4


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_largest_score_is_one_that_is_seen(window, is_packed):
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 2, 2, T, 8)), rng.normal(size=(2, 2, T, 8))
  segments = (np.arange(T) >= np.array([[5], [9]])).astype(np.int32)
  t, s = np.mgrid[:T, :T]
  mask = (s <= t) & (True if window is None else t - s < window)
  mask = np.broadcast_to(mask, (2, T, T))
  if is_packed:
    mask = mask & (segments[:, :, None] == segments[:, None])
  scores = np.einsum("bkgth,bksh->bkgts", q, k) * 8**-0.5
  expected = np.where(mask[:, None, None], scores, -np.inf).max()
  context = Context(
    kind="local",
    rule=Rule(window=window),
    kernel="dense",
    platform="cpu",
    slots_BT=jnp.arange(T)[None],
    is_ordered=True,
    segments_BT=jnp.asarray(segments) if is_packed else None,
  )
  found = attention.largest_score(
    jnp.asarray(q, jnp.float32),
    jnp.asarray(k, jnp.float32),
    context,
    config_of(sliding_window=window).model,
  )
  assert float(found) == pytest.approx(expected, rel=1e-5)
  assert scores.max() > expected + 1e-3  # the control: a mask counts


@pytest.mark.wide
def test_a_run_that_is_watched_is_the_same_run(small_run, call_verb, tmp_path):
  rows = {}
  for every in (0, 10):
    workdir = tmp_path / f"every-{every}"
    done = call_verb(
      "train",
      *small_run,
      f"--config.train.telemetry_every_steps={every}",
      "--config.train.num_steps=20",
      f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stderr
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows[every] = [json.loads(line) for line in lines]
  losses = lambda rows: [r["train/loss"] for r in rows if "train/loss" in r]
  assert len(losses(rows[0])) == 20 and losses(rows[0]) == losses(rows[10])
  seen = [r for r in rows[10] if "telemetry/logit_max" in r]
  assert [r["step"] for r in seen] == [1, 10, 20]
  assert {"telemetry/attn_rms/01", "telemetry/grad_norm/hidden"} <= set(seen[0])
  assert not any("telemetry" in key for r in rows[0] for key in r)


def test_the_noise_scale_is_that_of_gradients_whose_noise_is_known():
  """The gradient of p . x is x: its mean and variances are those drawn."""
  rng = np.random.default_rng(0)
  middle, spread, rows = np.array([0.3, -0.4]), np.array([1.0, 2.0]), 8
  mean = lambda p, batch: (batch["targets"] @ p).mean()
  watch = jax.jit(lambda p, batch: telemetry._grads(mean, p, batch)[1])
  seen = []
  for _ in range(4000):
    x = rng.normal(middle, spread, (rows, 2)).astype(np.float32)
    found = watch(jnp.ones(2), {"targets": x})
    seen.append({telemetry.PREFIX + k: float(v) for k, v in found.items()})
  means = {k: np.mean([row[k] for row in seen]) for k in seen[0]}
  assert means[metric_names.GRAD_SQUARE] == pytest.approx(0.25, rel=0.15)
  assert means[metric_names.GRAD_VARIANCE] == pytest.approx(5.0, rel=0.05)
  # 5 / 0.25, of the second half of the rows alone.
  start = [{k: 1e6 for k in seen[0]}] * len(seen)
  assert metrics.noise_scale(start + seen) == pytest.approx(20, rel=0.2)
  assert metrics.noise_scale([{"train/loss": 1.0}]) is None


def test_an_odd_batch_has_no_halves():
  mean = lambda p, batch: (batch["targets"] @ p).mean()
  grads, noise = telemetry._grads(
    mean, jnp.ones(2), {"targets": np.ones((3, 2))}
  )
  np.testing.assert_allclose(grads, 1)
  assert noise == {}
