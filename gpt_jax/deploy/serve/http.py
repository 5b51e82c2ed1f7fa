"""The server: its routes, and its errors in the form of OpenAI's API."""

import asyncio
import base64
import contextlib
import functools
import json
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

from gpt_jax.config import InputError
from gpt_jax.deploy.serve import asgi, wire
from gpt_jax.deploy.serve.answers import Served, Texts
from gpt_jax.deploy.serve.asgi import Answer, Bounds, Request, json_answer
from gpt_jax.deploy.serve.engine import Busy, Engine
from gpt_jax.deploy.serve.fields import Refusal, read_body
from gpt_jax.deploy.serve.heads import UNKNOWN, Heads
from gpt_jax.deploy.serve.keys import Keys
from gpt_jax.deploy.serve.metrics import Metrics
from gpt_jax.deploy.serve.pace import Pace
from gpt_jax.deploy.serve.page import PAGE, PAGE_RULES
from gpt_jax.deploy.serve.tasks import Tasks

# Seconds after which a client that was refused may try again.
RETRY_SECONDS = 1
# Errors that are not delayed: the client was slow, or has gone.
SLOW = (408, asgi.GONE)
# Paths that need no API key; the page at / asks its user for one.
OPEN_PATHS = ("/", "/health", "/metrics")


