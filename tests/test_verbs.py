"""What the verbs do when all is well: their output, files and speed.

One small run is trained for the whole file; verbs are called in this process
except where the process itself is in question.
"""

import io
import json
import math
import os
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

from gpt_jax import exits, files, metric_names, objective
from gpt_jax.data import batches
from gpt_jax.data.prepare import prepare_data
from gpt_jax.inference import generation, scoring
from gpt_jax.lab.scaling import points
from gpt_jax.machine import console
from gpt_jax.runs import metrics, plot, restore, rows, workdir
from gpt_jax.training import step as step_lib

SVG = "{http://www.w3.org/2000/svg}"
# Twenty steps bring the loss from ln 257 to well below.
FAST = [
  "--config.train.num_steps=20",
  "--config.checkpoint.every_steps=8",
  "--config.optim.learning_rate=1e-2",
]
PROMPT = "--prompt=def train("


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_flags):
  folder = tmp_path_factory.mktemp("base")
  return folder, small_flags(folder) + FAST


@pytest.fixture(scope="module")
def run(base, call_verb):
  """The workdir of a finished run; to be read only."""
  folder, flags = base
  flags = [*flags, "--config.sample.every_steps=10"]
  result = call_verb("train", *flags, f"--workdir={folder / 'run'}")
  assert (result.returncode, result.stderr) == (0, "")
  return folder / "run"


@pytest.fixture
def generate(call_verb, run):
  def call(*words) -> str:
    words = f"--workdir={run}", "--num_tokens=24", *words
    result = call_verb("generate", *words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout

  return call


@pytest.fixture
def evaluate(call_verb, run):
  def call(*words, workdir=run) -> list[dict]:
    result = call_verb("evaluate", f"--workdir={workdir}", "--json", *words)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]

  return call


def logged(workdir, name: str) -> dict[int, float]:
  rows = metrics.read_rows(str(workdir / "metrics.jsonl"))
  return {row["step"]: row[name] for row in rows if name in row}


# generate


def test_a_prompt_is_continued_and_a_seed_repeats_it(generate):
  text = generate(PROMPT)
  assert text.startswith("def train(") and text.endswith("\n")
  assert len(text) > len("def train(") + 5
  assert text == generate(PROMPT, "--seed=0")
  assert text != generate(PROMPT, "--seed=1")
  greedy = generate(PROMPT, "--temperature=0")
  assert greedy == generate(PROMPT, "--top_k=1", "--seed=2")


def test_several_prompts_are_shown_one_after_the_other(generate):
  text = generate(PROMPT, "--prompt=import", "--temperature=0")
  first, second = text.split("--- 'def train('\n")[1].split("--- 'import'\n")
  assert first == generate(PROMPT, "--temperature=0")
  assert second == generate("--prompt=import", "--temperature=0")


def test_a_stop_string_ends_the_text_before_it(generate):
  whole = generate(PROMPT)[:-1]
  made = whole.removeprefix("def train(")
  stop = made[7:9]
  cut = generate(PROMPT, f"--stop={stop}", "--stop=never to be seen")[:-1]
  assert cut == "def train(" + made[: made.index(stop)]
  assert len(cut) < len(whole)


def test_what_a_model_writes_never_steers_a_terminal(
  generate, call_verb, run, monkeypatch
):
  wild = "a\x1b[2J\r\x07\x7f\x9b1m\u202eb\u2066\tc\nd\xa0国"
  tame = r"a\x1b[2J\r\x07\x7f\x9b1m\u202eb\u2066" + "\tc\nd\xa0国"

  def write(*args, show=None, **kwargs):
    for char in wild if show else "":
      show(char)
    return [wild] * len(args[3])

  monkeypatch.setattr(generation, "generate_text", write)
  assert generate(PROMPT) == f"def train({wild}\n"  # a pipe gets what is
  assert wild in generate(PROMPT, "--prompt=x")

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr(io, "StringIO", Terminal)
  assert generate(PROMPT) == f"def train({tame}\n"
  assert wild not in generate(PROMPT, "--prompt=x")
  assert console.escape_controls(wild) == tame
  parts = "".join(map(console.escape_controls, wild))
  assert parts == tame  # also as it streams


