"""An encoder-decoder writes targets: greedily, by beams, by choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import (
  FORMS,
  apply,
  apply_cached,
  model_config,
  prepare_for_decoding,
)

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import denoising, objectives
from gpt_jax.data.marks import find_marks
from gpt_jax.data.tokenizers import plain
from gpt_jax.inference import beam, choices, generation
from gpt_jax.models import build_model

START, END, LIMIT = 60, 59, 24
GREEDY = generation.Sampling(temperature=0.0)
# Of different lengths, in one batch.
SOURCES = [[3, 1, 4, 1, 5, 9, 2], [2], [7, 1, 8]]
FAMILY = ("attention", "t5")


@functools.cache
def make(form: str):
  changes = {**FORMS[form], "max_len": LIMIT}
  model = build_model(model_config(**changes))
  rng, spread = np.random.default_rng(1), {"norm": 0.0, "bias": 0.02}

  # So that what is written depends on the source.
  def fill(leaf, spec):
    noise = rng.normal(0, spread.get(spec.role, 0.5), leaf.shape)
    return jnp.asarray((noise + (spec.role == "norm")).astype(leaf.dtype))

  return model, jax.tree.map(fill, *model.abstract_params())


@functools.partial(jax.jit, static_argnums=0)
def full_pass(model, params, tokens, source, ids):
  logits = model.apply(
    params, tokens, sources_BS=source, source_segments_BS=ids
  )
  return jax.nn.log_softmax(logits[..., :61])


def log_probs(form: str, source, ids) -> np.ndarray:
  """Returns log_p_TV before each of ids, and after them, by one full pass."""
  model, params = make(form)
  tokens = np.zeros((1, LIMIT), np.int32)
  tokens[0, : len(ids) + 1] = [START, *ids]
  padded, is_padding = np.zeros((1, 8), np.int32), np.arange(8)[None]
  padded[0, : len(source)] = source
  is_padding = (is_padding >= len(source)).astype(np.int32)
  found = full_pass(model, params, tokens, padded, is_padding)
  return np.asarray(found[0, : len(ids) + 1], np.float64)


def written(form: str, sources, num_tokens: int, **how) -> np.ndarray:
  chunks = generation.generate(
    *make(form), sources, num_tokens, GREEDY, start_ids=[START], **how
  )
  return np.concatenate([*chunks], axis=1)


@pytest.mark.parametrize("form", [*FAMILY, "encoder_decoder_blocks"])
def test_greedy_targets_are_the_argmax_of_full_passes(form):
  found = written(form, SOURCES, 5)
  for source, ids in zip(SOURCES, found.tolist(), strict=True):
    by_hand = []
    for _ in range(5):
      by_hand.append(int(log_probs(form, source, by_hand)[-1].argmax()))
    assert ids == by_hand
  assert len({tuple(row) for row in found.tolist()}) == 3  # the control


def test_a_source_gives_the_same_target_alone_and_in_a_batch():
  found = written("t5", SOURCES, 5)
  for row, source in enumerate(SOURCES[1:], 1):
    assert written("t5", [source], 5)[0].tolist() == found[row].tolist()


def test_a_target_ends_with_the_positions():
  found = written("t5", SOURCES[:1], 100)
  assert found.shape == (1, LIMIT)
  assert found[0, :5].tolist() == written("t5", SOURCES[:1], 5)[0].tolist()


@pytest.mark.parametrize("form", FAMILY)
def test_beams_score_as_full_passes_and_never_below_greedy(form):
  how = dict(separator_id=END, start_ids=[START])
  search = lambda beams, best: beam.search(
    *make(form), SOURCES, 4, beam.Beam(beams, num_best=best), **how
  )
  one, many = search(1, 1), search(4, 3)
  greedy = written(form, SOURCES, 4).tolist()
  for row, source in enumerate(SOURCES):
    (first,) = one[row]
    assert first.ids.tolist() == greedy[row][: len(first.ids)]
    assert many[row][0].log_prob >= first.log_prob - 1e-5
    for h in many[row]:
      log_p = log_probs(form, source, h.ids)
      right = sum(log_p[at, i] for at, i in enumerate(h.ids))
      assert abs(h.log_prob - right) < 2e-4


def test_a_wide_beam_finds_the_likeliest_target_of_all():
  (found,) = beam.search(
    *make("t5"),
    SOURCES[:1],
    2,
    beam.Beam(8, num_best=2),
    separator_id=1,
    vocab_size=4,
    start_ids=[START],
  )
  every = {(1,): log_probs("t5", SOURCES[0], [])[0, 1]}
  for first in (0, 2, 3):
    log_p = log_probs("t5", SOURCES[0], [first])
    every |= {(first, i): log_p[0, first] + log_p[1, i] for i in range(4)}
  best = sorted(every, key=lambda ids: -every[ids])[:2]
  assert [tuple(h.ids.tolist()) for h in found] == best


@pytest.mark.parametrize("form", FAMILY)
def test_choices_have_the_probability_of_whole_targets(form):
  options = [[[5, 6, END], [5, END], [40, END]]] * len(SOURCES)
  found = choices.score_ids(*make(form), SOURCES, options, start_ids=[START])
  for row, source in enumerate(SOURCES):
    for at, ids in enumerate(options[row]):
      log_p = log_probs(form, source, ids)
      right = sum(log_p[t, i] for t, i in enumerate(ids))
      assert abs(found[row, at] - right) < 2e-4


@pytest.mark.wide
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_few_bits_decode_as_the_rounded_matrices_would(weights):
  model, params = make("attention")
  small = build_model(model.config, weights=weights)
  source = {"sources_BS": np.array(SOURCES[:1], np.int32)}
  tokens = np.array([[START, 7]], np.int32)
  prepared = prepare_for_decoding(small, params)
  cache = small.init_cache(1, 4)
  at, found = jnp.zeros(1, jnp.int32), []
  for n in range(2):
    token, given = tokens[:, n : n + 1], {} if n else source
    logits, cache = apply_cached(small, prepared, token, cache, at + n, **given)
    found.append(np.asarray(logits)[..., :61])
  found = np.concatenate(found, 1)
  rounded = small.round_weights(params)
  right = np.asarray(apply(model, rounded, tokens, **source))[..., :61]
  exact = np.asarray(apply(model, params, tokens, **source))[..., :61]
  away = lambda other: float(np.abs(found - other).mean() / right.std())
  assert away(right) < 1e-3
  assert away(exact) > 5e-3  # the control


def test_the_source_is_read_once():
  model, params = make("t5")
  prepared = prepare_for_decoding(model, params)
  cache, at = model.init_cache(2, 4), jnp.zeros(2, jnp.int32)
  tokens = np.full((2, 1), START, np.int32)
  ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
  _, cache = apply_cached(model, prepared, tokens, cache, at, sources_BS=ids)
  for own in cache:
    # Beam search gathers rows, the first dim of every array.
    assert [x.shape[0] for x in own] == [2] * 5
    assert own[2].shape == own[3].shape == (2, 4, 3, 8)
  without = {k: v for k, v in prepared.items() if "encoder" not in k}
  step = lambda p: apply_cached(model, p, tokens, cache, at + 1)
  np.testing.assert_array_equal(step(prepared)[0], step(without)[0])


def test_sources_that_cannot_be_read_are_refused():
  with pytest.raises(InputError, match="prompt is empty"):
    written("t5", [[]], 3)
  with pytest.raises(InputError, match="30 tokens and the model 24 positions"):
    written("t5", [[1] * 30], 3)
  with pytest.raises(ValueError, match="needs start_ids"):
    [*generation.generate(*make("t5"), SOURCES, 3, GREEDY)]
  with pytest.raises(InputError, match="makes from 1 to 24 tokens"):
    beam.search(*make("t5"), SOURCES, 25, beam.Beam(2), start_ids=[START])


@pytest.mark.parametrize("objective", ["span_corruption", "ul2"])
def test_a_prompt_asks_for_the_end_as_training_hid_it(objective):
  config = base.get_config()
  config.data.objective = objective
  config.model.family = "encoder_decoder"
  config.model.max_len = 512
  config = config_lib.freeze(config)
  tokenizer = plain.ByteTokenizer()
  asks, marks = objectives.prompting(config, tokenizer), find_marks(257)
  text = "all that is shown, and then what is hidden"
  ids = tokenizer.encode(text).astype(np.int32)[None]
  inputs, targets = denoising.corrupt_spans(
    ids,
    [np.random.default_rng(0)],
    density=0.25,
    mean_span=float("inf"),
    sentinels=marks.sentinels,
    end_id=marks.end,
  )
  shown = tokenizer.decode(inputs[0, :-2])
  mode = [marks.modes["S"]] if objective == "ul2" else []
  assert asks.encode(shown).tolist() == [*mode, *inputs[0].tolist()]
  assert asks.target_start_ids == (marks.start, targets[0, 0])
  assert asks.separator_id == targets[0, -1] < asks.vocab_size
  assert text == shown + asks.decode(targets[0])
