"""One server of a model of one layer, for all tests of this folder."""

import dataclasses
import threading

import jax
import pytest

pytest.importorskip("uvicorn", reason="extra serve is not installed")
pytest.importorskip("openai", reason="extra serve is not installed")

import openai
import uvicorn
from forms import draw_model

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Template
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.deploy.serve.answers import Served
from gpt_jax.deploy.serve.asgi import Bounds
from gpt_jax.deploy.serve.engine import Engine
from gpt_jax.deploy.serve.grammar import Grammars
from gpt_jax.deploy.serve.http import Server
from gpt_jax.deploy.serve.keys import Keys
from gpt_jax.deploy.serve.tasks import Tasks, build_embed, build_score
from gpt_jax.inference.rows import Rows

NUM_ROWS, MAX_LEN, WAITING, NUM_PAGES = 8, 256, 64, 16


class Running:
  """A server in this process.

  Attributes:
    url: of the API.
    server, engine, model, params, tokenizer: what it is made of.
  """

  def __init__(self, keys: Keys, bounds: Bounds):
    self.model, self.params = draw_model(
      0, num_layers=1, position="rope", max_len=MAX_LEN, vocab_size=257
    )
    self.tokenizer = tokenizer = ByteTokenizer()
    ones = dict.fromkeys(sharding.AXES, 1)
    shape = dataclasses.replace(
      config_lib.freeze(base.get_config()).mesh, **ones
    )
    mesh = sharding.make_mesh(shape, jax.devices()[:1])
    make = lambda: Rows(self.model, self.params, NUM_ROWS, 257, NUM_PAGES)
    self.engine = Engine(make, mesh, WAITING)
    run = Served(
      name="tiny",
      created=1,
      tokenizer=tokenizer,
      chat=ChatTokenizer(tokenizer, Template("chatml:text")),
      grammars=Grammars(tokenizer),
      max_len=MAX_LEN,
      vocab_size=257,
      max_tokens=MAX_LEN,
      seconds=60.0,
    )
    config = config_lib.freeze(base.get_config())
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, seq_len=MAX_LEN)
    )
    own = config, self.model, self.params, tokenizer
    tasks = Tasks(build_embed(*own), None, None, build_score(*own))
    self.server = Server(run, self.engine, tasks, keys, bounds)
    self.engine.start()
    settings = uvicorn.Config(
      self.server, port=0, log_level="error", **self.server.web
    )
    self._web = uvicorn.Server(settings)
    self._thread = threading.Thread(target=self._web.run)
    self._thread.start()
    while not self._web.started:
      self._thread.join(0.01)
    port = self._web.servers[0].sockets[0].getsockname()[1]
    self.port, self.url = port, f"http://127.0.0.1:{port}/v1"

  def client(self, **settings) -> openai.OpenAI:
    defaults = dict(api_key="none", max_retries=0, timeout=60)
    return openai.OpenAI(base_url=self.url, **(defaults | settings))

  def limit(self, **changes) -> None:
    """Changes what a Served says, for the rest of a test."""
    self.server.run = self.server.run._replace(**changes)

  def close(self) -> None:
    self._web.should_exit = True
    self._thread.join()
    self.engine.drain(10)


@pytest.fixture(scope="package")
def running():
  bounds = Bounds(
    body_bytes=1 << 16,
    body_seconds=2.0,
    send_seconds=5.0,
    head_seconds=2.0,
    refusals=1e9,
  )
  found = Running(Keys(None), bounds)
  yield found
  found.close()


@pytest.fixture(scope="package")
def client(running):
  with running.client() as found:
    yield found
