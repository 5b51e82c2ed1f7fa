"""Turns requests into jobs, and jobs' events into answers of OpenAI's API.

An answer is either collected whole or streamed; both are built from the same
events.
"""

import asyncio
import contextlib
import functools
import random
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.config import InputError
from gpt_jax.data.templates import Prompt
from gpt_jax.data.tokenizers.subword import PIECE_LEN
from gpt_jax.deploy.serve.engine import Engine
from gpt_jax.deploy.serve.fields import Refusal, show
from gpt_jax.deploy.serve.grammar import Grammars, Matcher
from gpt_jax.deploy.serve.jobs import Event, Job, Reading, Token
from gpt_jax.deploy.serve.metrics import Histogram
from gpt_jax.deploy.serve.speech import Speech, find_offsets
from gpt_jax.deploy.serve.wire import Asked
from gpt_jax.inference.drawing import Settings

# A choice's finish_reason, by the end of its job. A job that times out returns
# the text so far.
REASONS = {"stop": "stop", "length": "length", "timeout": "length"}


class Served(NamedTuple):
  """A run that is served.

  Attributes:
    name: the model's name in the API.
    created: seconds since 1970.
    tokenizer: encodes prompts that are continued.
    chat: ChatTokenizer that encodes dialogues; None if the run has no template.
    grammars: makes matchers of JSON schemas.
    max_len: number of tokens of a prompt and its text together, at most.
    vocab_size: ids in a prompt must be below it.
    max_tokens: the most tokens that a request may ask for.
    seconds: time after which a text ends as it is.
  """

  name: str
  created: int
  tokenizer: Any
  chat: Any
  grammars: Grammars
  max_len: int
  vocab_size: int
  max_tokens: int
  seconds: float