@pytest.mark.parametrize("flag", ["--prompt", "--stop", "--config.data.dir"])
def test_a_text_that_is_no_utf8_is_refused_by_its_flag(call_verb, run, flag):
  word = f"{flag}={os.fsdecode(bytes([0x63, 0xE9]))}"
  result = call_verb("generate", f"--workdir={run}", word)
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert flag.removeprefix("--config.") in result.stderr
  assert "UTF-8: byte 0xe9 at offset 1" in result.stderr
  assert "surrogate" not in result.stderr


def test_a_step_is_chosen_and_another_is_refused(generate, call_verb, run):
  steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
  last = generate(PROMPT, f"--step={steps[-1]}", "--temperature=0")
  assert last == generate(PROMPT, "--temperature=0")
  words = f"--workdir={run}", "--step=7"
  for verb in ("generate", "evaluate"):
    result = call_verb(verb, *words)
    assert result.returncode == 2
    assert "--step is 7" in result.stderr and str(steps[0]) in result.stderr
  both = "--average=last:2", f"--step={steps[0]}"
  result = call_verb("evaluate", f"--workdir={run}", *both)
  assert result.returncode == 2 and "several" in result.stderr


def test_a_prompt_is_read_from_standard_input_and_devices_change_nothing(
  generate, run
):
  words = [f"--workdir={run}", "--num_tokens=24", "--prompt=-", "--devices=4"]
  result = subprocess.run(
    [sys.executable, "-m", "gpt_jax.generate", "--temperature=0", *words],
    input="def train(",
    capture_output=True,
    text=True,
    cwd=workdir.__file__.rsplit("/", 3)[0],
  )
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout == generate(PROMPT, "--temperature=0")


def test_every_number_of_tokens_is_made_beyond_the_last_position(generate):
  # 257 ids and 32 positions: most ids of so small a model are single bytes.
  text = generate(PROMPT, "--num_tokens=100", "--temperature=0")
  assert len(text.encode()) >= 10 + 100


# evaluate


def test_the_runs_own_set_gives_the_figures_that_training_ended_with(
  evaluate, run
):
  (result,) = evaluate()
  assert result.pop("set") == "valid"
  for name, value in result.items():
    (there,) = logged(run, f"eval/valid/{name}").values()
    assert value == pytest.approx(there, rel=1e-5)
  assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
  assert result["loss"] < math.log(257) - 0.5


def test_a_finished_run_is_a_point_of_a_scaling_law(run):
  found = points.read_workdirs(str(run), None, "6N")
  assert not found.left_out and found.tokens == [20 * 8 * 32]
  rows = metrics.read_rows(str(run / "metrics.jsonl"))
  assert "eval/valid/num_tokens" in rows[-1]
  assert found.loss == [rows[-1]["eval/valid/loss"]]


def test_a_checkpoint_of_another_run_is_refused_by_every_verb(
  base, call_verb, run, tmp_path
):
  other = tmp_path / "lr[3e-4] \\ run"  # no pattern, but a name
  words = [*base[1], "--config.seed=7"]
  assert call_verb("train", *words, f"--workdir={other}").returncode == 0
  assert call_verb("evaluate", f"--workdir={other}").returncode == 0
  mixed = tmp_path / "mixed"
  shutil.copytree(run, mixed)
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


