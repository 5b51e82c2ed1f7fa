"""A run as a model of lm-evaluation-harness.

The harness's own code reads the tasks, makes the requests and computes the
metrics (https://github.com/EleutherAI/lm-evaluation-harness); this module
answers the requests. Texts are tokenized, and long ones split into windows, by
the rules of the harness's adapter for transformers, so that the same weights
give the same figures.
"""

import importlib.util
import itertools
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.data.sources.chat import Message
from gpt_jax.exits import InputError
from gpt_jax.inference import continuations, generation, texts
from gpt_jax.machine import processes, runtime
from gpt_jax.models import Model

# The harness names a result "<metric>,<filter of answers>".
FILTER, NO_FILTER = ",", "none"
# Stands before and after a dialogue's number: a private-use Unicode character.
OPENED = "\uf8ff"


def require(is_quiet: bool = False) -> None:
  """Raises InputError unless tasks can be evaluated here.

  Args:
    is_quiet: whether to hide the harness's progress bars and warnings.
  """
  if processes.count() > 1:
    raise InputError("tasks are evaluated by one process; start one")
  runtime.start_harness(is_quiet)
  if importlib.util.find_spec("lm_eval") is None:
    raise InputError(
      "tasks need the package `lm_eval`; in the folder of this project, "
      f"install it with {files.pip('eval')}"
    )


def evaluate(
  answers: "Answers",
  names: list[str],
  what: str,
  limit: int | None = None,
  num_fewshot: int | None = None,
  is_chat: bool = False,
) -> dict:
  """Returns the harness's results.

  Args:
    names: of the tasks.
    is_chat: whether a question is a user's turn, and the examples before it are
      earlier turns.
    what: the option that names the tasks, for errors.
    limit: number of each task's first questions that are asked; None for all.
    num_fewshot: examples before each question; None for the task's own number.

  Raises:
    InputError: the harness refuses the tasks.
  """
  import lm_eval
  from lm_eval import utils

  try:
    return lm_eval.simple_evaluate(
      adapt(answers),
      tasks=names,
      num_fewshot=num_fewshot,
      limit=limit,
      log_samples=False,
      apply_chat_template=is_chat,
      fewshot_as_multiturn=is_chat,
    )
  except (KeyError, ValueError, OSError, utils.yaml.YAMLError) as error:
    said = str(error).strip().splitlines() or [type(error).__name__]
    raise InputError(f"the harness refused {what}: {said[0]}") from None


def list_figures(results: dict) -> dict[str, float]:
  """Returns {"<task>/<metric>": value}, without standard errors and counts."""
  found = {}
  for task, row in results["results"].items():
    for key, value in row.items():
      metric, is_metric, kind = key.partition(FILTER)
      is_figure = isinstance(value, int | float) and is_metric
      if is_figure and not metric.endswith("_stderr"):
        own = metric if kind == NO_FILTER else f"{metric}_{kind}"
        found[f"{task}/{own}"] = float(value)
  return found


