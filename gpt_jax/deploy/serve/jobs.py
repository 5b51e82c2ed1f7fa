"""Jobs: texts to be generated, their settings, and the events they send."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.deploy.serve.grammar import Matcher
from gpt_jax.deploy.serve.speech import Speech
from gpt_jax.inference.drafts import Lookup
from gpt_jax.inference.drawing import Settings
from gpt_jax.inference.prefill import Prompt

# A job's row while it waits for one.
WAITING = -1


class Token(NamedTuple):
  """A token that was drawn, or one of a prompt.

  Attributes:
    id: the token's id.
    log_prob: its log-probability; None for the first token of a prompt.
    likeliest: [(id, log-probability)] of the likeliest tokens in its place.
  """

  id: int
  log_prob: float | None
  likeliest: list[tuple[int, float]]


class Event(NamedTuple):
  """What the engine reports of a job.

  Attributes:
    text: the text that can be shown since the last event.
    token: the token that was drawn, or None.
    end: "" while the job goes on; then stop, length, timeout, cancelled, error,
      or lost: no continuation of the text can match the schema.
  """

  text: str
  token: Token | None
  end: str = ""


class Reading:
  """A prompt that the choices of one request share.

  Attributes:
    ids: int32.
    num_waiting: number of choices that have neither joined a row nor ended.
    prompt: prefill.Prompt, from the start of prefill until num_waiting is 0.
    num_reused: number of tokens that came from the prefix cache.
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
    num_tokens: the most tokens that are drawn.
    speech: decodes the tokens to text.
    tell: called with each Event, in the engine's thread; must not block.
    deadline: time.monotonic() at which the text ends as it is.
    matcher: which tokens may come next; None for all.

  Attributes:
    client: who asked for it.
    row: the row that it holds, or WAITING.
    num_made: number of tokens that were drawn.
    num_begun: number of tokens of steps that have begun; num_made, and one more
      while a step is running.
    has_ended: whether it needs no more tokens.
    lookup: finds drafts; None if none are tried.
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
