"""Continuations: pairs of any lengths, each scored as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import draw_model

from gpt_jax.config import InputError
from gpt_jax.inference import continuations

LIMIT = 20


def make(**changes):
  return draw_model(3, **changes, max_len=LIMIT, vocab_size=257)


@pytest.fixture(scope="module")
def made():
  return make(position="learned")


def exact(made, context, continuation):
  """Returns (log p, is greedy) of one pair by a row of its own, float64."""
  model, params = made
  ids = [*context, *continuation][-LIMIT - 1 :]
  logits_TV = np.asarray(
    jax.jit(model.apply)(params, jnp.asarray([ids[:-1]]))[0], np.float64
  )[-len(continuation) :, :257]
  top_T = logits_TV.max(1)
  log_z_T = top_T + np.log(np.exp(logits_TV - top_T[:, None]).sum(1))
  log_p_T = logits_TV[np.arange(len(continuation)), continuation] - log_z_T
  return log_p_T.sum(), bool((logits_TV.argmax(1) == continuation).all())


@pytest.mark.wide
def test_pairs_of_all_lengths_are_scored_as_if_each_were_alone(made):
  draw = np.random.default_rng(0)
  row = lambda n: draw.integers(0, 256, n).tolist()
  sizes = [(1, 1), (3, 7), (10, 2), (LIMIT, 1), (2, LIMIT), (50, 12), (1, 3)]
  pairs = [(row(a), row(b)) for a, b in sizes]
  # What the model itself would say, and the same but for its last token.
  said = greedy(made, row(4), 5)
  pairs += [said, (said[0], [*said[1][:-1], (said[1][-1] + 1) % 256])]
  got = continuations.score_pairs(*made, pairs, 3, 257)
  want = [exact(made, *pair) for pair in pairs]
  np.testing.assert_allclose(
    [p for p, _ in got], [p for p, _ in want], rtol=2e-5
  )
  assert [is_greedy for _, is_greedy in got] == [g for _, g in want]
  assert [is_greedy for _, is_greedy in got][-2:] == [True, False]


def greedy(made, context, count: int):
  model, params = made
  ids = list(context)
  for _ in range(count):
    padded = np.zeros((1, LIMIT), np.int32)
    padded[0, : len(ids)] = ids
    logits_V = jax.jit(model.apply)(params, padded)[0, len(ids) - 1, :257]
    ids.append(int(jnp.argmax(logits_V)))
  return context, ids[len(context) :]


def test_padding_of_the_vocabulary_has_no_probability(made):
  pairs = [([1, 2], [3, 4])]
  whole = continuations.score_pairs(*made, pairs, 1, 257)[0][0]
  fewer = continuations.score_pairs(*made, pairs, 1, 100)[0][0]
  assert fewer > whole + 1e-3


def test_a_continuation_longer_than_the_positions_is_refused(made):
  with pytest.raises(InputError, match=f"21 tokens .* model's {LIMIT}"):
    continuations.score_pairs(*made, [([1], list(range(21)))], 1, 257)


@pytest.mark.parametrize(
  ("changes", "is_prefix", "said"),
  [
    ({"family": "encoder"}, False, "an encoder"),
    ({"family": "encoder_decoder"}, False, "reads sources"),
    ({}, True, "trained with prefixes"),
  ],
)
def test_a_model_that_continues_no_text_is_refused(changes, is_prefix, said):
  model, _ = make(**changes)
  with pytest.raises(InputError, match=said):
    continuations.check_model(model, is_prefix)