class Answers:
  """A run's answers to the harness's requests.

  Args:
    model, params: as generation.generate takes them.
    tokenizer: of the run; a templates.ChatTokenizer also answers dialogues.
    batch_size: requests that are answered at once.
    max_gen_toks: most tokens of an answer, where a task sets no limit.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    tokenizer: Any,
    batch_size: int,
    max_gen_toks: int,
  ):
    self._model, self._params, self._tokenizer = model, params, tokenizer
    self._batch_size, self.max_gen_toks = batch_size, max_gen_toks
    self._plain = getattr(tokenizer, "plain", tokenizer)
    self._opened: list = []  # dialogues, by the number in their placeholder
    self.limit = model.config.max_len
    self._vocab_size = min(
      config_lib.vocab_size(model.config), tokenizer.vocab_size
    )

  def separator_id(self) -> int:
    separator_id = self._plain.separator_id
    if separator_id is None:
      raise InputError(
        f"the tokenizer {self._tokenizer.name} has no token between documents, "
        "after which the harness scores a text's first token; train with one "
        "that has"
      )
    return separator_id

  def first_id(self) -> int:
    """Returns the token before a text without a context."""
    return (self._plain.start_ids or (self.separator_id(),))[0]

  @property
  def name(self) -> str:
    return self._tokenizer.name

  def open(self, history: list[dict], is_answered: bool) -> str:
    """Returns a placeholder for a dialogue, which `encode` replaces by its ids.

    The harness concatenates texts. In a text, the template's special tokens
    could not be told from the same characters in a question.

    Args:
      history: the harness's messages, {"role": ..., "content": ...}.
      is_answered: whether the last message is the beginning of the answer.
    """
    turns = [Message(each["role"], each["content"]) for each in history]
    begun = turns.pop().content if is_answered else ""
    opened = self._tokenizer.encoder.open(turns, "a task's dialogue")
    self._opened.append(opened)
    return f"{OPENED}{len(self._opened) - 1}{OPENED}{begun}"

  def encode(self, text: str, is_bare: bool) -> list[int]:
    """Returns ids of a text (after start_ids unless is_bare) or a dialogue."""
    if self._opened and text.startswith(OPENED):
      index, _, begun = text[1:].partition(OPENED)
      opened = self._opened[int(index)]
      return self._tokenizer.encoder.go_on(opened, begun).tolist()
    starts = () if is_bare else self._plain.start_ids
    return [*starts, *self._plain.encode(text).tolist()]

  def score(self, pairs) -> list[tuple[float, bool]]:
    return continuations.score_pairs(
      self._model, self._params, pairs, self._batch_size, self._vocab_size
    )

  def score_windows(self, windows) -> list[float]:
    """Returns the log-probability of each text, summed over its windows."""
    scores = iter(self.score([pair for own in windows for pair in own]))
    return [
      sum(log_p for log_p, _ in itertools.islice(scores, len(own)))
      for own in windows
    ]

  def write(self, requests, normalize) -> list[str]:
    """Returns an answer to each (context, options).

    Args:
      normalize: the harness's normalize_gen_kwargs, which completes options.
    """
    found: list[str] = []
    for _, group in itertools.groupby(requests, key=lambda each: each[1]):
      own = list(group)
      options = normalize(own[0][1], self.max_gen_toks)
      for first in range(0, len(own), self._batch_size):
        batch = own[first : first + self._batch_size]
        found += self._write([context for context, _ in batch], options)
    return found

  def _write(self, contexts: list[str], options: dict) -> list[str]:
    num_tokens = options["max_gen_toks"]
    room = self.limit - num_tokens
    if room < 1:
      raise InputError(
        f"a task asks for {num_tokens} tokens of a model with {self.limit} "
        "positions; give a smaller --max_gen_toks"
      )
    sampling = generation.Sampling(
      options.get("temperature", 0.0),
      options.get("top_k") or 0,
      options.get("top_p") or 1.0,
      options.get("min_p") or 0.0,
    )
    # An empty context begins as a document does.
    ids = [
      np.array(self.encode(text, False)[-room:] or [self.first_id()])
      for text in contexts
    ]
    stop = tuple(text for text in options.get("until") or () if text)
    made: list = [[] for _ in ids]
    answers = [("", False)] * len(ids)
    for chunk in generation.generate(
      self._model,
      self._params,
      ids,
      num_tokens,
      sampling,
      vocab_size=self._vocab_size,
    ):
      for row, new in enumerate(chunk):
        if not answers[row][1]:
          made[row].extend(new.tolist())
          # Without the prompt: a decoder may strip the answer's first space,
          # which the harness does not compare.
          answers[row] = texts.cut_text([], made[row], self._tokenizer, stop)
      if all(is_done for _, is_done in answers):
        break
    return [answer for answer, _ in answers]


def adapt(answers: Answers):
  """Returns an lm_eval model that answers requests by a run."""
  from lm_eval import utils
  from lm_eval.api.model import TemplateLM
  from lm_eval.models.utils import normalize_gen_kwargs

  class Adapter(TemplateLM):
    """The methods and properties of a model that the harness calls."""

    eot_token_id = property(lambda self: answers.separator_id())
    tokenizer_name = property(lambda self: answers.name)
    prefix_token_id = property(lambda self: answers.first_id())

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
      return answers.open(chat_history, not add_generation_prompt)

    def chat_template(self, chat_template=False):
      return answers.name

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
      return answers.encode(string, is_bare=add_special_tokens is False)

    def _loglikelihood_tokens(self, requests, **kwargs):
      return answers.score([(context, own) for _, context, own in requests])

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      windows = [
        utils.get_rolling_token_windows(
          self.tok_encode(request.args[0]),
          self.prefix_token_id,
          answers.limit,
          context_len=1,
        )
        for request in requests
      ]
      return answers.score_windows(
        [[utils.make_disjoint_window(each) for each in own] for own in windows]
      )

    def generate_until(self, requests, disable_tqdm=False):
      asked = [request.args for request in requests]
      return answers.write(asked, normalize_gen_kwargs)

  return Adapter()
