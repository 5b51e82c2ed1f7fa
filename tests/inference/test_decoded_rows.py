"""Rows that join and leave: the same bits alone and in company."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import draw_model

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.inference import drawing, generation, rows
from gpt_jax.inference.drawing import NUM_LIKELIEST, Settings
from gpt_jax.inference.generation import Sampling
from gpt_jax.inference.rows import Rows
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import SLOTS

# As the other tests of rows, so that programs are compiled once.
LIMIT, V, NUM_ROWS = 256, 257, 8
DRAFTS = 3
GREEDY = Settings(Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def made():
  sizes = dict(num_layers=1, model_dim=32, mlp_dim=64, position="rope")
  return draw_model(0, **sizes, max_len=LIMIT, vocab_size=V)


@pytest.fixture(scope="module")
def held(made):
  return Rows(*made, num_rows=NUM_ROWS, vocab_size=V)


def prompt_of(seed: int, length: int):
  return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def join(held, row: int, ids, settings=GREEDY):
  prompt = held.start(ids)
  while not prompt.is_read:
    held.read([prompt])
  held.join(row, prompt, settings)
  held.drop(prompt)
  assert not held.state.counts_RV[row].any()


def follow(held, row: int, count: int):
  """Returns (ids, logits) of a row's next tokens; it then leaves."""
  ids, logits = [], []
  for _ in range(count):
    ids.append(int(held.step().ids_RT[row, 0]))
    logits.append(np.asarray(held.state.logits_VR[:, row]))
  held.leave(row)
  return ids, np.array(logits)


def test_a_row_has_the_same_bits_alone_and_in_any_company(held):
  ids = prompt_of(0, 45)
  join(held, 0, ids)
  alone = follow(held, 0, 12)
  for row, others in ((0, {2: 5}), (3, {0: 200, 1: 33, 2: 64}), (1, {3: 240})):
    for other, length in others.items():
      # Drawn by chance, so that this too is told to leave others alone.
      join(held, other, prompt_of(other, length), Settings(Sampling(0.7, 5)))
      held.step()
    join(held, row, ids)
    found = follow(held, row, 12)
    for other in others:
      held.leave(other)
    assert found[0] == alone[0]
    np.testing.assert_array_equal(found[1], alone[1])


def read(held, *prompts, is_narrow=False):
  """Returns prompts that were read together; each must be dropped."""
  found = [held.start(ids, is_narrow) for ids in prompts]
  while unread := [prompt for prompt in found if not prompt.is_read]:
    held.read(unread)
  return found


def kept(held, prompt):
  """Returns the keys and values of a prompt, which is then dropped."""
  cache = [
    np.asarray(x[prompt.place, :, : prompt.num_read])
    for layer in prompt.home.cache
    for x in layer
  ]
  held.drop(prompt)
  return cache


def test_a_prompt_has_the_same_bits_alone_and_read_with_others(held):
  assert held.prefill.num_places == 2
  for length in (2, 45, 65):
    ids = prompt_of(length, length)
    wanted = kept(held, *read(held, ids))
    narrow = kept(held, *read(held, ids, is_narrow=True))
    for found, each in zip(narrow, wanted, strict=True):
      np.testing.assert_array_equal(found, each)
    for other in (3, 64, 200):
      for is_first in (True, False):
        order = [ids, prompt_of(other, other)][:: 1 if is_first else -1]
        both = read(held, *order)
        own = both.pop(0 if is_first else 1)
        for found, each in zip(kept(held, own), wanted, strict=True):
          np.testing.assert_array_equal(found, each)
        held.drop(both[0])
  assert held.prefill.num_free == 2


def test_a_width_that_has_other_bits_is_not_used(made):
  held = Rows(*made, num_rows=NUM_ROWS, vocab_size=V)
  held.warm_up()
  assert held.narrow is not None
  params = held.narrow._params
  held.narrow._params = jax.tree.map(lambda x: x * (1 + 1e-7), params)
  held.warm_up()
  assert held.narrow is None
  assert not held.is_held_R.any() and held.prefill.num_free == 2


