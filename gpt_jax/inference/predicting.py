"""Predicted labels of a set of texts, one JSON object for each."""

import json
from typing import Any

import jax
import numpy as np

from gpt_jax.data import examples
from gpt_jax.data.labels import Labels
from gpt_jax.data.objectives import Task
from gpt_jax.inference import measures, scoring
from gpt_jax.models import Model


def predict(
  model: Model,
  params: Any,
  tokens: Any,
  *,
  task: Task,
  seq_len: int,
  batch_size: int,
  packing: str,
  num_loss_chunks: int,
  mesh: jax.sharding.Mesh,
) -> str:
  """Returns one line of JSON for each text of a set, in the set's order.

  "label" has the form of the labels in the set's file: a class, a list of
  classes, a number, or a class for each word (null for words beyond the end of
  the row). "scores" are class probabilities, rounded to six digits; numbers and
  labels of words have none.

  Args:
    tokens: a set with labels, or examples.Labelled.
    The other arguments: as in scoring.score.
  """
  evaluate = scoring.compile_eval_step(
    model, num_loss_chunks, (), measures.gather_logits
  )
  rows = examples.open_rows(tokens, task.pairs)
  lines: list[str] = []

  def take(found) -> None:
    logits_BTK = np.asarray(found[measures.PREDICTED], np.float64)
    first = len(lines)
    for row in range(first, min(first + len(logits_BTK), rows.num_rows)):
      lines.append(json.dumps(_describe(rows, row, logits_BTK[row - first])))

  scoring.run_batches(
    lambda batch: evaluate(params, batch),
    take,
    tokens,
    seq_len=seq_len,
    batch_size=batch_size,
    packing=packing,
    mesh=mesh,
    rules=model.rules,
    task=task,
  )
  return "".join(f"{line}\n" for line in lines)


def _describe(rows: examples.Rows, row: int, logits_TK: np.ndarray) -> dict:
  """Returns the JSON object of a text, from its row's logits."""
  labels = rows.labels
  if labels.kind == "number":
    return {"label": float(logits_TK[0, 0])}
  if labels.kind == "word":
    ends = rows.word_ends(row)
    called = [labels.classes[k] for k in logits_TK[ends].argmax(1)]
    return {"label": called + [None] * (rows.count_words(row) - len(called))}
  if labels.kind == "multi":
    p_K = 1 / (1 + np.exp(-logits_TK[0]))
    called = [labels.classes[k] for k in np.flatnonzero(logits_TK[0] >= 0)]
    return {"label": called, "scores": _by_name(labels, p_K)}
  p_K = np.exp(logits_TK[0] - logits_TK[0].max())
  name = labels.classes[int(logits_TK[0].argmax())]
  return {"label": name, "scores": _by_name(labels, p_K / p_K.sum())}


def _by_name(labels: Labels, p_K: np.ndarray) -> dict[str, float]:
  return {
    name: round(float(p), 6)
    for name, p in zip(labels.classes, p_K, strict=True)
  }
