"""How a run goes when all is well, and how it ends when it diverges."""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

import jax
import numpy
import pytest
from harness import logged

from gpt_jax import exits, metric_names, tree
from gpt_jax.data import batches
from gpt_jax.data.prepare import prepare_data
from gpt_jax.runs import metrics, restore, workdir
from gpt_jax.training import step as step_lib

SVG = "{http://www.w3.org/2000/svg}"


def test_the_curve_of_a_run_is_an_svg_with_each_curve(trained):
  root = xml.etree.ElementTree.parse(trained / "plots" / "loss.svg").getroot()
  assert root.tag == f"{SVG}svg"
  lines = [line.get("points") for line in root.iter(f"{SVG}polyline")]
  assert [len(points.split()) for points in lines] == [20, 1]
  words = [text.text for text in root.iter(f"{SVG}text")]
  assert {metric_names.LOSS, "eval/valid/loss"} <= set(words)


def test_the_package_does_not_import_jax_by_itself():
  code = "import sys, gpt_jax; print('jax' in sys.modules)"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert run.stdout.strip() == b"False"
  code = "import sys, gpt_jax.training.loop; print('jax' in sys.modules)"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert run.stdout.strip() == b"True"


@pytest.mark.battery
@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "data"])
@pytest.mark.parametrize(
  "words, code",
  [
    (["--help"], 0),
    (["--version"], 0),
    (["--workdir=x", "--config.model.num_layer=1"], 2),
  ],
  ids=["help", "version", "mistake"],
)
def test_help_and_mistakes_answer_at_once(verb, words, code):
  if verb == "data" or (verb in ("generate", "evaluate") and code):
    words = [w for w in words if not w.startswith("--workdir")]
  command = [sys.executable, "-X", "importtime", "-m", f"gpt_jax.{verb}"]
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    result = subprocess.run([*command, *words], capture_output=True, text=True)
    seconds.append(time.perf_counter() - start)
    if seconds[0] < 0.4:
      break
  assert result.returncode == code
  assert not re.search(r"\| +jax$", result.stderr, re.MULTILINE)
  assert statistics.median(seconds) < 0.6


@pytest.fixture
def short_path():
  folder = tempfile.mkdtemp(prefix="g", dir="/tmp")
  yield folder
  shutil.rmtree(folder)


@pytest.mark.wide
def test_a_run_on_a_pipe_is_few_short_lines_and_no_chatter(
  run_verb, base, short_path
):
  result = run_verb(
    "gpt_jax.train",
    *base[1],
    f"--config.data.dir={short_path}/p",
    f"--workdir={short_path}/w",
    "--config.eval.every_steps=10",
    "--config.sample.every_steps=10",
    check=0,
  )
  lines = result.stdout.splitlines()
  assert result.stderr == ""
  # The first line names the prepared folder, whose path is the test's.
  assert lines[0].startswith("prepared ")
  assert [line for line in lines[1:] if len(line) >= 100] == []
  end = next(i for i, line in enumerate(lines) if line.startswith("trained 20"))
  assert end <= 40
  for word in ("warn", "absl", "orbax", "xla", "error", "traceback"):
    assert word not in result.stdout.lower()
  assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", result.stdout)


