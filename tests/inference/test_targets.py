"""Pairs through the commands: learned, scored, and their targets written."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import files, sharding
from gpt_jax.config import InputError
from gpt_jax.data import objectives, prepare
from gpt_jax.inference import scoring, targets
from gpt_jax.models import build_model
from gpt_jax.runs import workdir as workdir_lib
from gpt_jax.training import state

# Of unlike lengths, in number no multiple of a batch.
PAIRS = [
  (f"{'abcdefgh'[i % 8] * (1 + i % 5)}{i}", f"{i}." * 2) for i in range(13)
]


def write(path, rows):
  path.write_text("".join(f"{a}\t{b}\n" for a, b in rows))
  return path


@pytest.fixture(scope="module")
def house(tmp_path_factory, small_flags, call_verb):
  """A folder with pairs, and a decoder that has learned them by heart."""
  folder = tmp_path_factory.mktemp("pairs")
  flags = [
    *small_flags(folder),
    f"--config.data.source=pairs:{write(folder / 'a.tsv', PAIRS)}",
    "--config.data.objective=sequence_to_sequence",
    "--config.data.split=document",
    "--config.data.valid_frac=0.0",
    "--config.model.max_len=40",
    "--config.train.num_steps=300",
    "--config.checkpoint.every_steps=150",
    "--config.checkpoint.keep_last=3",
  ]
  done = call_verb("train", *flags, f"--workdir={folder / 'run'}")
  assert done.returncode == 0, done.stderr
  return folder, flags


def evaluate(call_verb, folder, *words, code=0):
  done = call_verb("evaluate", f"--workdir={folder / 'run'}", *words)
  assert done.returncode == code, done.stderr
  return done.stderr if code else json.loads(done.stdout)


@pytest.mark.wide
def test_targets_are_written_from_sources_alone(house, call_verb):
  folder, _ = house
  own = f"--data={folder / 'a.tsv'}", "--json", "--generate=100"
  found = evaluate(call_verb, folder, *own)
  assert found["exact_match"] == 1.0 and found["num_pairs"] == 13
  assert found["accuracy"] > 0.99 and found["loss"] < 0.1
  assert found["num_tokens"] == sum(len(b) + 1 for _, b in PAIRS)
  # Other targets are scored anew, and are not what is written.
  wrong = [(a, b if i < 4 else "7") for i, (a, b) in enumerate(PAIRS)]
  write(folder / "b.tsv", wrong)
  other = f"--data={folder / 'b.tsv'}", "--json", "--generate=100"
  found = evaluate(call_verb, folder, *other)
  assert found["exact_match"] == pytest.approx(4 / 13)
  assert found["loss"] > 1
  few = f"--data={folder / 'b.tsv'}", "--json", "--generate=3", "--beams=3"
  found = evaluate(call_verb, folder, *few)
  assert found["exact_match"] == 1.0 and found["num_pairs"] == 3
  said = call_verb(
    "evaluate",
    f"--workdir={folder / 'run'}",
    f"--data={folder / 'b.tsv'}",
    "--generate=5",
  )
  assert "exact match 0.8000" in said.stdout
  assert "5 targets written" in said.stdout


@pytest.mark.wide
def test_a_prompt_is_a_source(house, call_verb):
  folder, _ = house
  done = call_verb(
    "generate",
    f"--workdir={folder / 'run'}",
    f"--prompt={PAIRS[3][0]}",
    "--temperature=0",
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == f"{PAIRS[3][1]}\n"
  choices = [f"--choice={b}" for _, b in PAIRS]
  done = call_verb(
    "generate",
    f"--workdir={folder / 'run'}",
    f"--prompt={PAIRS[3][0]}",
    *choices,
  )
  first, second, *_ = done.stdout.splitlines()
  assert first.startswith(f"{PAIRS[3][1]!r}: log-probability -0.")
  # The end counts, as it does in training.
  assert first.endswith(f"{len(PAIRS[3][1]) + 1} tokens")
  assert float(second.split()[2].rstrip(",")) < -2


@pytest.mark.wide
def test_what_writes_no_targets_is_refused(
  house, call_verb, small_run, tmp_path
):
  folder, flags = house
  for words, sentence in (
    (["--generate=0"], "--generate is 0; it must be 1 or more"),
    (["--generate=2", "--beams=0"], "--beams is 0; it must be 1 or more"),
    (["--beams=2"], "--beams does nothing without --generate"),
  ):
    assert sentence in evaluate(call_verb, folder, *words, code=2)
  text = tmp_path / "some.txt"
  text.write_text("some text")
  said = evaluate(call_verb, folder, f"--data={text}", code=2)
  assert "holds no pairs, which data.objective sequence_to_sequence" in said
  refused = call_verb(
    "train",
    *small_run,
    "--config.data.objective=sequence_to_sequence",
    "--config.data.split=document",
    f"--workdir={tmp_path / 'run'}",
  )
  assert refused.returncode == 2 and "which needs pairs" in refused.stderr
  assert not (tmp_path / "prepared").exists()
  other = call_verb(
    "train",
    *flags,
    "--config.data.objective=causal",
    "--config.train.num_steps=6",
    f"--workdir={tmp_path / 'run'}",
  )
  assert other.returncode == 0, other.stderr
  refused = call_verb(
    "evaluate",
    f"--workdir={tmp_path / 'run'}",
    f"--data={folder / 'a.tsv'}",
    "--generate=2",
  )
  assert "--generate is for pairs, and this run's data.obj" in refused.stderr


@pytest.mark.wide
def test_a_pair_that_is_left_out_is_told(house, call_verb, tmp_path):
  folder, flags = house
  path = write(tmp_path / "long.tsv", [*PAIRS, ("a" * 50, "b")])
  done = call_verb(
    "train",
    *flags,
    f"--config.data.source=pairs:{path}",
    "--config.train.num_steps=6",
    f"--workdir={tmp_path / 'run'}",
  )
  assert "1 of 14 pairs of" in done.stdout and "left out" in done.stdout
  done = call_verb(
    "evaluate", f"--workdir={folder / 'run'}", f"--data={path}", "--generate=99"
  )
  assert "1 of 14 pairs of" in done.stderr
  assert "13 targets written" in done.stdout


def test_bleu_is_sacrebleus_or_says_what_to_install(monkeypatch):
  found = [
    targets.Written("s", "a b c", "a b c"),
    targets.Written("t", "d", "e"),
  ]
  assert targets.exact_match(found) == 0.5
  asked = []

  def corpus_bleu(written, references):
    asked.append((written, references))
    return types.SimpleNamespace(score=np.float32(12.5))

  fake = types.SimpleNamespace(corpus_bleu=corpus_bleu)
  monkeypatch.setitem(sys.modules, "sacrebleu", fake)
  assert targets.bleu(found) == 12.5
  assert asked == [(["a b c", "e"], [["a b c", "d"]])]
  monkeypatch.setitem(sys.modules, "sacrebleu", None)
  with pytest.raises(InputError, match="needs the package `sacrebleu`"):
    targets.bleu(found)
  assert files.pip("bleu")


@pytest.mark.wide
def test_a_damaged_seed_of_the_decoder_writes_other_targets(house):
  """The control: without its training the same search finds nothing."""
  folder, _ = house
  config, model, params, tokenizer, mesh = workdir_lib.open_run(
    str(folder / "run"), {}, lambda line: None
  )
  tokens = prepare.prepare_text(
    str(folder / "a.tsv"), tokenizer, config.data.dir, say=lambda line: None
  )
  run = tokens, objectives.prompting(config, tokenizer)
  layout = objectives.find_layout(config, lambda: tokenizer)
  how = dict(num_pairs=13, batch_size=4, num_beams=1)
  with jax.set_mesh(mesh):
    found = targets.write_targets(model, params, *run, layout, **how)
    fresh = state.init_params(model, 0)
    blank = targets.write_targets(model, fresh, *run, layout, **how)
  assert [(w.source, w.target) for w in found] == PAIRS
  assert targets.exact_match(found) == 1 and targets.exact_match(blank) == 0


class Searched(Exception):
  """The prompts would be continued now."""


def test_a_target_is_asked_for_as_by_a_prompt(tmp_path, monkeypatch):
  def search(model, params, prompts, *_, **how):
    raise Searched([p.tolist() for p in prompts])

  monkeypatch.setattr(targets.beam_lib, "search", search)
  config = base.get_config()
  config.data.update(
    source=f"pairs:{write(tmp_path / 'a.tsv', PAIRS)}",
    objective="sequence_to_sequence",
    valid_frac=0.0,
    dir=str(tmp_path / "prepared"),
  )
  frozen = config_lib.freeze(config)
  prepared = prepare.prepare_data(frozen.data, say=lambda line: None)
  frozen = prepared.resolve_vocab(frozen)
  prepared.tokenizer.start_ids = (7, 8)  # of an imported model
  asked = objectives.prompting(frozen, prepared.tokenizer)
  layout = objectives.find_layout(frozen, lambda: prepared.tokenizer)
  run = types.SimpleNamespace(config=frozen.model), None
  with pytest.raises(Searched) as found:
    targets.write_targets(
      *run,
      prepared.train[0][1],
      asked,
      layout,
      num_pairs=2,
      batch_size=2,
      num_beams=1,
    )
  wanted = [asked.encode(source).tolist() for source, _ in PAIRS[:2]]
  assert found.value.args[0] == wanted and wanted[0][:2] == [7, 8]


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_pairs_that_share_a_row_cost_what_they_cost_alone(family, tmp_path):
  """So that no pair sees another, and none is lost or counted twice."""
  path = write(tmp_path / "a.tsv", PAIRS)
  config = base.get_config()
  config.data.update(
    source=f"pairs:{path}",
    objective="sequence_to_sequence",
    valid_frac=0.0,
    dir=str(tmp_path / "prepared"),
    seq_len=32,
  )
  config.model.update(family=family, num_layers=2, model_dim=32, mlp_dim=48)
  config.mesh.data = 1
  frozen = config_lib.freeze(config)
  prepared = prepare.prepare_data(frozen.data, say=lambda line: None)
  frozen = prepared.resolve_vocab(frozen)
  model = build_model(frozen.model)
  # Far from even, so that what is seen matters.
  params = jax.tree.map(lambda x: 5 * x, state.init_params(model, 0))
  mesh = sharding.make_mesh(frozen.mesh, jax.devices()[:1])
  found = {}
  for packing in ("stream", "documents"):
    data = dataclasses.replace(frozen.data, packing=packing)
    own = dataclasses.replace(frozen, data=data)
    found[packing] = scoring.score(
      model,
      params,
      prepared.train[0][1],
      seq_len=32,
      batch_size=4,
      packing=packing,
      num_loss_chunks=1,
      mesh=mesh,
      task=objectives.build_task(own, lambda: prepared.tokenizer),
    )
  alone, packed = found["stream"], found["documents"]
  assert packed["num_tokens"] == alone["num_tokens"]
  assert packed["loss"] == pytest.approx(alone["loss"], rel=1e-5)
  assert packed["accuracy"] == alone["accuracy"]
  # The control: with other sources the targets cost something else.
  swapped = [(a, b) for (a, _), (_, b) in zip(PAIRS[1:], PAIRS, strict=False)]
  other = prepare.prepare_text(
    str(write(tmp_path / "b.tsv", swapped)),
    prepared.tokenizer,
    frozen.data.dir,
    say=lambda line: None,
  )
  task = objectives.build_task(frozen, lambda: prepared.tokenizer)
  how = dict(seq_len=32, batch_size=4, packing="stream", num_loss_chunks=1)
  again = scoring.score(model, params, other, mesh=mesh, task=task, **how)
  assert abs(again["loss"] - alone["loss"]) > 1e-3
