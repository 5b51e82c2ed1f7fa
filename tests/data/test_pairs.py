"""Pairs: stored whole, put into rows without leaks, each target once."""

import dataclasses
import itertools

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.config.options import Family
from gpt_jax.data import batches, folders, objectives, overlap, pairs
from gpt_jax.data.prepare import prepare_data, prepare_text

START, END = 257, 258


def some_pairs(count: int = 60) -> list[tuple[str, str]]:
  draw = np.random.default_rng(0)
  word = lambda most: "".join(map(chr, draw.integers(97, 123, most)))
  return [
    (f"{i}{word(draw.integers(1, 9))}", word(draw.integers(1, 12)))
    for i in range(count)
  ]


@pytest.fixture(autouse=True)
def reader(monkeypatch):
  """A family that reads sources, whatever families there are."""
  monkeypatch.setitem(config_lib.FAMILIES, "reader", Family(True, True))


@pytest.fixture
def make(tmp_path):
  """Returns a function that prepares pairs; it returns (prepared, config)."""

  def build(rows=None, family="reader", name="a.tsv", **data):
    rows = some_pairs() if rows is None else rows
    lines = "".join(f"{a}\t{b}\n" for a, b in rows)
    (tmp_path / name).write_text(lines)
    config = base.get_config()
    config.data.update(
      source=f"pairs:{tmp_path / name}",
      objective="sequence_to_sequence",
      seq_len=24,
      dir=str(tmp_path / "prepared"),
    )
    frozen = config_lib.freeze(config)
    model = dataclasses.replace(frozen.model, family=family)
    data = dataclasses.replace(frozen.data, **data)
    frozen = dataclasses.replace(frozen, data=data, model=model)
    return prepare_data(frozen.data, say=lambda line: None), frozen

  return build


def task_of(prepared, config):
  return objectives.build_task(config, lambda: prepared.tokenizer)


def read(prepared, config, step=0, rows=8, size=8, seed=0):
  rows = np.arange(rows) if isinstance(rows, int) else rows
  sets = [s for _, s in prepared.train]
  weights = [w for w, _ in prepared.train]
  return batches.batch_at(
    sets,
    weights,
    seed,
    step,
    rows,
    config.data.seq_len,
    config.data.packing,
    size,
    task=task_of(prepared, config),
  )


def evaluate(token_set, prepared, config, size=4, rows=None):
  task, d = task_of(prepared, config), config.data
  rows = np.arange(size) if rows is None else rows
  return list(
    batches.eval_batches(token_set, d.seq_len, size, d.packing, rows, task=task)
  )


def texts_of(ids) -> str:
  return bytes(int(i) for i in ids).decode()


@pytest.mark.parametrize("family", ["reader", "decoder"])
@pytest.mark.parametrize("first", [(), (7, 8)])
def test_a_source_is_read_in_training_as_it_is_prompted(make, family, first):
  # An imported model expects ids before a text.
  prepared, config = make(family=family, packing="documents")
  prepared.tokenizer.start_ids = first
  task = task_of(prepared, config)
  rows = pairs.pair_rows(prepared.train[0][1], task.pairs, None)
  batch = rows.read(np.arange(rows.num_rows))
  encode = objectives.prompting(config, prepared.tokenizer).encode
  name = "sources" if family == "reader" else "tokens"
  side = "source_segments" if family == "reader" else "segments"
  found = {
    tuple(ids[own == part].tolist())
    for ids, own in zip(batch[name], batch[side], strict=True)
    for part in np.unique(own)
  }
  for pair in rows.pairs:
    source, target = rows.parts(int(pair))
    wanted = encode(texts_of(source)).tolist()
    assert wanted[: len(first)] == list(first)
    wanted += [] if family == "reader" else target.tolist()
    assert any(list(one[: len(wanted)]) == wanted for one in found)