class Texts:
  """The texts of one request.

  Args:
    run: the run that is served.
    asked: the request.
    first: observes the time from here to each text's first token.
    loop: the event loop that reads the jobs' events.

  Raises:
    Refusal: a prompt cannot be encoded or is too long, or the schema of the
      texts cannot be followed.
  """

  def __init__(
    self,
    run: Served,
    asked: Asked,
    first: Histogram,
    loop: asyncio.AbstractEventLoop,
  ):
    self.run, self.asked, self._first = run, asked, first
    self._begun = time.monotonic()
    self.is_chat = not isinstance(asked.prompts[0], str | list)
    self.tokenizer = run.chat if self.is_chat else run.tokenizer
    self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + secrets.token_hex(12)
    self.created = int(time.time())
    self.texts = [""] * (len(asked.prompts) * asked.num_choices)
    self.tokens: list[list] = [[] for _ in self.texts]
    self._heads: list[list[Token]] = [[] for _ in asked.prompts]
    self.ends = [""] * len(self.texts)
    self._loop = loop
    self._events: asyncio.Queue = asyncio.Queue()
    self.jobs: list[Job] = []
    seed = asked.seed
    self._seed = random.getrandbits(32) if seed is None else seed % 2**32
    self.ids = [self._encode(prompt) for prompt in asked.prompts]
    schema = asked.schema
    matcher = None if schema is None else run.grammars.matcher(schema)
    for i, ids in enumerate(self.ids):
      self._add(i, ids, matcher)

  def _encode(self, prompt) -> np.ndarray:
    where = "messages" if self.is_chat else "prompt"
    if isinstance(prompt, list):
      ids = np.array(prompt, np.int32)
    else:
      text = Prompt(prompt, where) if self.is_chat else prompt
      try:
        self._check_pieces(prompt, where)
        ids = self.tokenizer.encode(text)
      except InputError as error:
        raise Refusal(400, error, param=where) from None
    if not len(ids):
      raise Refusal(400, f"{where} has no tokens; give some text", param=where)
    self._check_length(len(ids), where)
    num_tokens = self._num_asked
    if num_tokens > self.run.max_tokens:
      raise Refusal(
        400,
        f"max_tokens is {num_tokens}; this server writes at most "
        f"{self.run.max_tokens}",
        param="max_tokens",
      )
    return np.asarray(ids, np.int32)

  @property
  def _num_asked(self) -> int:
    """Returns the number of tokens that each text must have room for."""
    return 1 if self.asked.num_tokens is None else self.asked.num_tokens

  def _check_length(self, num_ids: int, where: str, least: str = "") -> None:
    num_tokens, limit = self._num_asked, self.run.max_len
    if num_ids + num_tokens > limit:
      raise Refusal(
        400,
        f"{where} has {least}{num_ids} tokens and {num_tokens} are to be "
        f"written; together they must be at most {limit}, the positions of the "
        "model",
        param=where,
        code="context_length_exceeded",
      )

  def _check_pieces(self, prompt, where: str) -> None:
    """Refuses a text that is far too long, before all of it is encoded.

    Encoding a megabyte takes a second, in which the engine has one core less.
    """
    texts = [m.content.strip() for m in prompt] if self.is_chat else [prompt]
    for text in filter(lambda text: len(text) > PIECE_LEN, texts):
      count = 0
      for piece in self.tokenizer.split([text]):
        count += len(self.tokenizer.encode_batch([piece])[0])
        self._check_length(count, where, "at least ")

  def _add(self, i: int, ids: np.ndarray, matcher: Matcher | None) -> None:
    """Adds a job for each choice of prompt i."""
    a = self.asked
    left = self.run.max_len - len(ids)
    num_tokens = min(
      left if a.num_tokens is None else a.num_tokens, self.run.max_tokens
    )
    reading = Reading(ids, a.num_choices)
    deadline = time.monotonic() + self.run.seconds
    for choice in range(a.num_choices):
      settings = Settings(
        a.sampling,
        self._seed,
        choice,
        a.presence_penalty,
        a.frequency_penalty,
        a.bias,
        a.num_log_probs is not None,
      )
      speech = Speech(self.tokenizer, ids.tolist(), a.stop)
      place = i * a.num_choices + choice
      tell = functools.partial(self._tell, place)
      if not num_tokens:
        tell(Event("", None, "length"))
        continue
      self.jobs.append(
        Job(
          reading,
          settings,
          num_tokens,
          speech,
          tell,
          deadline,
          None if matcher is None else matcher.copy(),
        )
      )

  def _tell(self, place: int, event: Event) -> None:
    """Passes an event to the event loop; called in the engine's thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended
      self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))

  @property
  def has_scored_prompts(self) -> bool:
    """Whether log-probabilities of the prompts are asked for."""
    return self.asked.is_echo and self.asked.num_log_probs is not None

  def score_prompt(self, i: int, scored) -> None:
    """Stores what continuations.score_text returns for prompt i."""
    log_p_N, likeliest_NE, theirs_NE = (x.tolist() for x in scored)
    ids = self.ids[i].tolist()
    self._heads[i] = [Token(ids[0], None, [])]
    for k, log_p in enumerate(log_p_N):
      likeliest = list(zip(likeliest_NE[k], theirs_NE[k], strict=True))
      self._heads[i].append(Token(ids[k + 1], log_p, likeliest))

  def submit(self, engine: Engine, client: str) -> None:
    """Submits all jobs.

    Raises:
      Busy: too many jobs wait.
      Refusal: the request has more jobs than could ever wait.
    """
    most = engine.num_rows + engine.max_waiting
    if len(self.jobs) > most:
      raise Refusal(
        400,
        f"{len(self.jobs)} texts are asked for, n of each prompt; this server "
        f"takes at most {most} at once: ask for fewer, or more often",
        param="n",
      )
    engine.submit(self.jobs, client)

  def cancel(self) -> None:
    for job in self.jobs:
      job.cancel()

  async def events(self) -> AsyncIterator[tuple[int, Event]]:
    """Yields (index of the choice, event) until all choices have ended.

    Raises:
      Refusal: a job failed.
    """
    try:
      while not all(self.ends):
        place, event = await self._events.get()
        if event.end == "lost":
          raise Refusal(
            400,
            "the schema cannot be followed: no text that begins with "
            f"{show(self.texts[place] + event.text)} is of it, as a part of it "
            "asks for itself alone",
            param="response_format",
          )
        if event.end in ("error", "cancelled"):
          raise Refusal(
            500 if event.end == "error" else 503,
            "the model's logits are not finite, or the server has a fault"
            if event.end == "error"
            else "the server is ending",
            kind="server_error",
          )
        self.texts[place] += event.text
        self.ends[place] = event.end
        if event.token is not None:
          if not self.tokens[place]:
            self._first.observe(time.monotonic() - self._begun)
          self.tokens[place].append(event.token)
        yield place, event
    finally:
      self.cancel()

  def usage(self) -> dict:
    prompt = sum(map(len, self.ids))
    made = sum(job.num_made for job in self.jobs)
    reused = sum(job.reading.num_reused for job in self.jobs[:: self._stride])
    return {
      "prompt_tokens": prompt,
      "completion_tokens": made,
      "total_tokens": prompt + made,
      "prompt_tokens_details": {"cached_tokens": reused},
    }

  @property
  def _stride(self) -> int:
    return self.asked.num_choices

  def head(self, kind: str) -> dict:
    return {
      "id": self.id,
      "object": kind,
      "created": self.created,
      "model": self.run.name,
    }

  async def whole(self) -> dict:
    """Returns the answer once it is complete."""
    async for _ in self.events():
      pass
    kind = "chat.completion" if self.is_chat else "text_completion"
    choices = [self._choice(i) for i in range(len(self.texts))]
    return {**self.head(kind), "choices": choices, "usage": self.usage()}

  def _choice(self, i: int) -> dict:
    text, reason = self.texts[i], REASONS[self.ends[i]]
    found: dict = {"index": i, "finish_reason": reason, "logprobs": None}
    if self.asked.num_log_probs is not None:
      found["logprobs"] = self._log_probs(self._all_tokens(i), i)
    if self.is_chat:
      found["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
      found["text"] = self._echo(i) + text
    return found

  def _all_tokens(self, i: int) -> list[Token]:
    """Returns a choice's tokens, after those of its prompt if it was scored."""
    return self._heads[i // self._stride] + self.tokens[i]

  def _echo(self, i: int) -> str:
    """Returns the prompt, if a completion's text begins with it, or ""."""
    if not self.asked.is_echo:
      return ""
    prompt = self.asked.prompts[i // self._stride]
    if isinstance(prompt, str):
      return prompt
    return self.tokenizer.decode(prompt)

  async def parts(self) -> AsyncIterator[dict]:
    """Yields the JSON objects of a streamed answer."""
    is_chat = self.is_chat
    head = self.head("chat.completion.chunk" if is_chat else "text_completion")
    if self.asked.has_usage:
      head["usage"] = None
    wrap = lambda choice: {**head, "choices": [choice]}
    for i in range(len(self.texts)):
      if is_chat:
        delta = {"role": "assistant", "content": "", "refusal": None}
        yield wrap(self._part(i, delta))
      elif self.asked.is_echo:
        yield wrap(self._part(i, self._echo(i), self._all_tokens(i)))
    sent = [0] * len(self.texts)
    async for i, event in self.events():
      tokens = self.tokens[i][sent[i] :]
      if event.text or (tokens and self.asked.num_log_probs is not None):
        sent[i] = len(self.tokens[i])
        new = {"content": event.text} if is_chat else event.text
        yield wrap(self._part(i, new, tokens))
      if event.end:
        last = {} if is_chat else ""
        yield wrap(self._part(i, last, [], REASONS[event.end]))
    if self.asked.has_usage:
      yield {**head, "choices": [], "usage": self.usage()}

  def _part(self, i: int, new, tokens=(), reason: str | None = None) -> dict:
    found: dict = {"index": i, "finish_reason": reason, "logprobs": None}
    if tokens and self.asked.num_log_probs is not None:
      found["logprobs"] = self._log_probs(tokens, i)
    found["delta" if self.is_chat else "text"] = new
    return found

  def _log_probs(self, tokens: list, i: int) -> dict:
    """Returns a choice's field logprobs; chats and completions differ in it."""
    count = self.asked.num_log_probs
    if self.is_chat:
      one = lambda id, p: {
        "token": self._spell(id),
        "logprob": p,
        "bytes": list(self.tokenizer.spell(id)),
      }
      return {
        "content": [
          one(t.id, t.log_prob)
          | {"top_logprobs": [one(*each) for each in t.likeliest[:count]]}
          for t in tokens
        ],
        "refusal": None,
      }
    spelled = [self._spell(t.id) for t in tokens]
    own = self._all_tokens(i)
    first = next((k for k, t in enumerate(own) if t is tokens[0]), 0)
    read = [t.id for t in own[: first + len(tokens)]]
    offsets = find_offsets(self.tokenizer, read, self._echo(i))[first:]
    return {
      "tokens": spelled,
      "token_logprobs": [t.log_prob for t in tokens],
      "top_logprobs": [self._likeliest(t) for t in tokens] if count else None,
      "text_offset": offsets,
    }

  def _likeliest(self, token: Token) -> dict[str, float] | None:
    """Returns {text: log-probability} of the likeliest tokens and the token."""
    if token.log_prob is None:
      return None
    own = [(token.id, token.log_prob)]
    found = token.likeliest[: self.asked.num_log_probs] + own
    return {self._spell(id): p for id, p in found}

  def _spell(self, i: int) -> str:
    """Returns a token's text; "bytes:..." if it is a part of a character."""
    data = self.tokenizer.spell(i)
    try:
      return data.decode("utf-8")
    except UnicodeDecodeError:
      return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
