"""Batches: a pure function of (seed, step), prefetched by grain.

Design choice: grain only prefetches. data/order.py decides the order, and
element i is the batch of step i, so there is no iterator state to save: a start
at any step, on any number of processes, gives the same global batch.

A batch is a dict of numpy arrays of b rows; objectives.fields lists them. If a
document began before the window, its position 0 is the window's first token.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_jax.config import Config, InputError, count_sequences
from gpt_jax.data import (
  chats,
  examples,
  logits,
  objectives,
  order,
  preferences,
)
from gpt_jax.data.pairs import pair_rows
from gpt_jax.data.prepare import PreparedData, weigh
from gpt_jax.data.shards import TokenSet, check_length
from gpt_jax.machine import runtime

Batch = dict[str, np.ndarray]


def batch_at(
  sets: list[TokenSet],
  weights: order.Weights,
  seed: int,
  step: int,
  rows: np.ndarray,
  seq_len: int,
  packing: str,
  global_batch_size: int,
  offset: int = 0,
  task: objectives.Task = objectives.CAUSAL,
) -> Batch:
  """Returns the given rows of the global batch of a step.

  Args:
    sets: the train sets.
    weights: the share of each set, which sum to 1, or a Curriculum of shares.
    seed: the run's seed.
    step: counted from 0.
    rows: (b,) rows of the global batch that this process reads.
    seq_len: T.
    packing: "stream" or "documents".
    global_batch_size: rows of the global batch.
    offset: sequences to skip before step 0. Under a batch ramp it is negative:
      earlier, smaller batches have read fewer than step * global_batch_size.
    task: turns windows of ids into the batch to train on.

  Raises:
    InputError: a file holds an id outside the vocabulary.
  """
  g = offset + step * global_batch_size + np.asarray(rows, np.int64)
  if task.pairs is None:
    sizes = [one.num_ids for one in sets]
    which, place = order.starts(weights, sizes, seq_len, seed, g)
    read = lambda k, first: _batch(sets[k], first, seq_len, packing)
  else:
    rows_of = [_rows_of(one, task.pairs, seed) for one in sets]
    sizes = [one.num_rows for one in rows_of]
    shared = g // task.group_size
    which, _, place = order.locate(weights, sizes, seed, shared)
    read = lambda k, places: rows_of[k].read(places)
  if len(sets) == 1:
    return task.make(read(0, place), seed, g)
  out = {}
  for k in range(len(sets)):
    mine = np.flatnonzero(which == k)
    if mine.size:
      for key, part in read(k, place[mine]).items():
        if key not in out:
          out[key] = np.empty((len(g), part.shape[1]), part.dtype)
        out[key][mine] = part
  return task.make(out, seed, g)


def read_weights(prepared: PreparedData, config: Config) -> order.Weights:
  """Returns the share of each train set, by stage under data.curriculum."""
  shares = [weight for weight, _ in prepared.train]
  sets = [token_set for _, token_set in prepared.train]
  data, starts, stages = config.data, [0], [tuple(shares)]
  for weights, step in data.curriculum.parts:
    pairs = list(zip(weights, sets, strict=True))
    found = [weight for weight, _ in weigh(pairs, data.temperature)]
    starts.append(count_sequences(config.train, step))
    stages.append(tuple(weight / sum(found) for weight in found))
  if len(stages) == 1:
    return shares
  return order.Curriculum(tuple(starts), tuple(stages))


def make_train_iterator(
  prepared: PreparedData,
  config: Config,
  seed: int,
  global_batch_size: int,
  rows: np.ndarray,
  start_step: int,
  offset: int = 0,
) -> Iterator[Batch]:
  """Returns an endless iterator over the batches from start_step on.

  Args:
    prepared: the prepared data of the run.
    config: the run's config; its section data says how rows are read.
    seed: decides the order of the data; the run's seed or another one.
    global_batch_size: rows of the global batch.
    rows: (b,) rows of the global batch that this process reads.
    start_step: the step of the first batch.
    offset: as in batch_at.

  Raises:
    InputError: a set is shorter than one sequence, or the stored logits belong
      to another run.
  """
  import grain

  data, sets = config.data, [token_set for _, token_set in prepared.train]
  task = objectives.build_task(config, lambda: prepared.tokenizer)
  if config.distill.top_k is not None:
    task = logits.add_to(task, logits.open_logits(config, prepared))
  for token_set in sets:
    check_set(token_set, data.seq_len, task.pairs)
  batches = _Batches(
    sets,
    read_weights(prepared, config),
    seed,
    np.asarray(rows, np.int64),
    data.seq_len,
    data.packing,
    global_batch_size,
    offset,
    task,
  )
  # Two threads hide the latency of the disk; more contend for the GIL.
  ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
  # Design choice: grain only calls len() and [], so _Batches does not inherit
  # from grain's class for data sources.
  source: Any = batches
  dataset = grain.MapDataset.source(source)[start_step:]
  dataset = dataset.to_iter_dataset(ahead)
  if data.num_workers:
    from absl import flags

    runtime.quiet_tokenizers()
    if not flags.FLAGS.is_parsed():
      # Grain's workers read absl flags, which this project does not parse.
      flags.FLAGS.mark_as_parsed()
    workers = grain.MultiprocessingOptions(num_workers=data.num_workers)
    dataset = dataset.mp_prefetch(workers)
  return iter(dataset)


def eval_batches(
  token_set: TokenSet,
  seq_len: int,
  batch_size: int,
  packing: str,
  rows: np.ndarray,
  max_batches: int | None = None,
  task: objectives.Task = objectives.CAUSAL,
) -> Iterator[Batch]:
  """Yields the batches of a whole set, in order.

  Windows do not overlap: each id but the first is a target once. In sets of
  examples, each target or label is predicted once. Batches are always full:
  the last ones are padded with id 0 and mask 0.

  Args:
    token_set: the set to read.
    seq_len: T.
    batch_size: rows of the global batch.
    packing: "stream" or "documents", as in training.
    rows: (b,) rows of the global batch that this process reads.
    max_batches: stop after this number of batches; None reads all.
    task: turns windows into batches; its random draws use seed 0.
  """
  rows = np.asarray(rows, np.int64)
  if task.pairs is None:
    total = _count_eval_windows(token_set, seq_len)
    read = lambda at: _padded_batch(token_set, at, total, seq_len, packing)
  else:
    found = _rows_of(token_set, task.pairs, None)
    total, read = found.num_rows, found.read
  for i in range(_limit(total, batch_size, max_batches)):
    at = i * batch_size + rows
    yield task.make(read(at), 0, at)


def num_eval_batches(
  token_set: TokenSet,
  seq_len: int,
  batch_size: int,
  max_batches: int | None = None,
  task: objectives.Task = objectives.CAUSAL,
) -> int:
  """Returns the number of batches that `eval_batches` yields."""
  if task.pairs is None:
    total = _count_eval_windows(token_set, seq_len)
  else:
    total = _rows_of(token_set, task.pairs, None).num_rows
  return _limit(total, batch_size, max_batches)


def _rows_of(token_set, layout, seed: int | None) -> Any:
  """Returns an object with num_rows and read(rows), for sets of examples."""
  if isinstance(layout, examples.Layout):
    return examples.open_rows(token_set, layout)
  if isinstance(layout, chats.Layout):
    return chats.chat_rows(token_set, layout, seed)
  if isinstance(layout, preferences.Layout):
    return preferences.preference_rows(token_set, layout, seed)
  return pair_rows(token_set, layout, seed)


def check_set(token_set: TokenSet, seq_len: int, layout: Any) -> str | None:
  """Returns a sentence about examples that are cut or left out, or None.

  Raises:
    InputError: the set has no row to train on.
  """
  if layout is None:
    check_length(token_set, seq_len)
    return None
  if isinstance(layout, examples.Layout):
    return examples.describe_cut(token_set, layout)
  rows = _rows_of(token_set, layout, None)
  if rows.num_kept == rows.num_all:
    return None
  return (
    f"{rows.num_all - rows.num_kept:,} of {rows.num_all:,} {rows.NAME} of "
    f"{token_set.name} are longer than a row and left out; raise {rows.KEYS} "
    "to read them"
  )


def _limit(total: int, batch_size: int, max_batches: int | None) -> int:
  """Returns the number of batches of `total` rows, at most max_batches."""
  count = -(-total // batch_size)
  return count if max_batches is None else min(count, max_batches)


class _Batches:
  """A grain data source: element i is the batch of step i."""

  def __init__(self, *arguments):
    self._arguments = arguments

  def __len__(self) -> int:
    return 1 << 62

  def __getitem__(self, step: int) -> Batch:
    sets, weights, seed, *rest = self._arguments
    return batch_at(sets, weights, seed, int(step), *rest)


def _count_eval_windows(token_set: TokenSet, seq_len: int) -> int:
  return -(-max(0, token_set.num_ids - 1) // seq_len)


def _batch(token_set, first: np.ndarray, seq_len: int, packing: str) -> Batch:
  ids = token_set.read_windows(first.tolist(), seq_len + 1)
  batch = {
    "tokens": ids[:, :-1],
    "targets": ids[:, 1:],
    "mask": np.ones((len(first), seq_len), np.float32),
  }
  if packing == "documents":
    _add_documents(batch, token_set, first, seq_len)
  elif packing != "stream":
    raise InputError(
      f"data.packing is {packing!r}; it must be one of stream, documents"
    )
  return batch


def _add_documents(batch: Batch, token_set, first, seq_len: int) -> None:
  starts = token_set.document_starts
  is_start = np.zeros((len(first), seq_len + 1), bool)
  low = np.searchsorted(starts, first, "right")
  high = np.searchsorted(starts, first + seq_len, "right")
  for row in range(len(first)):
    is_start[row, starts[low[row] : high[row]] - first[row]] = True
  inside = is_start[:, :-1]
  place = np.arange(seq_len, dtype=np.int32)
  began = np.maximum.accumulate(np.where(inside, place, 0), axis=1)
  batch["segments"] = np.cumsum(inside, axis=1, dtype=np.int32)
  batch["positions"] = (place - began).astype(np.int32)
  # Mask a document's first token, which the previous document cannot predict,
  # but not the separator, which says that the previous document ends.
  is_text = batch["targets"] != token_set.separator_id
  batch["mask"][is_start[:, 1:] & is_text] = 0


def _padded_batch(token_set, window, windows: int, seq_len: int, packing: str):
  last_len = token_set.num_ids - 1 - (windows - 1) * seq_len
  is_whole = window < windows - (last_len < seq_len)
  batch = {
    "tokens": np.zeros((len(window), seq_len), np.int32),
    "targets": np.zeros((len(window), seq_len), np.int32),
    "mask": np.zeros((len(window), seq_len), np.float32),
  }
  if packing == "documents":
    batch["segments"] = np.zeros((len(window), seq_len), np.int32)
    batch["positions"] = np.tile(
      np.arange(seq_len, dtype=np.int32), (len(window), 1)
    )
  whole = np.flatnonzero(is_whole)
  parts: list = [(whole, seq_len)] if whole.size else []
  if last_len < seq_len:
    parts += [(row, last_len) for row in np.flatnonzero(window == windows - 1)]
  for at, length in parts:
    part_first = np.atleast_1d(window[at]) * seq_len
    part = _batch(token_set, part_first, length, packing)
    for key, values in part.items():
      batch[key][at, :length] = values
  return batch
