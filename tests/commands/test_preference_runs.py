"""A run on preferences: what it learns, stores, resumes and refuses."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from harness import logged
from refusals import assert_refused, assert_run_refused, content_of, flag

from gpt_jax.runs import integrity
from gpt_jax.runs import workdir as workdir_lib

STEPS = 16


def write(folder, count: int = 48) -> pathlib.Path:
  """Writes preferences whose chosen answers are low, rejected ones high."""
  lines = []
  for i in range(count):
    low, high = sorted({i % 7, 9 - i % 7})
    one = {"prompt": f"{i}:", "chosen": f" {low}", "rejected": f" {high}"}
    lines.append(json.dumps(one) + "\n")
  path = folder / "pairs.jsonl"
  path.write_text("".join(lines))
  return path


@pytest.fixture(scope="module")
def flags(base, trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("preferences")
  values = {
    "data.source": f"preference:{write(folder)}",
    "data.dir": folder / "prepared",
    "data.split": "document",
    "data.valid_frac": 0.2,
    "data.objective": "dpo",
    "train.init_from": trained,
    "train.num_steps": STEPS,
    "train.preference_beta": 0.5,
    "checkpoint.every_steps": 6,
    "eval.every_steps": 8,
  }
  return [*base[1], *(flag(key, value) for key, value in values.items())]


@pytest.fixture(scope="module")
def tuned(flags, trained, call_verb, tmp_path_factory):
  """The workdir of a run on preferences, finished; to be read only."""
  folder = tmp_path_factory.mktemp("dpo") / "run"
  before = content_of(trained)
  result = call_verb("train", *flags, f"--workdir={folder}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  assert result.stdout.count("computing the reference's log-prob") == 2
  assert content_of(trained) == before  # the reference, bit for bit
  return folder


def stored(flags) -> dict[str, bytes]:
  (folder,) = [w.split("=", 1)[1] for w in flags if "data.dir=" in w][-1:]
  files = sorted((pathlib.Path(folder) / "references").iterdir())
  return {str(path): path.read_bytes() for path in files}


def checksums(workdir) -> dict[str, str]:
  meta = integrity.read_meta(str(workdir / "checkpoints"), STEPS)
  return integrity.rows_by_name(meta)


def test_a_run_begins_as_its_reference_and_the_margin_grows(tuned):
  margins = logged(tuned, "train/reward_margin")
  assert logged(tuned)[1] == pytest.approx(np.log(2), abs=1e-5)
  assert abs(margins[1]) < 1e-4 and margins[STEPS] > 0.5
  held = logged(tuned, "eval/valid/reward_margin")
  assert held[STEPS] > held[8] > 0
  assert logged(tuned, "eval/valid/reward_accuracy")[STEPS] > 0.7
  for name in ("chosen", "rejected"):
    assert logged(tuned, f"eval/valid/{name}_log_prob")[8] < 0


def test_a_resumed_run_is_the_straight_one_and_computes_no_reference(
  tuned, flags, call_verb, tmp_path
):
  broken = pathlib.Path(shutil.copytree(tuned, tmp_path / "run"))
  for step in (12, STEPS):
    shutil.rmtree(broken / "checkpoints" / str(step))
  result = call_verb("train", *flags, f"--workdir={broken}")
  assert result.returncode == 0, result.stderr
  assert "going on from step 6" in result.stdout
  assert "computing the reference" not in result.stdout
  assert logged(broken) == logged(tuned)
  assert checksums(broken) == checksums(tuned)


def test_evaluation_gives_what_the_run_has_logged(tuned, flags, call_verb):
  before = stored(flags)
  result = call_verb("evaluate", f"--workdir={tuned}", "--json")
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  for name in ("loss", "reward_margin", "reward_accuracy", "chosen_log_prob"):
    wanted = logged(tuned, f"eval/valid/{name}")[STEPS]
    assert found[name] == pytest.approx(wanted, rel=1e-5)
  assert stored(flags) == before


def test_other_preferences_are_scored_with_the_same_reference(
  tuned, call_verb, tmp_path
):
  path = write(tmp_path, 12)
  words = f"--workdir={tuned}", f"--data={path}", "--json"
  result = call_verb("evaluate", *words)
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found["num_tokens"] == 12 and found["reward_margin"] > 0.3
  assert "perplexity" not in found
  text = tmp_path / "a.txt"
  text.write_text("some text")
  result = call_verb("evaluate", f"--workdir={tuned}", f"--data=text:{text}")
  assert_refused(result, "holds no preferences, which the run reads")


def test_damaged_log_probabilities_are_computed_again(
  tuned, flags, call_verb, tmp_path
):
  before = stored(flags)
  path, data = next(x for x in before.items() if "-valid-" in x[0])
  for spoiled in (data[:-1] + bytes([data[-1] ^ 1]), data[:40], b""):
    pathlib.Path(path).write_bytes(spoiled)
    result = call_verb(
      "evaluate",
      f"--workdir={tuned}",
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("computing the reference's") == 1
    assert stored(flags) == before


def copied(trained, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(trained, tmp_path / "theirs"))


@pytest.mark.wide
def test_a_changed_reference_is_another_one(
  tuned, flags, trained, call_verb, tmp_path
):
  """Its numbers are computed anew, and a begun run is not mixed with them."""
  theirs, own = copied(trained, tmp_path), tmp_path / "own"
  words = [*flags, flag("train.init_from", theirs)]
  own_dir = [*words, flag("data.dir", tmp_path / "prepared")]
  begun = call_verb("train", *own_dir, f"--workdir={own}")
  assert begun.returncode == 0, begun.stderr
  shutil.rmtree(theirs / "checkpoints" / "20")
  # The numbers are stored, so the run can be evaluated without the reference.
  result = call_verb("evaluate", f"--workdir={own}")
  assert result.returncode == 0, result.stderr
  shutil.rmtree(tmp_path / "prepared" / "references")
  result = call_verb("evaluate", f"--workdir={own}")
  assert_refused(result, "which holds step 20 no longer")
  new = tmp_path / "new"
  result = call_verb("train", *own_dir, f"--workdir={new}")
  assert result.returncode == 0, result.stderr
  assert workdir_lib.read_base(str(new)) != workdir_lib.read_base(str(own))


@pytest.mark.wide
@pytest.mark.parametrize("rank", ["attn=4"])
def test_adapters_are_tuned_and_share_the_stored_reference(
  tuned, flags, rank, call_verb, tmp_path
):
  words = [*flags, flag("adapter.rank", rank), f"--workdir={tmp_path / 'run'}"]
  result = call_verb("train", *words)
  assert result.returncode == 0, result.stderr
  assert "computing the reference" not in result.stdout
  margins = logged(tmp_path / "run", "train/reward_margin")
  assert abs(margins[1]) < 1e-4 and margins[STEPS] > 0.05


@pytest.mark.wide
def test_beside_a_rounded_base_the_reference_is_rounded_too(
  tuned, flags, call_verb, tmp_path
):
  kept = stored(flags).keys()
  values = {"adapter.rank": "attn=4", "adapter.base": "int4"}
  values |= {"train.num_steps": 6, "eval.every_steps": 6}
  own = [flag(key, value) for key, value in values.items()]
  result = call_verb("train", *flags, *own, f"--workdir={tmp_path / 'run'}")
  assert result.returncode == 0, result.stderr
  assert result.stdout.count("computing the reference's log-prob") == 2
  # It begins as its reference; bases of 4 bits and of 32 differ by more.
  assert abs(logged(tmp_path / "run", "train/reward_margin")[1]) < 1e-4
  assert len(stored(flags).keys() - kept) == 2


REFUSED = [
  ({"train.init_from": None}, "and train.init_from is None; name the workdir"),
  ({"data.packing": "documents"}, "a row holds one preference: leave it str"),
  ({"data.split": "tail"}, "whole preferences are held out: leave it document"),
  ({"train.num_loss_chunks": 4}, "train.num_loss_chunks is 4; answers are"),
  ({"train.label_smoothing": 0.1}, "train.label_smoothing is 0.1; answers"),
  ({"mesh.seq": 2}, "mesh.seq is 2; answers are whole: leave it 1"),
  ({"model.family": "encoder"}, "which can be trained with masked_lm or"),
  ({"data.tokenizer": "chars"}, "was trained with another tokenizer"),
  ({"model.mlp_dim": 48}, "a base of other parameters: "),
]


@pytest.mark.parametrize("changed, said", REFUSED)
def test_what_preferences_cannot_be_is_one_sentence(
  changed, said, flags, call_verb, tmp_path
):
  assert_run_refused(call_verb, flags, changed, said, tmp_path / "new")


def test_a_source_of_another_kind_is_refused(flags, call_verb, tmp_path):
  (tmp_path / "a.txt").write_text("some text")
  words = [*flags, flag("data.source", f"text:{tmp_path / 'a.txt'}")]
  result = call_verb("train", *words, f"--workdir={tmp_path / 'new'}")
  assert_refused(result, "which needs preferences, and", "has none; give pref")
