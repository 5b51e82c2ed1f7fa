"""A student's run: its files, its resumption, and teachers that cannot be."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from harness import logged
from refusals import assert_refused, content_of, flag

from gpt_jax import files
from gpt_jax.metric_names import TEACHER_KL
from gpt_jax.runs import integrity
from gpt_jax.runs import workdir as workdir_lib

STEPS = 12


@pytest.fixture(scope="module")
def flags(base, trained):
  values = {
    "distill.teacher": trained,
    "distill.temperature": 2.0,
    "model.num_layers": 1,
    "train.num_steps": STEPS,
    "checkpoint.every_steps": 5,
  }
  return [*base[1], *(flag(key, value) for key, value in values.items())]


@pytest.fixture(scope="module")
def student(flags, trained, call_verb, tmp_path_factory):
  """The workdir of a student of `trained`, finished; to be read only."""
  folder = tmp_path_factory.mktemp("student") / "run"
  before = content_of(trained)
  result = call_verb("train", *flags, f"--workdir={folder}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  assert content_of(trained) == before
  return folder


def checksums(workdir, step: int = STEPS) -> dict[str, str]:
  meta = integrity.read_meta(str(workdir / "checkpoints"), step)
  return integrity.rows_by_name(meta)


def test_a_checkpoint_holds_no_teacher_and_the_record_names_its_step(student):
  assert {name.split("/")[0] for name in checksums(student)} <= {
    "params",
    "opt_state",
    "step",
    "num_skipped",
    "skipped_in_row",
  }
  found = workdir_lib.read_base(str(student), "teacher")
  assert found.step == 20 and len(found.fingerprint) == 16
  assert workdir_lib.read_base(str(student)) is None


@pytest.mark.wide
def test_a_resumed_student_is_the_straight_one(
  student, flags, call_verb, tmp_path
):
  broken = pathlib.Path(shutil.copytree(student, tmp_path / "run"))
  for step in (10, STEPS):
    shutil.rmtree(broken / "checkpoints" / str(step))
  result = call_verb("train", *flags, f"--workdir={broken}")
  assert result.returncode == 0, result.stderr
  assert "going on from step 5" in result.stdout
  for name in ("train/loss", TEACHER_KL):
    assert logged(broken, name) == logged(student, name)
  assert checksums(broken) == checksums(student)
  result = call_verb("train", *flags, f"--workdir={student}", "--replay=10")
  assert "agree bit for bit" in result.stdout, result.stderr


@pytest.mark.wide
def test_a_finished_student_needs_no_teacher(
  trained, flags, call_verb, tmp_path
):
  theirs = shutil.copytree(trained, tmp_path / "theirs")
  own, words = tmp_path / "own", [*flags, flag("distill.teacher", theirs)]
  words = [*words, f"--workdir={own}"]
  assert call_verb("train", *words).returncode == 0
  shutil.rmtree(theirs / "checkpoints")
  for verb in ("evaluate", "generate"):
    assert call_verb(verb, f"--workdir={own}").returncode == 0
  shutil.rmtree(own / "checkpoints" / str(STEPS))
  before = content_of(own)
  assert_refused(call_verb("train", *words), "'", "which holds no checkpoint")
  assert content_of(own) == before


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"distill.teacher": "/nowhere"}, "which holds no checkpoint"),
    ({"distill.temperature": 0}, "distill.temperature is 0.0"),
    ({"distill.kl": "backward"}, "distill.kl is 'backward'"),
    ({"distill.weight": 1.5}, "distill.weight is 1.5"),
    ({"data.tokenizer": "chars"}, "was trained with another tokenizer"),
    ({"model.vocab_size": 300}, "whose model.vocab_size is 257"),
    (
      {"data.seq_len": 64, "model.max_len": 64},
      "whose model.max_len is 32, and data.seq_len here is 64",
    ),
    (
      {"model.family": "encoder", "data.objective": "masked_lm"},
      "for a decoder that scores tokens",
    ),
  ],
  ids=str,
)
def test_a_teacher_that_cannot_teach_is_refused(trained, train, changes, said):
  values = {"distill.teacher": trained} | changes
  assert_refused(train(*(flag(k, v) for k, v in values.items())), said)


@pytest.mark.wide
@pytest.mark.parametrize(
  "changes, said",
  [
    (
      {"model.family": "encoder", "data.objective": "masked_lm"},
      "a model of family encoder",
    ),
    ({"adapter.rank": "attn=2"}, "a run of adapters alone"),
  ],
  ids=str,
)
def test_a_run_of_another_kind_is_no_teacher(
  changes, said, trained, base, call_verb, train, tmp_path
):
  other = tmp_path / "other"
  words = [*base[1], flag("train.num_steps", 1), flag("optim.warmup_steps", 0)]
  if "adapter.rank" in changes:
    words.append(flag("train.init_from", trained))
  words += [flag(k, v) for k, v in changes.items()]
  result = call_verb("train", *words, f"--workdir={other}")
  assert result.returncode == 0, result.stderr
  assert_refused(train(flag("distill.teacher", other)), said)


@pytest.mark.wide
def test_a_teacher_that_changed_is_refused(trained, flags, call_verb, tmp_path):
  theirs, own = shutil.copytree(trained, tmp_path / "theirs"), tmp_path / "own"
  words = [*flags, flag("distill.teacher", theirs), f"--workdir={own}"]
  assert call_verb("train", *words).returncode == 0
  shutil.rmtree(theirs / "checkpoints" / "20")
  shutil.rmtree(own / "checkpoints" / str(STEPS))
  result = call_verb("train", *words)
  assert_refused(result, "distill.teacher is", "holds step 20 no longer")


def store(call_verb, flags, out, top_k):
  words = [*flags, f"--out={out}", f"--top_k={top_k}"]
  return call_verb("deploy.logits", *words)


def reading(flags, folder, top_k, **more) -> list[str]:
  values = {"distill.teacher": folder, "distill.top_k": top_k, **more}
  return [*flags, *(flag(key, value) for key, value in values.items())]


@pytest.fixture(scope="module")
def stored(flags, call_verb, tmp_path_factory):
  """A folder of 8 logits a token; to be read only."""
  folder = tmp_path_factory.mktemp("stored") / "logits"
  result = store(call_verb, flags, folder, 8)
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  return folder


@pytest.mark.wide
def test_all_logits_stored_teach_what_a_teacher_that_is_present_does(
  student, flags, call_verb, tmp_path
):
  assert store(call_verb, flags, tmp_path / "all", 257).returncode == 0
  words = reading(flags, tmp_path / "all", 257)
  own = tmp_path / "own"
  result = call_verb("train", *words, f"--workdir={own}")
  assert result.returncode == 0, result.stderr
  for name in ("train/loss", TEACHER_KL):
    a, b = logged(student, name), logged(own, name)
    np.testing.assert_allclose([*b.values()], [*a.values()], rtol=1e-5)


@pytest.mark.wide
def test_a_run_on_some_logits_resumes_bit_for_bit_and_needs_no_teacher(
  student, stored, flags, call_verb, tmp_path
):
  own, words = tmp_path / "own", reading(flags, stored, 8)
  more = [f"--workdir={own}", flag("data.num_workers", 1)]
  assert call_verb("train", *words, *more).returncode == 0
  divergence, whole = logged(own, TEACHER_KL), logged(student, TEACHER_KL)
  # Of fewer outcomes, and so no larger.
  assert 0 < divergence[1] < whole[1]
  broken = pathlib.Path(shutil.copytree(own, tmp_path / "broken"))
  for step in (10, STEPS):
    shutil.rmtree(broken / "checkpoints" / str(step))
  result = call_verb("train", *words, f"--workdir={broken}")
  assert result.returncode == 0, result.stderr
  assert logged(broken, TEACHER_KL) == divergence
  assert checksums(broken) == checksums(own)


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"seed": 1}, "logits are of seed 0, and here it is 1"),
    ({"data.seq_len": 16}, "logits are of data"),
    ({"distill.temperature": 1.0}, "logits are of temperature 2.0"),
    ({"distill.top_k": 4}, "logits are of top_k 8, and here it is 4"),
    ({"train.num_steps": 13}, "holds 96 sequences, and this run reads 104"),
    ({"train.max_rollbacks": 1}, "leave it 0"),
    ({"distill.teacher": "/nowhere"}, "logits.json in that folder"),
    ({"distill.top_k": None}, "which holds no checkpoint"),
  ],
  ids=str,
)
def test_logits_of_another_run_are_refused(
  changes, said, stored, flags, call_verb, tmp_path
):
  words = reading(flags, stored, 8, **changes)
  words = [word for word in words if not word.endswith("=None")]
  if changes.get("distill.top_k", 8) is None:
    words = [word for word in words if "top_k" not in word]
  own = tmp_path / "own"
  assert_refused(call_verb("train", *words, f"--workdir={own}"), said)
  assert not content_of(own)


@pytest.mark.parametrize("name", ["logits.json", "teacher_ids"])
def test_damaged_logits_are_refused(name, stored, flags, call_verb, tmp_path):
  theirs = pathlib.Path(shutil.copytree(stored, tmp_path / "theirs"))
  data = bytearray((theirs / name).read_bytes())
  data[len(data) // 2] ^= 1
  (theirs / name).write_bytes(data)
  words = [*reading(flags, theirs, 8), f"--workdir={tmp_path / 'own'}"]
  assert_refused(call_verb("train", *words), name)


@pytest.mark.parametrize(
  "change, said",
  [
    ({"num_rows": 10**9}, "teacher_ids is damaged"),
    ({"num_rows": "many"}, "logits.json in that folder holds the sizes"),
    ({"seq_len": -32}, "logits.json in that folder holds the sizes"),
    ({"files": 3}, "logits.json in that folder lacks some entries"),
    ({"files": {}}, "teacher_ids is damaged"),
  ],
  ids=str,
)
def test_a_record_that_lies_is_refused(
  change, said, stored, flags, call_verb, tmp_path
):
  theirs = pathlib.Path(shutil.copytree(stored, tmp_path / "theirs"))
  record = json.loads((theirs / "logits.json").read_text()) | change
  (theirs / "logits.json").write_text(json.dumps(files.seal(record)))
  words = [*reading(flags, theirs, 8), f"--workdir={tmp_path / 'own'}"]
  assert_refused(call_verb("train", *words), said)


def test_logits_that_cannot_be_stored_leave_nothing(
  stored, trained, flags, call_verb, tmp_path
):
  out = tmp_path / "out"
  for top_k, more, said in (
    (0, [], "--top_k is 0; it must be 1 to 257"),
    (258, [], "--top_k is 258"),
    (8, [flag("distill.top_k", 8)], "of top_k the flag alone"),
    (8, [flag("distill.teacher", "/nowhere")], "holds no checkpoint"),
    (8, [flag("data.tokenizer", "chars")], "another tokenizer"),
  ):
    assert_refused(store(call_verb, [*flags, *more], out, top_k), said)
  assert not out.exists()
  assert_refused(store(call_verb, flags, stored, 8), "which exists")


@pytest.mark.wide
def test_a_run_whose_stored_logits_were_replaced_is_not_resumed(
  stored, flags, base, call_verb, tmp_path
):
  other = tmp_path / "other"
  words = [*base[1], flag("seed", 3), f"--workdir={other}"]
  assert call_verb("train", *words).returncode == 0
  folder, own = tmp_path / "logits", tmp_path / "own"
  shutil.copytree(stored, folder)
  words = [*reading(flags, folder, 8), f"--workdir={own}"]
  assert call_verb("train", *words).returncode == 0
  shutil.rmtree(folder)
  again = [*flags, flag("distill.teacher", other)]
  assert store(call_verb, again, folder, 8).returncode == 0
  shutil.rmtree(own / "checkpoints" / str(STEPS))
  assert_refused(call_verb("train", *words), "changed since the run was begun")
