"""The objective: a new one, or a new metric, is one entry."""

import dataclasses
import json
import types

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import objective, tree
from gpt_jax.config import InputError, schema
from gpt_jax.config.options import Family
from gpt_jax.data import objectives
from gpt_jax.data.batches import batch_at
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import scoring, texts
from gpt_jax.lab.bench import ours
from gpt_jax.metric_names import LOSS
from gpt_jax.models import FAMILIES
from gpt_jax.models.decoder import Decoder
from gpt_jax.training import build


def rows_of(workdir) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture
def again(monkeypatch) -> str:
  """Adds a second objective with prefixes: its entries, and its word."""
  word = "prefix_again"
  entry = config_lib.OBJECTIVES["prefix_lm"]
  monkeypatch.setitem(config_lib.OBJECTIVES, word, entry)
  monkeypatch.setitem(
    objectives.OBJECTIVES, word, objectives.OBJECTIVES["prefix_lm"]
  )
  monkeypatch.setattr(Decoder, "OBJECTIVES", (*Decoder.OBJECTIVES, word))
  key = "data.objective"
  line = schema.KEYS[key]._replace(options=tuple(config_lib.OBJECTIVES))
  monkeypatch.setitem(schema.KEYS, key, line)
  return word


@pytest.mark.parametrize("has_prefixes", [True, False])
def test_a_second_objective_with_prefixes_is_one_entry_on_each_side(
  has_prefixes, again, call_verb, small_run, tmp_path, monkeypatch
):
  told = []

  def spy(*args, is_prefix=False, **kw):
    told.append(is_prefix)
    return [""]

  monkeypatch.setattr(texts, "generate_text", spy)
  word = again if has_prefixes else "causal"
  workdir = tmp_path / "run"
  done = call_verb(
    "train",
    *small_run,
    f"--config.data.objective={word}",
    "--config.optim.warmup_steps=0",
    "--config.train.num_steps=2",
    "--config.sample.every_steps=2",
    f"--workdir={workdir}",
  )
  assert done.returncode == 0, done.stderr
  bits = [row for row in rows_of(workdir) if "eval/valid/bits_per_byte" in row]
  assert bool(bits) != has_prefixes
  assert call_verb("generate", f"--workdir={workdir}").returncode == 0
  assert told == [has_prefixes] * 2


def test_the_check_of_the_config_asks_for_prefixes_not_for_a_word(again):
  config = base.get_config()
  config.data.packing = "documents"
  config_lib.freeze(config)  # the control
  config.data.objective = again
  with pytest.raises(InputError, match=f"{again}, whose prefixes .* documents"):
    config_lib.freeze(config)


def test_a_metric_is_one_entry_of_the_sums(
  call_verb, small_run, tmp_path, monkeypatch
):
  make_loss = objective.make_loss

  def make(*args):
    loss = make_loss(*args)

    def more(*arguments):
      sums = loss(*arguments)
      return sums | {"train/doubled": 2 * sums[LOSS]}

    return more

  monkeypatch.setattr(objective, "make_loss", make)
  scoring.compile_eval_step.cache_clear()
  try:
    done = call_verb(
      "train",
      *small_run,
      "--config.optim.warmup_steps=0",
      "--config.train.num_steps=4",
      "--config.train.global_batch_size=16",
      "--config.train.num_microbatches=2",
      "--config.eval.every_steps=2",
      f"--workdir={tmp_path / 'run'}",
    )
  finally:
    scoring.compile_eval_step.cache_clear()
  assert done.returncode == 0, done.stderr
  rows = rows_of(tmp_path / "run")
  for phase, steps in (("train", [1, 2, 3, 4]), ("eval/valid", [2, 4])):
    found = [row for row in rows if f"{phase}/loss" in row]
    assert [row["step"] for row in found] == steps
    for row in found:
      twice = 2 * row[f"{phase}/loss"]
      assert row[f"{phase}/doubled"] == pytest.approx(twice)


def test_a_run_is_refused_an_objective_that_its_family_cannot_be_trained_with(
  call_verb, small_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(Decoder, "OBJECTIVES", ("causal",))
  done = call_verb(
    "train",
    *small_run,
    "--config.data.objective=prefix_lm",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 2
  assert (
    "data.objective is prefix_lm and model.family is decoder, which can be "
    "trained with causal only"
  ) in done.stderr
  assert not (tmp_path / "prepared").exists()
  config = base.get_config()
  config.model.vocab_size = 257
  build.assemble(config_lib.freeze(config))  # the control
  config.data.objective = "prefix_lm"
  with pytest.raises(InputError, match="prefix_lm and model.family is decoder"):
    build.assemble(config_lib.freeze(config))


def test_families_name_objectives_that_there_are():
  for family in FAMILIES.values():
    assert set(family.OBJECTIVES) <= set(config_lib.OBJECTIVES)
  assert set(config_lib.OBJECTIVES) == set(objectives.OBJECTIVES)


class Windows:
  """Random bytes, as a TokenSet of texts, pairs, chats and preferences."""

  reference = None
  num_ids = num_tokens = 4995
  separator_id, is_paired, name = 256, True, "random"
  document_starts = np.arange(0, 4995, 9)[:-1]

  def read(self, start, stop):
    return self.read_windows([start], stop - start)[0]

  def read_windows(self, starts, length):
    ids = np.random.default_rng(0).integers(0, 256, self.num_ids, np.int32)
    return np.stack([ids[s : s + length] for s in starts])

  def read_mask(self):
    return np.ones(self.num_ids, np.uint8)


# What a family that reads sources can be trained with.
FROM_SOURCES = ("span_corruption", "ul2", "sequence_to_sequence")


@pytest.mark.parametrize("family", ["decoder", "reader"])
@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("word", sorted(objectives.OBJECTIVES))
def test_steps_are_compiled_for_the_batches_that_objectives_make(
  word, packing, family, monkeypatch
):
  monkeypatch.setitem(config_lib.FAMILIES, "reader", Family(True, True))
  if family == "reader" and word not in FROM_SOURCES:
    return
  config = base.get_config()
  config.data.update(objective=word, seq_len=64, packing=packing)
  config.train.global_batch_size = 4
  config.model.vocab_size = 400
  try:
    frozen = config_lib.freeze(config)
  except InputError:
    return  # as the tests of the objective say
  model = dataclasses.replace(frozen.model, family=family)
  frozen = dataclasses.replace(frozen, model=model)
  wanted = {
    name: (leaf.shape, leaf.dtype)
    for name, leaf in objective.abstract_batch(frozen, None).items()
  }
  task = objectives.build_task(frozen, ByteTokenizer)
  read = batch_at(
    [Windows()], [1.0], 0, 0, np.arange(4), 64, packing, 4, task=task
  )
  timed = next(ours.random_batches(frozen, 4))
  for batch in (read, timed):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == wanted
  names = objective.inputs_of(read, types.SimpleNamespace(has_types=False))
  has_source = "sources_BS" in names, "source_segments_BS" in names
  assert has_source == (family == "reader",) * 2


def test_sources_are_part_of_a_batchs_hash():
  ids = np.arange(32, dtype=np.int32).reshape(2, 16)
  batch = {"tokens": ids, "targets": ids}
  plain = int(tree.hash_batch(batch))
  more = int(tree.hash_batch(batch | {"sources": ids[:, :5]}))
  assert plain != more
  swapped = tree.hash_batch(batch | {"sources": ids[::-1, :5]})
  assert more != int(swapped)
