"""Tasks of a run beside continuing texts: labels, targets, embeddings, scores.

Each `build_*` returns a function that the engine calls between two decode
steps, so it should take few texts at a time.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.data import examples
from gpt_jax.data.objectives import build_task, prompting
from gpt_jax.data.sources.labelled import Example
from gpt_jax.deploy.serve.wire import MAX_LOG_PROBS
from gpt_jax.exits import InputError
from gpt_jax.inference import continuations, embedding, predicting, texts
from gpt_jax.inference.generation import Sampling

# Number of texts in a forward pass.
BATCH = 8


class Tasks(NamedTuple):
  """Functions of a run; None if the run has no such task.

  Attributes:
    embed: (texts or lists of ids) -> (vectors (N, D), number of tokens).
    classify: (texts, or pairs of texts) -> a dict each (predicting.predict).
    translate: (texts, most tokens of a target) -> targets.
    score: (ids of a prompt) -> what continuations.score_text returns.
  """

  embed: Callable[[list], Any] | None
  classify: Callable[[list], list[dict]] | None
  translate: Callable[[list[str], int], list[str]] | None
  score: Callable[[np.ndarray], Any] | None


def build(config, model, params, tokenizer, mesh, labels) -> Tasks:
  """Returns the tasks of a run; `labels` are workdir.read_labels'."""
  has_source = config_lib.has_source(config.model)
  run = config, model, model.round_weights(params), tokenizer
  return Tasks(
    None if has_source else build_embed(*run),
    None if labels is None else build_classify(*run, mesh, labels),
    build_translate(config, model, params, tokenizer) if has_source else None,
    build_score(*run) if model.can_generate and not has_source else None,
  )


def build_score(config, model, rounded, tokenizer):
  """Returns Tasks.score."""
  sizes = config_lib.vocab_size(model.config), tokenizer.vocab_size
  return functools.partial(
    continuations.score_text,
    model,
    rounded,
    vocab_size=min(sizes),
    count=MAX_LOG_PROBS,
  )


def build_embed(config, model, rounded, tokenizer):
  """Returns Tasks.embed."""
  limit = min(config.data.seq_len, model.config.max_len)

  def embed(inputs: list) -> tuple[np.ndarray, int]:
    rows = embedding.encode_uncut(tokenizer, inputs, limit)
    vectors = embedding.embed(model, rounded, rows, BATCH)
    return vectors, sum(map(len, rows))

  return embed


def build_classify(config, model, rounded, tokenizer, mesh, labels):
  """Returns Tasks.classify."""
  task = build_task(config, lambda: tokenizer)

  def classify(inputs: list) -> list[dict]:
    found = [
      Example(
        str(i), f"input[{i}]", (one,) if isinstance(one, str) else one, None
      )
      for i, one in enumerate(inputs)
    ]
    whole = examples.read_whole("input", found, tokenizer, labels)
    rows = examples.open_rows(whole, task.pairs)
    if rows.num_cut:
      raise InputError(
        f"{rows.num_cut} of {rows.num_rows} inputs have more tokens than the "
        f"{config.data.seq_len} of a text of the run (data.seq_len); shorten "
        "them"
      )
    lines = predicting.predict(
      model,
      rounded,
      whole,
      task=task,
      seq_len=config.data.seq_len,
      batch_size=BATCH,
      packing=config.data.packing,
      num_loss_chunks=config.train.num_loss_chunks,
      mesh=mesh,
    )
    return [json.loads(line) for line in lines.splitlines()]

  return classify


def build_translate(config, model, params, tokenizer):
  """Returns Tasks.translate, which decodes targets greedily."""
  own = prompting(config, tokenizer)

  def translate(inputs: list[str], num_tokens: int) -> list[str]:
    limit = model.config.max_len
    for i, text in enumerate(inputs):
      count = len(own.encode(text))
      if count > limit:
        raise InputError(
          f"input[{i}] has {count} tokens, and the model {limit} positions"
        )
    found = []
    for first in range(0, len(inputs), BATCH):
      part = inputs[first : first + BATCH]
      full = part + part[:1] * (BATCH - len(part))  # few shapes to compile
      found += texts.generate_text(
        model, params, own, full, num_tokens, Sampling(0.0)
      )[: len(part)]
    return found

  return translate
