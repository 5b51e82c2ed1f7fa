"""What evaluate figures, and of which run."""

import json
import math
import re
import shutil

import pytest
from harness import logged

from gpt_jax import exits, files
from gpt_jax.data.prepare import prepare_data
from gpt_jax.inference import scoring
from gpt_jax.lab.scaling import points
from gpt_jax.runs import metrics, workdir


@pytest.fixture
def evaluate(call_verb, trained):
  def call(*words, workdir=trained) -> list[dict]:
    result = call_verb("evaluate", f"--workdir={workdir}", "--json", *words)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]

  return call


def test_the_runs_own_set_gives_the_figures_that_training_ended_with(
  evaluate, trained
):
  (result,) = evaluate()
  assert result.pop("set") == "valid"
  for name, value in result.items():
    (there,) = logged(trained, f"eval/valid/{name}").values()
    assert value == pytest.approx(there, rel=1e-5)
  assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
  assert result["loss"] < math.log(257) - 0.5


def test_a_finished_run_is_a_point_of_a_scaling_law(trained):
  found = points.read_workdirs(str(trained), None, "6N")
  assert not found.left_out and found.tokens == [20 * 8 * 32]
  rows = metrics.read_rows(str(trained / "metrics.jsonl"))
  assert "eval/valid/num_tokens" in rows[-1]
  assert found.loss == [rows[-1]["eval/valid/loss"]]


@pytest.mark.wide
def test_a_checkpoint_of_another_run_is_refused_by_every_verb(
  base, call_verb, trained, tmp_path
):
  other = tmp_path / "lr[3e-4] \\ run"  # no pattern, but a name
  words = [*base[1], "--config.seed=7"]
  assert call_verb("train", *words, f"--workdir={other}").returncode == 0
  assert call_verb("evaluate", f"--workdir={other}").returncode == 0
  mixed = tmp_path / "mixed"
  shutil.copytree(trained, mixed)
  shutil.rmtree(mixed / "checkpoints" / "20")
  shutil.copytree(other / "checkpoints" / "20", mixed / "checkpoints" / "20")
  commands = [
    ("evaluate", f"--workdir={mixed}"),
    ("generate", f"--workdir={mixed}", "--num_tokens=1"),
    ("train", *base[1], f"--workdir={mixed}"),
    (
      "train",
      *base[1],
      f"--config.train.init_from={mixed}",
      f"--workdir={tmp_path / 'new'}",
    ),
  ]
  for verb, *words in commands:
    result = call_verb(verb, *words)
    assert result.returncode == exits.BAD_INPUT, (verb, result)
    assert "step 20 in" in result.stderr and len(result.stderr.split("\n")) == 2
    assert "is of another run: its config is " in result.stderr


@pytest.mark.wide
def test_a_step_is_replayed_bit_for_bit(base, call_verb, trained, tmp_path):
  before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
  replay = lambda *words: call_verb(
    "train", *base[1], f"--workdir={trained}", *words
  )
  result = replay("--replay=20")
  assert (result.returncode, result.stderr) == (0, "")
  assert re.search(
    r"step 20 recomputed from step 16 twice, and compared with its checkpoint: "
    r"all \d+ arrays agree bit for bit",
    result.stdout,
  )
  assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
  # As if a device had miscomputed one array when the step was saved.
  odd = tmp_path / "odd"
  shutil.copytree(trained, odd)
  path = odd / "checkpoints" / "20" / "meta" / "metadata"
  meta = files.read_json(str(path))
  digit = "0" if meta["checksum"][-1] == "1" else "1"
  meta["checksum"] = meta["checksum"][:-1] + digit
  path.write_text(json.dumps(files.seal(meta)))
  result = call_verb("train", *base[1], f"--workdir={odd}", "--replay=20")
  assert result.returncode == exits.CORRUPT
  assert f"differ from the checkpoint in {[*meta['shapes']][-1]};" in " ".join(
    result.stdout.split()
  )
  result = replay("--replay=21")
  assert result.returncode == exits.BAD_INPUT
  assert "--replay is 21; it must be a step of the run" in result.stderr
  result = call_verb("train", *base[1], "--workdir=none", "--replay=2")
  assert result.returncode == exits.BAD_INPUT
  assert "none does not exist" in result.stderr