@pytest.mark.wide
def test_a_profile_is_written_and_the_run_goes_on(base, call_verb, tmp_path):
  for name, steps, asked in (("long", 8, 2), ("short", 1, 50)):
    result = call_verb(
      "train",
      *base[1],
      f"--config.train.num_steps={steps}",
      "--config.optim.warmup_steps=0",
      f"--config.train.profile_steps={asked}",
      f"--workdir={tmp_path / name}",
    )
    assert result.returncode == 0, result.stderr
    assert "the profile is in" in result.stdout
    (trace,) = (tmp_path / name / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    kept = restore.list_steps(str(tmp_path / name / "checkpoints"))
    assert kept[-1] == steps


def test_a_run_that_diverges_stops_and_its_checkpoint_can_be_read(
  base, call_verb, tmp_path
):
  words = [
    "--config.optim.optimizer=sgd",
    "--config.optim.learning_rate=1e30",
    "--config.optim.warmup_steps=0",
    "--config.train.max_nonfinite_steps=3",
    "--config.checkpoint.every_steps=1",
    f"--workdir={tmp_path / 'run'}",
  ]
  result = call_verb("train", *base[1], *words)
  assert result.returncode == exits.DIVERGED == 3
  said = (result.stdout + result.stderr).splitlines()[-1]
  assert said.startswith("gpt_jax: the last 4 updates were not finite")
  assert "optim.learning_rate" in said and "Traceback" not in said
  kept = restore.list_steps(str(tmp_path / "run" / "checkpoints"))
  assert kept and f"step {kept[-1]} is saved" in said
  params = workdir.open_run(str(tmp_path / "run"))[2]
  for leaf in jax.tree.leaves(params):
    assert jax.numpy.isfinite(leaf).all()
  # No row is broken by what JSON cannot say.
  assert len(logged(tmp_path / "run", metric_names.NUM_SKIPPED)) >= kept[-1]


@pytest.mark.battery
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "flags, cause",
  [
    (["optim.learning_rate=1e30"], "an optim.learning_rate below 1e+30"),
    (["model.norm_eps=0", "model.init_std=0"], "model.norm_eps=1e-5: it is 0"),
  ],
)
def test_a_run_that_ends_in_skipped_updates_does_not_end_well(
  base, call_verb, tmp_path, flags, cause, dtype
):
  words = [
    *(f"--config.{flag}" for flag in flags),
    f"--config.model.param_dtype={dtype}",
    "--config.optim.warmup_steps=0",
    "--config.train.num_steps=5",
    "--config.train.max_nonfinite_steps=10",
    "--config.checkpoint.every_steps=1",
    "--config.checkpoint.keep_last=1",
    f"--workdir={tmp_path / 'run'}",
  ]
  result = call_verb("train", *base[1], *words)
  assert result.returncode == 3, result.stdout + result.stderr
  said = (result.stdout + result.stderr).splitlines()[-1]
  assert "not finite" in said and cause in said and "Traceback" not in said
  # What is there is of before the streak, and finite.
  folder = str(tmp_path / "run" / "checkpoints")
  kept = restore.list_steps(folder)
  if "rate" not in flags[0]:
    assert kept == [] and "nothing was saved" in said
    return
  assert kept == [1]
  for leaf in jax.tree.leaves(workdir.open_run(str(tmp_path / "run"))[2]):
    assert jax.numpy.isfinite(leaf).all()


@pytest.mark.wide
def test_skipped_batches_are_listed_and_a_resume_lists_them_alike(
  base, call_verb, tmp_path, monkeypatch
):
  monkeypatch.setattr(step_lib, "SPIKE_HISTORY", 2)
  flags = [
    *base[1],
    "--config.train.spike_factor=1.05",
    "--config.train.num_steps=12",
    "--config.train.max_nonfinite_steps=11",
    "--config.checkpoint.every_steps=1",
    "--config.checkpoint.keep_last=20",
    "--config.optim.learning_rate=1e-4",
  ]
  found = []
  for name in ("whole", "resumed"):
    words = [*flags, f"--workdir={tmp_path / name}"]
    result = call_verb("train", *words)
    if name == "resumed":
      for kept in restore.list_steps(str(tmp_path / name / "checkpoints")):
        if kept > 5:
          shutil.rmtree(tmp_path / name / "checkpoints" / str(kept))
      shutil.rmtree(tmp_path / name / "plots", ignore_errors=True)
      result = call_verb("train", *words)
    rows = metrics.read_rows(str(tmp_path / name / "metrics.jsonl"))
    found.append(
      [
        (row["step"], row[metric_names.BATCH_HASH], row[metric_names.GRAD_NORM])
        for row in rows
        if metric_names.SKIPPED_SPIKE in row
      ]
    )
    for step, *_ in found[-1]:
      said = f"step {step}: its update is skipped, a spike"
      assert step <= 5 or said in result.stdout
  assert found[0] == found[1] and found[0]


