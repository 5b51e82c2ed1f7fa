"""What is timed is what runs, and idle is idle."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time

import pytest
from workload import DOOR, FLAGS, load

from gpt_jax import config, flops
from gpt_jax.lab.bench import data, duel, start, worker

# What a machine that only times a step need not have.
ABSENT = (
  "orbax",
  "grain",
  "tensorflow_datasets",
  "array_record",
  "tokenizers",
  "tensorboardX",
  "zstandard",
  "torch",
  "transformers",
)
BLOCKER = """
import sys

class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in BLOCKED:
      raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Blocker())
"""
STEP = """
import importlib, json
from gpt_jax.lab.bench import decode, report, train, worker
answers = []
lines = [FIRST, {"do": "run", "count": 2}]
worker.serve(iter(map(json.dumps, lines)), answers.append)
print(len(answers[1]["seconds"]))
"""


@pytest.mark.parametrize(
  "words, sentence",
  [
    ([], "the first word must be what to time: train"),
    (["--repeats=3"], "the first word must be what to time"),
    (["trian"], "did you mean train?"),
    (["train", "--peer=tensorflow"], "there is no peer 'tensorflow'"),
    (["data", "--peer=torch"], "data has none"),
    (["decode", "--peer=torch"], "take --peer=transformers"),
    (["train", "--repeats=0"], "--repeats is 0; it must be 1 or more"),
    (["train", "--steps=-1"], "--steps is -1; it must be 1 or more"),
    (["decode", "--batch=1,x"], "joined by commas"),
    (["decode", "--batch=0"], "joined by commas"),
    (["train"], "model.vocab_size is None"),
    (["train", "--sets=3"], "unknown argument --sets"),
    (
      ["decode", "--config=configs/bench.py:tiny", "--tokens=1000"],
      "--tokens is 1000; it must be 32 to",
    ),
    (["serve", "--tokens=9:4"], "--tokens is 9:4; it must be a whole number"),
    (["serve", "--tokens=0:4"], "--tokens is 0:4; it must be a whole number"),
    (["decode", "--tokens=4:9"], "--tokens=4:9 is for serve"),
    (["data"], "data.tokenizer is 'bytes'"),
  ],
)
def test_a_mistake_is_one_sentence(call_verb, words, sentence):
  words = [*words]
  if words == ["data"]:
    words.append("--config.data.tokenizer=bytes")
  result = call_verb(DOOR, *words)
  assert result.returncode == 2, result.stdout
  assert sentence in result.stderr
  assert result.stderr.count("\n") == 1


def run_blocked(body: str, blocked=ABSENT):
  code = f"BLOCKED = {set(blocked)!r}\n{BLOCKER}\n{body}"
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
  )


def test_a_step_is_timed_with_jax_flax_optax_and_ml_collections_alone(
  one_device,
):
  first = {
    "who": "gpt_jax",
    "subject": "train",
    "config": dataclasses.asdict(load()),
    "devices": None,
    "options": {},
  }
  result = run_blocked(STEP.replace("FIRST", repr(first)))
  assert result.stdout.strip() == "2", result.stderr
  # The control: what is blocked cannot be imported.
  result = run_blocked("import optax", [*ABSENT, "optax"])
  assert "ModuleNotFoundError: no optax here" in result.stderr


@pytest.mark.wide
@pytest.mark.parametrize(
  "flags, count",
  [(["--repeats=3", "--steps=2"], 3), (["--steps=2"], 25), (["--steps=1"], 5)],
)
def test_train_prints_and_writes_what_it_measured(
  tmp_path, run_verb, flags, count
):
  result = run_verb(
    "gpt_jax.lab.bench",
    "train",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    *flags,
    f"--out={tmp_path}",
    check=0,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  rows = {row["name"]: row for row in found["rows"]}
  speed, mfu = rows["tokens/s"], rows["MFU"]
  assert len(speed["values"]) == count
  assert speed["min"] <= speed["median"] <= speed["max"]
  work = flops.train_flops_per_token(load().model, 32)
  used = speed["median"] * work / found["rates"]["flops"]
  assert mfu["median"] == pytest.approx(100 * used)
  assert found["machine"]["versions"]["jax"] in result.stdout
  assert found["mesh"] == "one device" and "(least to most)" in result.stdout
  assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.wide
def test_decode_times_prefill_apart_from_the_loop(tmp_path, run_verb):
  run_verb(
    "gpt_jax.lab.bench",
    "decode",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    "--repeats=2",
    "--batch=2",
    "--tokens=40",
    f"--out={tmp_path}",
    check=0,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  rows = {row["name"]: row for row in found["rows"]}
  assert rows["B=2: prefill"]["median"] > 0
  each = [2e3 / ms for ms in rows["B=2: a token"]["values"]]
  assert rows["B=2: tokens/s"]["values"] == pytest.approx(each)
  # Learned positions are looked up; the tied embedding is read, as scores.
  m = load().model
  count = sum(flops.count_parameters(m).values()) - m.max_len * m.model_dim
  assert found["weight_bytes"] == 4 * count


@pytest.mark.wide
def test_serve_times_what_clients_read_over_http(tmp_path, run_verb):
  pytest.importorskip("uvicorn", reason="extra serve is not installed")
  run_verb(
    "gpt_jax.lab.bench",
    "serve",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    "--repeats=1",
    "--batch=3",
    "--tokens=9",
    f"--out={tmp_path}",
    check=0,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  rows = {row["name"]: row["median"] for row in found["rows"]}
  middle, late = (
    rows[f"3 clients: between tokens, {what}"] for what in ("median", "p99")
  )
  assert 0 < middle <= late
  # Three clients read 27 tokens, each at most one a step.
  assert 0 < rows["3 clients: tokens/s"] < 3 * 1e3 / middle * 1.5


@pytest.mark.wide
def test_a_waiting_worker_takes_no_processor_time(one_device):
  with worker.Worker("gpt_jax", "train", load()) as one:
    one.ask(do="run", count=2)
    time.sleep(0.75)
    idle = one.ask(do="run", count=1)["idle"]
    with pytest.raises(worker.Failed, match="no_such"):
      one.ask(do="no_such")
  assert idle["seconds"] >= 0.7
  assert idle["processor_seconds"] < duel.MAX_IDLE_SHARE * idle["seconds"]


def test_what_a_worker_cannot_build_is_told_to_who_asked(one_device):
  broken = load(model__attention="splash")
  with pytest.raises(config.InputError, match="splash"):
    worker.Worker("gpt_jax", "train", broken)


def test_a_worker_that_is_killed_is_told_of():
  one = worker.Worker.__new__(worker.Worker)
  pipe = subprocess.PIPE
  one.who, one.log = "torch eager", tempfile.TemporaryFile()
  one.process = subprocess.Popen(
    ["sleep", "60"], stdin=pipe, stdout=pipe, text=True
  )
  one.commands, one.answers = one.process.stdin, one.process.stdout
  one.process.kill()
  with one, pytest.raises(worker.Failed, match="eager was killed; is there"):
    one.ask(do="run", count=1)


def test_imports_are_summed_by_package():
  text = (
    "import time: self [us] | cumulative | imported package\n"
    "import time:      1000 |       1000 |   jax._src.a\n"
    "import time:      2000 |       3000 | jax\n"
    "import time:       500 |        500 | numpy\n"
  )
  assert start.sum_imports(text) == {"jax": 0.003, "numpy": 0.0005}


def test_preparation_and_the_library_alone_make_the_same_tokens(tmp_path):
  text = tmp_path / "a.txt"
  text.write_text("The quick brown fox, <|endoftext|> and 12 dogs.\n" * 400)
  c = load(
    data__source=f"text:{text}", data__split="tail", data__tokenizer="bpe:300"
  )
  prepared = data.prepare(c, str(tmp_path / "first"))
  spec = data.fixed_spec(c, prepared, str(tmp_path))
  rows = data.time_preparation(c, spec, prepared, str(tmp_path), 1)
  names = [row.name for row in rows]
  alone = [f"{name} alone, tokens/s" for name in ("tokenizers", "tiktoken")]
  assert names[:3] == ["preparation, tokens/s", *alone]
  encode = data.alone_tokenizers(prepared)
  texts = data.read_texts(c, prepared.tokenizer)
  sets = [prepared.train[0][1], prepared.valid["valid"]]
  count = sum(s.num_tokens for s in sets)
  # A text cut in two where it is held back may have other tokens there.
  assert abs(encode(texts) - count) <= 2
  assert encode(texts[:1] + ["more"]) != encode(texts)
