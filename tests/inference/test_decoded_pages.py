"""Stored prompts: the same bits, and no page is lost."""

import numpy as np
import pytest
from forms import draw_model

from gpt_jax.inference.drawing import Settings
from gpt_jax.inference.generation import Sampling
from gpt_jax.inference.pages import PAGE
from gpt_jax.inference.rows import Rows

V, NUM_PAGES = 257, 6
GREEDY = Settings(Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def made():
  sizes = dict(num_layers=1, model_dim=32, mlp_dim=64, position="rope")
  return draw_model(0, **sizes, max_len=256, vocab_size=V)


@pytest.fixture
def held(made):
  return Rows(*made, num_rows=8, vocab_size=V, num_pages=NUM_PAGES)


def read(held, ids):
  """Returns (a prompt that is read, the chunks that were read of it).

  Its place, which is free again, holds it until another prompt is read.
  """
  prompt, count = held.start(np.array(ids, np.int32)), 0
  while not prompt.is_read:
    held.read([prompt])
    count += 1
  held.drop(prompt)
  return prompt, count


def texts_of(seed: int, length: int) -> list[int]:
  return np.random.default_rng(seed).integers(0, 256, length).tolist()


def test_what_is_stored_is_not_read_again_and_has_the_same_bits(made, held):
  plain = Rows(*made, num_rows=8, vocab_size=V)
  ids = texts_of(0, 2 * PAGE + 9)
  first, count = read(held, ids)
  assert count == 3 and held.pages.num_held == 2
  for other, chunks in (
    (ids, 1),
    (ids[: 2 * PAGE], 1),  # its last page is read, for its logits
    (ids[: PAGE + 5], 1),
    (ids + texts_of(1, 70), 3),
    ([5, *ids], 3),
    (ids[:PAGE] + texts_of(2, 40), 2),
  ):
    again, count = read(held, other)
    alone, _ = read(plain, other)
    assert count == chunks
    held.join(0, again, GREEDY)
    plain.join(0, alone, GREEDY)
    for _ in range(5):
      assert held.step().ids_RT[0] == plain.step().ids_RT[0]
      np.testing.assert_array_equal(
        held.state.logits_VR[:, 0], plain.state.logits_VR[:, 0]
      )
    held.leave(0), plain.leave(0)


def test_one_row_reads_longer_chunks_that_begin_where_they_would_anyway(made):
  plain, held = (
    Rows(*made, num_rows=1, vocab_size=V, num_pages=count)
    for count in (0, NUM_PAGES)
  )
  ids = texts_of(0, 3 * PAGE + 9)
  for other, chunks in (
    (ids, 2),
    (ids, 1),  # three pages are stored, of which it begins after the second
    (ids[: PAGE + 9] + texts_of(1, 40), 2),
  ):
    again, count = read(held, other)
    alone, _ = read(plain, other)
    assert count == chunks
    for found, wanted in zip(
      again.home.cache[0], alone.home.cache[0], strict=True
    ):
      np.testing.assert_array_equal(
        found[:, :, : again.num_read], wanted[:, :, : alone.num_read]
      )


def test_prompts_read_together_store_their_own_pages(held):
  texts = [texts_of(seed, 2 * PAGE + 1) for seed in (7, 8)]
  both = [held.start(ids) for ids in texts]
  for _ in range(2):
    held.read(both)
  kept = lambda prompt: [
    np.asarray(x[prompt.place, :, : 2 * PAGE])
    for layer in held.prefill.cache
    for x in layer
  ]
  wanted = [kept(prompt) for prompt in both]
  for prompt in both:
    held.drop(prompt)
  again = [held.start(ids) for ids in texts]
  assert all(prompt.is_read for prompt in again)
  for prompt, each in zip(again, wanted, strict=True):
    for found, own in zip(kept(prompt), each, strict=True):
      np.testing.assert_array_equal(found, own)
  assert not np.array_equal(wanted[0][0], wanted[1][0])


def test_the_page_longest_unused_makes_room(held):
  one, two, three = (texts_of(s, 2 * PAGE + 2) for s in (1, 2, 3))
  for ids in (one, two, three):
    assert read(held, ids)[1] == 3
  assert held.pages.num_held == NUM_PAGES
  assert read(held, one)[1] == 1  # used again, so that `two` is the oldest
  assert read(held, texts_of(4, 2 * PAGE + 2))[1] == 3
  assert held.pages.num_held == NUM_PAGES
  assert read(held, one)[1] == 1 and read(held, two)[1] == 3


def test_a_prompt_longer_than_the_pool_is_stored_as_far_as_it_goes(held):
  ids = texts_of(5, 8 * PAGE - 1)
  assert read(held, ids)[1] == 8
  assert held.pages.num_held == NUM_PAGES
  assert read(held, ids)[1] == 8 - NUM_PAGES


def test_models_with_windows_store_no_pages():
  made = draw_model(
    0, position="rope", sliding_window=8, max_len=64, vocab_size=V
  )
  assert Rows(*made, 2, V, num_pages=4).pages is None
