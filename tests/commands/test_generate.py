"""What generate prints."""

import io
import os
import re
import subprocess
import sys

import pytest
from refusals import assert_refused

from gpt_jax.inference import texts
from gpt_jax.machine import console
from gpt_jax.runs import workdir

PROMPT = "--prompt=def train("


@pytest.fixture
def generate(call_verb, trained):
  def call(*words) -> str:
    words = f"--workdir={trained}", "--num_tokens=24", *words
    result = call_verb("generate", *words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout

  return call


@pytest.mark.wide
def test_a_prompt_is_continued_and_a_seed_repeats_it(generate):
  text = generate(PROMPT)
  assert text.startswith("def train(") and text.endswith("\n")
  assert len(text) > len("def train(") + 5
  assert text == generate(PROMPT, "--seed=0")
  assert text != generate(PROMPT, "--seed=1")
  greedy = generate(PROMPT, "--temperature=0")
  assert greedy == generate(PROMPT, "--top_k=1", "--seed=2")


@pytest.mark.wide
def test_several_prompts_are_shown_one_after_the_other(generate):
  text = generate(PROMPT, "--prompt=import", "--temperature=0")
  first, second = text.split("--- 'def train('\n")[1].split("--- 'import'\n")
  assert first == generate(PROMPT, "--temperature=0")
  assert second == generate("--prompt=import", "--temperature=0")


@pytest.mark.wide
def test_beams_find_texts_that_are_shown_with_their_scores(generate):
  greedy = generate(PROMPT, "--temperature=0", "--num_tokens=8")
  small = PROMPT, "--num_tokens=8"
  assert generate(*small, "--beams=1") == greedy
  best = generate(*small, "--beams=3")
  assert best.startswith("def train(") and best == generate(*small, "--beams=3")
  shown = generate(*small, "--beams=3", "--num_best=2", "--length_penalty=1")
  heads = re.findall(
    r"--- 'def train\(', score (-[\d.]+), log-probability (-[\d.]+), 8 tokens",
    shown,
  )
  (first, _), (second, sum_) = heads
  assert float(first) >= float(second)
  assert float(second) * (5 + 8) / 6 == pytest.approx(float(sum_), abs=1e-3)
  both = generate(*small, "--prompt=import", "--beams=3")
  assert f"--- 'def train('\n{best}--- 'import'\nimport" in both


@pytest.mark.wide
def test_choices_are_shown_likeliest_first(generate, call_verb, trained):
  words = PROMPT, "--choice=self", "--choice=\x07zq", "--choice=e"
  call = lambda *more: (
    call_verb("generate", f"--workdir={trained}", *words, *more).stdout
  )
  lines = call().splitlines()
  figures = [
    re.fullmatch(r"'(.+)': log-probability (-[\d.]+), (\d) tokens?", line)
    for line in lines
  ]
  sums = [float(f[2]) for f in figures]
  assert sums == sorted(sums, reverse=True)
  assert {f[1] for f in figures} == {"self", "\\x07zq", "e"}
  means = [
    float(re.search(r"(-[\d.]+),", line)[1]) / int(line.split()[-2])
    for line in call("--per_token").splitlines()
  ]
  assert means == sorted(means, reverse=True)
  both = call("--prompt=import")
  assert both.startswith("--- 'def train('\n" + "\n".join(lines))
  assert "--- 'import'\n" in both


def test_a_stop_string_ends_the_text_before_it(generate):
  whole = generate(PROMPT)[:-1]
  made = whole.removeprefix("def train(")
  stop = made[7:9]
  cut = generate(PROMPT, f"--stop={stop}", "--stop=never to be seen")[:-1]
  assert cut == "def train(" + made[: made.index(stop)]
  assert len(cut) < len(whole)


def test_what_a_model_writes_never_steers_a_terminal(
  generate, call_verb, trained, monkeypatch
):
  wild = "a\x1b[2J\r\x07\x7f\x9b1m\u202eb\u2066\tc\nd\xa0国"
  tame = r"a\x1b[2J\r\x07\x7f\x9b1m\u202eb\u2066" + "\tc\nd\xa0国"

  def write(*args, show=None, **kwargs):
    for char in wild if show else "":
      show(char)
    return [wild] * len(args[3])

  monkeypatch.setattr(texts, "generate_text", write)
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
def test_a_text_that_is_no_utf8_is_refused_by_its_flag(
  call_verb, trained, flag
):
  word = f"{flag}={os.fsdecode(bytes([0x63, 0xE9]))}"
  result = call_verb("generate", f"--workdir={trained}", word)
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert flag.removeprefix("--config.") in result.stderr
  assert "UTF-8: byte 0xe9 at offset 1" in result.stderr
  assert "surrogate" not in result.stderr


def test_a_step_is_chosen_and_another_is_refused(generate, call_verb, trained):
  steps = sorted(int(p.name) for p in (trained / "checkpoints").iterdir())
  last = generate(PROMPT, f"--step={steps[-1]}", "--temperature=0")
  assert last == generate(PROMPT, "--temperature=0")
  words = f"--workdir={trained}", "--step=7"
  for verb in ("generate", "evaluate"):
    result = call_verb(verb, *words)
    assert result.returncode == 2
    assert "--step is 7" in result.stderr and str(steps[0]) in result.stderr
  both = "--average=last:2", f"--step={steps[0]}"
  result = call_verb("evaluate", f"--workdir={trained}", *both)
  assert result.returncode == 2 and "several" in result.stderr


@pytest.mark.wide
def test_a_prompt_is_read_from_standard_input_and_devices_change_nothing(
  generate, trained
):
  words = [
    f"--workdir={trained}",
    "--num_tokens=24",
    "--prompt=-",
    "--devices=4",
  ]
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


@pytest.mark.wide
def test_a_gap_is_filled_by_a_run_that_learned_it(
  call_verb, small_run, trained, tmp_path
):
  objective = "--config.data.objective=fill_in_the_middle"
  run = f"--workdir={tmp_path / 'run'}"
  done = call_verb("train", *small_run, objective, run)
  assert done.returncode == 0, done.stderr
  config, model, *_ = workdir.open_run(str(tmp_path / "run"), {}, print)
  assert model.config.vocab_size == 257 + 3
  asked = PROMPT, "--suffix=return state", "--num_tokens=60"
  gap = call_verb("generate", run, *asked)
  assert (gap.returncode, gap.stderr) == (0, "")
  assert gap.stdout.startswith("def train(")
  other = call_verb("generate", run, *asked, "--suffix=0, 0, 0, 0, 0, 0, 0")
  assert other.stdout != gap.stdout  # the control: the suffix is read
  refused = call_verb("generate", f"--workdir={trained}", *asked)
  assert refused.returncode == 2
  assert "data.objective is causal; only a run of" in refused.stderr


@pytest.mark.parametrize("rows", [0, 1, 10**20])
def test_a_number_of_rows_out_of_range_is_refused(call_verb, trained, rows):
  words = f"--workdir={trained}", "--prompt=a", f"--rows={rows}"
  said = f"--rows is {rows}; it must be 2 or more, at most 4096"
  assert_refused(call_verb("generate", *words), said)