@pytest.mark.parametrize("length", [2, 40, LIMIT - 3])
def test_a_prompt_that_waits_is_not_changed_by_the_next(made, held, length):
  ids = prompt_of(length, length)
  wanted = kept(held, *read(held, ids))
  (prompt,) = read(held, ids)
  held.drop(*read(held, prompt_of(5, 70)))
  held.drop(*read(held, prompt_of(6, 70)))
  for found, each in zip(kept(held, prompt), wanted, strict=True):
    np.testing.assert_array_equal(found, each)


@functools.cache
def forward(model):
  return jax.jit(model.apply)


def by_full_passes(made, ids, count: int) -> list[int]:
  """Returns the likeliest tokens after a prompt, each by a whole pass."""
  model, params = made
  ids, limit = list(ids), model.config.max_len
  for _ in range(count):
    padded = np.zeros((1, limit), np.int32)
    padded[0, : len(ids)] = ids
    logits_TV = forward(model)(params, padded)[0]
    ids.append(int(logits_TV[len(ids) - 1].argmax()))
  return ids[-count:]


def test_a_row_is_the_argmax_of_full_forward_passes(made, held):
  for length in (1, 32, 33, 100):
    ids = prompt_of(length, length)
    join(held, 2, ids)
    assert follow(held, 2, 4)[0] == by_full_passes(made, ids, 4)


@pytest.mark.parametrize(
  "sampling",
  [
    Sampling(0.0),
    Sampling(0.9),
    Sampling(1.3, top_k=9),
    Sampling(1.0, top_p=0.6),
    Sampling(1.0, min_p=0.2),
    Sampling(0.8, top_k=50, top_p=0.9, min_p=0.01),
  ],
  ids=str,
)
def test_each_row_draws_as_generation_does(held, sampling):
  rng, R = np.random.default_rng(3), NUM_ROWS
  logits_RV = jnp.asarray(rng.normal(0, 2, (R, V + 7)).astype(np.float32))
  keys_R = generation.row_keys(jax.random.key(5), 11, R)
  wanted_R = generation.sample(logits_RV, keys_R, sampling, V)
  draws, zeros_RV = held.draws, jnp.zeros_like(logits_RV)
  changed = drawing.Draws(
    **{
      f.name: np.array(getattr(draws, f.name))
      for f in dataclasses.fields(draws)
    }
  )
  mask_RW = np.full((R, 9), 2**32 - 1, np.uint32)
  other = Settings(Sampling(2.0, top_k=2), seed=1)
  for row in range(R):  # another row's settings change nothing
    for each in range(R):
      own = Settings(sampling, 5, row) if each == row else other
      changed.put(each, own)
      changed.made_R[each] = 11
    ids_R = jit_draw(logits_RV.T, zeros_RV, zeros_RV, changed, mask_RW)
    assert ids_R[row] == wanted_R[row]


def test_rows_that_all_take_the_likeliest_of_all_tokens_take_the_first_of_it():
  logits_VR = np.zeros((V + 7, NUM_ROWS), np.float32)
  logits_VR[[9, 4, V - 1], [0, 0, 1]] = 2.0
  logits_VR[V:] = 5.0  # these are no tokens
  logits_VR[3, 2] = np.nan
  logits_VR[0, 3] = np.inf
  zeros_RV = np.zeros(logits_VR.T.shape, np.float32)
  draws = drawing.init_draws(NUM_ROWS)
  mask_RW = np.full((NUM_ROWS, 9), 2**32 - 1, np.uint32)
  for is_changed in (False, True):  # the longer way gives the same
    draws.is_changed_R[3] = is_changed
    ids_R = jit_draw(logits_VR, zeros_RV, zeros_RV, draws, mask_RW)
    assert ids_R[:4].tolist() == [4, V - 1, -1, -1]


jit_draw = jax.jit(lambda *args: drawing.draw(*args, V))


def test_generating_in_rows_gives_what_a_row_gives(made, held):
  ids = prompt_of(4, 30)
  join(held, 2, ids)
  wanted, _ = follow(held, 2, 10)
  run = *made, [ids, ids[:5]], 10, Sampling(0.0), 0, V
  found = np.concatenate(list(rows.generate(*run, num_rows=NUM_ROWS)), axis=1)
  assert found[0].tolist() == wanted
  with pytest.raises(InputError, match="2 prompts and 1 rows"):
    next(rows.generate(*run, num_rows=1))
  with pytest.raises(InputError, match="30 tokens and 400 after it"):
    next(rows.generate(*made, [ids], 400, Sampling(), 0, V, 2))


