"""One battery for every form of model: a test holds for each row of FORMS."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import (
  CAUSAL,
  FORMS,
  T,
  apply,
  apply_cached,
  embedded_influence,
  loss_gradient,
  make,
  mean_loss,
  model_config,
  prepare_for_decoding,
  source_of,
  tokens_of,
)
from harness import init_params

from gpt_jax import config as config_lib
from gpt_jax import flops, tree
from gpt_jax.models import build_model
from gpt_jax.ops import visibility

pytestmark = pytest.mark.battery


@functools.cache
def gradients(form: str) -> dict:
  """Returns {name: gradient of the mean loss}."""
  return tree.flatten_with_names(jax.device_get(loss_gradient(*make(form))))


def closeness(form: str) -> dict:
  if FORMS[form].get("compute_dtype") == "bfloat16":
    return dict(rtol=0.05, atol=0.05)
  return dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_logits_have_their_shape_and_padding_is_masked(form):
  model, params = make(form)
  logits = apply(model, params, tokens_of())
  assert logits.shape == (2, T, 64) and logits.dtype == jnp.float32
  assert np.all(np.asarray(logits[..., 61:]) < -1e29)
  assert np.all(np.abs(np.asarray(logits[..., :61])) < 1e4)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_finite_gradient(form):
  model, _ = make(form)
  specs = tree.flatten_with_names(model.abstract_params()[1])
  for name, grad in gradients(form).items():
    assert np.all(np.isfinite(np.asarray(grad, np.float32))), name
    is_trained = specs[name].role != "balance"
    assert np.any(np.asarray(grad, np.float32) != 0) == is_trained, name


@pytest.mark.parametrize("form", CAUSAL)
def test_no_token_is_influenced_by_a_later_one(form):
  model, params = make(form)
  influence = functools.partial(embedded_influence, model, params)
  assert influence(9, 8) == 0.0
  assert influence(T - 1, 0) == 0.0
  assert influence(8, 8) > 0.0
  assert influence(7, 8) > 0.0  # the control: what may be seen is seen


@pytest.mark.parametrize("form", FORMS)
def test_a_model_continues_a_text_if_it_is_causal(form):
  model, params = make(form)
  is_causal = form in CAUSAL
  assert model.can_generate == is_causal
  assert visibility.rule_of(model.config).is_causal == is_causal
  assert (embedded_influence(model, params, 9, 8) == 0) == is_causal


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_do_not_attend_to_each_other(form):
  model, params = make(form)
  segments = np.array([[0] * 6 + [1] * 10], np.int32)
  positions = np.array([[*range(6), *range(10)]], np.int32)
  influence = functools.partial(embedded_influence, model, params)
  packed = dict(segments_BT=segments, positions_BT=positions)
  assert influence(5, 6, **packed) == 0.0
  assert influence(0, T - 1, **packed) == 0.0
  assert influence(6, 7, **packed) > 0.0
  assert influence(5, 6) > 0.0  # the control: unpacked, it leaks


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_document_scores_as_it_does_alone(form):
  model, params = make(form)
  tokens = tokens_of(rows=1)
  segments = np.array([[0] * 6 + [1] * 10], np.int32)
  positions = np.array([[*range(6), *range(10)]], np.int32)
  of = lambda documents: source_of(model, 1, documents)
  packed = apply(model, params, tokens, positions, segments, **of("packed"))
  if form in CAUSAL and not of("second"):
    # What follows a text moves nothing: the program of whole rows serves.
    alone = apply(model, params, np.roll(tokens_of(), -6, 1))[:1, : T - 6]
  else:
    alone = apply(model, params, tokens[:, 6:], **of("second"))
  np.testing.assert_allclose(packed[:, 6:], alone, **closeness(form))
  is_added = config_lib.is_sinusoidal(model.config)
  if model.config.position == "learned" or is_added:
    plain = np.arange(T, dtype=np.int32)[None]
    shifted = apply(model, params, tokens, plain, segments, **of("packed"))
    assert not np.allclose(shifted[:, 6:], alone, atol=1e-3)  # the control


PREFIXES = [
  form
  for form in CAUSAL
  if FORMS[form].get("position") not in ("alibi", "relative")
  and not {"family", "sliding_window"} & set(FORMS[form])
]


@pytest.mark.parametrize("form", PREFIXES)
def test_a_prefix_sees_itself_both_ways_and_nothing_later(form):
  model, params = make(form)
  influence = functools.partial(embedded_influence, model, params)
  slots = np.maximum(np.arange(T, dtype=np.int32), 6 - 1)[None]
  prefix = dict(slots_BT=slots)
  assert influence(5, 0, **prefix) > 0.0
  assert influence(6, 5, **prefix) == 0.0
  assert influence(6, 0, **prefix) == 0.0
  assert influence(0, 9, **prefix) > 0.0
  assert influence(5, 0) == 0.0  # the control: without one it does not


@pytest.mark.parametrize("form", ["gpt2", "llama", "bfloat16"])
def test_a_prompt_is_read_as_the_prefix_that_training_saw(form):
  model, params = make(form)
  tokens, lengths = tokens_of(), np.array([5, 3], np.int32)
  slots = np.maximum(np.arange(T, dtype=np.int32)[None], lengths[:, None] - 1)
  full = np.asarray(apply(model, params, tokens, slots_BT=slots))
  prepared = prepare_for_decoding(model, params)
  cache = model.init_cache(2, T)
  logits, cache = apply_cached(
    model,
    prepared,
    tokens[:, :8],
    cache,
    np.zeros(2, np.int32),
    lengths - 1,
    slots[:, :8],
  )
  rows, worst = np.arange(2), []
  for offset in range(8):
    at = lengths - 1 + offset
    worst.append(
      np.abs(np.asarray(logits)[:, 0, :61] - full[rows, at, :61]).max()
    )
    step = tokens[rows, at + 1][:, None]
    logits, cache = apply_cached(model, prepared, step, cache, at + 1)
  assert max(worst) < closeness(form)["atol"], worst
  causal = apply(model, params, tokens)
  assert np.abs(causal - full)[:, :8, :61].max() > 1e-2  # the control


@pytest.mark.parametrize("form", FORMS)
def test_scanned_layers_equal_unrolled_ones(form):
  model, params = make(form)
  scanned = build_model(dataclasses.replace(model.config, scan_layers=True))
  a = apply(model, params, tokens_of())
  b = apply(scanned, params, tokens_of())
  np.testing.assert_allclose(a, b, **closeness(form))
  stacks = model.stacks
  swapped = {
    name: jax.tree.map(lambda x: np.asarray(x)[::-1], leaf)
    if name in stacks
    else leaf
    for name, leaf in params.items()
  }
  c = apply(scanned, swapped, tokens_of())
  assert not np.allclose(a, c, atol=1e-2)  # the control: order of layers counts


REMATS = {
  # Every two of the three words meet in the first; the others are slow.
  (False, "full"): ("gpt2", "t5"),
  (False, "dots"): ("llama", "moe"),
  (True, "full"): ("llama", "moe"),
  (True, "dots"): ("gpt2", "t5"),
}


@pytest.mark.parametrize(
  "form, scan, remat",
  [
    pytest.param(form, *how, marks=[pytest.mark.slow] * (form not in quick))
    for how, quick in REMATS.items()
    for form in ("gpt2", "llama", "moe", "t5")
  ],
)
def test_rematerialisation_leaves_gradients_alone(form, remat, scan):
  model, params = make(form)
  other = build_model(
    dataclasses.replace(model.config, remat=remat, scan_layers=scan)
  )
  grads = loss_gradient(other, params)
  for name, leaf in tree.flatten_with_names(grads).items():
    np.testing.assert_allclose(
      leaf, gradients(form)[name], rtol=1e-4, atol=1e-6
    )


def test_rematerialisation_saves_memory():
  def temporary_bytes(remat):
    model = build_model(
      model_config(num_layers=8, scan_layers=True, remat=remat)
    )
    tokens = tokens_of(rows=16)
    score = lambda p: mean_loss(model.apply(p, tokens), tokens)
    grad = jax.jit(jax.grad(score))
    compiled = grad.lower(model.abstract_params()[0]).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = map(temporary_bytes, ("none", "dots", "full"))
  assert full < dots < none


def test_gradients_of_frequent_tokens_are_right_in_bfloat16():
  ids = np.minimum(np.random.default_rng(0).zipf(1.3, (64, T)), 60)
  tokens = jnp.asarray(ids, jnp.int32)
  grads = []
  for dtype in ("float32", "bfloat16"):
    # Untied, so that the table's gradient is that of looking up alone.
    config = model_config(compute_dtype=dtype, tied_embeddings=False)
    model = build_model(config)
    params = init_params(model, 0)
    score = lambda p, m=model: mean_loss(m.apply(p, tokens), tokens)
    grad = jax.jit(jax.grad(score))
    grads.append(np.asarray(grad(params)["embed"]["tokens"][1]))
  exact, rounded = grads
  error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
  assert error < 0.02, error


@pytest.mark.parametrize("form", CAUSAL)
def test_cached_decoding_equals_the_full_forward_pass(form):
  model, params = make(form)
  tokens, lengths = tokens_of(), np.array([5, 3], np.int32)
  full = np.asarray(apply(model, params, tokens))
  unstacked = prepare_for_decoding(model, params)
  cache = model.init_cache(2, T)
  padded = np.where(np.arange(8)[None] < lengths[:, None], tokens[:, :8], 0)
  first = padded, cache, np.zeros(2, np.int32), lengths - 1
  logits, cache = apply_cached(model, unstacked, *first, **source_of(model))
  rows = np.arange(2)
  worst = []
  for offset in range(8):
    at = lengths - 1 + offset
    worst.append(
      np.abs(np.asarray(logits)[:, 0, :61] - full[rows, at, :61]).max()
    )
    step = tokens[rows, at + 1][:, None]
    logits, cache = apply_cached(model, unstacked, step, cache, at + 1)
  assert max(worst) < closeness(form)["atol"], worst
  stale = model.init_cache(2, T)
  logits, _ = apply_cached(
    model, unstacked, step, stale, at + 1, **source_of(model)
  )
  wrong = np.abs(np.asarray(logits)[:, 0, :61] - full[rows, at + 1, :61]).max()
  assert wrong > 1e-3  # the control: an empty cache gives other logits


@pytest.mark.parametrize("form", FORMS)
def test_parameter_count_agrees_with_the_ledger(form):
  model, _ = make(form)
  shapes, specs = model.abstract_params()
  padding = 3 * model.config.model_dim
  padding *= 1 if model.config.tied_embeddings else 2
  padding += 3 * (model.config.head in ("transform", "biased"))
  counted = tree.count_elements(shapes) - padding
  assert counted == sum(flops.count_parameters(model.config).values())
  by_role = {}
  for leaf, spec in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True
  ):
    by_role[spec.role] = by_role.get(spec.role, 0) + leaf.size
  by_role["bias"] = by_role.get("bias", 0) - 3 * (
    model.config.head in ("transform", "biased")
  )
  ledger = flops.count_parameters(model.config)
  for role in ledger.keys() - {"embed", "unembed"}:
    assert by_role.get(role, 0) == ledger[role], role


def test_dropout_drops_in_training_and_scan_drops_the_same():
  config = model_config(dropout_rate=0.3)
  model = build_model(config)
  params = init_params(model, 0)
  key = jax.random.key(3)
  quiet = apply(model, params, tokens_of())
  a = apply(model, params, tokens_of(), key=key)
  assert not np.allclose(a, quiet, atol=1e-3)
  scanned = build_model(dataclasses.replace(config, scan_layers=True))
  b = apply(scanned, params, tokens_of(), key=key)
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  c = apply(model, params, tokens_of(), key=jax.random.key(4))
  assert not np.allclose(a, c, atol=1e-3)


def test_initial_residual_writers_are_smaller_by_the_root_of_twice_the_depth():
  model = build_model(model_config(num_layers=8, model_dim=128, mlp_dim=512))
  params = init_params(model, 0)
  std = lambda x: float(jnp.std(x))
  assert abs(std(params["blocks"]["mlp"]["in"]) - 0.02) < 3e-4
  assert abs(std(params["blocks"]["mlp"]["out"]) - 0.02 / 4) < 1e-4
  assert float(params["final_norm"]["scale"].min()) == 1.0


def test_adding_layers_leaves_the_numbers_of_the_others_alone():
  few = init_params(build_model(model_config(num_layers=2)), 0)
  many = init_params(build_model(model_config(num_layers=4)), 0)
  np.testing.assert_array_equal(
    few["blocks"]["mlp"]["in"], many["blocks"]["mlp"]["in"][:2]
  )
  other = init_params(build_model(model_config(num_layers=2)), 1)
  assert not np.allclose(
    few["blocks"]["mlp"]["in"], other["blocks"]["mlp"]["in"]
  )