def test_a_step_is_replayed_bit_for_bit(base, call_verb, run, tmp_path):
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  replay = lambda *words: call_verb(
    "train", *base[1], f"--workdir={run}", *words
  )
  result = replay("--replay=20")
  assert (result.returncode, result.stderr) == (0, "")
  assert re.search(
    r"step 20 recomputed from step 16 twice, and compared with its checkpoint: "
    r"all \d+ arrays agree bit for bit",
    result.stdout,
  )
  assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  # As if a device had miscomputed one array when the step was saved.
  odd = tmp_path / "odd"
  shutil.copytree(run, odd)
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
  evaluate, call_verb, run, tmp_path
):
  rows = [{"id": i, "text": f"a line of text, {i}"} for i in range(9)]
  path = tmp_path / "b.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (plain,) = evaluate(f"--data={path}")
  (named,) = evaluate(f"--data=jsonl:{path}#text")
  assert plain.pop("set") != named.pop("set") and plain == named
  table = tmp_path / "b.csv"
  table.write_text("id,text\n1,x\n")
  result = call_verb("evaluate", f"--workdir={run}", f"--data={table}")
  assert result.returncode == 2 and "is a table (CSV)" in result.stderr
  result = call_verb("evaluate", f"--workdir={run}", "--data=")
  assert result.returncode == 2 and "--data is empty" in result.stderr


def test_a_run_of_others_has_nothing_read_or_written(
  evaluate, call_verb, run, tmp_path
):
  """Only what is prepared is opened, unless the user gives the folder."""
  copy = shutil.copytree(run, tmp_path / "copy")
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


def test_a_prepared_folder_and_a_plain_line_are_understood(
  evaluate, call_verb, base, run
):
  (folder,) = (base[0] / "prepared").glob("*-corpus-txt-*")
  results = {r["set"]: r for r in evaluate(f"--data={folder}")}
  assert set(results) == {"train", "valid"}
  (own,) = evaluate()
  assert results["valid"]["loss"] == own["loss"]
  line = call_verb("evaluate", f"--workdir={run}").stdout
  assert line == (
    f"valid: loss {own['loss']:.4f}, perplexity {own['perplexity']:.2f}, bits "
    f"per byte {own['bits_per_byte']:.4f}, over {own['num_tokens']:,} tokens\n"
  )


def test_batch_size_and_devices_do_not_change_the_figure(
  evaluate, run_verb, run, tmp_path
):
  (here,) = evaluate()
  words = f"--workdir={run}", "--json"
  alone = run_verb("gpt_jax.evaluate", *words, check=0)
  assert alone.stderr == ""
  # Eight devices do not divide a batch of three.
  copy = shutil.copytree(run, tmp_path / "copy")
  path = copy / "config.json"
  record = json.loads(path.read_text())
  record["config"]["train.global_batch_size"] = 3
  path.write_text(json.dumps(files.seal(record)))
  (three,) = evaluate(workdir=copy)
  for other in (json.loads(alone.stdout), three):
    for name in ("loss", "bits_per_byte"):
      assert other[name] == pytest.approx(here[name], rel=1e-5)
  # The control: a figure of fewer tokens is another one.
  config, model, params, _, mesh = workdir.open_run(str(run))
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


# metrics, plot, console


def test_a_rewound_record_ends_at_its_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writers = metrics.Writers(str(tmp_path), 0)
  for step in range(1, 8):
    writers.write(step, {metric_names.LOSS: 1 / step})
  writers.close()
  with open(path, "a") as file:
    file.write('{"step": 8, "train/lo')
  assert [r["step"] for r in metrics.read_rows(str(path))] == [*range(1, 8)]
  rows.rewind(str(path), 5)
  assert [r["step"] for r in metrics.read_rows(str(path))] == [*range(1, 6)]
  assert metrics.read_rows(str(path))[2] == {
    "step": 3,
    metric_names.LOSS: 1 / 3,
  }
  assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]
  rows.rewind(str(tmp_path / "none.jsonl"), 0)
  assert not (tmp_path / "none.jsonl").exists()


def test_tensorboard_reads_the_rows_and_the_rewind(tmp_path):
  from tensorboardX.proto import event_pb2

  for start in (0, 2):
    writers = metrics.Writers(str(tmp_path), start)
    writers.write(start + 1, {metric_names.LOSS: 0.5, metric_names.MFU: 0.25})
    writers.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events, data = [], path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
    path.unlink()
    assert events[0].file_version == "brain.Event:2"
    starts = [e.step for e in events if e.session_log.status == 1]
    # It hides what an earlier process wrote from that step on.
    assert starts == ([start + 1] if start else [])
    values = {v.tag: v.simple_value for v in events[-1].summary.value}
    assert values == {metric_names.LOSS: 0.5, metric_names.MFU: 0.25}
    assert events[-1].step == start + 1


