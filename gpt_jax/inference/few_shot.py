"""Few-shot classification by a prompt (Brown et al. 2020).

The prompt shows texts with their classes and then a text alone; the answer is
the class that is the likeliest to follow. Nothing is trained.
"""

import random
from collections.abc import Sequence
from typing import Any

from gpt_jax.config import InputError
from gpt_jax.data.sources.labelled import BETWEEN, Example
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.inference import choices
from gpt_jax.inference.prompts import PromptTokenizer
from gpt_jax.models import Model

ASKED, ANSWER, END = "{}\n=", " {}\n", "\n"


def text_of(example: Example) -> str:
  """Returns an example's text, or the two texts of a pair, joined."""
  return BETWEEN.join(example.texts)


def class_of(example: Example) -> str:
  """Returns an example's class as a text.

  Raises:
    InputError: the label is missing, or is not one class.
  """
  label = example.label
  if label is None and example.lack:
    raise InputError(example.lack)
  if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
    raise InputError(
      f"{example.where} has the label {label!r}; it must be one class, a "
      "string or a whole number"
    )
  return str(label).strip()


def find_classes(
  shown: Sequence[Example], asked: Sequence[Example]
) -> tuple[list[str], list[str]]:
  """Returns (classes of the examples that may be shown, class of each text).

  Raises:
    InputError: the examples have one class only, or a text has a class that no
      example has.
  """
  classes = sorted(set(map(class_of, shown)))
  if len(classes) < 2:
    raise InputError(
      f"the examples of --shots have one class only, {classes[0]!r}; there "
      "must be 2 or more"
    )
  truth = list(map(class_of, asked))
  for one, label in zip(asked, truth, strict=True):
    if label not in classes:
      named = ", ".join(classes[:8]) + ", ..." * (len(classes) > 8)
      raise InputError(
        f"{one.where} has the label {label!r}, which no example of --shots "
        f"has; their classes are {named}"
      )
  return classes, truth


def pick_shots(examples: Sequence[Example], count: int) -> list[Example]:
  """Returns `count` examples, the same ones in every call.

  Raises:
    InputError: there are fewer examples than `count`.
  """
  if count > len(examples):
    raise InputError(
      f"--shots asks for {count} examples, and there are {len(examples)}; ask "
      "for fewer"
    )
  return random.Random(0).sample(list(examples), count)


def write_prompt(shots: Sequence[Example], text: str) -> str:
  """Returns the prompt of a text, to be continued by its class."""
  shown = (
    ASKED.format(text_of(shot)) + ANSWER.format(class_of(shot)) + END
    for shot in shots
  )
  return "".join(shown) + ASKED.format(text)


def classify(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  shots: Sequence[Example],
  classes: Sequence[str],
  asked: Sequence[Example],
  batch_size: int,
) -> list[str]:
  """Returns the likeliest class of each text.

  Args:
    params: stacked, as trained.
    batch_size: number of prompts that are read at a time.

  Raises:
    InputError: as in choices.score.
  """
  answers = [ANSWER.format(name) for name in classes]
  found: list[str] = []
  begun: Any = PromptTokenizer(tokenizer)
  for first in range(0, len(asked), batch_size):
    some = asked[first : first + batch_size]
    prompts = [write_prompt(shots, text_of(one)) for one in some]
    for each in choices.score(model, params, begun, prompts, answers):
      best = choices.rank(each)[0].text
      found.append(classes[answers.index(best)])
  return found


def measure(called: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
  """Returns the accuracy, its majority-class baseline, and number of texts."""
  hits = sum(a == b for a, b in zip(called, truth, strict=True))
  most = max(truth.count(name) for name in set(truth))
  return {
    "accuracy": hits / len(truth),
    "majority": most / len(truth),
    "num_tokens": len(truth),  # as scoring.score calls labels
  }
