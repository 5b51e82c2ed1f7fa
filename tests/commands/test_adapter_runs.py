"""A run of adapters: its files, its resumption, and what reads it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from harness import logged
from refusals import assert_refused, content_of, flag

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.runs import bases, checkpoint, integrity
from gpt_jax.runs import workdir as workdir_lib

pytestmark = pytest.mark.wide

RANK = "attn=4,mlp=2"
STEPS = 12


@pytest.fixture(scope="module")
def flags(base, trained):
  values = {
    "train.init_from": trained,
    "adapter.rank": RANK,
    "train.num_steps": STEPS,
    "checkpoint.every_steps": 5,
    "train.ema_decay": 0.5,
  }
  return [*base[1], *(flag(key, value) for key, value in values.items())]


@pytest.fixture(scope="module")
def adapted(flags, trained, call_verb, tmp_path_factory):
  """The workdir of a run of adapters, finished; to be read only."""
  folder = tmp_path_factory.mktemp("adapters") / "run"
  before = content_of(trained)
  result = call_verb("train", *flags, f"--workdir={folder}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  assert content_of(trained) == before  # the base is read only
  return folder


def checksums(workdir, step: int = STEPS) -> dict[str, str]:
  meta = integrity.read_meta(str(workdir / "checkpoints"), step)
  return integrity.rows_by_name(meta)


def test_a_checkpoint_holds_adapters_and_what_moves_them_alone(adapted):
  names = [n for n in checksums(adapted) if n.startswith(("params", "ema"))]
  assert names and all(name.endswith(("lora_a", "lora_b")) for name in names)
  assert not any(name.startswith("base") for name in checksums(adapted))


def test_the_record_names_the_step_of_the_base(adapted, trained, monkeypatch):
  found = workdir_lib.read_base(str(adapted))
  assert found.step == 20 and len(found.fingerprint) == 16
  meta = integrity.read_meta(str(trained / "checkpoints"), 20)
  shapes = {
    name.removeprefix("params/"): shape
    for name, shape in meta["shapes"].items()
    if name.startswith("params/")
  }
  # What processes share is JSON, which knows no Base.
  as_json = lambda make: json.loads(json.dumps(make()))
  monkeypatch.setattr(bases.processes, "share", as_json)
  assert bases.check_base(str(trained), shapes, found) == found
  with pytest.raises(InputError, match="does not say which "):
    bases.check_base(str(trained), shapes, None)


@pytest.mark.wide
def test_a_resumed_run_of_adapters_is_the_straight_one(
  adapted, flags, call_verb, tmp_path
):
  broken = pathlib.Path(shutil.copytree(adapted, tmp_path / "run"))
  for step in (10, STEPS):
    shutil.rmtree(broken / "checkpoints" / str(step))
  result = call_verb("train", *flags, f"--workdir={broken}")
  assert result.returncode == 0, result.stderr
  assert "going on from step 5" in result.stdout
  assert logged(broken) == logged(adapted)
  assert checksums(broken) == checksums(adapted)


@pytest.mark.wide
def test_a_replayed_step_agrees_with_its_checkpoint(adapted, flags, call_verb):
  result = call_verb("train", *flags, f"--workdir={adapted}", "--replay=10")
  assert result.returncode == 0, result.stderr
  assert "agree bit for bit" in result.stdout


@pytest.mark.parametrize("average", [None, "ema"])
def test_evaluation_reads_adapters_and_their_base(adapted, call_verb, average):
  more = [] if average is None else [f"--average={average}"]
  result = call_verb("evaluate", f"--workdir={adapted}", "--json", *more)
  assert result.returncode == 0, result.stderr
  name = "eval/valid/loss" if average is None else "eval/valid/ema_loss"
  loss = json.loads(result.stdout)["loss"]
  assert loss == pytest.approx(logged(adapted, name)[STEPS], rel=1e-5)


@pytest.mark.wide
def test_adapters_are_generated_from(adapted, trained, call_verb):
  def text_of(workdir, *more):
    words = ["--prompt=def ", "--temperature=1", "--num_tokens=40"]
    result = call_verb("generate", f"--workdir={workdir}", *words, *more)
    assert result.returncode == 0, result.stderr
    return result.stdout

  assert text_of(adapted).startswith("def ")
  assert text_of(adapted, "--weights=int8").startswith("def ")
  assert text_of(adapted) != text_of(trained)


def copied(trained, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(trained, tmp_path / "theirs"))


@pytest.mark.wide
def test_a_base_that_changed_is_refused(trained, train, call_verb, tmp_path):
  theirs, own = copied(trained, tmp_path), tmp_path / "own"
  words = [flag("train.init_from", theirs), flag("adapter.rank", RANK)]
  train(*words, workdir=own, is_kept=True)
  before = content_of(own)
  folder = theirs / "checkpoints"
  config, _, params, *_ = workdir_lib.open_run(str(theirs), {})
  params = jax.tree.map(lambda x: x + 1e-6, params)
  shutil.rmtree(folder / "20")
  keeper = checkpoint.Checkpointer(
    str(folder), config.checkpoint, workdir_lib.read_facts(str(theirs))
  )
  keeper.save(20, {"params": params}, force=True)
  keeper.close()
  said = "whose step 20 has changed since the run was begun"
  for verb, more in (
    ("evaluate", []),
    ("generate", ["--prompt=a"]),
  ):
    assert_refused(call_verb(verb, f"--workdir={own}", *more), said)
  assert_refused(train(*words, workdir=own), said)
  shutil.rmtree(folder / "20")
  assert_refused(train(*words, workdir=own), "holds step 20 no longer")
  shutil.rmtree(theirs)
  assert_refused(
    call_verb("evaluate", f"--workdir={own}"), "holds step 20 no longer"
  )
  assert content_of(own) == before


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"train.init_from": None}, "train.init_from is None"),
    ({"train.init_from": "/nowhere"}, "holds no checkpoint"),
    ({"adapter.rank": "attn=0"}, "with ranks of 1 or more"),
    ({"adapter.rank": "attn=33"}, "its rank must be at most 32"),
    (
      {"adapter.rank": "attn/q=4"},
      "matches no matrix of a layer; did you mean",
    ),
    ({"adapter.alpha": 0}, "adapter.alpha is 0.0"),
    ({"model.mlp_dim": 96}, "a base of other parameters: blocks/mlp/in is"),
    ({"model.param_dtype": "bfloat16"}, "a base of other parameters"),
  ],
  ids=str,
)
def test_adapters_that_cannot_be_are_refused(trained, train, changes, said):
  values = {"train.init_from": trained, "adapter.rank": RANK} | changes
  given = [flag(k, v) for k, v in values.items() if v is not None]
  assert_refused(train(*given), said)


def test_a_run_of_adapters_is_no_base(adapted, train):
  for rank in ("none", RANK):
    words = flag("train.init_from", adapted), flag("adapter.rank", rank)
    assert_refused(train(*words), "a run of adapters alone")


@pytest.mark.wide
def test_a_merged_run_is_an_ordinary_one(
  adapted, trained, train, call_verb, tmp_path
):
  before = content_of(adapted), content_of(trained)
  out = tmp_path / "merged"
  words = f"--workdir={adapted}", f"--out={out}"
  result = call_verb("deploy.merge", *words)
  assert result.returncode == 0, result.stderr
  assert (content_of(adapted), content_of(trained)) == before
  ours, theirs = (
    tree.flatten_with_names(workdir_lib.open_run(str(w), {})[2])
    for w in (adapted, out)
  )
  for name, x in ours.items():
    np.testing.assert_array_equal(x, theirs[name], name)
  result = call_verb("evaluate", f"--workdir={out}", "--json")
  loss = json.loads(result.stdout)["loss"]
  assert loss == pytest.approx(logged(adapted, "eval/valid/loss")[STEPS], 1e-5)
  # It is a base, too.
  more = flag("train.init_from", out), flag("adapter.rank", RANK)
  result = train(*more, flag("train.num_steps", 6), is_kept=True)
  assert result.returncode == 0, result.stderr

  assert_refused(call_verb("deploy.merge", *words), "which exists")
  words = f"--workdir={trained}", f"--out={tmp_path / 'other'}"
  assert_refused(call_verb("deploy.merge", *words), "a run without adapters")
  assert not (tmp_path / "other").exists()


def test_adapters_of_no_architecture_of_the_hub_are_not_exported(
  adapted, trained, call_verb, tmp_path
):
  for workdir, said in (
    (adapted, "no architecture of the hub has this model"),
    (trained, "a run without adapters"),
  ):
    words = "export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"
    result = call_verb("deploy.hf.__main__", *words, "--adapter_only")
    assert_refused(result, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.wide
def test_a_run_beside_a_rounded_base_is_read_as_it_was_trained(
  base, trained, call_verb, tmp_path
):
  values = {
    "train.init_from": trained,
    "adapter.rank": RANK,
    "adapter.base": "int4",
    "train.num_steps": 6,
    "checkpoint.every_steps": 3,
  }
  flags = [*base[1], *(flag(key, value) for key, value in values.items())]
  own, merged = tmp_path / "own", tmp_path / "merged"
  result = call_verb("train", *flags, f"--workdir={own}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  shutil.rmtree(own / "checkpoints" / "6")
  result = call_verb("train", *flags, f"--workdir={own}")
  assert "going on from step 3" in result.stdout
  result = call_verb("deploy.merge", f"--workdir={own}", f"--out={merged}")
  assert result.returncode == 0, result.stderr
  losses = []
  for words in ([own], [merged]):
    result = call_verb("evaluate", f"--workdir={words[0]}", "--json")
    losses.append(json.loads(result.stdout)["loss"])
  wanted = logged(own, "eval/valid/loss")[6]
  assert losses == pytest.approx([wanted, wanted], rel=1e-5)
  # The base is still whole: rounding is of this run.
  result = call_verb("evaluate", f"--workdir={trained}", "--json")
  assert abs(json.loads(result.stdout)["loss"] - wanted) > 1e-4


@pytest.mark.parametrize(
  "changes,sentence",
  [
    ({"adapter.rank": "none"}, "adapter.base is int8, of frozen matrices"),
    ({"model.num_experts": 2}, "which is for models without experts"),
  ],
)
def test_what_cannot_be_rounded_is_refused(changes, sentence, trained, train):
  values = {"train.init_from": trained, "adapter.rank": RANK}
  values |= {"adapter.base": "int8"} | changes
  assert_refused(train(*(flag(k, v) for k, v in values.items())), sentence)
