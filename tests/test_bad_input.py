"""Whatever a user gets wrong ends in one sentence, and leaves nothing behind.

Verbs run in this process where that shows the same as a new one. Each check
is of the whole promise: exit code, one line, the words that help, no file.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from gpt_jax import config as config_lib
from gpt_jax import exits, files, metric_names
from gpt_jax.config import InputError
from gpt_jax.inference import generation
from gpt_jax.runs import metrics, restore

ROOT = pathlib.Path(__file__).parent.parent
STEPS = [8, 16, 20]


def assert_refused(result, *said, code: int = 2) -> None:
  """Checks that a verb ended in one sentence that holds all of `said`."""
  lines = result.stderr.splitlines()
  assert "Traceback" not in result.stdout + result.stderr
  assert result.returncode == code, result.stderr
  assert len(lines) == 1 and lines[0].startswith("gpt_jax: "), lines
  for words in said:
    assert words in lines[0]


def content_of(folder) -> dict[str, str]:
  """Returns {path: sha256} of all files below a folder, locks apart."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file() and not path.name.startswith(".lock-")
  }


def flag(key: str, value) -> str:
  return f"--config.{key}={value}"


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_flags):
  """A folder with a corpus, and the flags of a run of 20 steps on it."""
  folder = tmp_path_factory.mktemp("base")
  flags = small_flags(folder) + [
    flag("train.num_steps", 20),
    flag("checkpoint.every_steps", 8),
    flag("checkpoint.keep_last", 3),
  ]
  return folder, flags


