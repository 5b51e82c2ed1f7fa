"""Few-shot classification: the prompt, and the class that follows it."""

import json

import jax
import numpy as np
import pytest
from forms import draw_model
from labelled import write

from gpt_jax.config import InputError
from gpt_jax.data.sources.labelled import Example
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import choices, few_shot

LIMIT = 96


def example(text: str, label) -> Example:
  return Example("x:1", "x, line 1", (text,), label)


SHOTS = [example("so warm", "good"), example("dull", "bad")]


def test_a_prompt_shows_the_shots_and_then_the_text():
  prompt = few_shot.write_prompt(SHOTS, "a fine end")
  assert prompt == "so warm\n= good\n\ndull\n= bad\n\na fine end\n="
  assert few_shot.write_prompt([], "x") == "x\n="


@pytest.mark.parametrize("batch_size, start", [(1, ()), (4, (256,))])
def test_the_class_is_the_likeliest_by_a_full_pass(batch_size, start):
  # An imported model expects its start before the prompt.
  tokenizer = ByteTokenizer()
  tokenizer.start_ids = start
  model, params = draw_model(3, max_len=LIMIT, vocab_size=257)
  texts = ["a", "fine end", "dull", "x = 1 and more", "we", "the cast is warm"]
  asked, classes = [example(t, "bad") for t in texts], ["bad", "good", "so so"]
  found = few_shot.classify(
    model, params, tokenizer, SHOTS, classes, asked, batch_size
  )
  apply = jax.jit(model.apply)

  def full(prompt: str, answer: str) -> float:
    row = [*start, *(prompt + answer).encode()]
    tokens = np.zeros((1, LIMIT), np.int32)
    tokens[0, : len(row)] = row
    log_p = np.asarray(jax.nn.log_softmax(apply(params, tokens)))[0]
    places = range(len(start) + len(prompt), len(row))
    return sum(log_p[at - 1, row[at]] for at in places)

  prompts = [few_shot.write_prompt(SHOTS, text) for text in texts]
  sums = [[full(p, f" {c}\n") for c in classes] for p in prompts]
  assert found == [classes[i] for i in np.argmax(sums, axis=1)]
  # The control: texts differ in what follows, and so do prompts.
  assert np.ptp(np.array(sums)[:, 0] - np.array(sums)[:, 1]) > 1e-3


def test_a_prompt_begins_as_an_imported_model_expects(monkeypatch):
  seen = []

  def score(model, params, tokenizer, prompts, answers):
    seen.extend(tokenizer.encode(prompt).tolist() for prompt in prompts)
    return [[choices.Choice(a, 0.0, 1) for a in answers] for _ in prompts]

  monkeypatch.setattr(few_shot.choices, "score", score)
  tokenizer = ByteTokenizer()
  tokenizer.start_ids = (256,)
  classify = few_shot.classify
  classify(None, None, tokenizer, SHOTS, ["bad"], [example("a", "bad")], 4)
  assert seen == [[256, *few_shot.write_prompt(SHOTS, "a").encode()]]


def test_figures_and_shots():
  truth = ["good", "bad", "bad", "bad"]
  found = few_shot.measure(["good", "good", "bad", "good"], truth)
  assert found == {"accuracy": 0.5, "majority": 0.75, "num_tokens": 4}
  some = [example(str(i), "a") for i in range(20)]
  picked = few_shot.pick_shots(some, 8)
  assert picked == few_shot.pick_shots(some, 8)
  assert len({one.texts for one in picked}) == 8
  with pytest.raises(InputError, match="for 21 examples, and there are 20"):
    few_shot.pick_shots(some, 21)


@pytest.mark.parametrize("label", [None, "", ["a"], 1.5, True])
def test_a_label_that_is_no_class_is_refused(label):
  with pytest.raises(InputError, match="x, line 1 has the label"):
    few_shot.class_of(example("a", label))


def test_a_text_of_a_class_that_no_example_has_is_refused():
  shown = [example("a", "good"), example("b", "bad")]
  asked = [example("c", "good"), example("d", 0)]
  found = few_shot.find_classes(shown, asked[:1])
  assert found == (["bad", "good"], ["good"])
  with pytest.raises(InputError, match="label '0', which no example of --sho"):
    few_shot.find_classes(shown, asked)
  with pytest.raises(InputError, match="have one class only, 'good'"):
    few_shot.find_classes(shown[:1], asked)


@pytest.mark.wide
def test_evaluate_answers_and_refuses(small_run, call_verb, tmp_path):
  words = ["--config.train.num_steps=1", "--config.optim.warmup_steps=0"]
  words.append("--config.model.max_len=128")
  run = f"--workdir={tmp_path / 'run'}"
  assert call_verb("train", *small_run, *words, run).returncode == 0
  row = lambda text, label: {"text": text, "label": label}
  rows = [row("warm", "good"), row("dull", "bad"), row("fine", "good")]
  train = write(tmp_path / "train.jsonl", rows)
  held = write(tmp_path / "held.jsonl", [row("cold", "bad"), row("a", "bad")])
  result = call_verb(
    "evaluate", run, f"--data={held}", f"--shots=2:{train}", "--json"
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found["num_tokens"] == 2 and found["majority"] == 1.0
  for more, said in (
    ([f"--shots={train}", f"--data={held}"], "it must be K:FILE"),
    ([f"--shots=4:{train}", f"--data={held}"], "there are 3"),
    ([f"--shots=2:{train}"], "name a file of labelled texts"),
    ([f"--shots=2:{train}", "--data=interpreter"], "has no labels"),
    (["--shots=2:/nowhere.jsonl", f"--data={held}"], "/nowhere.jsonl"),
  ):
    result = call_verb("evaluate", run, *more)
    assert result.returncode == 2 and said in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
