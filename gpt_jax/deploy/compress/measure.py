"""What a compressed model costs and how well it still predicts."""

import time
from typing import Any

import jax
import numpy as np

from gpt_jax import objective, tree
from gpt_jax.config import Config
from gpt_jax.data import objectives
from gpt_jax.inference import generation, scoring
from gpt_jax.metric_names import ACCURACY, LOSS, NUM_TARGETS
from gpt_jax.models import Model

# Tokens that a timing decodes, and how often; the fastest counts.
TOKENS, REPEATS = 64, 3
GREEDY = generation.Sampling(temperature=0.0)


def predict(
  model: Model, params: Any, tokens: Any, config: Config, mesh: Any
) -> dict[str, float]:
  """Returns the loss in nats a token and the accuracy of the first choice.

  Args:
    params: as Model.apply reads them.
    tokens: a prepared set.
  """
  sums = objective.make_loss(model, config.train.num_loss_chunks, (ACCURACY,))
  totals = dict.fromkeys((LOSS, ACCURACY, NUM_TARGETS), 0.0)

  def add(found):
    for name in totals:
      totals[name] += float(found[name])

  step = jax.jit(sums)
  scoring.run_batches(
    lambda batch: step(params, batch),
    add,
    tokens,
    seq_len=config.data.seq_len,
    batch_size=config.train.global_batch_size,
    packing=config.data.packing,
    mesh=mesh,
    rules=model.rules,
    task=objectives.CAUSAL,
  )
  count = max(totals[NUM_TARGETS], 1.0)
  return {"loss": totals[LOSS] / count, "accuracy": totals[ACCURACY] / count}


def time_decoding(model: Model, params: Any, mesh: Any) -> float:
  """Returns the tokens that are decoded in a second, one text at a time.

  Args:
    model: its weights name the format that decoding reads.
    params: of the run, stacked.
  """
  num_tokens = min(TOKENS, model.config.max_len - 1)
  best = np.inf
  with jax.set_mesh(mesh):
    for _ in range(REPEATS + 1):  # the first compiles
      chunks = generation.generate(
        model, params, [np.zeros(1, np.int32)], num_tokens, GREEDY, 0
      )
      next(chunks)  # reads the prompt
      start = time.perf_counter()
      made = sum(chunk.shape[1] for chunk in chunks)
      if made:
        best = min(best, (time.perf_counter() - start) / made)
  return 1 / best


def count_bytes(params: Any) -> int:
  """Returns the bytes of the parameters as they are stored.

  A matrix with zeros is stored whole: only hardware with a sparse format
  would gain by them.
  """
  return tree.count_bytes(params)