def test_a_text_crosses_from_one_block_of_slots_to_the_next(made, held):
  ids = prompt_of(6, SLOTS - 6)
  join(held, 0, ids)
  assert follow(held, 0, 12)[0] == by_full_passes(made, ids, 12)


def test_logits_around_the_borders_of_blocks_are_those_of_a_whole_pass(
  made, held
):
  """A token is seen from the step that reads it, guessed or not."""
  model, params = made
  ids = prompt_of(6, 90)  # what comes after is what is drawn
  more = by_full_passes(made, ids, SLOTS + DRAFTS + 4 - len(ids))
  ids = np.append(ids, more).astype(np.int32)
  padded = np.zeros((1, LIMIT), np.int32)
  padded[0, : len(ids)] = ids
  wanted_TV = np.asarray(forward(model)(params, padded)[0])
  for each in (held, Rows(*made, 2, V, num_drafts=DRAFTS)):
    for length in range(SLOTS - DRAFTS - 2, SLOTS + 3):
      join(each, 1, ids[:length])
      drawn = each.step({1: ids[length:].tolist()})
      num = each.num_drafts + 1
      assert drawn.num_R[1] == num
      assert (drawn.ids_RT[1] == ids[length : length + num]).all()
      found_V = np.asarray(each.state.logits_VR[:, 1])
      each.leave(1)
      np.testing.assert_allclose(
        found_V, wanted_TV[length + num - 2], atol=2e-5, rtol=1e-4
      )


def test_all_positions_can_be_filled(made, held):
  ids = prompt_of(8, LIMIT - 3)
  join(held, 1, ids)
  found, _ = follow(held, 1, 4)
  assert found == by_full_passes(made, ids, 4)


def test_a_text_that_is_not_finite_spoils_no_later_text_of_its_row(held):
  ids = prompt_of(0, 45)
  join(held, 0, ids)
  fresh = follow(held, 0, 12)
  good, homes = held.params, held.homes
  spoil = lambda params: jax.tree.map(lambda x: x * np.nan, params)
  held.params = spoil(good)
  for home in homes:
    home._params = held.params
  join(held, 0, prompt_of(1, 200))
  assert follow(held, 0, 2)[0] == [-1, -1]  # the control: all is NaN
  held.params = good
  for home in homes:
    home._params = good
  join(held, 5, prompt_of(2, 220))  # so that all slots are read
  join(held, 0, ids)
  found = follow(held, 0, 12)
  held.leave(5)
  assert found[0] == fresh[0]
  np.testing.assert_array_equal(found[1], fresh[1])


def test_values_that_are_not_finite_are_stored_as_keys_that_are_not():
  k_BKTH = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
  v_BKTH = -k_BKTH
  v_BKTH[0, 1, 2, 0], v_BKTH[0, 0, 1, 3] = np.inf, np.nan
  k_new, v_new = map(np.asarray, cache_lib.contain(k_BKTH, v_BKTH))
  is_bad = np.array([[False, True, False], [False, False, True]])
  assert not v_new[0][is_bad].any() and np.isnan(k_new[0][is_bad]).all()
  np.testing.assert_array_equal(v_new[0][~is_bad], v_BKTH[0][~is_bad])
  np.testing.assert_array_equal(k_new[0][~is_bad], k_BKTH[0][~is_bad])
  # One array of both, as latent attention has: its last dims are a key's alone.
  (kv,) = map(np.asarray, cache_lib.contain(v_BKTH))
  assert not kv[0][is_bad][:, :3].any() and np.isnan(kv[0][is_bad][:, 3]).all()
  np.testing.assert_array_equal(kv[0][~is_bad], v_BKTH[0][~is_bad])


