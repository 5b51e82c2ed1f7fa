"""Generation: sampling filters, batches of prompts, stops, long texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import draw_model

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from gpt_jax.inference import generation, texts
from gpt_jax.machine import processor
from gpt_jax.models import build_model
from gpt_jax.ops import matmul

pytestmark = pytest.mark.battery

LIMIT = 80


def make(**changes):
  sizes = dict(model_dim=64, mlp_dim=256) | changes
  return draw_model(0, **sizes, max_len=LIMIT, vocab_size=257)


@pytest.fixture(scope="module")
def made():
  return make(model_dim=32, mlp_dim=64, position="rope")


def run(made, prompts, num_tokens, seed=0, **sampling):
  chunks = generation.generate(
    *made, prompts, num_tokens, generation.Sampling(**sampling), seed
  )
  return np.concatenate(list(chunks), axis=1)


def test_a_family_that_cannot_generate_is_refused(made, monkeypatch):
  model, params = made
  run(made, [[1]], 1)  # the control
  monkeypatch.setattr(model.module, "can_generate", False)
  with pytest.raises(InputError, match="decoder, which cannot continue"):
    run((model, params), [[1]], 1)
  with pytest.raises(InputError, match="decoder, which cannot continue"):
    generation.check_prompts([[1]], model)  # before a prompt is printed


def greedy_by_full_passes(made, prompt, num_tokens):
  model, params = made
  apply = jax.jit(model.apply)
  ids = list(prompt)
  for _ in range(num_tokens):
    padded = np.zeros((1, LIMIT), np.int32)
    padded[0, : len(ids)] = ids
    ids.append(int(apply(params, padded)[0, len(ids) - 1].argmax()))
  return ids[len(prompt) :]


def test_greedy_output_is_the_argmax_of_full_forward_passes(made):
  prompts = [[5, 6, 7], [200, 1, 9, 30, 31, 32, 33]]
  got = run(made, prompts, 40, temperature=0.0)
  for row, prompt in zip(got, prompts, strict=True):
    assert row.tolist() == greedy_by_full_passes(made, prompt, 40)
  other = greedy_by_full_passes(made, [5, 6, 8], 40)
  assert got[0].tolist() != other  # the control: the prompt matters


def test_a_prompt_gives_the_same_alone_and_in_a_batch(made):
  alone = run(made, [[5, 6, 7]], 20, temperature=0.0)
  batch = run(made, [[5, 6, 7], [9] * 30], 20, temperature=0.0)
  assert alone[0].tolist() == batch[0].tolist()


def test_text_goes_on_beyond_the_last_position(made):
  got = run(made, [[1, 2, 3]], 3 * LIMIT, temperature=0.0)
  assert got.shape == (1, 3 * LIMIT)
  # The last position is read too before the row is shortened.
  head = got[0, : LIMIT - 2].tolist()
  assert head == greedy_by_full_passes(made, [1, 2, 3], LIMIT - 2)
  context = head[-LIMIT // 2 :]
  assert got[0, LIMIT - 2 : LIMIT + 8].tolist() == greedy_by_full_passes(
    made, context, 10
  )


def test_a_row_is_shortened_only_when_it_is_full_itself(made):
  long, short = list(range(1, 76)), list(range(100, 140))
  both = run(made, [long, short], 30, temperature=0.0)
  alone = run(made, [short], 30, temperature=0.0)
  assert both[1].tolist() == alone[0].tolist()


def test_a_prompt_of_all_positions_is_read_whole(made):
  for seed in range(4):
    prompt = np.random.default_rng(seed).integers(0, 256, LIMIT).tolist()
    got = run(made, [prompt], 1, temperature=0.0)
    assert got[0].tolist() == greedy_by_full_passes(made, prompt, 1)


def test_a_seed_repeats_its_draw_and_another_differs(made):
  a = run(made, [[1, 2]], 30, seed=1, temperature=1.0)
  b = run(made, [[1, 2]], 30, seed=1, temperature=1.0)
  c = run(made, [[1, 2]], 30, seed=2, temperature=1.0)
  assert a.tolist() == b.tolist() != c.tolist()


LOGITS = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.06, 0.04]]))


@pytest.mark.parametrize(
  "sampling, kept",
  [
    (dict(), 5),
    (dict(top_k=2), 2),
    (dict(top_k=9), 5),
    (dict(top_p=0.6), 2),
    (dict(top_p=0.75), 3),
    (dict(top_p=1e-6), 1),
    (dict(top_p=1e-46), 1),
    (dict(top_k=10**12), 5),
    (dict(min_p=1e-300), 5),
    (dict(min_p=0.45), 3),
    (dict(min_p=1.0), 1),
    (dict(top_k=3, top_p=0.7), 2),
  ],
)
def test_filters_keep_the_likeliest(sampling, kept):
  logits = generation.filter_logits(LOGITS, generation.Sampling(**sampling))
  assert np.isfinite(np.asarray(logits[0])).sum() == kept
  assert np.isfinite(np.asarray(logits[0, :kept])).all()


def test_draws_follow_the_probabilities():
  keys = jax.random.split(jax.random.key(0), 4000)
  ids = generation.sample(
    jnp.broadcast_to(LOGITS, (4000, 5)), keys, generation.Sampling()
  )
  share = np.bincount(np.asarray(ids), minlength=5) / 4000
  np.testing.assert_allclose(share, [0.4, 0.3, 0.2, 0.06, 0.04], atol=0.03)


HUGE = (3e29, 1e30, 1e31, 1e38, 1e300)
TINY = (1e-45, 1e-39, 1e-38, 2e-38, 1e-300)


@pytest.mark.parametrize(
  "filters", [{}, dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1)]
)
def test_no_temperature_draws_what_is_no_token(filters):
  logits = jnp.full((4, 8), -1e30).at[:, :5].set(LOGITS)
  logits = logits.at[:, 2].set(-jnp.inf)
  keys = jax.random.split(jax.random.key(1), 4)
  draw = jax.jit(generation.sample, static_argnums=(2, 3))
  for temperature in HUGE:
    ids = draw(logits, keys, generation.Sampling(temperature, **filters), 5)
    assert set(ids.tolist()) <= {0, 1, 3, 4}
  for temperature in TINY:
    ids = draw(logits, keys, generation.Sampling(temperature, **filters), 5)
    assert ids.tolist() == [0] * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_draw_no_token(wrong, temperature):
  rows = jnp.stack([jnp.full(5, wrong), LOGITS[0]])
  rows = rows.at[0, 3].set(jnp.inf if wrong > 0 else wrong)
  keys = jax.random.split(jax.random.key(0), 2)
  ids = generation.sample(rows, keys, generation.Sampling(temperature, top_k=1))
  assert ids.tolist() == [-1, 0]


def test_a_model_that_diverged_is_told_in_a_sentence(made):
  model, params = made
  params = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
  with pytest.raises(InputError, match="logits are NaN or infinite"):
    run((model, params), [[1, 2]], 5)


def test_rows_beyond_the_tokenizer_are_never_drawn(made):
  chars = CharTokenizer("ab")  # 2 tokens of the model's 257
  (text,) = texts.generate_text(
    *made, chars, ["ab"], 40, generation.Sampling(1e30)
  )
  assert len(text) == 40 and set(text) <= {"a", "b"}


class Llama:
  """Words that begin with a space; decode strips the first of a text."""

  vocab_size, separator_id = 257, None

  def decode(self, ids):
    return "".join(f" {i}" for i in ids).removeprefix(" ")


def test_a_continuation_begins_as_it_does_in_the_whole_text():
  assert texts.cut_text([1, 2], [3, 4], Llama(), ()) == (" 3 4", False)
  assert texts.cut_text([1, 2], [3, 4], Llama(), (" 4",)) == (" 3", True)


def test_stop_strings_and_the_separator_end_a_text(made):
  model, params = made
  tokenizer = ByteTokenizer()
  whole = texts.generate_text(
    model, params, tokenizer, ["ab"], 60, generation.Sampling(0.0)
  )[0]
  stop = whole[5:8]
  shown = []
  cut = texts.generate_text(
    model,
    params,
    tokenizer,
    ["ab"],
    60,
    generation.Sampling(0.0),
    stop=(stop,),
    show=shown.append,
  )[0]
  assert cut == whole[: whole.find(stop)]
  assert "".join(shown) == cut
  assert texts.cut_text([9], [65, 256, 66], tokenizer, ()) == ("A", True)
  assert texts.cut_text([9], [65, 66], tokenizer, ()) == ("AB", False)


def test_streamed_text_holds_back_what_may_become_a_stop():
  assert texts.safe_length("hello wo", ("world",)) == 6
  assert texts.safe_length("hello", ("world",)) == 5
  assert texts.safe_length("caf\ufffd", ()) == 3


def test_prompts_that_cannot_be_continued_are_refused(made):
  with pytest.raises(InputError, match="prompt is empty"):
    run(made, [[]], 5)
  with pytest.raises(InputError, match="81 tokens and the model 80 positions"):
    run(made, [[1] * 81], 5)
  assert run(made, [[1] * 80], 5).shape == (1, 5)
  with pytest.raises(InputError, match="num_tokens is 1000000000000"):
    run(made, [[1]], 10**12)
  for name, values in {
    "top_p": (0.0, 1.1, np.nan),
    "min_p": (-0.1, 1.1, np.nan),
    "top_k": (-1,),
    "temperature": (-1.0, np.inf, np.nan),
  }.items():
    for value in values:
      with pytest.raises(InputError, match=f"{name} is {value}"):
        generation.Sampling(**{name: value})


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_decoding_reads_matrices_in_the_type_that_they_multiply(position):
  model, params = make(compute_dtype="bfloat16", position=position)
  ready = jax.eval_shape(model.prepare_for_decoding, params)
  # Rows of a table are summed with learned positions as they are kept.
  is_summed = position == "learned"
  table, head = ready["embed"]["tokens"], ready.get("unembed")
  assert table.dtype == ("float32" if is_summed else "bfloat16")
  assert (head is not None) == is_summed
  assert head is None or head.dtype == "bfloat16"
  for name in ("qkv", "o"):
    for leaf in jax.tree.leaves(ready["blocks_1"]["attn"][name]):
      assert leaf.dtype == "bfloat16"


def last_logits(model, params, rows):
  """Returns the cached logits of the last of 30 tokens: 29 read, then one."""
  tokens = np.random.default_rng(1).integers(0, 256, (rows, 30))
  ready = jax.jit(model.prepare_for_decoding)(params)
  cache = model.init_cache(rows, 30)
  start = jnp.zeros(rows, jnp.int32)
  apply_cached = jax.jit(model.apply_cached)
  _, cache = apply_cached(ready, tokens[:, :29], cache, start)
  out, _ = apply_cached(ready, tokens[:, 29:], cache, start + 29)
  return out[:, 0, :257], tokens


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_makes_of_processors_decode_the_same(rows, dtype, monkeypatch):
  found = {}
  for is_intel in (False, True):
    monkeypatch.setattr(processor, "is_intel", lambda answer=is_intel: answer)
    model, params = make(compute_dtype=dtype, bias=True, num_kv_heads=2)
    blocks = model.prepare_for_decoding(params)["blocks_1"]
    for part, names in ("attn", ("qkv", "o")), ("mlp", ("in", "out")):
      for name in names:
        w = blocks[part][name]
        assert isinstance(w, matmul.Transposed) == is_intel, name
    found[is_intel], tokens = last_logits(model, params, rows)
    full = jax.jit(model.apply)(params, tokens)[:, -1, :257]
    scale = float(jnp.abs(full).max())
    away = float(jnp.abs(found[is_intel] - full).max()) / scale
    assert away < (1e-5 if dtype == "float32" else 2e-2)
  assert jnp.abs(found[True] - jnp.roll(found[False], 1, -1)).max() > 0.1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_few_bits_decode_as_the_rounded_matrices_would(rows, weights, tied):
  model, params = make(position="learned", tied_embeddings=tied, bias=True)
  small = dataclasses.replace(model, weights=weights)
  got, tokens = last_logits(small, params, rows)
  rounded, apply = jax.jit(small.round_weights)(params), jax.jit(model.apply)
  want = apply(rounded, tokens)[:, -1, :257]
  exact = apply(params, tokens)[:, -1, :257]
  away = lambda a, b: float(jnp.abs(a - b).mean() / jnp.abs(b).mean())
  # An activation has 16 bits; the rounding of weights is far larger.
  assert away(got, want) < 2e-4
  assert away(got, exact) > (5e-3 if weights == "int8" else 5e-2)
  assert jax.tree.map(jnp.shape, rounded) == jax.tree.map(jnp.shape, params)


def test_few_bits_take_a_quarter_and_an_eighth():
  model, params = make(num_layers=4, model_dim=128, mlp_dim=512)
  size = lambda weights: sum(
    leaf.nbytes
    for name, leaf in tree.flatten_with_names(
      dataclasses.replace(model, weights=weights).prepare_for_decoding(params)
    ).items()
    if "blocks" in name
  )
  assert size("int8") / size("full") == pytest.approx(1 / 4, rel=0.06)
  assert size("int4") / size("full") == pytest.approx(1 / 8, rel=0.16)


def test_experts_in_few_bits_are_refused():
  config = make(num_experts=4, experts_per_token=2)[0].config
  with pytest.raises(InputError, match="num_experts is 4; leave them full"):
    build_model(config, weights="int8")