def pairs_of(batch) -> list[tuple[str, str]]:
  """Returns the texts of a batch's pairs, of any form, as a model sees them."""
  found = []
  for row in range(len(batch["tokens"])):
    tokens, targets = batch["tokens"][row], batch["targets"][row]
    asked = np.flatnonzero(batch["mask"][row])
    ends = asked[targets[asked] == END]
    begin = 0
    for part, end in enumerate(ends):
      # The target, from the start on, and what the tokens show of it.
      (start,) = begin + np.flatnonzero(tokens[begin : end + 1] == START)
      assert np.array_equal(targets[start:end], tokens[start + 1 : end + 1])
      assert batch["mask"][row, start : end + 1].all()
      if "sources" in batch:
        assert start == begin
        mine = batch["source_segments"][row] == part
        source = batch["sources"][row][mine]
        assert source[-1] == END
        source = source[:-1]
        assert (batch["segments"][row, start : end + 1] == part).all()
      else:
        source = tokens[begin:start]
        assert not batch["mask"][row, begin:start].any()
      found.append((texts_of(source), texts_of(targets[start:end])))
      begin = end + 1
    own = found[len(found) - len(ends) :]
    assert len(asked) == sum(len(b) + 1 for _, b in own)
  return found


FORMS = list(itertools.product(["reader", "decoder"], ["stream", "documents"]))


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe:300"])
def test_pairs_survive_preparation_whole(make, tokenizer):
  rows = some_pairs()
  prepared, config = make(rows, tokenizer=tokenizer)
  found = {}
  for side, token_set in (
    ("train", prepared.train[0][1]),
    ("valid", prepared.valid["valid"]),
  ):
    assert token_set.is_paired
    layout = pairs.build_layout(config, prepared.tokenizer)
    of_set = pairs.PairRows(token_set, layout, None)
    decode = prepared.tokenizer.decode
    found[side] = [
      tuple(map(decode, of_set.parts(i))) for i in range(of_set.num_all)
    ]
    targets = decode(pairs.target_ids(token_set))
    assert targets == "".join(b for _, b in found[side])
  # In the order of the file, each whole pair on one side.
  places = {side: [rows.index(p) for p in kept] for side, kept in found.items()}
  assert sorted(places["train"] + places["valid"]) == list(range(len(rows)))
  assert all(kept == sorted(kept) and kept for kept in places.values())


def test_pairs_of_one_source_are_on_one_side(make):
  rows = [(f"s{i % 20}", f"t{i}") for i in range(100)]
  prepared, config = make(rows, valid_frac=0.4)
  sides = [
    {a for a, _ in itertools.chain(*map(pairs_of, found))}
    for found in (
      evaluate(prepared.train[0][1], prepared, config),
      evaluate(prepared.valid["valid"], prepared, config),
    )
  ]
  assert not sides[0] & sides[1]
  assert sides[0] | sides[1] == {a for a, _ in rows} and all(sides)


def test_one_pair_or_tails_of_pairs_cannot_be_held_out(make):
  with pytest.raises(InputError, match="pairs of several sources"):
    make([("a", "b")])
  with pytest.raises(InputError, match="take data.split=document"):
    make(split="tail")
  make([("a", "b")], valid_frac=0.0)  # the control
  config = base.get_config()
  config.data.update(objective="sequence_to_sequence", split="tail")
  with pytest.raises(InputError, match="whole pairs are held out"):
    config_lib.freeze(config)


@pytest.mark.parametrize("family,packing", FORMS)
def test_an_epoch_holds_each_pair_once_and_nothing_else(make, family, packing):
  rows = some_pairs()
  prepared, config = make(rows, family, packing=packing, valid_frac=0.0)
  of_set = pairs.pair_rows(
    prepared.train[0][1], task_of(prepared, config).pairs, 0
  )
  num_rows = of_set.num_rows
  batch = read(prepared, config, rows=num_rows, size=num_rows)
  wanted = objectives.fields(config)
  assert {k: (v.dtype, v.shape[1]) for k, v in batch.items()} == {
    k: (np.dtype(dtype), length) for k, (dtype, length) in wanted.items()
  }
  assert sorted(pairs_of(batch)) == sorted(rows)
  assert (num_rows < len(rows)) == (packing == "documents")
  other = pairs.pair_rows(
    prepared.train[0][1], task_of(prepared, config).pairs, 1
  )
  assert sorted(other.pairs) == sorted(of_set.pairs)
  assert other.pairs.tolist() != of_set.pairs.tolist()  # who shares a row
  epochs = read(prepared, config, 1, num_rows, num_rows)
  assert sorted(pairs_of(epochs)) == sorted(rows)
  assert not np.array_equal(batch["tokens"], epochs["tokens"])