def test_the_curve_of_a_run_is_an_svg_with_each_curve(run):
  root = xml.etree.ElementTree.parse(run / "plots" / "loss.svg").getroot()
  assert root.tag == f"{SVG}svg"
  lines = [line.get("points") for line in root.iter(f"{SVG}polyline")]
  assert [len(points.split()) for points in lines] == [20, 1]
  words = [text.text for text in root.iter(f"{SVG}text")]
  assert {metric_names.LOSS, "eval/valid/loss"} <= set(words)


@pytest.mark.parametrize(
  "curves",
  [
    {},
    {"none": []},
    {"zero": [(0, 0.0)]},
    {"one": [(1, 2.0)]},
    {"flat": [(1, 2.0), (2, 2.0)]},
    {"a<b & c": [(1, 1e-9), (10**9, 1e30)]},
  ],
  ids=str,
)
def test_few_or_wild_points_are_still_a_valid_plot(curves):
  svg = plot.draw_curves("loss & more", "step", curves)
  root = xml.etree.ElementTree.fromstring(svg)
  assert len(list(root.iter(f"{SVG}polyline"))) == len(curves)
  assert "nan" not in svg and "inf" not in svg


def test_a_run_of_any_length_has_a_few_marks_below_its_curve():
  for steps in [*range(1, 130), 999, 1000, 7777, 10**9]:
    svg = plot.draw_curves("loss", "step", {"a": [(steps, 2.0)]})
    root = xml.etree.ElementTree.fromstring(svg)
    heights = [text.get("y") for text in root.iter(f"{SVG}text")]
    marks = heights.count(str(plot.HEIGHT - plot.BOTTOM + 18))
    assert 2 <= marks <= 7, steps


@pytest.mark.parametrize("loss", [1.8321, 1e30, math.inf, math.nan, -1e300])
def test_a_line_of_progress_stays_below_100_characters(loss):
  rates = {
    metric_names.STEP_SECONDS: 1e4,
    metric_names.TOKENS_PER_SECOND: 1e12,
    metric_names.MFU: 0.9999,
  }
  line = console.progress_line(10**8, 10**9, loss, rates)
  assert len(line) < 100 and "tok/s" in line
  assert console.progress_line(1, 2, 1.5, {}) == "step 1/2  loss 1.5000"


def test_text_to_show_is_cut_and_cannot_steer_the_terminal():
  lines = console.wrap_text("\n\tone\n\n" + "x" * 200 + "\n\x1b[2Jred\r\n")
  assert [len(line) for line in lines] == [5, 0, 90, 90, 20, 7]
  assert not any(c in "".join(lines) for c in "\x1b\r\t")


# The process


def test_the_package_does_not_import_jax_by_itself():
  code = "import sys, gpt_jax; print('jax' in sys.modules)"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert run.stdout.strip() == b"False"
  code = "import sys, gpt_jax.training.loop; print('jax' in sys.modules)"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert run.stdout.strip() == b"True"


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


# Training's own corners


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
      assert row[metric_names.BATCH_HASH] == int(objective.hash_batch(expected))
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


def test_a_run_begins_with_the_parameters_of_another(
  base, call_verb, run, tmp_path
):
  # A rate of zero leaves the parameters as they came.
  still = "--config.optim.learning_rate=0", "--config.train.num_steps=6"
  losses = {}
  for name, words in (
    ("taken", [f"--config.train.init_from={run}"]),
    ("fresh", []),
  ):
    words = [*still, *words, f"--workdir={tmp_path / name}"]
    assert call_verb("train", *base[1], *words).returncode == 0
    (losses[name],) = logged(tmp_path / name, "eval/valid/loss").values()
  (other,) = logged(run, "eval/valid/loss").values()
  assert losses["taken"] == pytest.approx(other, abs=1e-6)
  assert losses["fresh"] > other + 0.5
  assert (
    logged(tmp_path / "taken", metric_names.LOSS)[1] < losses["fresh"] - 0.3
  )
