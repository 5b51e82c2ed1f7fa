"""The server that the serve subject measures; its weights are random."""

import threading
from collections.abc import Callable

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import files, sharding
from gpt_jax.config import Config, InputError
from gpt_jax.deploy.serve.answers import Served
from gpt_jax.deploy.serve.asgi import Bounds
from gpt_jax.deploy.serve.engine import Engine
from gpt_jax.deploy.serve.grammar import Grammars
from gpt_jax.deploy.serve.http import Server
from gpt_jax.deploy.serve.keys import Keys
from gpt_jax.deploy.serve.tasks import Tasks
from gpt_jax.inference.rows import Rows
from gpt_jax.models import build_model
from gpt_jax.training import state as state_lib


class Numbers:
  """A tokenizer whose text of an id is the id written as a number."""

  separator_id = None
  start_ids = ()

  def decode(self, ids) -> str:
    return "".join(f"{i} " for i in ids)


class Serve:
  """A server in this process, which answers from threads."""

  def __init__(
    self,
    config: Config,
    describe: Callable,
    prompt_len: int,
    num_tokens: int,
    weights: str,
  ):
    self.config, self.web, self._describe = config, None, describe
    self.mesh = sharding.make_mesh(config.mesh)
    platform = self.mesh.devices.flat[0].platform
    self.model = build_model(config.model, config.mesh.rules, platform, weights)
    with jax.set_mesh(self.mesh):
      init = jax.jit(lambda seed: state_lib.init_params(self.model, seed))
      self.params = jax.block_until_ready(init(np.uint32(config.seed)))

  def describe(self) -> dict:
    return self._describe(self.config, self.mesh)

  def open(self, num_rows: int) -> dict:
    """Starts a server, and returns its port."""
    try:
      import uvicorn
    except ImportError:
      raise InputError(
        f"serving needs uvicorn; install it with {files.pip('serve')}"
      ) from None
    V = config_lib.vocab_size(self.config.model)
    # No prefix cache: every prompt is read.
    make = lambda: Rows(self.model, self.params, num_rows, V)
    self.engine = Engine(make, self.mesh, num_rows)
    limit, tokenizer = self.config.model.max_len, Numbers()
    run = Served(
      name="timed",
      created=0,
      tokenizer=tokenizer,
      chat=None,
      grammars=Grammars(tokenizer),
      max_len=limit,
      vocab_size=V,
      max_tokens=limit,
      seconds=1e6,
    )
    bounds = Bounds(1 << 20, 30.0, 30.0, 30.0, 100.0)
    none = Tasks(None, None, None, None)
    server = Server(run, self.engine, none, Keys(None), bounds)
    self.engine.start()
    settings = uvicorn.Config(server, port=0, log_level="error", **server.web)
    self.web = uvicorn.Server(settings)
    self.thread = threading.Thread(target=self.web.run)
    self.thread.start()
    while not self.web.started:
      self.thread.join(0.01)
    return {"port": self.web.servers[0].sockets[0].getsockname()[1]}

  def close(self) -> dict:
    """Ends the server."""
    assert self.web is not None  # `open` has started it
    self.web.should_exit = True
    self.thread.join()
    self.engine.drain(10)
    return {}