@pytest.mark.parametrize("family", ["reader", "decoder"])
def test_packed_pairs_have_segments_and_positions_of_their_own(make, family):
  prepared, config = make(family=family, packing="documents")
  batch = read(prepared, config, rows=16, size=16)
  sides = [("", batch["mask"])]
  if family == "reader":
    sides.append(("source_", batch["sources"] > 0))
  for side, _ in sides:
    parts, places = batch[f"{side}segments"], batch[f"{side}positions"]
    assert (np.diff(parts, axis=1) >= 0).all() and parts.max() > 0
    for row in range(16):
      for part in np.unique(parts[row]):
        mine = places[row][parts[row] == part]
        # Padding after the last target goes on in its segment.
        restart = np.flatnonzero(mine == 0)
        assert restart[0] == 0 and len(restart) <= 2
        assert (np.diff(mine)[np.diff(mine) != 1] < 0).all()
  if family == "reader":
    for row in range(16):
      # What fills a source up is of a part that no token has.
      padding = batch["sources"][row] == 0
      assert not set(batch["source_segments"][row][padding]) & set(
        batch["segments"][row]
      )


@pytest.mark.parametrize("family,packing", FORMS)
def test_a_batch_is_a_function_of_seed_and_step_on_any_processes(
  make, family, packing
):
  prepared, config = make(family=family, packing=packing)
  whole = read(prepared, config, 5)
  for count in (2, 4):
    for rows in np.split(np.arange(8), count):
      part = read(prepared, config, 5, rows)
      for name in whole:
        assert np.array_equal(part[name], whole[name][rows]), name
  pairs.pair_rows.cache_clear()  # as a run that begins here
  started = batches.make_train_iterator(prepared, config, 0, 8, np.arange(8), 5)
  resumed = next(started)
  for name in whole:
    assert np.array_equal(resumed[name], whole[name]), name
  other = read(prepared, config, 5, seed=1)  # the control
  assert not np.array_equal(other["tokens"], whole["tokens"])


@pytest.mark.parametrize("family,packing", FORMS)
@pytest.mark.parametrize("count", [1, 7, 8])
def test_evaluation_predicts_each_target_once(make, family, packing, count):
  rows = some_pairs(count)
  prepared, config = make(rows, family, packing=packing, valid_frac=0.0)
  token_set = prepared.train[0][1]
  found = evaluate(token_set, prepared, config)
  assert list(itertools.chain(*map(pairs_of, found))) == rows or (
    packing == "documents"
    and sorted(itertools.chain(*map(pairs_of, found))) == sorted(rows)
  )
  total = sum(batch["mask"].sum() for batch in found)
  assert total == sum(len(b) + 1 for _, b in rows)
  task = task_of(prepared, config)
  assert len(found) == batches.num_eval_batches(token_set, 24, 4, task=task)
  halves = [
    evaluate(token_set, prepared, config, rows=np.array(half))
    for half in ((0, 1), (2, 3))
  ]
  for one, a, b in zip(found, *halves, strict=True):
    for name in one:
      assert np.array_equal(np.concatenate([a[name], b[name]]), one[name])


def test_a_mixture_reads_each_set_by_its_weight(make, tmp_path):
  make([(f"a{i}", "x") for i in range(30)], name="x.tsv")
  make([(f"b{i}", "y") for i in range(50)], name="y.tsv")
  prepared, config = make(
    source=f"pairs:{tmp_path}/x.tsv,3*pairs:{tmp_path}/y.tsv"
  )
  found = pairs_of(read(prepared, config, rows=400, size=400))
  assert abs(sum(b == "x" for _, b in found) - 100) <= 1


@pytest.mark.parametrize("family", ["reader", "decoder"])
def test_a_pair_longer_than_a_row_is_left_out_and_counted(make, family):
  rows = [*some_pairs(20), ("a" * 30, "b"), ("a", "b" * 24)]
  fits = ("c" * 21, "d") if family == "decoder" else ("c" * 23, "d" * 23)
  rows.append(fits)
  prepared, config = make(rows, family, valid_frac=0.0)
  token_set = prepared.train[0][1]
  layout = task_of(prepared, config).pairs
  said = batches.check_set(token_set, 24, layout)
  assert said.startswith("2 of 23 pairs of ") and "left out" in said
  found = evaluate(token_set, prepared, config)
  assert list(itertools.chain(*map(pairs_of, found))) == [*rows[:20], fits]
  wide = layout._replace(lengths=config_lib.RowLengths(None, 64))
  assert batches.check_set(token_set, 24, wide) is None  # the control
  narrow = layout._replace(lengths=layout.lengths._replace(target=2))
  with pytest.raises(InputError, match="no pair of .* fits a row"):
    batches.check_set(token_set, 24, narrow)


