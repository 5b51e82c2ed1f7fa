"""Drafts: no guess changes a text, or how texts are distributed."""

import numpy as np
import pytest
from forms import draw_model

from gpt_jax.config import InputError
from gpt_jax.inference.drafts import Lookup
from gpt_jax.inference.drawing import Settings
from gpt_jax.inference.generation import Sampling
from gpt_jax.inference.rows import Rows

V, ROWS, DRAFTS = 13, 4, 3


@pytest.fixture(scope="module")
def held():
  sizes = dict(num_layers=1, model_dim=32, mlp_dim=64, position="rope")
  made = draw_model(0, 0.2, **sizes, max_len=128, vocab_size=V)
  return Rows(*made, ROWS, V, num_drafts=DRAFTS)


def join(held, row, ids, settings):
  prompt = held.start(np.array(ids, np.int32))
  while not prompt.is_read:
    held.read([prompt])
  held.join(row, prompt, settings)
  held.drop(prompt)
  return prompt


def write(held, ids, settings, count: int, guess):
  """Returns (tokens, log-probabilities, steps) of row 1."""
  join(held, 1, ids, settings)
  found, logs, steps = [], [], 0
  while len(found) < count:
    guesses = guess(found)
    drawn = held.step({1: guesses})
    num = int(drawn.num_R[1])
    assert 1 <= num <= len(guesses) + 1
    assert drawn.ids_RT[1, : num - 1].tolist() == guesses[: num - 1]
    found += drawn.ids_RT[1, :num].tolist()
    logs += drawn.log_probs_RT[1, :num].tolist()
    steps += 1
  held.leave(1)
  return found[:count], logs[:count], steps


@pytest.mark.parametrize(
  "settings",
  [
    Settings(Sampling(0.0)),
    Settings(Sampling(0.0), frequency_penalty=0.6, presence_penalty=0.3),
    Settings(Sampling(1.0, top_p=0.9), seed=3, has_log_probs=True),
    Settings(Sampling(0.7), seed=4, frequency_penalty=0.5),
  ],
  ids=["greedy", "penalties", "drawn", "drawn with a penalty"],
)
def test_a_text_is_the_same_whatever_is_guessed(held, settings):
  ids, none = [1, 2, 3, 4, 5], lambda found: []
  plain, logs, steps = write(held, ids, settings, 40, none)
  assert steps == 40
  lookup = Lookup(ids)

  def look(found):
    for i in found[len(lookup._ids) - len(ids) :]:
      lookup.push(i)
    return lookup.guess(DRAFTS)

  right = lambda found: plain[len(found) :][:DRAFTS]
  wrong = lambda found: [(i + 1) % V for i in right(found)]
  mixed = lambda found: [*right(found)[:1], 0, 1]
  for guess, least, most in (
    (look, 10, 40),
    (right, 10, 10),
    (wrong, 40, 40),
    (mixed, 14, 29),
  ):
    again, other, steps = write(held, ids, settings, 40, guess)
    assert again == plain
    np.testing.assert_allclose(other, logs, atol=1e-5)
    assert least <= steps <= most


def test_other_rows_are_left_as_they_are(held):
  settings = Settings(Sampling(0.0))
  join(held, 0, [7, 7, 1], settings)
  alone = [int(held.step().ids_RT[0, 0]) for _ in range(9)]
  held.leave(0)
  join(held, 0, [7, 7, 1], settings)
  join(held, 2, [3, 2], settings)
  found = []
  while len(found) < 9:
    drawn = held.step({0: alone[len(found) :][:2], 2: [5, 5, 5]})
    found += drawn.ids_RT[0, : drawn.num_R[0]].tolist()
  held.leave(0), held.leave(2)
  assert found[:9] == alone


def test_what_is_guessed_is_what_followed_before():
  lookup = Lookup([1, 2, 3, 4, 1, 2])
  assert lookup.guess(2) == [3, 4]
  lookup.push(3)
  assert lookup.guess(2) == [4, 1]
  lookup.push(4)
  assert lookup.guess(9) == [1, 2, 3, 4]
  lookup.push(9)
  assert lookup.guess(9) == []
  assert Lookup([]).guess(3) == [] == Lookup([1]).guess(3)


def test_rings_have_no_drafts():
  made = draw_model(
    0, position="rope", sliding_window=8, max_len=64, vocab_size=V
  )
  with pytest.raises(InputError, match="without sliding windows"):
    Rows(*made, 2, V, num_drafts=2)