@pytest.mark.parametrize("wanted", ["presence", "frequency", "bias"])
def test_penalties_and_biases_are_taken_from_logits(held, wanted):
  changes = {
    "presence": dict(presence_penalty=1.5),
    "frequency": dict(frequency_penalty=0.7),
    "bias": dict(bias={3: 2.5, 200: -100.0}),
  }[wanted]
  join(held, 0, prompt_of(9, 20), GREEDY._replace(**changes))
  counts, found, ids = np.zeros(V), [], []
  for _ in range(12):
    found.append(int(held.step().ids_RT[0, 0]))
    logits = np.asarray(held.state.logits_VR[:, 0])[:V].astype(np.float64)
    logits -= changes.get("presence_penalty", 0) * (counts > 0)
    logits -= changes.get("frequency_penalty", 0) * counts
    for i, value in changes.get("bias", {}).items():
      logits[i] += value
    ids.append(int(logits.argmax()))
    counts[found[-1]] += 1
  held.leave(0)
  join(held, 0, prompt_of(9, 20))
  plain, _ = follow(held, 0, 12)
  assert found == ids and (wanted == "bias" or found != plain)


def test_log_probabilities_are_the_models_own(held):
  settings = Settings(Sampling(1.0, top_k=3), seed=2, has_log_probs=True)
  join(held, 1, prompt_of(10, 20), settings)
  for _ in range(3):
    drawn = held.step()
    logits = np.asarray(held.state.logits_VR[:, 1])[:V].astype(np.float64)
    wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    own = wanted[drawn.ids_RT[1, 0]]
    np.testing.assert_allclose(drawn.log_probs_RT[1, 0], own, rtol=1e-5)
    order = np.argsort(-wanted)[:NUM_LIKELIEST]
    np.testing.assert_array_equal(drawn.likeliest_RTE[1, 0], order)
    np.testing.assert_allclose(
      drawn.their_log_probs_RTE[1, 0], wanted[order], rtol=1e-5
    )
  held.leave(1)


def test_a_mask_leaves_out_tokens(held):
  join(held, 0, prompt_of(11, 9))
  held.mask_RW[0] = 0
  held.mask_RW[0, 2] = 1 << 5
  assert held.step().ids_RT[0, 0] == 2 * 32 + 5
  held.leave(0)
  assert (held.mask_RW == 2**32 - 1).all()


def test_logits_that_are_not_finite_draw_no_token(held):
  join(held, 0, prompt_of(12, 9))
  join(held, 1, prompt_of(13, 9))
  spoil = lambda block: block.at[0].set(np.nan)
  cache = [(jax.tree.map(spoil, k), v) for k, v in held.state.cache]
  held.state = held.state.replace(cache=cache)
  ids_R = held.step().ids_RT[:, 0]
  held.leave(0), held.leave(1)
  assert ids_R[0] == -1 and ids_R[1] >= 0


@pytest.mark.wide
def test_a_model_of_windows_writes_the_same_in_rows():
  made = draw_model(
    1,
    position="rope",
    layer_pattern="1*local+global",
    sliding_window=16,
    max_len=96,
    vocab_size=V,
  )
  held = Rows(*made, num_rows=NUM_ROWS, vocab_size=V)
  for length in (5, 40):
    ids = prompt_of(length, length)
    (prompt,) = read(held, ids)
    held.drop(*read(held, prompt_of(7, 50)))  # beside one that waits
    held.join(1, prompt, GREEDY)
    held.drop(prompt)
    assert follow(held, 1, 20)[0] == by_full_passes(made, ids, 20)


def test_a_model_that_reads_sources_has_no_rows(made, monkeypatch):
  model, params = made
  config = dataclasses.replace(model.config, family="encoder_decoder")
  with pytest.raises(InputError, match="take a decoder"):
    Rows(dataclasses.replace(model, config=config), params, 2, V)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 2, "fsdp": 2}])
def test_rows_on_a_mesh_write_the_same(made, sizes):
  config = config_lib.freeze(base.get_config()).mesh
  ones = dict.fromkeys(sharding.AXES, 1)
  mesh = sharding.make_mesh(
    dataclasses.replace(config, **ones | sizes),
    jax.devices()[: math.prod(sizes.values())],
  )
  with jax.set_mesh(mesh):
    held = Rows(*made, num_rows=NUM_ROWS, vocab_size=V, num_pages=4)
    ids = prompt_of(14, 40)
    for row in (1, 3):  # the second from pages
      join(held, row, ids)
      assert follow(held, row, 4)[0] == by_full_passes(made, ids, 4)