def test_first_fit_is_that_of_the_book():
  draw = np.random.default_rng(0)
  for limits in ([20], [20, 16]):
    sizes = draw.integers(1, 12, (300, len(limits)))
    found = pairs.first_fit(sizes, np.array(limits))
    rooms, wanted = [], []
    for size in sizes:
      at = [i for i, room in enumerate(rooms) if (room >= size).all()]
      row = at[0] if at else len(rooms)
      if row == len(rooms):
        rooms.append(np.array(limits))
      rooms[row] = rooms[row] - size
      wanted.append(row)
    assert found.tolist() == wanted
  # Where too many have room, the oldest are left; none holds more than it can.
  sizes = np.array([[11]] * 100 + [[9]] * 100)
  found = pairs.first_fit(sizes, np.array([20]))
  assert np.bincount(found, sizes[:, 0]).max() == 20
  assert np.unique(found[100:]).min() == 100 - pairs.OPEN_ROWS


def test_sets_without_pairs_are_refused(make, tmp_path):
  prepared, config = make()
  with pytest.raises(InputError, match="which needs pairs, and 'interpreter'"):
    objectives.check_sources(
      dataclasses.replace(config.data, source="interpreter")
    )
  objectives.check_sources(config.data)  # the control
  objectives.check_sources(config_lib.freeze(base.get_config()).data)
  text = tmp_path / "some.txt"
  text.write_text("some text")
  token_set = prepare_text(
    str(text), prepared.tokenizer, config.data.dir, say=lambda line: None
  )
  layout = task_of(prepared, config).pairs
  with pytest.raises(InputError, match="holds no pairs, which"):
    batches.check_set(token_set, 24, layout)


def test_a_set_of_pairs_is_damaged_where_one_lacks_its_target(make):
  prepared, _ = make()
  manifest = folders.manifest_lib.read(prepared.folders[0])
  assert manifest["num_parts"] == 2
  entry = manifest["splits"]["train"]
  entry["num_documents"] += 1
  entry["num_separators"] += 1
  entry["num_tokens"] -= 1
  del manifest["seal"]
  with pytest.raises(InputError, match="are pairs, and their number is odd"):
    folders.manifest_lib.check(manifest, "manifest.json")


def test_lengths_of_sources_that_nothing_has_are_refused():
  config = base.get_config()
  config.data.update(objective="sequence_to_sequence", source_len=8)
  with pytest.raises(InputError, match="source_len is 8 and model.family is d"):
    config_lib.freeze(config)
  config.data.objective = "causal"
  with pytest.raises(InputError, match="without a source of its own length"):
    config_lib.freeze(config)
  config.data.source_len = None
  config_lib.freeze(config)  # the control


def test_a_source_longer_than_the_positions_is_refused(monkeypatch):
  key = "model.family"
  line = config_lib.KEYS[key]._replace(options=tuple(config_lib.FAMILIES))
  monkeypatch.setitem(config_lib.KEYS, key, line)
  config = base.get_config()
  config.model.family = "reader"
  config.data.update(objective="sequence_to_sequence", source_len=300)
  with pytest.raises(InputError, match="source_len is 300, longer than .* 256"):
    config_lib.freeze(config)
  config.data.source_len = 200
  assert config_lib.row_lengths(config_lib.freeze(config)) == (200, 256)


def test_targets_that_repeat_are_no_overlap(make, tmp_path):
  make([(f"a{i}", "x") for i in range(40)], name="x.tsv")
  prepared, config = make([(f"b{i}", "x") for i in range(40)], name="y.tsv")
  lines = []
  mixed = f"pairs:{tmp_path}/x.tsv,pairs:{tmp_path}/y.tsv"
  prepare_data(dataclasses.replace(config.data, source=mixed), lines.append)
  assert not [line for line in lines if "held-out documents" in line]
  found, total, _ = overlap.count(
    [prepared.train[0][1]], [prepared.train[0][1]]
  )
  assert found == total == prepared.train[0][1].num_documents // 2  # control
