"""Texts, prepared sets, records and checkpoints that are damaged or alien."""

import json
import os
import pathlib
import shutil

import pytest
from harness import ROOT
from refusals import STEPS, assert_refused, content_of, damaged, flag

from gpt_jax import files, metric_names
from gpt_jax.runs import metrics, restore


def cut_arrays(workdir, steps) -> None:
  for step in steps:
    state = workdir / "checkpoints" / str(step) / "state"
    for path in state.rglob("d/*"):
      os.truncate(path, path.stat().st_size // 2)


# What a corpus holds, the source's spec after the folder, what is said.
CORPORA = {
  "empty": (b"", "text:{}/c", ("is empty",)),
  "short": (b"no more than this", "text:{}/c", ("fewer", "data.seq_len 32")),
  "latin-1": (b"caf\xe9 au lait\n" * 99, "text:{}/c", ("/c ", "offset 3")),
  "no field": (
    b'{"body": "x"}\n',
    "jsonl:{}/c",
    ("'text'", "'body'", "#FIELD"),
  ),
  "no JSON": (b'{"text": "x"}\nhello\n', "jsonl:{}/c", ("/c, line 2",)),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_that_cannot_be_read_leaves_no_run_and_no_part_of_a_set(
  train, tmp_path, kind
):
  content, spec, said = CORPORA[kind]
  (tmp_path / "c").write_bytes(content)
  kept = tmp_path / "kept"
  result = train(
    flag("data.source", spec.format(tmp_path)), flag("data.dir", kept)
  )
  assert_refused(result, *said)
  assert not (tmp_path / "new").exists()
  # A short set is a whole set; what could not be read left none.
  assert bool(content_of(kept)) == (kind == "short")


def prepared_copy(base, tmp_path) -> tuple[pathlib.Path, str]:
  """Returns (the first shard of a copy of the prepared set, its flag)."""
  copy = shutil.copytree(base[0] / "prepared", tmp_path / "prepared")
  (shard,) = pathlib.Path(copy).glob("*-bytes-*/train-00000.bin")
  return shard, flag("data.dir", copy)


def test_a_shard_cut_short_is_named_with_its_sizes(
  train, trained, base, tmp_path
):
  shard, kept = prepared_copy(base, tmp_path)
  size = shard.stat().st_size
  os.truncate(shard, 1000)
  said = str(shard), "1000 bytes", str(size), "prepared again"
  assert_refused(train(kept), *said)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_ids_beyond_the_vocabulary_end_the_run_with_the_file_named(
  train, trained, base, tmp_path, workers
):
  shard, kept = prepared_copy(base, tmp_path)
  shard.write_bytes(b"\xff" * shard.stat().st_size)
  words = flag("data.num_workers", workers), flag("data.verify", "never")
  result = train(kept, *words, is_kept=True)
  assert_refused(result, str(shard), "id 65535", "vocabulary of 257")
  assert restore.list_steps(str(tmp_path / "new" / "checkpoints")) == []


def test_another_config_is_refused_with_its_keys_and_values(
  train, trained, tmp_path
):
  workdir = damaged(trained, tmp_path)
  changed = flag("optim.beta1", 0.8), flag("model.mlp_dim", 128)
  result = train(*changed, flag("eval.num_batches", 3), workdir=workdir)
  assert_refused(
    result,
    str(workdir),
    "model.mlp_dim (64 there, 128 here)",
    "optim.beta1 (0.95 there, 0.8 here)",
    "another --workdir",
  )
  assert "eval" not in result.stderr


def test_other_data_are_refused(train, trained, base, tmp_path):
  workdir = damaged(trained, tmp_path)
  corpus = base[0] / "corpus.txt"
  text, times = corpus.read_text(), corpus.stat()
  try:
    corpus.write_text(text[::-1])
    assert_refused(train(workdir=workdir), "trained on other data")
  finally:
    corpus.write_text(text)
    os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))


RECORDS = {
  "none": (None, "has no config.json"),
  "cut": ('{"config": {', "is damaged"),
  "binary": ("\x80\x81", "is damaged"),
  "list": ("[1, 2]", "is damaged"),
  "empty": ("{}", "is damaged"),
  "keys": (
    '{"config": {"seed": 0}, "fingerprint": "", "data_fingerprint": ""}',
    "config.json: config key data.source is missing",
  ),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_run_whose_record_is_damaged_is_left_as_it_is(
  train, call_verb, trained, tmp_path, record
):
  text, said = RECORDS[record]
  workdir = damaged(trained, tmp_path)
  path = workdir / "config.json"
  path.unlink()
  if text is not None:
    path.write_text(text, encoding="latin-1")
  assert_refused(train(workdir=workdir), str(workdir), said)
  result = call_verb("generate", f"--workdir={workdir}")
  assert_refused(result, str(workdir), said)


@pytest.mark.wide
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
  train, trained, tmp_path
):
  workdir = damaged(trained, tmp_path)
  cut_arrays(workdir, [20])
  result = train(workdir=workdir, is_kept=True)
  assert result.returncode == 0
  assert "step 20" in result.stdout and "going on from step 16" in result.stdout
  # Bit for bit what it was.
  before, after = (
    [
      r[metric_names.LOSS]
      for r in metrics.read_rows(str(w / "metrics.jsonl"))[:20]
    ]
    for w in (trained, workdir)
  )
  assert before == after


