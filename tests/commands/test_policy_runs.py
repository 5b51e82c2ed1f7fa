"""A run of GRPO: it resumes bit for bit, and what it cannot be is refused."""

import pathlib
import shutil
import types

import pytest
from harness import logged
from refusals import assert_run_refused, flag

from gpt_jax.runs import integrity
from gpt_jax.training import preflight

pytestmark = pytest.mark.wide

STEPS = 6


@pytest.fixture(scope="module")
def flags(base, tmp_path_factory, call_verb):
  """Flags of a run of GRPO, and of the model that it begins as."""
  folder = tmp_path_factory.mktemp("policy")
  pairs = folder / "pairs.tsv"
  lines = [f"{i % 4}{i % 5}\t{i % 4}\n" for i in range(60)]
  pairs.write_text("".join(lines))
  values = {
    "data.source": f"pairs:{pairs}",
    "data.split": "document",
    "data.valid_frac": 0.2,
    "data.dir": folder / "prepared",
    "data.seq_len": 8,
    "data.objective": "sequence_to_sequence",
    "train.num_steps": 40,
    "train.global_batch_size": 16,
  }
  words = [*base[1], *(flag(key, value) for key, value in values.items())]
  result = call_verb("train", *words, f"--workdir={folder / 'base'}")
  assert result.returncode == 0, result.stderr
  values = {
    "data.objective": "grpo",
    "train.init_from": folder / "base",
    "train.num_steps": STEPS,
    "train.group_size": 4,
    "train.updates_per_batch": 2,
    "train.kl_weight": 0.05,
    "train.log_every_steps": 1,
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 0,
    "checkpoint.every_steps": 2,
    "eval.every_steps": 3,
  }
  return [*words, *(flag(key, value) for key, value in values.items())]


@pytest.fixture(scope="module")
def tuned(flags, call_verb, tmp_path_factory):
  folder = tmp_path_factory.mktemp("grpo") / "run"
  result = call_verb("train", *flags, f"--workdir={folder}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  return folder


def checksums(workdir) -> dict[str, str]:
  meta = integrity.read_meta(str(workdir / "checkpoints"), STEPS)
  return integrity.rows_by_name(meta)


def test_a_run_logs_rewards_and_begins_as_its_reference(tuned):
  rewards = logged(tuned, "train/reward")
  assert sorted(rewards) == [*range(1, STEPS + 1)]
  assert 0 < rewards[1] < 1
  # The metrics are those of a step's second update.
  assert 0 < logged(tuned, "train/kl")[1] < 0.05
  assert "eval/valid/accuracy" in (tuned / "metrics.jsonl").read_text()


@pytest.mark.wide
def test_a_resumed_run_samples_what_the_straight_one_did(
  tuned, flags, call_verb, tmp_path
):
  broken = pathlib.Path(shutil.copytree(tuned, tmp_path / "run"))
  for step in (4, STEPS):
    shutil.rmtree(broken / "checkpoints" / str(step))
  result = call_verb("train", *flags, f"--workdir={broken}")
  assert result.returncode == 0, result.stderr
  assert "going on from step 2" in result.stdout
  assert logged(broken) == logged(tuned)
  assert logged(broken, "train/reward") == logged(tuned, "train/reward")
  assert checksums(broken) == checksums(tuned)


@pytest.mark.wide
def test_a_replayed_step_agrees_with_its_checkpoint(tuned, flags, call_verb):
  words = [*flags, f"--workdir={tuned}", "--replay=6"]
  result = call_verb("train", *words)
  assert result.returncode == 0, result.stderr
  assert "agree bit for bit" in result.stdout


def test_answers_to_held_out_prompts_are_written(tuned, call_verb):
  result = call_verb("evaluate", f"--workdir={tuned}", "--generate=4")
  assert result.returncode == 0, result.stderr
  assert "exact match" in result.stdout


REFUSED = [
  ({"train.init_from": None}, "right by chance, and train.init_from is None"),
  ({"train.group_size": 1}, "train.group_size is 1; it must be 2 or more"),
  ({"train.group_size": 3}, "is 3; it must divide train.global_batch_size 16"),
  ({"data.packing": "documents"}, "and data.packing is documents; leave it"),
  ({"train.num_loss_chunks": 4}, "and train.num_loss_chunks is 4; leave it 1"),
  (
    {"data.objective": "sequence_to_sequence"},
    "train.group_size is 4, which is for grpo alone; leave it 1",
  ),
]


@pytest.mark.parametrize("changed, said", REFUSED)
def test_what_grpo_cannot_be_is_one_sentence(
  changed, said, flags, call_verb, tmp_path
):
  assert_run_refused(call_verb, flags, changed, said, tmp_path / "new")


def test_several_processes_are_refused_before_anything_is_written(
  flags, call_verb, tmp_path, monkeypatch
):
  several = types.SimpleNamespace(count=lambda: 2)
  monkeypatch.setattr(preflight, "processes", several)
  said = "of which one process samples, and there are 2; start one"
  assert_run_refused(call_verb, flags, {}, said, tmp_path / "new")
