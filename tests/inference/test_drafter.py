"""Drafts by a small model: the same texts, and the same distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from forms import draw_model

from gpt_jax.config import InputError
from gpt_jax.inference.drafter import Drafter
from gpt_jax.inference.drafts import Lookup
from gpt_jax.inference.drawing import Settings
from gpt_jax.inference.generation import Sampling
from gpt_jax.inference.rows import Rows

V, DRAFTS, LIMIT = 7, 3, 128
# Most pairs of tokens stand in it, so that most texts have a guess.
PROMPT = np.random.default_rng(0).integers(0, V, 90).astype(np.int32)
SIZES = dict(num_layers=1, position="rope", max_len=LIMIT, vocab_size=V)


@pytest.fixture(scope="module")
def large():
  return draw_model(0, 0.3, model_dim=32, mlp_dim=64, **SIZES)


@pytest.fixture(scope="module")
def small():
  return draw_model(1, 0.3, model_dim=16, mlp_dim=32, **SIZES)


def build(large, small, num_rows: int) -> Rows:
  drafter = None
  if small is not None:
    drafter = Drafter(*small, num_rows, V, 0, DRAFTS)
  return Rows(*large, num_rows, V, num_drafts=DRAFTS, drafter=drafter)


def read(held, ids):
  prompt = held.start(np.array(ids, np.int32))
  while not prompt.is_read:
    held.read([prompt])
  return prompt


def join(held, row: int, ids, settings) -> None:
  prompt = read(held, ids)
  held.join(row, prompt, settings)
  held.drop(prompt)


def write(held, row: int, ids, settings, count: int):
  """Returns (tokens, steps)."""
  join(held, row, ids, settings)
  found, steps = [], 0
  while len(found) < count:
    drawn = held.step()
    found += drawn.ids_RT[row, : drawn.num_R[row]].tolist()
    steps += 1
  held.leave(row)
  return found[:count], steps


@pytest.mark.parametrize(
  "settings",
  [Settings(Sampling(0.0)), Settings(Sampling(0.9, top_p=0.95), seed=3)],
  ids=["greedy", "drawn"],
)
@pytest.mark.wide
def test_a_draft_model_changes_no_text(large, small, settings):
  plain, other, same = (build(large, each, 2) for each in (None, small, large))
  rng = np.random.default_rng(0)
  for row, length in ((0, 1), (1, 40)):
    ids = rng.integers(0, V, length)
    wanted, steps = write(plain, row, ids, settings, 41)
    assert steps == 41
    found, steps = write(other, row, ids, settings, 41)
    assert found == wanted and steps <= 41 - 5 * (settings.seed > 0)
    # Drafts by the model itself all count; a prompt of one token has none.
    found, steps = write(same, row, ids, settings, 41)
    left = 41 - (length == 1)
    assert found == wanted
    assert steps == (length == 1) + -(-left // (DRAFTS + 1))


def test_a_masked_row_takes_no_drafts(large):
  held = build(large, large, 2)
  join(held, 0, PROMPT, Settings(Sampling(0.0)))
  join(held, 1, PROMPT, Settings(Sampling(0.0)))
  model, params = large
  following = int(model.apply(params, PROMPT[None])[0, -1].argmax())
  # Allowed is what would come anyway.
  held.mask_RW[0, 0] = 1 << following
  drawn = held.step()
  assert drawn.num_R[0] == 1 and drawn.ids_RT[0, 0] == following
  assert drawn.num_R[1] == 1 + DRAFTS and drawn.ids_RT[1, 0] == following
  held.mask_RW[0] = 2**32 - 1
  assert held.step().num_R[0] == 1 + DRAFTS


def test_a_draft_model_holds_the_text_that_is_written(large):
  """Keys and values of the same tokens, whichever guesses did not count."""
  held = build(large, large, 2)
  join(held, 1, PROMPT, Settings(Sampling(0.9), seed=3))
  for _ in range(4):
    held.step()
  end = held.lengths_R[1] - 1  # from here on the next guess reads
  assert end > len(PROMPT)
  own, wanted = (
    jax.tree.leaves(each.state.cache) for each in (held.drafter.rows, held)
  )
  for found, each in zip(own, wanted, strict=True):
    np.testing.assert_allclose(found[1, :, :end], each[1, :, :end], atol=1e-5)


def test_a_draft_model_of_windows_is_refused():
  made = draw_model(0, **SIZES | dict(sliding_window=8))
  with pytest.raises(InputError, match="sliding windows"):
    Drafter(*made, 2, V, 0, DRAFTS)


def chances(large, temperature: float):
  """Returns p_VVV of the second to the fourth token after the prompt."""
  model, params = large
  tails = np.array(list(np.ndindex(V, V, V, V)), np.int32)
  prompts = np.tile(PROMPT, (len(tails), 1))
  tokens_BT = np.concatenate([prompts, tails], axis=1)
  at = len(PROMPT) - 1
  tail = jax.jit(lambda *args: model.apply(*args)[:, at : at + 4, :V])
  logits_BTV = np.asarray(tail(params, tokens_BT), np.float64)
  logs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV / temperature))
  picked_BT = np.take_along_axis(logs_BTV, tails[..., None], 2)
  return np.exp(picked_BT.sum((1, 2))).reshape(V, V, V, V).sum(0)


def fits(counts, p) -> float:
  """Returns the chance of counts as unlike p as these; few are pooled."""
  wanted = (p * counts.sum()).ravel()
  order = np.argsort(wanted)
  num_few = max(2, np.searchsorted(np.cumsum(wanted[order]), 5) + 1)
  pool = lambda x: np.append(x[order[:num_few]].sum(), x[order[num_few:]])
  return scipy.stats.chisquare(
    pool(counts.ravel()), pool(wanted) * (counts.sum() / wanted.sum())
  ).pvalue


@pytest.mark.wide
@pytest.mark.parametrize("who", ["looked up", "small model"])
def test_drafts_leave_the_distribution_as_it_is(large, small, who):
  """Chi-square of 50,000 draws against the model's own probabilities."""
  num_rows, temperature = 500, 0.8
  held = build(large, small if who == "small model" else None, num_rows)
  settings = Settings(Sampling(temperature))
  prompt = read(held, PROMPT)
  for row in range(num_rows):
    held.join(row, prompt, settings)
  rows = [held] if held.drafter is None else [held, held.drafter.rows]
  states = [jax.tree.map(jnp.copy, each.state) for each in rows]
  counts, num_taken = np.zeros((V, V, V)), 0
  for first in range(0, 50_000, num_rows):
    for each, state in zip(rows, states, strict=True):
      each.state = jax.tree.map(jnp.copy, state)
    held.lengths_R[:], held.draws.made_R[:] = len(PROMPT) - 1, 0
    held.draws.seed_R[:] = first + np.arange(num_rows)
    if held.drafter is not None:
      held.drafter._pairs_R2[:] = PROMPT[-2:]
    rows_of = [[] for _ in range(num_rows)]
    for _ in range(4):
      guesses = {}
      for row in range(num_rows if held.drafter is None else 0):
        lookup = Lookup([*PROMPT.tolist(), *rows_of[row]])
        guesses[row] = lookup.guess(DRAFTS)
      drawn = held.step(guesses)
      for row, own in enumerate(rows_of):
        own += drawn.ids_RT[row, : drawn.num_R[row]].tolist()
      num_taken += (drawn.num_R > 1).sum()
    for own in rows_of:
      counts[tuple(own[1:4])] += 1
  assert counts.sum() == 50_000 and num_taken > 10_000
  assert fits(counts, chances(large, temperature)) > 1e-3
  # The control: another temperature's distribution is told apart.
  assert fits(counts, chances(large, temperature * 1.2)) < 1e-9
