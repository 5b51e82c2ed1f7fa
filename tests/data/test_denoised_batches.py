"""Denoising objectives: what becomes of windows, on both families."""

import dataclasses

import numpy as np
import pytest
import undenoised

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError, lengths
from gpt_jax.config.options import Family
from gpt_jax.data import objectives
from gpt_jax.data.batches import batch_at, eval_batches
from gpt_jax.data.marks import find_marks
from gpt_jax.data.tokenizers.plain import ByteTokenizer

MARKS = find_marks(257)
L = 64
WORDS = ("span_corruption", "ul2")


class Set:
  """Random bytes, as a TokenSet."""

  separator_id = 256

  def __init__(self, num_ids: int):
    self.num_ids = num_ids
    self.ids = np.random.default_rng(0).integers(0, 256, num_ids, np.int32)

  def read_windows(self, starts, length):
    return np.stack([self.ids[s : s + length] for s in starts])


@pytest.fixture(autouse=True)
def reader(monkeypatch):
  """A family that reads sources, whatever families there are."""
  monkeypatch.setitem(config_lib.FAMILIES, "reader", Family(True, True))


def config_of(word: str, family: str = "reader", **data):
  config = base.get_config()
  config.data.update(objective=word, seq_len=L, **data)
  frozen = config_lib.freeze(config)
  model = dataclasses.replace(frozen.model, family=family)
  return dataclasses.replace(frozen, model=model)


def task_of(config):
  return objectives.build_task(config, ByteTokenizer)


def read(config, token_set, step=0, rows=8, size=8, seed=0):
  rows = np.arange(rows) if isinstance(rows, int) else rows
  length = config.data.seq_len
  return batch_at(
    [token_set], [1.0], seed, step, rows, length, "stream", size, 0,
    task_of(config),
  )  # fmt: skip


def parts_of(batch, row):
  """Returns (inputs, targets) of a row without padding, of either form."""
  targets = batch["targets"][row][batch["mask"][row] == 1]
  if "sources" in batch:
    return batch["sources"][row][batch["source_segments"][row] == 0], targets
  begin = (batch["slots"][row] == batch["slots"][row, 0]).sum()
  return batch["tokens"][row, :begin], targets


def rebuild(batch, row):
  inputs, targets = parts_of(batch, row)
  inputs = inputs[np.isin(inputs[:1], list(MARKS.modes.values())).sum() :]
  return undenoised.rebuild(inputs, targets, MARKS.sentinels)


@pytest.mark.parametrize("family", ["reader", "decoder"])
@pytest.mark.parametrize("word", WORDS)
def test_a_batch_has_its_schema_and_gives_back_the_windows(word, family):
  config, token_set = config_of(word, family), Set(20_000)
  batch = read(config, token_set, rows=64, size=64)
  wanted = objectives.fields(config)
  assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
    k: (np.dtype(dtype), (64, length)) for k, (dtype, length) in wanted.items()
  }
  plain = config_of("causal", family)
  windows = read(plain, token_set, rows=64, size=64)["tokens"]
  for row in range(64):
    assert np.array_equal(rebuild(batch, row), windows[row])
  damaged = {k: v.copy() for k, v in batch.items()}  # the control
  damaged["targets"][0, np.flatnonzero(batch["mask"][0])[1]] += 1
  assert not np.array_equal(rebuild(damaged, 0), windows[0])


@pytest.mark.parametrize("word", WORDS)
def test_a_decoder_with_an_encoder_reads_the_targets_after_a_start(word):
  batch = read(config_of(word), Set(5000))
  tokens, targets = batch["tokens"], batch["targets"]
  assert (tokens[:, 0] == MARKS.start).all()
  assert np.array_equal(tokens[:, 1:], targets[:, :-1])
  for row in range(8):
    inputs, asked = parts_of(batch, row)
    assert inputs[-1] == asked[-1] == MARKS.end
    hidden = batch["source_segments"][row]
    assert (np.diff(hidden) >= 0).all() and batch["mask"][row, 0] == 1
    # No token is of the part that fills sources up.
    assert not set(hidden[hidden > 0]) & set(batch["segments"][row])
  assert (batch["source_segments"].max() > 0) == (word == "ul2")


@pytest.mark.parametrize("word", WORDS)
def test_a_decoder_reads_inputs_as_a_prefix_and_predicts_targets_alone(word):
  config = config_of(word, "decoder")
  batch = read(config, Set(5000), rows=32, size=32)
  places = np.arange(batch["tokens"].shape[1])
  for row in range(32):
    inputs, asked = parts_of(batch, row)
    begin, length = len(inputs), len(asked)
    whole = np.append(batch["tokens"][row], batch["targets"][row, -1])
    assert np.array_equal(whole[begin : begin + length], asked)
    assert np.array_equal(whole[1:], batch["targets"][row])
    assert np.array_equal(batch["slots"][row], np.maximum(places, begin - 1))
    asks = (places >= begin - 1) & (places < begin + length - 1)
    assert np.array_equal(batch["mask"][row], asks)