class Server:
  """The ASGI application of one run.

  Args:
    run: the run that is served.
    engine: generates its texts.
    tasks: the run's other tasks, called in the engine's thread.
    keys, bounds: API keys, and limits of a request.

  Attributes:
    is_draining: whether the server is shutting down.
    heads: bounds the time until a request's head has arrived.
    pace: rate limit of refusals.
    web: settings that uvicorn needs. proxy_headers is off because `heads` finds
      a request's connection by its client's address, which they replace.
  """

  def __init__(
    self,
    run: Served,
    engine: Engine,
    tasks: Tasks,
    keys: Keys,
    bounds: Bounds,
  ):
    self.run, self.engine, self.tasks = run, engine, tasks
    self.keys, self.bounds = keys, bounds
    self.is_draining, self.metrics = False, Metrics()
    self.heads, self.pace = Heads(bounds.head_seconds), Pace(bounds.refusals)
    self.web: dict[str, Any] = dict(
      http=self.heads.protocol, lifespan="off", proxy_headers=False
    )
    self._routes = {
      "/v1/completions": ("POST", self.complete),
      "/v1/chat/completions": ("POST", self.chat),
      "/v1/embeddings": ("POST", self.embeddings),
      "/v1/classify": ("POST", self.classify),
      "/v1/translate": ("POST", self.translate),
      "/v1/models": ("GET", self.models),
      "/health": ("GET", self.health),
      "/metrics": ("GET", self.tell_metrics),
      "/": ("GET", self.page),
    }

  async def __call__(self, scope, receive, send) -> None:
    if scope["type"] != "http":
      raise ValueError(f"{scope['type']} is not spoken here")
    client = tuple(scope["client"] or UNKNOWN)
    self.heads.begin(client)
    try:
      await self._answer(Request(scope, receive, self.bounds), send)
    finally:
      self.heads.end(client)

  async def _answer(self, request: Request, send: Callable) -> None:
    begun = time.monotonic()
    try:
      answer = await self._act(request)
    except Refusal as refusal:
      answer = asgi.refusal_answer(refusal)
    except Exception:
      traceback.print_exc(file=sys.stderr)
      fault = Refusal(500, "the server has a fault", kind="server_error")
      answer = asgi.refusal_answer(fault)
    is_refused = 400 <= answer.status < 500 and answer.status not in SLOW
    if is_refused and not self.is_draining:
      await self.pace.wait(time.monotonic() - request.read_at)
    with contextlib.suppress(TimeoutError):  # the client does not read
      if isinstance(answer.content, bytes):
        await asgi.send_answer(answer, send, self.bounds)
      else:
        sending = asgi.send_answer(answer, send, self.bounds)
        with contextlib.suppress(Refusal):
          await asgi.unless_gone(request, sending)
    known = request.path if request.path in self._routes else "other"
    self.metrics.count(known, answer.status)
    if known.startswith("/v1/"):
      self.metrics.whole.observe(time.monotonic() - begun)

  async def _act(self, request: Request) -> Answer:
    path = request.path
    is_card = path.startswith("/v1/models/")
    found = ("GET", self.model) if is_card else self._routes.get(path)
    if found is None:
      raise Refusal(
        404, f"there is no {path[:200]}; there are {', '.join(self._routes)}"
      )
    method, act = found
    if request.method != method:
      raise Refusal(
        405,
        f"{path[:200]} takes {method}, found {request.method[:20]}",
        headers={"allow": method},
      )
    if path not in OPEN_PATHS:
      name = self.keys.count(request.headers.get("authorization"))
      request.client = request.client if name is None else name
    return await act(request)

  async def complete(self, request: Request) -> Answer:
    body = read_body(await request.body())
    self._check_model(body)
    asked = wire.read_completion(body, self.run.vocab_size)
    return await self._write(request, asked)

  async def chat(self, request: Request) -> Answer:
    body = read_body(await request.body())
    self._check_model(body)
    asked = wire.read_chat(body, self.run.vocab_size)
    if self.run.chat is None:
      raise Refusal(400, "the run answers no chats", param="messages")
    return await self._write(request, asked)

  async def _write(self, request: Request, asked: wire.Asked) -> Answer:
    # In a thread: a long prompt or schema would block the event loop.
    if not self.engine.num_rows:
      raise Refusal(400, "the run continues no texts; see GET /v1/models")
    texts = await asyncio.to_thread(
      Texts, self.run, asked, self.metrics.first, asyncio.get_running_loop()
    )
    if texts.has_scored_prompts:
      await asgi.unless_gone(request, self._score_prompts(texts))
    with self._busy_is_refused():
      texts.submit(self.engine, request.client)
    if not asked.is_stream:
      return json_answer(await asgi.unless_gone(request, texts.whole()))
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return Answer(_lines(texts), "text/event-stream", headers=headers)

  async def _score_prompts(self, texts: Texts) -> None:
    """Scores one prompt at a time, so that the engine can step between them."""
    for i, ids in enumerate(texts.ids):
      texts.score_prompt(i, await self._call(self.tasks.score, ids))

  async def embeddings(self, request: Request) -> Answer:
    body = read_body(await request.body())
    self._check_model(body)
    inputs, is_base64 = wire.read_embedding(body, self.run.vocab_size)
    vectors, num_tokens = await self._call(self.tasks.embed, inputs)
    spell = lambda v: (
      base64.b64encode(v.astype("<f4").tobytes()).decode()
      if is_base64
      else v.tolist()
    )
    data = [
      {"object": "embedding", "index": i, "embedding": spell(v)}
      for i, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json_answer(
      {"object": "list", "data": data, "model": self.run.name, "usage": usage}
    )

  async def classify(self, request: Request) -> Answer:
    body = read_body(await request.body())
    self._check_model(body)
    inputs = wire.read_classify(body)
    found = await self._call(self.tasks.classify, inputs)
    data = [{"index": i, **one} for i, one in enumerate(found)]
    return json_answer({"object": "list", "data": data, "model": self.run.name})

  async def translate(self, request: Request) -> Answer:
    body = read_body(await request.body())
    self._check_model(body)
    inputs, num_tokens = wire.read_translate(body, self.run.max_tokens)
    found = await self._call(self.tasks.translate, inputs, num_tokens)
    data = [{"index": i, "text": text} for i, text in enumerate(found)]
    return json_answer({"object": "list", "data": data, "model": self.run.name})

  async def _call(self, task: Callable | None, *args) -> Any:
    """Runs a task between two steps of the engine and returns its result."""
    if task is None:
      raise Refusal(400, "the run was not trained for this; see GET /v1/models")
    with self._busy_is_refused():
      future = self.engine.call(functools.partial(task, *args))
    try:
      return await asyncio.wrap_future(future)
    except InputError as error:
      raise Refusal(400, error, param="input") from None

  async def models(self, request: Request) -> Answer:
    return json_answer({"object": "list", "data": [self._card()]})

  async def model(self, request: Request) -> Answer:
    self._check_model({"model": request.path.removeprefix("/v1/models/")})
    return json_answer(self._card())

  def _card(self) -> dict:
    return {
      "id": self.run.name,
      "object": "model",
      "created": self.run.created,
      "owned_by": "gpt_jax",
      "max_model_len": self.run.max_len,
      "tasks": [
        *(["complete"] if self.engine.num_rows else []),
        *(name for name, task in self.tasks._asdict().items() if task),
      ],
    }

  async def health(self, request: Request) -> Answer:
    is_fine = self.engine.is_alive and not self.is_draining
    word = "ok" if is_fine else "draining"
    return json_answer({"status": word}, 200 if is_fine else 503)

  async def tell_metrics(self, request: Request) -> Answer:
    text = self.metrics.text(self.engine).encode()
    return Answer(text, "text/plain; version=0.0.4; charset=utf-8")

  async def page(self, request: Request) -> Answer:
    return Answer(PAGE.encode(), "text/html; charset=utf-8", headers=PAGE_RULES)

  def _check_model(self, body: dict) -> None:
    name = body.get("model")
    if name is not None and name != self.run.name:
      raise Refusal(
        404,
        f"there is no model {str(name)[:100]!r}; this server has "
        f"{self.run.name!r}",
        param="model",
        code="model_not_found",
      )

  @contextlib.contextmanager
  def _busy_is_refused(self):
    try:
      yield
    except Busy:
      raise Refusal(
        429,
        "all rows are taken and as many requests wait as may; try again later",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(RETRY_SECONDS)},
      ) from None


async def _lines(texts: Texts) -> AsyncIterator[bytes]:
  """Yields the server-sent events of a streamed answer."""
  line = lambda value: f"data: {json.dumps(value)}\n\n".encode()
  try:
    async for part in texts.parts():
      yield line(part)
    yield b"data: [DONE]\n\n"
  except Refusal as refusal:  # the status is sent already
    yield line(refusal.to_json())
  finally:
    texts.cancel()
