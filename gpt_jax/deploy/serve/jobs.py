"""A text that is to be written: what is asked of it, and what it tells."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.deploy.serve.grammar import Matcher
from gpt_jax.deploy.serve.speech import Speech
from gpt_jax.inference.drafts import Lookup
from gpt_jax.inference.drawing import Settings
from gpt_jax.inference.prefill import Prompt

# In place of a row.
WAITING = -1


class Token(NamedTuple):
  """A token that was drawn, or one of a prompt.

  Attributes:
    id: of the token.
    log_prob: by the model; None of the first token of a prompt.
    likeliest: [(id, log-probability)] of the likeliest.
  """

  id: int
  log_prob: float | None
  likeliest: list[tuple[int, float]]


class Event(NamedTuple):
  """What an engine tells of a job.

  Attributes:
    text: that can be shown since the last event.
    token: which was drawn.
    end: "" while it goes on; then stop, length, timeout, cancelled, error, or
      lost, where nothing that may follow is of the schema.
  """

  text: str
  token: Token | None
  end: str = ""


class Reading:
  """A prompt that the choices of one request share.

  Attributes:
    ids: int32.
    num_waiting: choices that have neither joined a row nor ended.
    prompt: prefill.Prompt from when reading begins to when there are none.
    num_reused: tokens that were not read, as their keys and values were stored.
  """

  def __init__(self, ids: np.ndarray, num_choices: int = 1):
    self.ids, self.num_reused = np.asarray(ids, np.int32), 0
    self.num_waiting = num_choices
    self.prompt: Prompt | None = None


class Job:
  """A text that is to be continued.

  Args:
    reading: its prompt.
    settings: how its tokens are drawn.
    num_tokens: at most.
    speech: makes text of them.
    tell: called with each Event, in the engine's thread; must not block.
    deadline: time.monotonic() at which it ends as it is.
    matcher: which tokens may come next; None for all.

  Attributes:
    client: who asked for it.
    row: WAITING, or its own.
    num_made: tokens that were drawn.
    num_begun: tokens of steps that have begun, these among them.
    has_ended: whether it needs no more of them.
    lookup: where drafts are found; None where none are tried.
    is_cancelled: set by `cancel`, from any thread.
  """

  numbers = itertools.count()

  def __init__(
    self,
    reading: Reading,
    settings: Settings,
    num_tokens: int,
    speech: Speech,
    tell: Callable[[Event], None],
    deadline: float = float("inf"),
    matcher: Matcher | None = None,
  ):
    self.matcher = matcher
    self.reading, self.settings, self.num_tokens = reading, settings, num_tokens
    self.speech, self.tell, self.deadline = speech, tell, deadline
    self.client, self.row = None, WAITING
    self.num_made = self.num_begun = 0
    self.is_cancelled = self.has_ended = False
    self.lookup: Lookup | None = None
    self.number = next(Job.numbers)

  def cancel(self) -> None:
    self.is_cancelled = True
