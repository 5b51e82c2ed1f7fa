"""Beam search: exhaustive, never below greedy, on meshes, by any cache."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import draw_model

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.inference import beam, generation

LIMIT = 48


def make(vocab_size=32, spread=0.35, **changes):
  return draw_model(3, spread, **changes, max_len=LIMIT, vocab_size=vocab_size)


@pytest.fixture(scope="module")
def made():
  return make(position="rope")


@functools.partial(jax.jit, static_argnames="model")
def full_pass(params, rows, model):
  return jax.nn.log_softmax(model.apply(params, rows))


def log_probs(made, prompts, ids):
  """Returns the sum over each row of ids by one full forward pass."""
  model, params = made
  rows = [[*p, *i] for p, i in zip(prompts, ids, strict=True)]
  padded = np.zeros((len(rows), LIMIT + 1), np.int32)
  for row, padded_row in zip(rows, padded, strict=True):
    padded_row[: len(row)] = row
  log_p = np.asarray(full_pass(params, padded[:, :LIMIT], model), np.float64)
  return [
    sum(log_p[n, at - 1, row[at]] for at in range(len(prompt), len(row)))
    for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
  ]


def prompts_of(number, vocab_size=32, seed=0):
  rng = np.random.default_rng(seed)
  return [
    rng.integers(0, vocab_size, rng.integers(1, 9)).tolist()
    for _ in range(number)
  ]


def greedy(made, prompts, num_tokens, separator=None):
  """Returns what generation.generate takes, up to the separator."""
  chunks = generation.generate(
    *made, prompts, num_tokens, generation.Sampling(temperature=0.0)
  )
  rows = np.concatenate(list(chunks), axis=1).tolist()
  return [
    row[: row.index(separator) + 1] if separator in row else row for row in rows
  ]


def all_hypotheses(vocab_size, num_tokens, separator):
  """Yields every string that ends with the separator or has num_tokens."""
  rest = [i for i in range(vocab_size) if i != separator]
  for length in range(1, num_tokens + 1):
    for head in itertools.product(rest, repeat=length - 1):
      lasts = range(vocab_size) if length == num_tokens else [separator]
      for last in lasts:
        yield (*head, last)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_a_wide_beam_is_an_exhaustive_search(alpha):
  made = make(vocab_size=5, position="rope")
  prompt, separator = [1, 2, 3], 1
  every = list(all_hypotheses(5, 4, separator))
  sums = log_probs(made, [prompt] * len(every), every)
  exact = sorted(
    (
      (s / ((5 + len(ids)) / 6) ** alpha, s, ids)
      for s, ids in zip(sums, every, strict=True)
    ),
    reverse=True,
  )
  assert len(exact) == 85 + 256
  wide = beam.Beam(341, alpha, num_best=341)
  (found,) = beam.search(*made, [prompt], 4, wide, separator)
  assert len(found) == 341
  want = {ids: (score, sum_) for score, sum_, ids in exact}
  assert {tuple(h.ids.tolist()) for h in found} == set(want)
  for rank, h in enumerate(found):
    score, sum_ = want[tuple(h.ids.tolist())]
    assert h.log_prob == pytest.approx(sum_, abs=1e-4)
    assert h.score == pytest.approx(score, abs=1e-4)
    assert h.score == pytest.approx(exact[rank][0], abs=1e-4)
    assert h.has_ended == (h.ids[-1] == separator)
  # The control: the search matters.
  (one,) = beam.search(*made, [prompt], 4, beam.Beam(1, alpha), separator)
  assert one[0].ids.tolist() != found[0].ids.tolist()
  assert one[0].score < found[0].score - 0.01


@pytest.mark.parametrize("separator", [None, 7])
def test_four_beams_never_score_below_greedy(made, separator):
  prompts = prompts_of(200)
  found = beam.search(*made, prompts, 12, beam.Beam(4), separator)
  rows = greedy(made, prompts, 12, separator)
  exact = log_probs(made, prompts, [h.ids for (h,) in found])
  least = log_probs(made, prompts, rows)
  np.testing.assert_allclose([h.log_prob for (h,) in found], exact, atol=1e-3)
  gains = np.array(exact) - least
  assert gains.min() >= -1e-4
  assert (gains > 1e-2).sum() > 50  # the control: it is not greedy itself
  assert any(h.has_ended for (h,) in found) == (separator is not None)


@pytest.mark.parametrize("separator, alpha", [(None, 0.0), (7, 0.0), (7, 1.0)])
def test_one_beam_is_greedy(made, separator, alpha):
  prompts = prompts_of(40, seed=1)
  found = beam.search(*made, prompts, 30, beam.Beam(1, alpha), separator)
  rows = greedy(made, prompts, 30, separator)
  assert [h.ids.tolist() for (h,) in found] == rows
  if separator is not None:
    assert 3 < sum(h.has_ended for (h,) in found) < 40


def naive(made, prompt, num_tokens, settings, separator):
  """Plain beam search in numpy by full forward passes, without greedy."""
  model, params = made
  W, alpha = settings.num_beams, settings.length_penalty
  alive, ended = [(0.0, ())], []
  for length in range(1, num_tokens + 1):
    rows = np.zeros((W, LIMIT), np.int32)
    for row, (_, ids) in zip(rows, alive, strict=False):
      row[: len(prompt) + length - 1] = [*prompt, *ids]
    log_p = full_pass(params, rows, model)[:, len(prompt) + length - 2]
    heads = zip(alive, np.asarray(log_p, np.float64), strict=False)
    each = [
      (sum_ + log_p_V[i], (*ids, i))
      for (sum_, ids), log_p_V in heads
      for i in range(len(log_p_V))
    ]
    each.sort(reverse=True)
    over = ((5 + length) / 6) ** alpha
    ended += [(s / over, ids) for s, ids in each[:W] if ids[-1] == separator]
    alive = [one for one in each if one[1][-1] != separator][:W]
  return max(ended + [(s / over, ids) for s, ids in alive])


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_beams_are_those_of_a_naive_search(made, alpha):
  settings = beam.Beam(3, alpha)
  prompts = prompts_of(12, seed=2)
  found = beam.search(*made, prompts, 7, settings, 7)
  same = 0
  for prompt, (best,) in zip(prompts, found, strict=True):
    score, ids = naive(made, prompt, 7, settings, 7)
    same += best.ids.tolist() == list(ids)
    # Only greedy may have been better than the beams.
    assert best.score >= score - 1e-4
    if best.ids.tolist() != list(ids):
      assert best.ids.tolist() == greedy(made, [prompt], 7, 7)[0]
  assert same >= 10


def test_a_prompt_finds_the_same_alone_and_among_longer_ones(made):
  prompts = prompts_of(6, seed=4)
  settings = beam.Beam(3, 0.6, num_best=3)
  both = beam.search(*made, prompts, 10, settings, 7)
  for prompt, found in zip(prompts, both, strict=True):
    (alone,) = beam.search(*made, [prompt], 10, settings, 7)
    assert [h.ids.tolist() for h in alone] == [h.ids.tolist() for h in found]
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(h.ids.tolist()) for h in found}) == 3


@pytest.mark.wide
def test_early_stopping_takes_what_ended_first(made):
  prompts, separator, alpha = prompts_of(60, seed=5), 14, 3.0
  whole, early = (
    beam.search(
      *made,
      prompts,
      20,
      beam.Beam(2, alpha, early_stopping=is_early),
      separator,
    )
    for is_early in (False, True)
  )
  lengths = lambda found: sum(len(h.ids) for (h,) in found)
  assert lengths(early) < 0.7 * lengths(whole)
  rows = greedy(made, prompts, 20, separator)
  sums = log_probs(made, prompts, rows)
  for (a,), (b,), row, s in zip(whole, early, rows, sums, strict=True):
    assert a.score >= b.score - 1e-4
    assert b.score >= s / ((5 + len(row)) / 6) ** alpha - 1e-4


@pytest.mark.parametrize(
  "changes",
  [
    dict(position="learned"),
    dict(position="rope", num_kv_heads=2),
    dict(position="rope", layer_pattern="local+global", sliding_window=4),
  ],
  ids=["learned", "grouped", "local"],
)
def test_beams_follow_the_cache_of_every_layer(changes):
  made = make(**changes)
  (found,) = beam.search(*made, [[1, 2, 3]], 20, beam.Beam(4, num_best=4))
  exact = log_probs(made, [[1, 2, 3]] * 4, [h.ids for h in found])
  np.testing.assert_allclose([h.log_prob for h in found], exact, atol=1e-3)


@pytest.mark.parametrize(
  "sizes", [dict(fsdp=8), dict(data=2, tensor=4)], ids=str
)
def test_a_mesh_finds_what_one_device_finds(made, sizes):
  prompts = prompts_of(8, seed=6)
  settings = beam.Beam(3, 0.6, num_best=2)
  want = beam.search(*made, prompts, 10, settings, 7)
  config = config_lib.freeze(base.get_config()).mesh
  ones = dict.fromkeys(sharding.AXES, 1)
  mesh = sharding.make_mesh(dataclasses.replace(config, **ones | sizes))
  model, params = made
  abstract, specs = model.abstract_params()
  shardings = sharding.shardings_of(abstract, specs, "standard", mesh)
  with jax.set_mesh(mesh):
    params = jax.device_put(params, shardings)
    got = beam.search(model, params, prompts, 10, settings, 7)
  for a, b in zip(sum(want, []), sum(got, []), strict=True):
    assert a.ids.tolist() == b.ids.tolist()
    assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """A model by a table, whose cache also holds what no step changes.

  Logits are a row of the table, by the tokens after the prompt in base 4; the
  sign of them depends on the prompt alone, as a decoder's on its source.
  """

  can_generate = True
  config = types.SimpleNamespace(max_len=9, vocab_size=4, family="decoder")

  def prepare_for_decoding(self, params):
    return params

  def init_cache(self, batch_size, num_slots):
    whole = jnp.zeros((batch_size, num_slots), jnp.int32)
    return {"ids": whole, "source": jnp.zeros(batch_size)}

  def apply_cached(
    self, table, tokens, cache, start_B, only_B=None, slots=None
  ):
    if tokens.shape[1] > 1:  # the prompt, one token long: the source
      source = tokens[:, 0].astype(float)
      return table[jnp.zeros_like(start_B)][:, None] * source[:, None, None], {
        **cache,
        "source": source,
      }
    ids = jax.vmap(lambda row, at, id: row.at[at].set(id))(
      cache["ids"], start_B, tokens[:, 0]
    )
    # 1, 4 to 7, ...: a number for every string.
    code = jnp.ones_like(start_B)
    for at in range(1, ids.shape[1]):
      code = jnp.where(at <= start_B, 4 * code + ids[:, at], code)
    source = cache["source"]
    logits = table[code % len(table)] * source[:, None]
    return logits[:, None], {"ids": ids, "source": source}


def garden_path():
  """Returns log-probabilities in which greedy leaves a beam of 2, and wins.

  0 is likeliest and then even; 1 and 2 are nearly as likely and then have two
  likely tokens, and are even later. After 0, 0 all is nearly certain.
  """
  table = np.log(np.full((4**4, 4), 0.25))
  table[0] = np.log([0.36, 0.32, 0.31, 0.01])
  table[4 + 1] = table[4 + 2] = np.log([0.499, 0.499, 0.001, 0.001])
  table[16] = table[64 : 64 + 4] = np.log([0.001, 0.001, 0.001, 0.997])
  return jnp.asarray(table, jnp.float32)


def test_the_greedy_hypothesis_is_followed_out_of_the_beam():
  table = garden_path()
  (best,), (mirror,) = beam.search(Tree(), table, [[1], [-1]], 4, beam.Beam(2))
  assert best.ids.tolist() == [0, 0, 3, 3]
  want = np.log(0.36) + np.log(0.25) + 2 * np.log(0.997)
  assert best.log_prob == pytest.approx(want, abs=1e-4)
  # Plain beam search of 2 has 1, 0 and 1, 1 after two tokens, and ends lower.
  assert np.log(0.32 * 0.499) > np.log(0.36 * 0.25)
  assert np.log(0.32 * 0.499 * 0.25**2) < want
  assert mirror.ids.tolist() != best.ids.tolist()  # another source


@pytest.mark.parametrize("early", [True, False])
def test_a_greedy_hypothesis_that_left_the_beam_can_end(early):
  settings = beam.Beam(2, num_best=2, early_stopping=early)
  ((best, second),) = beam.search(
    Tree(), garden_path(), [[1]], 4, settings, separator_id=3
  )
  assert (best.ids.tolist(), best.has_ended) == ([0, 0, 3], True)
  assert second.ids[0] == 1 and second.score < best.score


def test_early_stopping_waits_for_the_greedy_hypothesis():
  table = np.array(garden_path())
  # Two end after three tokens, greedy after four.
  table[20] = table[21] = np.log([0.22, 0.22, 0.22, 0.34])
  table[16] = np.log([0.001, 0.001, 0.997, 0.001])
  table[64 + 2] = np.log([0.001, 0.001, 0.001, 0.997])
  settings = beam.Beam(2, early_stopping=True)
  ((best,),) = beam.search(Tree(), jnp.asarray(table), [[1]], 4, settings, 3)
  assert best.ids.tolist() == [0, 0, 2, 3]
  # With three tokens at most greedy does not end, and is the best all the same.
  ((best,),) = beam.search(Tree(), jnp.asarray(table), [[1]], 3, settings, 3)
  assert (best.ids.tolist(), best.has_ended) == ([0, 0, 2], False)


def test_what_beam_search_cannot_do_is_told_in_a_sentence(made):
  model, params = made
  for words, said in {
    (0,): "number of beams is 0; it must be 1",
    (2, 0.0, 3): "num_best is 3 and there are 2 beams",
    (2, 0.0, 0): "num_best is 0 and there are 2 beams",
    (2, -0.5): "length_penalty is -0.5",
    (2, np.nan): "length_penalty is nan",
  }.items():
    with pytest.raises(InputError, match=said):
      beam.Beam(*words)
  run = lambda prompts, num_tokens, params=params: beam.search(
    model, params, prompts, num_tokens, beam.Beam(2)
  )
  with pytest.raises(InputError, match="prompt is empty"):
    run([[]], 5)
  with pytest.raises(InputError, match="from 1 to 9 tokens"):
    run([[1], [1] * 40], 10)
  assert len(run([[1] * 40], 9)[0][0].ids) == 9  # the control
  with pytest.raises(InputError, match="num_tokens is 0"):
    run([[1]], 0)
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
  with pytest.raises(InputError, match="logits are NaN or infinite"):
    run([[1]], 5, broken)
