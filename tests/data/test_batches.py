"""Batches: the same on any number of processes, masked where they must be."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import DataConfig, InputError
from gpt_jax.data import batches, folders, objectives
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.shards import check_length

PREFIX = objectives.Task(objectives.prefix_lm, "prefix_lm")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """Returns a function that prepares documents as bytes."""

  def build(documents, **changes):
    folder = tmp_path_factory.mktemp("text")
    for i, text in enumerate(documents):
      (folder / f"{i:03d}.txt").write_text(text)
    values = vars(config_lib.freeze(base.get_config()).data) | {
      "source": f"text:{folder}/*.txt",
      "valid_frac": 0.0,
      "tokenizer": "bytes",
      "dir": str(folder / "prepared"),
      "seq_len": 8,
    }
    data = DataConfig(**(values | changes))
    config = dataclasses.replace(
      config_lib.freeze(base.get_config()), data=data
    )
    return prepare_data(data, say=lambda line: None), config

  return build


@pytest.fixture(scope="module")
def letters(make):
  texts = [
    "".join(chr(97 + (i + j) % 26) for j in range(5 + i)) for i in range(30)
  ]
  return make(texts)


def with_data(config, **changes):
  data = dataclasses.replace(config.data, **changes)
  return dataclasses.replace(config, data=data)


def stream(token_set):
  return token_set.read(0, token_set.num_ids)


def batch(prepared, step, rows, packing="stream", size=8):
  sets = [s for _, s in prepared.train]
  weights = [w for w, _ in prepared.train]
  return batches.batch_at(sets, weights, 0, step, rows, 8, packing, size)


def test_a_ramp_leaves_no_sequence_out_and_reads_none_twice(letters):
  prepared, _ = letters
  sets = [s for _, s in prepared.train]
  c = config_lib.freeze(base.get_config())
  t = dataclasses.replace(
    c.train, global_batch_size=8, num_steps=9, batch_ramp="4@3+2@2"
  )
  assert config_lib.batch_stages(t) == [(0, 2), (3, 4), (5, 8)]
  ramped = []
  for step in range(9):
    size = [s for first, s in config_lib.batch_stages(t) if first <= step][-1]
    offset = config_lib.count_sequences(t, step) - step * size
    one = batches.batch_at(
      sets, [1.0], 0, step, np.arange(size), 8, "stream", size, offset
    )
    ramped.append(one["tokens"])
  assert [len(rows) for rows in ramped] == [2, 2, 2, 4, 4, 8, 8, 8, 8]
  found = np.concatenate(ramped)
  assert len(found) == config_lib.count_sequences(t, 9) == 46
  whole = [batch(prepared, step, np.arange(2), size=2) for step in range(23)]
  np.testing.assert_array_equal(
    found, np.concatenate([one["tokens"] for one in whole])
  )


def test_microbatches_of_a_ramp_are_no_larger_than_later():
  c = config_lib.freeze(base.get_config())
  t = dataclasses.replace(
    c.train, global_batch_size=24, num_microbatches=6, batch_ramp="8@1+4@1+2@1"
  )
  c = dataclasses.replace(c, train=t)
  sizes = lambda t: (t.global_batch_size, t.num_microbatches)
  found = [sizes(config_lib.at_step(c, step).train) for step in range(5)]
  assert found == [(3, 1), (6, 2), (12, 3), (24, 6), (24, 6)]


def test_targets_are_the_next_tokens(letters):
  prepared, _ = letters
  ids = stream(prepared.train[0][1])
  found = batch(prepared, 0, np.arange(8))
  assert set(found) == {"tokens", "targets", "mask"}
  windows = np.lib.stride_tricks.sliding_window_view(ids, 9)
  for tokens, targets in zip(found["tokens"], found["targets"], strict=True):
    window = np.append(tokens, targets[-1])
    assert np.array_equal(tokens[1:], targets[:-1])
    assert (windows == window).all(1).any()
    window[4] += 1
    assert not (windows == window).all(1).any()
  assert found["tokens"].dtype == np.int32 and found["mask"].all()


def test_two_or_four_processes_read_one_global_batch(letters):
  prepared, _ = letters
  for packing in ("stream", "documents"):
    whole = batch(prepared, 5, np.arange(8), packing)
    for count in (2, 4):
      parts = [
        batch(prepared, 5, rows, packing)
        for rows in np.split(np.arange(8), count)
      ]
      for key in whole:
        joined = np.concatenate([part[key] for part in parts])
        assert np.array_equal(joined, whole[key])
  other = batch(prepared, 6, np.arange(8))
  assert not np.array_equal(other["tokens"], whole["tokens"])


def test_documents_are_numbered_and_restarted_and_their_ends_predicted(letters):
  prepared, _ = letters
  token_set = prepared.train[0][1]
  found = batch(prepared, 0, np.arange(64), "documents", size=64)
  separator = token_set.separator_id
  for row in range(64):
    segment, position = 0, 0
    for t in range(8):
      if t and found["tokens"][row, t] == separator:
        segment, position = segment + 1, 0
      assert found["segments"][row, t] == segment
      assert found["positions"][row, t] == position
      position += 1
  assert found["segments"].max() > 0 and found["mask"].all()
  assert (found["targets"] == separator).any()
  assert found["segments"].dtype == found["positions"].dtype == np.int32


def test_documents_without_separators_are_parted_too(make):
  prepared, _ = make(["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"], split="tail")
  found = batch(prepared, 0, np.arange(8), "documents")
  tokens, targets = found["tokens"], found["targets"]
  assert np.array_equal(found["mask"] == 1, tokens == targets)
  assert not found["mask"].all()


def test_a_mixture_reads_each_set_by_its_weight(make):
  a, _ = make(["a" * 100])
  b, _ = make(["b" * 50])
  sets = [a.train[0][1], b.train[0][1]]
  rows = np.arange(8)
  count = 0
  for step in range(100):
    found = batches.batch_at(sets, [0.25, 0.75], 0, step, rows, 8, "stream", 8)
    kinds = [set(row) - {256} for row in found["tokens"]]
    assert all(len(kind) == 1 for kind in kinds)
    count += sum(kind == {ord("a")} for kind in kinds)
  assert abs(count - 200) <= 2


def test_a_prefix_is_drawn_for_each_sequence_whatever_batch_it_is_in(letters):
  prepared, config = letters
  sets, T = [s for _, s in prepared.train], 8

  def make(step, rows, size=8, seed=0):
    return batches.batch_at(
      sets, [1.0], seed, step, rows, T, "stream", size, 0, PREFIX
    )

  whole = make(0, np.arange(64), size=64)
  plain = batch(prepared, 0, np.arange(64), size=64)
  assert np.array_equal(whole["tokens"], plain["tokens"])
  asked = with_data(config, objective="prefix_lm")
  assert {k: (v.dtype, v.shape[1]) for k, v in whole.items()} == {
    k: (np.dtype(dtype), length)
    for k, (dtype, length) in objectives.fields(asked).items()
  }
  lengths = (whole["slots"] == whole["slots"][:, :1]).sum(1)
  assert set(lengths) == set(range(1, T))
  for row, length in enumerate(lengths):
    seen = np.maximum(np.arange(T), length - 1)
    assert np.array_equal(whole["slots"][row], seen)
    assert np.array_equal(whole["mask"][row], np.arange(T) >= length - 1)
  part = make(3, np.arange(2, 5))
  for key, values in part.items():
    assert np.array_equal(values, whole[key][26:29]), key
  other = make(0, np.arange(64), size=64, seed=1)  # the control
  assert not np.array_equal(other["slots"], whole["slots"])


def test_a_task_makes_every_batch(letters):
  token_set = letters[0].train[0][1]

  def last_id(batch, seed, g):
    return batch | {"tokens": np.full_like(batch["tokens"], 256)}

  task = objectives.Task(last_id, "causal")
  read = functools.partial(
    batches.batch_at,
    seed=0,
    step=0,
    rows=np.arange(4),
    seq_len=8,
    packing="stream",
    global_batch_size=4,
    task=task,
  )
  found = [
    read([token_set], [1.0]),
    read([token_set, token_set], [0.5, 0.5]),
    next(
      batches.eval_batches(token_set, 8, 4, "stream", np.arange(4), task=task)
    ),
  ]
  assert all((one["tokens"] == 256).all() for one in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_iterator_starts_at_any_step_without_state(letters, workers):
  prepared, config = letters
  config = with_data(config, num_workers=workers)
  rows = np.arange(4, 8)
  for start in (3,) if workers else (0, 3):  # starting workers takes seconds
    found = batches.make_train_iterator(prepared, config, 0, 8, rows, start)
    for step, got in enumerate(itertools.islice(found, 4), start):
      wanted = batch(prepared, step, rows)
      assert set(got) == set(wanted)
      assert all(np.array_equal(got[key], wanted[key]) for key in wanted)
      later = batch(prepared, step + 1, rows)
      assert not np.array_equal(got["tokens"], later["tokens"])


def test_a_corpus_shorter_than_one_sequence_is_refused(make):
  prepared, config = make(["abcdefg"])
  check_length(prepared.train[0][1], 7)
  with pytest.raises(InputError, match="has 8 ids, .* data.seq_len 8"):
    batches.make_train_iterator(prepared, config, 0, 8, np.arange(8), 0)


def test_unknown_packing_is_refused(letters):
  with pytest.raises(InputError, match="stream, documents"):
    batch(letters[0], 0, np.arange(8), "tight")


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("seq_len", [1, 7, 8, 64, 10_000])
def test_evaluation_predicts_each_id_once(letters, packing, seq_len):
  token_set = letters[0].train[0][1]
  ids = stream(token_set)
  found = list(
    batches.eval_batches(token_set, seq_len, 4, packing, np.arange(4))
  )
  assert len(found) == batches.num_eval_batches(token_set, seq_len, 4)
  seen = []
  for one in found:
    assert one["tokens"].shape == (4, seq_len)
    seen.append(one["targets"][one["mask"] == 1])
  seen = np.concatenate(seen)
  wanted = ids[1:]
  assert np.array_equal(seen, wanted)
  assert not np.array_equal(seen[1:], wanted)


def test_evaluation_rows_of_two_processes_make_the_whole(letters):
  token_set = letters[0].train[0][1]

  def run(rows):
    return list(batches.eval_batches(token_set, 8, 4, "documents", rows, 100))

  parts = [run(np.arange(2)), run(np.arange(2, 4))]
  for whole, a, b in zip(run(np.arange(4)), *parts, strict=True):
    for key in whole:
      assert np.array_equal(np.concatenate([a[key], b[key]]), whole[key])


def test_evaluation_stops_where_it_is_told(letters):
  token_set = letters[0].train[0][1]
  found = batches.eval_batches(token_set, 8, 4, "stream", np.arange(4), 2)
  assert len(list(found)) == 2
  assert batches.num_eval_batches(token_set, 8, 4, 2) == 2
  assert batches.num_eval_batches(token_set, 8, 4, 10**9) > 2


def test_an_empty_set_has_no_batches(make):
  prepared, _ = make(["abc"])
  empty = folders.open_prepared(prepared.folders[0])["valid"]
  assert batches.num_eval_batches(empty, 8, 4) == 0
  rows = np.arange(4)
  assert not list(batches.eval_batches(empty, 8, 4, "stream", rows))
