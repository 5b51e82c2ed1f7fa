"""Tasks of lm-evaluation-harness during training: eval.tasks."""

from typing import Any

import jax

from gpt_jax import config as config_lib
from gpt_jax import metric_names
from gpt_jax.config import Config
from gpt_jax.config.options import parse_tasks
from gpt_jax.data.objectives import prompting
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.inference import continuations, harness
from gpt_jax.models import Model

# Number of requests answered at once, and largest number of tokens of an answer
# where a task sets none; both as in lab.tasks.
BATCH_SIZE, MAX_GEN_TOKS = 8, 256


class Tasks:
  """Answers the tasks of a config, if it has any.

  Raises:
    InputError: the model continues no text, or the harness is missing.
  """

  def __init__(
    self,
    config: Config,
    model: Model,
    tokenizer: Tokenizer | None,
    mesh: jax.sharding.Mesh,
  ):
    self._model, self._mesh = model, mesh
    self._limit = config.eval.task_limit
    self._names: list[str] = []
    if config.eval.tasks is not None:
      self._names = parse_tasks(config.eval.tasks, "eval.tasks")
      continuations.check_model(model, config_lib.has_prefixes(config))
      harness.require(is_quiet=True)
      assert tokenizer is not None
      self._tokenizer = prompting(config, tokenizer)

  def answer(self, params: Any) -> dict[str, float]:
    """Returns {"eval/<task>/<metric>": value}; {} without tasks."""
    if not self._names:
      return {}
    with jax.set_mesh(self._mesh):
      answers = harness.Answers(
        self._model, params, self._tokenizer, BATCH_SIZE, MAX_GEN_TOKS
      )
      results = harness.evaluate(
        answers,
        self._names,
        "eval.tasks",
        self._limit,
        is_chat=isinstance(self._tokenizer, ChatTokenizer),
      )
    figures = harness.list_figures(results)
    return {
      metric_names.eval_name(*name.rsplit("/", 1)): value
      for name, value in figures.items()
    }
