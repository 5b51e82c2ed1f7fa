"""A run of an encoder-decoder: trained, resumed, asked for targets, scored."""

import json

import pytest

SMALL = {
  "data.seq_len": 24,
  "model.max_len": 24,
  "model.num_layers": 2,
  "model.num_encoder_layers": 1,
  "model.model_dim": 32,
  "model.mlp_dim": 48,
  "model.dropout_rate": 0.1,
  "data.tokenizer": "bytes",
  "optim.warmup_steps": 3,
  "train.num_steps": 12,
  "train.global_batch_size": 8,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 6,
  "eval.every_steps": 1000,
  "sample.every_steps": 6,
  "sample.num_tokens": 4,
}


pytestmark = pytest.mark.wide


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  """Returns {config: flags of a run of it}."""
  folder = tmp_path_factory.mktemp("texts")
  table, text = folder / "pairs.tsv", folder / "text.txt"
  words = [f"{n:03d}" for n in range(300)]
  table.write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
  text.write_text(" ".join(words) * 3)
  own = {"attention": f"pairs:{table}", "t5": f"text:{text}"}
  found = {}
  for name, source in own.items():
    values = SMALL | {"data.source": source, "data.dir": folder / "prepared"}
    split = {}
    if name == "t5":
      split = {"data.split": "tail", "sample.every_steps": 0}
    found[name] = [f"--config=configs/{name}.py:laptop"] + [
      f"--config.{key}={value}" for key, value in (values | split).items()
    ]
  return found


@pytest.fixture(scope="module")
def runs(flags, call_verb, tmp_path_factory):
  """Returns {config: the workdir of a trained run}."""
  found = {}
  for name, words in flags.items():
    found[name] = tmp_path_factory.mktemp("runs") / name
    result = call_verb("train", *words, f"--workdir={found[name]}")
    assert result.returncode == 0, result.stderr
  return found


def test_a_target_is_shown_without_its_source(runs, call_verb):
  call = lambda *words: call_verb(
    "generate", f"--workdir={runs['attention']}", "--prompt=012", *words
  )
  generate = lambda *words: call("--num_tokens=6", *words)
  greedy = generate("--temperature=0")
  assert (greedy.returncode, greedy.stderr) == (0, "")
  assert not greedy.stdout.startswith("012")
  both = generate("--prompt=9", "--temperature=0").stdout
  first, second = both.split("--- '012'\n")[1].split("--- '9'\n")
  assert first == greedy.stdout and second
  assert generate("--beams=1").stdout == greedy.stdout
  best = generate("--beams=4", "--num_best=2").stdout
  assert best.count("--- '012', score -") == 2
  # Three digits and the end.
  ranked = call("--choice=210", "--choice=012").stdout
  assert ranked.count("log-probability -") == ranked.count("4 tokens") == 2
  drawn = {generate(f"--seed={n}").stdout for n in range(3)}
  assert len(drawn) > 1
  few = generate("--temperature=0", "--weights=int8")
  assert few.returncode == 0, few.stderr


def test_a_server_translates_as_generate_does(runs, call_verb):
  from gpt_jax.deploy.serve import tasks
  from gpt_jax.runs import workdir

  found = runs["attention"]
  flags = "--num_tokens=6", "--temperature=0", f"--workdir={found}"
  write = lambda prompt: call_verb("generate", f"--prompt={prompt}", *flags)
  opened = workdir.open_run(str(found), None, lambda line: None)
  own = tasks.build(*opened, None)
  for prompt, text in zip(
    ("012", "9"), own.translate(["012", "9"], 6), strict=True
  ):
    assert write(prompt).stdout == f"{text}\n"
  assert own.embed is None and own.classify is None


def test_a_span_is_asked_for_behind_a_prompt(runs, call_verb):
  words = f"--workdir={runs['t5']}", "--prompt=000 001", "--num_tokens=5"
  result = call_verb("generate", *words)
  assert (result.returncode, result.stderr) == (0, "")
  assert "000 001" not in result.stdout


def test_samples_show_the_source_and_its_target(runs):
  text = (runs["attention"] / "samples" / "step-000012.txt").read_text()
  assert text.startswith("31415926\n")


def test_a_source_that_cannot_be_is_one_sentence(runs, call_verb):
  generate = lambda *words: call_verb(
    "generate", f"--workdir={runs['attention']}", *words
  )
  for words, sentence in {
    ("--prompt=",): "the prompt is empty",
    (f"--prompt={'1' * 24}",): "has 25 tokens and the model 24 positions",
    ("--prompt=1", "--suffix=2"): "only a run of fill_in_the_middle",
    ("--prompt=1", "--beams=2", "--num_tokens=25"): "from 1 to 24 tokens",
  }.items():
    result = generate(*words)
    assert result.returncode == 2 and result.stdout == ""
    assert sentence in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["attention", "t5"])
def test_evaluation_scores_targets(name, runs, call_verb):
  result = call_verb("evaluate", f"--workdir={runs[name]}", "--json")
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert 0 < found["loss"] < 10 and 0 <= found["accuracy"] <= 1
  assert found["num_tokens"] > 0 and "bits_per_byte" not in found