def test_bits_per_byte_times_bytes_is_nats_over_ln_2(evaluate, tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("Grüße, " * 100)
  num_bytes = len(path.read_bytes())
  (result,) = evaluate(f"--data={path}")
  assert result["set"] == str(path)
  # One token a byte; the first, which nothing predicts, costs log2 V.
  assert result["num_tokens"] == num_bytes - 1
  bits = result["loss"] * result["num_tokens"] / math.log(2) + math.log2(257)
  assert result["bits_per_byte"] * num_bytes == pytest.approx(bits, rel=1e-6)


def test_a_file_of_records_is_read_as_records(
  evaluate, call_verb, trained, tmp_path
):
  rows = [{"id": i, "text": f"a line of text, {i}"} for i in range(9)]
  path = tmp_path / "b.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (plain,) = evaluate(f"--data={path}")
  (named,) = evaluate(f"--data=jsonl:{path}#text")
  assert plain.pop("set") != named.pop("set") and plain == named
  table = tmp_path / "b.csv"
  lines = [f'{row["id"]},"{row["text"]}"' for row in rows]
  table.write_text("\n".join(["id,text", *lines]) + "\n")
  (table,) = evaluate(f"--data={table}")
  table.pop("set")
  assert table == plain
  result = call_verb("evaluate", f"--workdir={trained}", "--data=")
  assert result.returncode == 2 and "--data is empty" in result.stderr


def test_a_run_of_others_has_nothing_read_or_written(
  evaluate, call_verb, trained, tmp_path
):
  """Only what is prepared is opened, unless the user gives the folder."""
  copy = shutil.copytree(trained, tmp_path / "copy")
  secret = tmp_path / "secret.txt"
  secret.write_text("a secret\n" * 400)
  path = copy / "config.json"
  record = json.loads(path.read_text())
  target = tmp_path / "chosen"
  record["config"]["data.source"] = f"text:{secret}"
  record["config"]["data.dir"] = str(target)
  record["config"]["data.split"] = "tail"
  path.write_text(json.dumps(files.seal(record)))
  result = call_verb("evaluate", f"--workdir={copy}")
  assert result.returncode == 2 and "is not there; to read" in result.stderr
  assert not target.exists()
  # Where it is given, other text than that of the run is still refused.
  there = f"--config.data.dir={tmp_path / 'mine'}"
  result = call_verb("evaluate", f"--workdir={copy}", there)
  assert result.returncode == 2
  assert "is not the one" in result.stderr and "--data" in result.stderr


@pytest.mark.wide
def test_a_prepared_folder_and_a_plain_line_are_understood(
  evaluate, call_verb, trained
):
  config = workdir.read_config(str(trained), {})
  (folder,) = prepare_data(config.data, lambda line: None).folders
  results = {r["set"]: r for r in evaluate(f"--data={folder}")}
  assert set(results) == {"train", "valid"}
  (own,) = evaluate()
  assert results["valid"]["loss"] == own["loss"]
  line = call_verb("evaluate", f"--workdir={trained}").stdout
  assert line == (
    f"valid: loss {own['loss']:.4f}, perplexity {own['perplexity']:.2f}, bits "
    f"per byte {own['bits_per_byte']:.4f}, over {own['num_tokens']:,} tokens\n"
  )


@pytest.mark.wide
def test_batch_size_and_devices_do_not_change_the_figure(
  evaluate, run_verb, trained, tmp_path
):
  (here,) = evaluate()
  words = f"--workdir={trained}", "--json"
  alone = run_verb("gpt_jax.evaluate", *words, check=0)
  assert alone.stderr == ""
  # Eight devices do not divide a batch of three.
  copy = shutil.copytree(trained, tmp_path / "copy")
  path = copy / "config.json"
  record = json.loads(path.read_text())
  record["config"]["train.global_batch_size"] = 3
  path.write_text(json.dumps(files.seal(record)))
  (three,) = evaluate(workdir=copy)
  for other in (json.loads(alone.stdout), three):
    for name in ("loss", "bits_per_byte"):
      assert other[name] == pytest.approx(here[name], rel=1e-5)
  # The control: a figure of fewer tokens is another one.
  config, model, params, _, mesh = workdir.open_run(str(trained))
  few = scoring.score(
    model,
    params,
    prepare_data(config.data, lambda line: None).valid["valid"],
    seq_len=32,
    batch_size=8,
    packing="stream",
    num_loss_chunks=1,
    mesh=mesh,
    max_batches=1,
  )
  assert few["loss"] != pytest.approx(here["loss"], rel=1e-5)