@pytest.mark.wide
def test_a_run_rolls_back_past_the_batches_that_it_failed_on(
  base, call_verb, tmp_path, monkeypatch
):
  # With so short a history, at this factor, some updates are spikes.
  monkeypatch.setattr(step_lib, "SPIKE_HISTORY", 2)
  random = numpy.random.default_rng(0)
  words = ["".join(random.choice(list("abcdef"), 5)) for _ in range(99)]
  (tmp_path / "text").write_text(" ".join(random.choice(words, 5_000)))
  flags = [
    *base[1],
    f"--config.data.source=text:{tmp_path / 'text'}",
    f"--config.data.dir={tmp_path / 'prepared'}",
    "--config.train.num_steps=7",
    "--config.train.log_every_steps=1",
    "--config.checkpoint.every_steps=1",
    "--config.checkpoint.keep_last=20",
    "--config.optim.learning_rate=1e-4",
    "--config.train.spike_factor=1.05",
    "--config.train.max_nonfinite_steps=0",
  ]
  rolls = "--config.train.max_rollbacks=100"

  def train(name, *words):
    result = call_verb("train", *flags, *words, f"--workdir={tmp_path / name}")
    rows = metrics.read_rows(str(tmp_path / name / "metrics.jsonl"))
    return result, [metrics.without_time(row) for row in rows]

  stopped, _ = train("stopped")
  assert stopped.returncode == 3, stopped.stdout
  result, rows = train("rolled", rolls)
  assert result.returncode == 0, result.stdout + result.stderr
  entries = [row for row in rows if metric_names.ROLLED_BACK_FROM in row]
  assert entries and "rollback 1 of 100" in result.stdout
  assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)

  # Each step reads what comes after the sequences that were passed over.
  config = workdir.read_config(str(tmp_path / "rolled"))
  prepared = prepare_data(config.data)
  sets, size = [tokens for _, tokens in prepared.train], 8
  passed = 0
  for row in rows:
    passed = row.get(metric_names.PASSED, passed)
    if metric_names.LOSS in row:
      expected = batches.batch_at(
        sets,
        [1.0],
        config.seed,
        row["step"] - 1,
        numpy.arange(size),
        config.data.seq_len,
        "stream",
        size,
        passed,
      )
      assert row[metric_names.BATCH_HASH] == int(tree.hash_batch(expected))
  assert passed >= size * len(entries)

  # Cut back to a step, as by a kill: the same rows, and the same end.
  whole = checksums(tmp_path / "rolled")
  kept, cut = entries[0]["step"], tmp_path / "cut"
  shutil.copytree(tmp_path / "rolled", cut)
  for step in restore.list_steps(str(cut / "checkpoints")):
    if step > kept:
      shutil.rmtree(cut / "checkpoints" / str(step))
  shutil.rmtree(cut / "plots")
  again, found = train("cut", rolls)
  assert again.returncode == 0, again.stdout + again.stderr
  assert found == rows and checksums(cut) == whole

  # A replay reads the batches that were read.
  replayed, _ = train("rolled", rolls, "--replay=7")
  assert replayed.returncode == 0, replayed.stdout
  assert "agree bit for bit" in replayed.stdout


def checksums(path):
  folder = str(path / "checkpoints")
  return restore.read_checksums(folder, restore.list_steps(folder)[-1])


@pytest.mark.wide
def test_bfloat16_parameters_that_do_not_move_are_told(
  base, call_verb, tmp_path
):
  for rate, is_told in ((1e-5, True), (1e-2, False)):
    result = call_verb(
      "train",
      *base[1],
      "--config.model.param_dtype=bfloat16",
      f"--config.optim.learning_rate={rate}",
      "--config.train.num_steps=2",
      "--config.optim.warmup_steps=0",
      f"--workdir={tmp_path / str(rate)}",
    )
    assert result.returncode == 0, result.stderr
    assert ("do not move" in result.stdout) == is_told


@pytest.mark.wide
def test_a_run_begins_with_the_parameters_of_another(
  base, call_verb, trained, tmp_path
):
  # A rate of zero leaves the parameters as they came.
  still = "--config.optim.learning_rate=0", "--config.train.num_steps=6"
  losses = {}
  for name, words in (
    ("taken", [f"--config.train.init_from={trained}"]),
    ("fresh", []),
  ):
    words = [*still, *words, f"--workdir={tmp_path / name}"]
    assert call_verb("train", *base[1], *words).returncode == 0
    (losses[name],) = logged(tmp_path / name, "eval/valid/loss").values()
  (other,) = logged(trained, "eval/valid/loss").values()
  assert losses["taken"] == pytest.approx(other, abs=1e-6)
  assert losses["fresh"] > other + 0.5
  assert (
    logged(tmp_path / "taken", metric_names.LOSS)[1] < losses["fresh"] - 0.3
  )