@pytest.mark.parametrize("family", ["reader", "decoder"])
@pytest.mark.parametrize("word", WORDS)
def test_a_batch_is_a_function_of_seed_and_step_on_any_processes(word, family):
  config, token_set = config_of(word, family), Set(20_000)
  whole = read(config, token_set, step=3)
  for rows in np.split(np.arange(8), 4):
    part = read(config, token_set, step=3, rows=rows)
    for name in whole:
      assert np.array_equal(part[name], whole[name][rows]), name
  # As one batch of all steps, which a resumed run reads from the middle of.
  all_steps = read(config, token_set, rows=40, size=40)
  for name in whole:
    assert np.array_equal(all_steps[name][24:32], whole[name]), name
  other = read(config, token_set, step=3, seed=1)  # the control
  assert not np.array_equal(other["targets"], whole["targets"])


def test_the_entry_hides_as_many_tokens_in_spans_as_long_as_it_is_told():
  """Over 10,000 windows; where one starts is random, what it hides is not."""
  for density, mean_span in ((0.15, 3.0), (0.5, 8.0)):
    config = config_of(
      "span_corruption", noise_density=density, mean_span_len=mean_span
    )
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, seq_len=400)
    )
    batch = read(config, Set(500_000), rows=10_000, size=10_000)
    asked = batch["targets"][batch["mask"] == 1]
    num_spans = np.isin(asked, MARKS.sentinels).sum()
    hidden = (asked < 257).sum()
    assert hidden / (10_000 * 400) == pytest.approx(density, rel=0.01)
    assert hidden / num_spans == pytest.approx(mean_span, rel=0.01)
    seen = batch["sources"] < 257
    assert seen.sum() + hidden == 10_000 * 400
    # Where a window is hidden differs from row to row.
    marks = np.isin(batch["sources"], MARKS.sentinels)
    assert len(np.unique(marks[:100], axis=0)) == 100


@pytest.mark.parametrize("family", ["reader", "decoder"])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("rest", [0, 1, 2, 37])
def test_evaluation_gives_back_a_whole_set_with_its_last_window(
  word, family, rest
):
  config, token_set = config_of(word, family), Set(5 * L + rest + 1)
  rows = np.arange(4)
  found = list(
    eval_batches(token_set, L, 4, "stream", rows, task=task_of(config))
  )
  text = np.concatenate(
    [
      rebuild(batch, row)
      for batch in found
      for row in range(4)
      if batch["mask"][row].any()
    ]
  )
  # A window of one id has nothing to hide and nothing to show.
  whole = 5 * L + (rest if rest > 1 else 0)
  assert np.array_equal(text, token_set.ids[:whole])
  shapes = {k: v.shape[1:] for k, v in read(config, Set(5000)).items()}
  for batch in found:
    assert {k: v.shape[1:] for k, v in batch.items()} == shapes
  halves = [
    list(eval_batches(token_set, L, 4, "stream", half, task=task_of(config)))
    for half in (rows[:2], rows[2:])
  ]
  for one, a, b in zip(found, *halves, strict=True):
    for name in one:
      assert np.array_equal(np.concatenate([a[name], b[name]]), one[name])


def test_marks_are_beyond_the_tokenizers_ids_and_as_many_as_are_added():
  for word in WORDS:
    added = config_lib.OBJECTIVES[word].num_marks
    batch = read(config_of(word), Set(5000), rows=64, size=64)
    used = np.concatenate([batch["sources"], batch["targets"]], 1)
    assert MARKS.start == 257 and MARKS.end == 258
    assert 257 < used.max() < 257 + added
  assert max(MARKS.modes.values()) == 257 + added - 1
  modes = batch["sources"][:, 0]
  assert set(modes) == set(MARKS.modes.values())


@pytest.mark.parametrize(
  "keys,sentence",
  [
    (dict(packing="documents"), "spans of whole sequences, .* leave it stream"),
    (dict(seq_len=1), "data.seq_len is 1; it must be 2 or more"),
    (
      dict(seq_len=250, noise_density=0.5, mean_span_len=1.0),
      "of which 125 spans are hidden, and there are 100 marks",
    ),
    (dict(seq_len=250), "makes a row of 277 tokens, longer than .*max_len 256"),
  ],
)
def test_windows_that_cannot_be_corrupted_are_refused(keys, sentence):
  config = base.get_config()
  config.data.objective = "span_corruption"
  config.data.update(seq_len=64)
  config_lib.freeze(config)  # the control
  config.data.update(keys)
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)


def test_a_source_longer_than_the_positions_is_refused(monkeypatch):
  config = base.get_config()
  config.data.update(objective="span_corruption", seq_len=300)
  config.model.family = "reader"
  key = "model.family"
  line = config_lib.KEYS[key]._replace(options=tuple(config_lib.FAMILIES))
  monkeypatch.setitem(config_lib.KEYS, key, line)
  with pytest.raises(InputError, match="makes a source of 271 tokens, longer"):
    config_lib.freeze(config)
  config.data.seq_len = 280
  frozen = config_lib.freeze(config)  # the control
  assert config_lib.row_lengths(frozen) == (253, 57)
  assert lengths.corrupted_lengths(280, 0.15, 3.0)[2:] == (253, 57)


def test_widths_grow_with_windows():
  """So that a shorter last window fits the rows of the whole ones."""
  for mixture in (
    lengths.UL2,
    (lengths.Denoiser(None, 0.9, 1.0),),
    (lengths.Denoiser(None, 0.15, 3.0),),
  ):
    widths = [
      (*lengths.mixture_lengths(n, mixture), lengths.joined_length(n, mixture))
      for n in range(2, 300)
    ]
    assert (np.diff(widths, axis=0) >= 0).all()