@pytest.mark.wide
def test_a_run_of_truncated_checkpoints_is_never_started_afresh(
  train, call_verb, trained, tmp_path
):
  workdir = damaged(trained, tmp_path)
  cut_arrays(workdir, STEPS)
  for resume in ("auto", "must"):
    result = train(flag("checkpoint.resume", resume), workdir=workdir)
    assert_refused(result, "no checkpoint can be read", "step 8", "step 20")
  result = call_verb("evaluate", f"--workdir={workdir}")
  assert "no checkpoint can be read" in result.stderr.splitlines()[-1]


def test_a_checkpoint_of_another_config_is_refused(
  train, call_verb, trained, tmp_path
):
  workdir = damaged(trained, tmp_path)
  path = workdir / "config.json"
  record = json.loads(path.read_text())
  record["config"]["model.mlp_dim"] = 128
  path.write_text(json.dumps(files.seal(record)))
  said = "is of another run", "its config is"
  assert_refused(train(flag("model.mlp_dim", 128), workdir=workdir), *said)
  said = "is of another model", "mlp"
  assert_refused(call_verb("generate", f"--workdir={workdir}"), *said)


def test_the_parameters_of_another_model_start_no_run(train, trained, tmp_path):
  words = flag("train.init_from", trained), flag("model.mlp_dim", 128)
  assert_refused(train(*words), str(trained), "is of another model")
  assert not (tmp_path / "new").exists()


def test_resume_never_and_must_are_kept(train, trained, tmp_path):
  workdir = damaged(trained, tmp_path)
  result = train(flag("checkpoint.resume", "never"), workdir=workdir)
  assert_refused(result, "checkpoint.resume is never", "holds step 20")
  shutil.rmtree(workdir / "checkpoints")
  (workdir / "checkpoints").mkdir()
  result = train(flag("checkpoint.resume", "must"), workdir=workdir)
  assert_refused(result, "checkpoint.resume is must", "holds no checkpoint")


def test_a_workdir_that_is_a_file_stays_that_file(call_verb, base, tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  for workdir in (path, path / "below"):
    result = call_verb("train", *base[1], f"--workdir={workdir}")
    assert_refused(result, str(path), "Not a directory")
  assert path.read_text() == "mine"


GENERATE = {
  ("--prompt=" + 33 * "x",): ("33 tokens", "32 positions"),
  ("--prompt=a", "--prompt="): ("the prompt is empty",),
  ("--top_p=0",): ("top_p is 0.0", "(0, 1]"),
  ("--top_k=-1",): ("top_k is -1", "0 or more"),
  ("--min_p=2",): ("min_p is 2.0", "[0, 1]"),
  ("--temperature=-1",): ("temperature is -1.0", "0 or more"),
  ("--temperature=nan",): ("temperature is nan", "0 or more"),
  ("--prompt=abc", "--beams=2"): ("num_tokens is 200", "from 1 to 30"),
  ("--prompt=" + 30 * "x", "--choice=word"): ("30 tokens", "choice of 4"),
  ("--weights=int3",): ("--weights", "int3", "int8"),
  ("--average=ema",): ("holds no moving average", "train.ema_decay"),
  ("--average=last:0",): ("'last:0'", "ema, or last:N"),
  ("--average=last:9",): ("last:9", "holds 3 checkpoints"),
  ("--config.model.mlp_dim=3",): ("model.mlp_dim", "cannot be changed"),
  ("--config.mesh.fspd=3",): ("did you mean mesh.fsdp?",),
  ("--config.mesh.data=3",): ("the mesh data 3", "8 devices"),
  ("--config.mesh.tensor=8", "--config.mesh.data=1"): ("'kv_heads' is 4",),
}


@pytest.mark.parametrize("words", GENERATE, ids=" ".join)
def test_what_cannot_be_generated_prints_nothing(call_verb, trained, words):
  result = call_verb("generate", f"--workdir={trained}", *words)
  assert_refused(result, *GENERATE[words])
  assert result.stdout == ""


EVALUATE = {
  "none.txt": ("no file matches", "none.txt"),
  "tests/contracts": ("tests/contracts is a directory",),
  "text:": ("'text:'", "text:GLOB"),
  "empty": ("is empty",),
  "one": ("1 token", "2 or more"),
}


@pytest.mark.parametrize("name", EVALUATE)
def test_a_text_that_cannot_be_scored_gives_no_figure(
  call_verb, trained, tmp_path, monkeypatch, name
):
  monkeypatch.chdir(ROOT)
  (tmp_path / "empty").write_text("")
  (tmp_path / "one").write_text("1")
  path = tmp_path / name
  data = path if path.exists() else name
  result = call_verb("evaluate", f"--workdir={trained}", f"--data={data}")
  *notes, last = result.stderr.splitlines()
  assert len(notes) == (name == "one")
  result.stderr = last
  assert_refused(result, *EVALUATE[name])
  assert result.stdout == ""


@pytest.mark.wide
def test_a_run_that_held_nothing_back_asks_for_a_text(
  train, call_verb, tmp_path
):
  frac = flag("data.valid_frac", 0)
  assert train(frac, is_kept=True).returncode == 0
  result = call_verb("evaluate", f"--workdir={tmp_path / 'new'}")
  assert_refused(result, "has no validation set", "--data")


@pytest.mark.parametrize("what", ["none", "cut", "other"])
def test_a_damaged_tokenizer_of_a_run_is_named(
  call_verb, trained, tmp_path, what
):
  workdir = damaged(trained, tmp_path)
  path = workdir / "tokenizer.json"
  text = {"none": "", "cut": path.read_text()[:9], "other": "{}"}[what]
  path.write_text(text) if text else path.unlink()
  result = call_verb("generate", f"--workdir={workdir}")
  assert_refused(result, str(path), "tokenizer")
