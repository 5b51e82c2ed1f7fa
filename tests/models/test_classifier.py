"""Heads of classes: a test holds for each row of CLASS_FORMS."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import (
  CLASS_FORMS,
  FORMS,
  T,
  apply,
  make,
  model_config,
  source_of,
  tokens_of,
)

from gpt_jax import config as config_lib
from gpt_jax import flops, objective, tree
from gpt_jax.config import InputError
from gpt_jax.inference import generation
from gpt_jax.metric_names import LOSS, NUM_TARGETS, SMOOTHED_LOSS
from gpt_jax.models import build_model
from gpt_jax.ops.cross_entropy import Smoothing
from gpt_jax.training import state

pytestmark = pytest.mark.battery

LENGTH = 9


def is_each(form: str) -> bool:
  return CLASS_FORMS[form]["head"] == "each"


def padded(length: int = LENGTH) -> dict:
  """Returns the segments of two rows that hold a text of this length."""
  segments = (np.arange(T) >= length).astype(np.int32)
  return dict(segments_BT=np.tile(segments, (2, 1)))


def batch_of(form: str) -> dict:
  C, rng = CLASS_FORMS[form]["num_classes"], np.random.default_rng(1)
  rows, mask = (2, T if is_each(form) else 1), padded()["segments_BT"] == 0
  targets = rng.integers(0, C, rows).astype(np.int32)
  if C == 1:
    targets = rng.normal(0, 1, rows).astype(np.float32)
  return {
    "tokens": tokens_of(),
    "segments": padded()["segments_BT"],
    "types": np.repeat(np.int32([[0, 1]]), T // 2, 1).repeat(2, 0),
    "targets": targets,
    "mask": (mask if is_each(form) else np.ones(rows)).astype(np.float32),
    **{k.removesuffix("_BS"): x for k, x in source_of(make(form)[0]).items()},
  }


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_logits_are_of_classes_one_row_a_text_or_one_a_token(form):
  model, params = make(form)
  logits = apply(model, params, tokens_of(), **padded())
  C = CLASS_FORMS[form]["num_classes"]
  assert logits.shape == (2, T if is_each(form) else 1, C)
  assert logits.dtype == jnp.float32 and np.all(np.isfinite(logits))


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_a_padded_text_scores_as_it_does_alone(form):
  model, params = make(form)
  tokens = tokens_of()
  whole = apply(model, params, tokens, **padded())
  if is_each(form):
    whole = whole[:, :LENGTH]
  alone = apply(model, params, tokens[:, :LENGTH])
  np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=1e-5)
  shorter = apply(model, params, tokens[:, : LENGTH - 1])
  shorter = shorter[:, : whole.shape[1]]
  if not is_each(form):  # the control
    assert np.abs(whole - shorter).max() > 1e-4


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_what_fills_a_row_moves_nothing(form):
  model, params = make(form)
  tokens = jnp.arange(T, dtype=jnp.int32)[None].repeat(2, 0)

  def score(table):
    own = {**params, "embed": {**params["embed"], "tokens": table}}
    logits = model.apply(own, tokens, **padded(), **source_of(model))
    return jnp.square(logits[:, :LENGTH]).sum()

  moved = jnp.abs(jax.jit(jax.grad(score))(params["embed"]["tokens"])).sum(1)
  assert np.all(np.asarray(moved[:LENGTH]) > 0)
  assert not np.any(np.asarray(moved[LENGTH:T]))  # a source has later ids


@pytest.mark.battery
@pytest.mark.parametrize("form", CLASS_FORMS)
def test_every_parameter_gets_a_finite_gradient(form):
  model, params = make(form)
  loss, batch = objective.make_loss(model, 1), batch_of(form)
  if is_each(form):  # so that every position is a target's
    batch["mask"] = np.ones((2, T), np.float32)
  batch["segments"] = np.zeros((2, T), np.int32)
  grads = jax.jit(jax.grad(lambda p: loss(p, batch)[LOSS]))(params)
  for name, grad in tree.flatten_with_names(grads).items():
    assert np.all(np.isfinite(grad)) and np.any(np.asarray(grad) != 0), name


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_scanned_layers_equal_unrolled_ones(form):
  model, params = make(form)
  scanned = build_model(dataclasses.replace(model.config, scan_layers=True))
  a, b = (apply(m, params, tokens_of(), **padded()) for m in (model, scanned))
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_parameter_count_agrees_with_the_ledger(form):
  model, _ = make(form)
  shapes, _ = model.abstract_params()
  counted = tree.count_elements(shapes) - 3 * model.config.model_dim
  assert counted == sum(flops.count_parameters(model.config).values())
  assert "unembed" not in shapes and "head" not in shapes


def test_a_head_of_classes_costs_no_product_with_the_vocabulary():
  config = model_config(head="last", num_classes=3)
  plain = model_config()
  less = flops.train_flops_per_token(plain, T)
  less -= flops.train_flops_per_token(config, T)
  assert less == 6 * (61 - 3) * 32 - 6 * 3  # and three biases


@pytest.mark.parametrize("has_pooler", [False, True])
def test_bert_base_with_its_pooler_has_its_published_count(has_pooler):
  from configs import bert

  config = bert.get_config("base")
  config.model.pooler = has_pooler
  config.data.objective, config.model.head = "classification", "first"
  config.model.num_classes = 2
  model = config_lib.freeze(config).model
  count = sum(flops.count_parameters(model).values())
  shapes, _ = build_model(model).abstract_params()
  padding = config_lib.padded_vocab_size(model) - model.vocab_size
  assert tree.count_elements(shapes) - padding * 768 == count
  assert count - 2 * (768 + 1) == 109_482_240


def test_a_pooler_that_no_head_reads_is_counted_too():
  tokens = model_config(**FORMS["bert"])
  pooled = dataclasses.replace(tokens, pooler=True)
  counts = [
    (tree.count_elements(build_model(c).abstract_params()[0]), c)
    for c in (tokens, pooled)
  ]
  more = counts[1][0] - counts[0][0]
  count = lambda c: sum(flops.count_parameters(c).values())
  assert more == count(pooled) - count(tokens) > 0


@pytest.mark.parametrize("form", ["bert_first", "bert_pooled"])
def test_the_pooler_is_a_projection_and_tanh_of_the_first_token(form):
  model, params = make(form)
  out, taps = model.apply_tapped(params, tokens_of())
  own = params["classifier"] | params.get("pooler", {})
  own = jax.tree.map(np.asarray, own)
  first = np.asarray(taps["residual"])[:, 0]
  pooled = np.tanh(first @ own["dense"] + own["dense_bias"])
  want = pooled @ own["out"].T + own["out_bias"]
  np.testing.assert_allclose(out[:, 0], want, rtol=1e-5, atol=1e-5)


def test_types_tell_the_texts_of_a_pair_apart_where_the_model_has_them():
  batch = batch_of("bert_first")
  other = batch | {"types": np.zeros_like(batch["types"])}
  sum_of = lambda form, batch: float(
    objective.make_loss(make(form)[0], 1)(make(form)[1], batch)[LOSS]
  )
  assert sum_of("bert_first", batch) != sum_of("bert_first", other)
  assert sum_of("gpt2_last", batch) == sum_of("gpt2_last", other)


def losses(form: str, logits, batch: dict, smoothing=None) -> dict:
  """Returns the sums of make_loss for given logits."""
  model, params = make(form)
  out = dict(params["classifier"])
  out["out"] = jnp.zeros_like(out["out"])
  rows = []
  # The bias alone decides: a row at a time has the logits that it is given.
  loss = objective.make_loss(model, 1, (), smoothing)
  for i, row in enumerate(logits):
    own = {**params, "classifier": out | {"out_bias": jnp.asarray(row)}}
    rows.append(loss(own, {k: v[i : i + 1] for k, v in batch.items()}))
  return {k: sum(float(r[k]) for r in rows) for k in rows[0]}


def test_losses_are_those_of_the_formulas():
  logits = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)
  batch = batch_of("gpt2_last")
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  picked = log_p[np.arange(2), batch["targets"][:, 0]]
  found = losses("gpt2_last", logits, batch)
  assert found[LOSS] == pytest.approx(-picked.sum(), rel=1e-5)
  assert found[NUM_TARGETS] == 2
  smooth = losses("gpt2_last", logits, batch, Smoothing(0.1, 3))
  assert smooth[LOSS] == pytest.approx(found[LOSS], rel=1e-6)
  want = -0.9 * picked.sum() - 0.1 * log_p.mean(1).sum()
  assert smooth[SMOOTHED_LOSS] == pytest.approx(want, rel=1e-5)

  sets = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
  p = 1 / (1 + np.exp(-logits))
  want = -(sets * np.log(p) + (1 - sets) * np.log(1 - p)).mean(1).sum()
  found = losses("gpt2_last", logits, batch | {"targets": sets})
  assert found[LOSS] == pytest.approx(want, rel=1e-5)

  batch = batch_of("llama_mean") | {"mask": np.float32([[1], [0]])}
  found = losses("llama_mean", logits[:, :1], batch)
  error = float(logits[0, 0] - batch["targets"][0, 0])
  assert found[LOSS] == pytest.approx(error**2, rel=1e-5)
  assert found[NUM_TARGETS] == 1  # the other row fills the batch


def test_a_decoders_start_sees_all_of_the_text_and_nothing_that_fills_it():
  model, params = make("t5_last")
  table = params["embed"]["tokens"]
  sources = jnp.arange(T, dtype=jnp.int32)[None]
  filled = jnp.asarray(padded()["segments_BT"][:1])

  def score(table):
    own = {**params, "embed": {"tokens": table}}
    start, zero = jnp.full((1, 1), 60), jnp.zeros((1, 1), jnp.int32)
    logits = model.apply(
      own,
      start,
      segments_BT=zero,
      sources_BS=sources,
      source_segments_BS=filled,
    )
    assert logits.shape == (1, 1, 3)
    return jnp.square(logits).sum()

  moved = np.asarray(jnp.abs(jax.jit(jax.grad(score))(table)).sum(1))
  assert np.all(moved[:LENGTH] > 0) and not np.any(moved[LENGTH:60])


def test_parts_of_the_logits_leave_the_loss_alone():
  model, params = make("gpt2_last")
  one, four = (
    objective.make_loss(model, n)(params, batch_of("gpt2_last")) for n in (1, 4)
  )
  assert float(one[LOSS]) == float(four[LOSS])


def test_a_batch_of_numbers_has_a_hash_that_sees_signs():
  batch = batch_of("llama_mean")
  other = batch | {"targets": -batch["targets"]}
  assert int(tree.hash_batch(batch)) != int(tree.hash_batch(other))


def test_a_head_of_classes_continues_no_text():
  model, params = make("gpt2_last")
  assert not model.can_generate and make("gpt2")[0].can_generate
  with pytest.raises(InputError, match="model.head is last, which cannot"):
    generation.check_prompts([[1, 2]], model)


def test_the_trunk_starts_as_that_of_a_language_model():
  config = model_config(**FORMS["gpt2"])
  head = dataclasses.replace(config, head="last", num_classes=3)
  plain, classes = (
    tree.flatten_with_names(state.init_params(build_model(c), 0))
    for c in (config, head)
  )
  fresh = {"classifier/out", "classifier/out_bias"}
  assert classes.keys() - plain.keys() == fresh
  for name in plain:
    np.testing.assert_array_equal(plain[name], classes[name])
