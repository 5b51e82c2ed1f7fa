"""Values, flags and config files that are wrong end in one sentence.

Each check is of the whole promise: exit code, one line, the words that help, no
file. Verbs run in this process where that shows the same as a new one.
"""

import contextlib
import json
import subprocess
import sys
import time

import pytest
from harness import ROOT
from refusals import assert_refused, content_of, damaged, flag

from gpt_jax import config as config_lib
from gpt_jax import exits
from gpt_jax.config import InputError

# Values: what the sentence must say of each.
WRONG_VALUES = {
  "model.frobnicate=1": ("unknown config key model.frobnicate", "valid here"),
  "modle.num_layers=1": ("did you mean model.num_layers?",),
  "nowhere.zzz=1": ("unknown config key nowhere.zzz", "data, model"),
  "optim.learnin_rate=1": ("did you mean optim.learning_rate?",),
  "train.learning_rate=1": ("did you mean optim.learning_rate?",),
  "evaluation.every_steps=5": ("did you mean eval.every_steps?",),
  "eval.evry_steps=5": ("did you mean eval.every_steps?",),
  "temperature=1": ("data.temperature or distill.temperature or sample.",),
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
  "data.curriculum=1,3@2": ("curriculum is 1,3@2", "has 1 sources"),
  "data.curriculum=2@5+3@20": (
    "data.curriculum is 2@5+3@20",
    "train.num_steps is 20",
    "begin before the last step",
  ),
  "model.num_heads=5": ("model.num_heads is 5", "model.model_dim 32"),
  "model.num_kv_heads=3": ("model.num_kv_heads is 3", "model.num_heads 4"),
  "model.v_head_dim=8": ("model.v_head_dim is 8", "kv_lora_rank is None"),
  "model.kv_lora_rank=8": ("model.kv_lora_rank is 8", "needs rope"),
  "model.num_encoder_layers=2": (
    "model.num_encoder_layers is 2",
    "model.family is decoder",
  ),
  "model.family=encoder_decoder": (
    "data.objective is causal",
    "model.family is encoder_decoder",
    "sequence_to_sequence or span_corruption",
  ),
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
  "data.source=paper:x": ("'paper:x'", "text:GLOB", "jsonl:GLOB[#FIELD]"),
  "data.source=text:none/*.txt": ("no file matches 'none/*.txt'",),
  "data.source=text:tests/contracts": (
    "tests/contracts is a directory without .txt",
  ),
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
  ("generate", "--workdir=x", "--num_tokens=0"): ("--num_tokens is 0",),
  ("generate", "--workdir=x", "--num_tokens=a"): ("--num_tokens", "'a'"),
  ("generate", "--workdir=x", "--seed=-1"): ("--seed is -1", "from 0"),
  ("generate", "--workdir=x", "--beams=0"): ("beams is 0", "1 or more"),
  ("generate", "--workdir=x", "--beams=2", "--num_best=3"): (
    "num_best is 3 and there are 2 beams",
  ),
  ("generate", "--workdir=x", "--beams=2", "--length_penalty=-1"): (
    "length_penalty is -1.0",
  ),
  ("generate", "--workdir=x", "--beams=2", "--temperature=0.8"): (
    "--temperature does nothing with --beams",
  ),
  ("generate", "--workdir=x", "--num_best=2"): (
    "--num_best does nothing without --beams",
  ),
  ("generate", "--workdir=x", "--choice=a", "--beams=2"): (
    "--beams does nothing with --choice",
  ),
  ("generate", "--workdir=x", "--choice=a", "--suffix=b"): (
    "--suffix does nothing with --choice",
  ),
  ("generate", "--workdir=x", "--per_token"): ("without --choice",),
  ("generate", "--workdir=x", "--choice="): ("choice 1 is empty",),
  ("generate", "--workdir=x", "--choice=a", "--choice=a"): (
    "the choice 'a' is given twice",
  ),
  ("generate", "--workdir=none"): ("none does not exist", "--workdir"),
  ("generate", "--workdir=LICENSE"): ("LICENSE is not a folder",),
  ("generate", "--workdir=configs"): ("configs has no config.json",),
  ("evaluate", "--workdir=none"): ("none does not exist",),
  ("evaluate", "--workdir=x", "--jsno"): ("--jsno", "--json?"),
  ("evaluate", "--workdir=x", "--devices=0"): ("--devices is 0",),
  ("evaluate", "--workdir=x", f"--devices={10**20}"): ("at most 4096",),
  ("generate", "--workdir=x", f"--beams={10**20}"): ("at most 4096",),
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
    (("gpt_jax.data", "--config.data.source=xml:x"), "not a source"),
  ],
  ids=lambda w: w[0],
)
def test_the_real_command_line_says_the_same(run_verb, words, said):
  assert_refused(run_verb(*words), said)


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
