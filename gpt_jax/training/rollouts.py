"""Answers that a policy samples, judged by a rule: the batches of GRPO.

A row of data is a prompt and its right answer. The policy writes
train.group_size answers to each prompt. An answer equal to the right one, end
included, has reward 1, any other 0. Its advantage compares its reward with the
rewards of its group.

Design choice: a batch is a pure function of (parameters, seed, step), sampled
anew by the host before each step. Nothing of it is stored, and a resumed run
samples what the straight one did.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gpt_jax import objective, sharding
from gpt_jax.config import Config
from gpt_jax.inference import generation
from gpt_jax.models import Model
from gpt_jax.ops import cross_entropy

# Separates the draws of answers from others of the same seed.
STREAM = 0x6A09
# Added to the standard deviation of a group's rewards, which may be 0.
EPS = 1e-6


class Rollouts:
  """Makes the batches of a run.

  Args:
    config: model.vocab_size is known.
    model: the run's model.
    end_id: the id that ends an answer.
    vocab_size: ids from here on are never drawn.
    reference: parameters of the reference on the mesh; None without one.
  """

  def __init__(
    self,
    config: Config,
    model: Model,
    end_id: int,
    vocab_size: int,
    reference: Any = None,
  ):
    self._config, self._model = config, model
    self._end_id, self._vocab_size = end_id, vocab_size
    self._reference = reference

  def sample(
    self, params: Any, step: int, rows: dict, place: Callable[[dict], dict]
  ) -> dict:
    """Returns the global batch of a step.

    Args:
      params: parameters as Model.apply reads them.
      step: counted from 0.
      rows: (B, T) arrays of data: tokens, targets, and mask, which is 1 at the
        right answer; a group's rows have the same prompt.
      place: puts a batch of numpy arrays on the mesh.
    """
    length = rows["tokens"].shape[1]
    prompts, answers = split_rows(rows)
    shortest = min(map(len, prompts))
    seed = np.random.SeedSequence([STREAM, self._config.seed, step])
    chunks = generation.generate(
      self._model,
      params,
      prompts,
      length + 1 - shortest,
      generation.Sampling(),
      int(seed.generate_state(1)[0]),
      self._vocab_size,
    )
    written = cut_answers(read_until_ended(chunks, self._end_id), self._end_id)
    batch = fill_rows(prompts, written, length)
    reward_B = judge(written, answers)
    batch["rewards"] = reward_B[:, None]
    batch["advantages"] = find_advantages(
      reward_B, self._config.train.group_size
    )[:, None]
    placed, score = place(batch), _compile(self._model)
    batch["old_log_probs"] = sharding.fetch(score(params, placed))
    if self._reference is not None:
      found = score(self._reference, placed)
      batch["reference_log_probs"] = sharding.fetch(found)
    return place(batch)


@functools.cache
def _compile(model: Model) -> Callable:
  def score(params, batch):
    logits_BTV = model.apply(params, **objective.inputs_of(batch, model))
    return cross_entropy.log_probs(logits_BTV, batch["targets"])

  return jax.jit(score)


def split_rows(rows: dict) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns (prompts, right answers), the ids of each row."""
  prompts, answers = [], []
  for tokens, targets, mask in zip(
    *(np.asarray(rows[k]) for k in ("tokens", "targets", "mask")), strict=True
  ):
    places = np.flatnonzero(mask)
    prompts.append(tokens[: places[0] + 1])
    answers.append(targets[places])
  return prompts, answers


def read_until_ended(chunks: Iterator[np.ndarray], end_id: int) -> np.ndarray:
  """Returns the ids_BC of chunks, read until every row has ended."""
  read = []
  for ids_BC in chunks:
    read.append(ids_BC)
    if (np.concatenate(read, 1) == end_id).any(1).all():
      break
  return np.concatenate(read, 1)


def cut_answers(ids_BC: np.ndarray, end_id: int) -> list[np.ndarray]:
  """Returns each row up to its end token, inclusive."""
  found = []
  for ids in ids_BC:
    ends = np.flatnonzero(ids == end_id)
    found.append(ids[: ends[0] + 1] if ends.size else ids)
  return found


def fill_rows(prompts, written, length: int) -> dict:
  """Returns tokens, targets and mask of prompts followed by their answers.

  Answers are cut where a row is full.
  """
  shape = len(prompts), length
  batch: dict = {k: np.zeros(shape, np.int32) for k in ("tokens", "targets")}
  batch["mask"] = np.zeros(shape, np.float32)
  for row, (prompt, answer) in enumerate(zip(prompts, written, strict=True)):
    ids = np.concatenate([prompt, answer])[: length + 1]
    end = len(ids) - 1
    batch["tokens"][row, :end], batch["targets"][row, :end] = ids[:-1], ids[1:]
    batch["mask"][row, len(prompt) - 1 : end] = 1
  return batch


def judge(written, answers) -> np.ndarray:
  """Returns the reward of each answer: 1 where it is right, else 0."""
  both = zip(written, answers, strict=True)
  return np.array([np.array_equal(a, b) for a, b in both], np.float32)


def find_advantages(reward_B: np.ndarray, size: int) -> np.ndarray:
  """Returns (reward - mean) / standard deviation, both of its group."""
  reward_GR = reward_B.reshape(-1, size)
  centered_GR = reward_GR - reward_GR.mean(1, keepdims=True)
  found_GR = centered_GR / (reward_GR.std(1, keepdims=True) + EPS)
  return found_GR.reshape(-1).astype(np.float32)