@pytest.fixture(scope="module")
def trained(base, call_verb):
  """The workdir of that run, finished; to be read only."""
  folder, flags = base
  result = call_verb("train", *flags, f"--workdir={folder / 'run'}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  return folder / "run"


@pytest.fixture
def train(base, call_verb, tmp_path):
  """Calls train with the base's flags and more; nothing may be left."""

  def run(*words, workdir=tmp_path / "new", is_kept=False):
    before = content_of(workdir)
    result = call_verb("train", *base[1], *words, f"--workdir={workdir}")
    if not is_kept:
      assert content_of(workdir) == before
    return result

  return run


def damaged(trained, tmp_path) -> pathlib.Path:
  """Returns a copy of the run that a test may spoil."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def cut_arrays(workdir, steps) -> None:
  for step in steps:
    state = workdir / "checkpoints" / str(step) / "state"
    for path in state.rglob("d/*"):
      os.truncate(path, path.stat().st_size // 2)


# Values: what the sentence must say of each.
WRONG_VALUES = {
  "model.frobnicate=1": ("unknown config key model.frobnicate", "valid here"),
  "modle.num_layers=1": ("did you mean model.num_layers?",),
  "nowhere.zzz=1": ("unknown config key nowhere.zzz", "data, model"),
  "optim.learnin_rate=1": ("did you mean optim.learning_rate?",),
  "train.learning_rate=1": ("did you mean optim.learning_rate?",),
  "train.num_steps=many": ("train.num_steps", "'many'", "a whole number"),
  "train.num_steps=1.5": ("train.num_steps", "'1.5'", "a whole number"),
  "train.num_steps=1e400": ("train.num_steps", "'1e400'", "a whole number"),
  "optim.beta1=high": ("optim.beta1", "'high'", "a number"),
  "model.bias=maybe": ("model.bias", "'maybe'", "true or false"),
  "train.num_steps=None": ("train.num_steps", "'None'", "a whole number"),
  "train.num_steps=0": ("train.num_steps is 0", "at least 1"),
  "model.dropout_rate=2": ("model.dropout_rate is 2.0", "at most 0.99"),
  "optim.learning_rate=-1": ("optim.learning_rate is -1.0", "at least 0.0"),
  "optim.learning_rate=nan": ("optim.learning_rate is nan", "finite"),
  "optim.learning_rate=inf": ("optim.learning_rate is inf", "finite"),
  "optim.learning_rate=1e39": ("rate is 1e+39", "at most 3.4e+38"),
  "optim.weight_decay=1e39": ("decay is 1e+39", "infinite in float32"),
  "model.init_std=1e39": ("model.init_std is 1e+39", "at most 3.4e+38"),
  "optim.eps=0": ("optim.eps is 0.0", "at least 1.1754944e-38"),
  "optim.eps=1e-46": ("optim.eps is 1e-46", "at least 1.1754944e-38"),
  "model.rope_scaling=linear:inf": ("'linear:inf'", "linear:FACTOR"),
  f"train.batch_ramp=2@{'9' * 5000}": ("train.batch_ramp is", "4@100+2@200"),
  "train.num_steps=3000000000": (
    "train.num_steps is 3000000000",
    "at most 2147483647",
  ),
  "train.global_batch_size=1000000000": (
    "train.global_batch_size is 1,000,000,000",
    "data.seq_len is 32",
    "at most 2,147,483,647",
  ),
  "train.global_batch_size=60000000": ("of activations", "has", "take a small"),
  "seed=-1": ("seed is -1", "at least 0"),
  "model.norm=batchnorm": ("'batchnorm'", "one of layernorm, rmsnorm"),
  "model.rope_scaling=yarn": ("'yarn'", "linear:FACTOR"),
  "optim.warmup_steps=20": (
    "optim.warmup_steps is 20",
    "train.num_steps is 20",
    "shorter than the run",
  ),
  "model.num_heads=5": ("model.num_heads is 5", "model.model_dim 32"),
  "model.num_kv_heads=3": ("model.num_kv_heads is 3", "model.num_heads 4"),
  "train.num_microbatches=3": (
    "train.num_microbatches is 3",
    "train.global_batch_size 8",
  ),
  "train.batch_ramp=4": ("train.batch_ramp is '4'", "DIVISOR@STEPS"),
  "train.batch_ramp=2@5+4@5": ("'2@5+4@5'", "decreasing divisors"),
  "train.batch_ramp=3@5": ("3 does not divide", "train.global_batch_size 8"),
  "train.batch_ramp=2@20": ("20 steps", "shorter than the run"),
  "train.batch_ramp=2@5": ("4 sequences", "data x fsdp x expert = 8"),
  "train.ema_decay=1": ("train.ema_decay is 1.0", "at most 0.99"),
  "train.global_batch_size=6": ("6 sequences", "data x fsdp x expert = 8"),
  "data.seq_len=64": ("data.seq_len is 64", "model.max_len 32"),
  "mesh.data=3": ("the mesh data 3", "the 8 devices here", "multiply to 8"),
  "mesh.tensor=3": ("tensor 3", "the 8 devices here"),
  "mesh.fsdp=-1": ("mesh.data, mesh.fsdp are all -1", "only one"),
  "mesh.fsdp=0": ("mesh.fsdp is 0", "1 or more"),
  "mesh.tensor=8": ("blocks/attn/k: dim 'kv_heads' is 4", "tensor 8"),
  "data.source=csv:x": ("'csv:x'", "text:GLOB", "jsonl:GLOB[#FIELD]"),
  "data.source=text:none/*.txt": ("no file matches 'none/*.txt'",),
  "data.source=text:configs": ("configs is a directory",),
  "data.tokenizer=words": ("'words'", "bytes, chars, bpe:SIZE"),
  "data.tokenizer=bpe:9": ("'bpe:9'", "from 257"),
  "data.tokenizer=gpt2:none": ("none of data.tokenizer does not exist",),
  "data.tokenizer=gpt2:configs": ("configs", "encoder.json and vocab.bpe"),
  "data.tokenizer=gpt2:LICENSE": ("LICENSE, line 1", "base64"),
  "data.tokenizer=hf:none": ("cannot read", "none", "does not exist"),
  "data.tokenizer=hf:LICENSE": ("LICENSE is not a tokenizer.json",),
  "model.vocab_size=100": ("model.vocab_size is 100", "257 tokens"),
  "train.init_from=none": ("train.init_from is 'none'", "no checkpoint"),
  "train.init_from=configs": ("'configs'", "no checkpoint"),
  "train.wandb_project=x": ("train.wandb_project is 'x'", "-e '.[wandb]'"),
  "checkpoint.resume=must": ("resume is must", "holds no checkpoint"),
  "checkpoint.resume=perhaps": ("'perhaps'", "auto, must, never"),
}


@pytest.mark.parametrize("setting", WRONG_VALUES)
def test_a_wrong_value_is_one_sentence_and_no_workdir(
  train, tmp_path, monkeypatch, setting
):
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(sys.modules, "wandb", None)
  assert_refused(train(f"--config.{setting}"), *WRONG_VALUES[setting])
  assert not (tmp_path / "new").exists()


def test_a_prompt_that_no_model_takes_is_refused_before_training(train):
  sampled = flag("sample.every_steps", 5)
  for prompt, found in ((33 * "x", "33 tokens"), ("", "0 tokens")):
    result = train(sampled, flag("sample.prompt", prompt))
    assert_refused(result, "sample.prompt", found, "model.max_len 32")


def test_a_sample_that_cannot_be_made_is_a_line_and_the_run_goes_on(
  train, tmp_path, monkeypatch
):
  flags = [
    flag("train.num_steps", 4),
    flag("sample.every_steps", 2),
    flag("sample.num_tokens", 3),
    flag("optim.warmup_steps", 1),
  ]
  # A vocabulary of the text's own characters, and a prompt of others.
  result = train(
    *flags,
    flag("data.tokenizer", "chars"),
    flag("sample.prompt", "國"),
    is_kept=True,
    workdir=tmp_path / "chars",
  )
  assert (result.returncode, result.stderr) == (0, "")
  assert "no samples will be written: sample.prompt is '國'" in result.stdout
  assert not (tmp_path / "chars" / "samples").exists()
  assert (tmp_path / "chars" / "checkpoints" / "4").exists()

  def fail(*args, **kwargs):
    raise RuntimeError("out of\nmemory")

  monkeypatch.setattr(generation, "generate_text", fail)
  result = train(*flags, is_kept=True, workdir=tmp_path / "failing")
  assert (result.returncode, result.stderr) == (0, "")
  told = "step 2: no sample of sample.prompt: out of memory"
  assert result.stdout.count("no sample") == 1 and told in result.stdout
  assert (tmp_path / "failing" / "plots" / "loss.svg").exists()


# Words of the command line, for any verb.
WRONG_WORDS = {
  ("train", "--workdr=x"): ("unknown argument --workdr", "--workdir?"),
  ("train", "--confg=x"): ("unknown argument --confg", "--config?"),
  ("train",): ("required: --workdir",),
  ("train", "--workdir=x", "stray"): ("unknown argument stray",),
  ("train", "--workdir=x", "--config.seed"): ("--config.seed=VALUE",),
  ("train", "--workdir=x", "--devices=0"): ("--devices is 0", "1 or more"),
  ("train", "--workdir=x", "--devices=-2"): ("--devices is -2",),
  ("train", "--workdir=x", "--devices=two"): ("--devices", "'two'"),
  ("generate", "--workdir=x", "--promt=a"): ("--promt", "--prompt?"),
  ("generate", "--workdir=x", "--prompt="): ("the prompt is empty",),
  ("generate", "--workdir=x", "--num_tokens=0"): ("--num_tokens is 0",),
  ("generate", "--workdir=x", "--num_tokens=a"): ("--num_tokens", "'a'"),
  ("generate", "--workdir=x", "--seed=-1"): ("--seed is -1", "from 0"),
  ("generate", "--workdir=none"): ("none does not exist", "--workdir"),
  ("generate", "--workdir=LICENSE"): ("LICENSE is not a folder",),
  ("generate", "--workdir=configs"): ("configs has no config.json",),
  ("evaluate", "--workdir=none"): ("none does not exist",),
  ("evaluate", "--workdir=x", "--jsno"): ("--jsno", "--json?"),
  ("evaluate", "--workdir=x", "--devices=0"): ("--devices is 0",),
  ("data.__main__", "--verfy"): ("--verfy", "--verify?"),
  ("data.__main__", "--config=none.py"): ("none.py does not exist",),
}


@pytest.mark.parametrize("words", WRONG_WORDS, ids=" ".join)
def test_a_wrong_flag_is_one_sentence(call_verb, monkeypatch, words):
  monkeypatch.chdir(ROOT)
  assert_refused(call_verb(*words), *WRONG_WORDS[words])
  assert not (ROOT / "x").exists()


# Bodies of config files.
BASE = "from configs import base\n"
GET = f"{BASE}def get_config():\n  c = base.get_config()\n"
CONFIG_FILES = {
  "syntax": ("def get_config(:\n", ("line 1", "invalid syntax")),
  "nul": ("x = '\0'\n", ("null bytes",)),
  "none": ("x = 1\n", ("defines no get_config()",)),
  "import": ("import nowhere_to_be_found\n", ("line 1", "No module named")),
  "raises": (f"{GET}  return 1 / 0\n", ("line 4", "division by zero")),
  "lookup": (f"{GET}  return {{}}['x']\n", ("line 4", "KeyError: x")),
  "silent": (f"{GET}  assert False\n", ("line 4", "AssertionError")),
  "returns": (f"{GET}", ("returned a NoneType", "ConfigDict")),
  "unknown": (
    f"{GET}  c.model.num_layer = 3\n  return c\n",
    ("line 4", "unknown config key num_layer", "mean model.num_layers?"),
  ),
  "section": (
    f"{GET}  c.modle.num_layers = 3\n  return c\n",
    ("line 4", "unknown config key modle", "did you mean model?"),
  ),
  "type": (
    f"{GET}  c.model.num_layers = 'three'\n  return c\n",
    ("line 4", "num_layers"),
  ),
  "range": (
    f"{GET}  c.model.num_layers = 0\n  return c\n",
    ("model.num_layers is 0", "at least 1"),
  ),
  "missing": (
    f"{GET}  c.unlock()\n  del c.model.norm\n  return c\n",
    ("model.norm is missing",),
  ),
}


@pytest.mark.parametrize("body", CONFIG_FILES)
def test_a_wrong_config_file_is_one_sentence(call_verb, tmp_path, body):
  text, said = CONFIG_FILES[body]
  (tmp_path / "mine.py").write_text(text)
  words = f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"
  assert_refused(call_verb("train", *words), *said)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "path, said",
  [
    ("configs", ("config file configs is a directory",)),
    ("configs/none.py", ("configs/none.py does not exist", "configs/")),
    ("LICENSE", ("LICENSE is not Python",)),
    ("configs/gpt2.py:9b", ("no variant '9b'", "124m, 350m")),
    ("configs/tiny.py:9b", ("has no variants", ":9b")),
  ],
)
def test_a_config_that_is_not_there_is_one_sentence(
  call_verb, tmp_path, monkeypatch, path, said
):
  monkeypatch.chdir(ROOT)
  words = f"--config={path}", f"--workdir={tmp_path}/run"
  assert_refused(call_verb("train", *words), *said)


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


# Keys of config.json, each with more than any machine has.
HUGE = {
  "train.global_batch_size": 10**12,
  "train.global_batch_size ": 6 * 10**7,
  "train.num_steps": 10**12,
  "model.vocab_size": 10**12,
  "model.vocab_multiple": 10**12,
  "model.max_len": 10**12,
  "model.num_layers": 10**9,
  "model.num_layers ": 10**5,
  "model.model_dim": 2**31 - 4,
  "model.mlp_dim": 2**31 - 1,
  "model.head_dim": 2**31 - 2,
  "model.num_experts": 1 << 20,
  "data.seq_len": 10**12,
  "data.num_workers": 10**9,
  "optim.learning_rate": 10**400,
}


@pytest.mark.parametrize("key", HUGE)
def test_a_size_that_no_machine_has_is_a_sentence(
  call_verb, trained, tmp_path, key
):
  workdir = damaged(trained, tmp_path)
  path = workdir / "config.json"
  record = json.loads(path.read_text())
  frozen = record["config"] | {key.strip(): HUGE[key]}
  nested = {"seed": frozen["seed"]}
  for name, value in frozen.items():
    section, dot, last = name.partition(".")
    if dot:
      nested.setdefault(section, {})[last] = value
  with contextlib.suppress(InputError):
    # A record that was written so, by a newer machine say.
    config = config_lib.freeze(nested)
    record["fingerprint"] = config_lib.fingerprint(config)
  path.write_text(json.dumps(record | {"config": frozen}))
  start = time.perf_counter()
  assert_refused(call_verb("evaluate", f"--workdir={workdir}"))
  assert time.perf_counter() - start < 10


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
  "configs": ("configs is a directory",),
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


def test_standard_input_that_is_no_text_is_named_by_its_offset():
  words = ["-m", "gpt_jax.generate", "--workdir=x", "--prompt=-"]
  result = subprocess.run(
    [sys.executable, *words], input=b"caf\xe9", cwd=ROOT, capture_output=True
  )
  result.stdout, result.stderr = (
    b.decode() for b in (result.stdout, result.stderr)
  )
  assert_refused(result, "standard input", "0xe9 at offset 3")


@pytest.mark.parametrize(
  "words, said",
  [
    (("gpt_jax.train", "--workdir=x", "--config.a=1"), "unknown config key a"),
    (("gpt_jax.generate", "--workdir=none"), "none does not exist"),
    (("gpt_jax.evaluate", "--workdir=none"), "none does not exist"),
    (("gpt_jax.data", "--config.data.source=csv:x"), "not a source"),
  ],
  ids=lambda w: w[0],
)
def test_the_real_command_line_says_the_same(run_verb, words, said):
  assert_refused(run_verb(*words), said)


@pytest.fixture
def disk(tmp_path):
  """Mounts a disk of a given size; gives its path and a way to fill it."""
  mounted = []

  def mount(size: str) -> pathlib.Path:
    path = tmp_path / f"disk{len(mounted)}"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    try:
      result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
      pytest.skip("no small disk can be mounted: there is no mount")
    if result.returncode:
      pytest.skip(f"no small disk can be mounted: {result.stderr.strip()}")
    mounted.append(path)
    return path

  yield mount
  for path in mounted:
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: pathlib.Path) -> None:
  """Takes what room is left."""
  free = os.statvfs(disk)
  (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))


def test_a_disk_full_of_prepared_text_is_left_empty(train, disk):
  kept = disk("64k") / "prepared"
  result = train(flag("data.dir", kept))
  assert_refused(result, "no space is left", str(kept), "data.dir")
  assert content_of(kept) == {}


def test_a_disk_that_fills_while_saving_keeps_the_earlier_steps(
  run_verb, call_verb, base, disk
):
  workdir = disk("1500k") / "run"
  words = [flag("checkpoint.every_steps", 2), flag("checkpoint.keep_last", 20)]
  result = run_verb("gpt_jax.train", *base[1], *words, f"--workdir={workdir}")
  # Whichever finds the disk full first: a step, or a row of metrics.
  assert_refused(result, str(workdir), "make room and go on")
  steps = restore.list_steps(str(workdir / "checkpoints"))
  assert 0 < len(steps) < 10
  assert call_verb("evaluate", f"--workdir={workdir}").returncode == 0


def test_a_full_disk_stops_a_run_at_its_metrics_and_spoils_none(
  train, trained, disk
):
  path = disk("8m")
  workdir = pathlib.Path(shutil.copytree(trained, path / "run"))
  shutil.rmtree(workdir / "checkpoints" / "20")
  fill(path)
  result = train(workdir=workdir)
  assert_refused(result, f"{workdir}/metrics.jsonl", "No space left")
  (path / "ballast").unlink()
  result = train(workdir=workdir, is_kept=True)
  assert result.returncode == 0 and "going on from step 16" in result.stdout


def test_metrics_that_fill_the_disk_are_whole_rows_up_to_there(disk):
  path = disk("100k")
  writers = metrics.Writers(str(path), 0)
  with pytest.raises(InputError, match="metrics.jsonl cannot be written"):
    for step in itertools.count():
      writers.write(step, {metric_names.LOSS: step / 3})
  with pytest.raises(InputError, match="cannot be written"):
    writers.close()
  rows = metrics.read_rows(str(path / "metrics.jsonl"))
  assert [r["step"] for r in rows] == list(range(len(rows)))
  assert step - 5 <= len(rows) <= step + 1


def test_a_record_that_finds_no_room_leaves_no_part_of_a_run(train, disk):
  path = disk("64k")
  fill(path)
  result = train(workdir=path / "run")
  assert_refused(result, str(path / "run"), "No space left")
  assert content_of(path / "run") == {}


def test_the_check_itself_sees_what_breaks_the_promise(trained, tmp_path):
  make = lambda code, err: subprocess.CompletedProcess([], code, "", err)
  assert_refused(make(2, "gpt_jax: a is 1\n"), "a is 1")
  for code, err in (
    (0, "gpt_jax: a is 1\n"),
    (1, "gpt_jax: a is 1\n"),
    (2, "a is 1\n"),
    (2, "gpt_jax: a is 2\n"),
    (2, "W0000 chatter\ngpt_jax: a is 1\n"),
    (2, "gpt_jax: a is 1\nTraceback (most recent call last):\n"),
  ):
    with pytest.raises(AssertionError):
      assert_refused(make(code, err), "a is 1")
  before = content_of(trained)
  assert before == content_of(damaged(trained, tmp_path))
  (tmp_path / "run" / "config.json").write_text("{}")
  assert before != content_of(tmp_path / "run")
  assert exits.DIVERGED != 2
