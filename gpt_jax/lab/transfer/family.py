"""Scales a config to other widths and depths, and trains short runs of them.

The learning rate is an argument of the compiled step, so that a grid of rates
and seeds is compiled only once for each size.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.data.batches import make_train_iterator
from gpt_jax.data.objectives import build_task
from gpt_jax.data.prepare import PreparedData, prepare_data
from gpt_jax.inference import scoring
from gpt_jax.training import build
from gpt_jax.training import state as state_lib


def at_width(config: Config, width: int, growing: str = "heads") -> Config:
  """Returns the config at another model width, its MLP scaled in proportion.

  Args:
    growing: what grows with the width: "heads" (more of them) or "head_dim"
      (wider ones); "head_dim" also sets an unset base_head_dim to the config's
      head width.

  Raises:
    InputError: the number of heads, or their width, would not be whole.
  """
  m = config.model
  H, D = config_lib.head_dim(m), m.model_dim
  changes = {"model_dim": width, "mlp_dim": round(m.mlp_dim * width / D)}
  if growing == "heads":
    if m.num_heads * width % D or config_lib.num_kv_heads(m) * width % D:
      raise InputError(
        f"width {width} is {width / D:g} times model.model_dim {D}, which "
        f"does not give whole numbers of heads for {m.num_heads} there"
      )
    changes["num_heads"] = m.num_heads * width // D
    if m.num_kv_heads is not None:
      changes["num_kv_heads"] = m.num_kv_heads * width // D
  else:
    if H * width % D:
      raise InputError(
        f"width {width} is {width / D:g} times model.model_dim {D}, which "
        f"does not give heads of a whole width for {H} there"
      )
    changes["base_head_dim"] = m.base_head_dim or H
    if m.head_dim is not None:
      changes["head_dim"] = H * width // D
  return dataclasses.replace(config, model=dataclasses.replace(m, **changes))


def at_depth(config: Config, num_layers: int) -> Config:
  """Returns the config with another number of blocks."""
  model = dataclasses.replace(config.model, num_layers=num_layers)
  return dataclasses.replace(config, model=model)


def prepare(config: Config, say=print) -> tuple[Config, PreparedData]:
  """Returns (config with its vocabulary filled in, prepared data)."""
  prepared = prepare_data(config.data, say)
  return prepared.resolve_vocab(config), prepared


class Member:
  """A model of one size, whose step is compiled for any learning rate and seed.

  Args:
    config: with a known vocabulary. Its schedule's shape is used; the learning
      rate and the seed are arguments of the methods.

  Attributes:
    step: the compiled step (state, batch, peak learning rate) -> (state,
      metrics).
    start: seed -> the initial state.
    compile_seconds: how long the step took to compile.
  """

  def __init__(self, config: Config, prepared: PreparedData):
    self.config, self.prepared = config, prepared
    unit = dataclasses.replace(
      config, optim=dataclasses.replace(config.optim, learning_rate=1.0)
    )
    run = build.assemble(unit, jax.devices()[:1])
    self.mesh, self.model, self.tx = run.mesh, run.model, run.tx

    def step(state, batch, rate):
      schedule = lambda count: rate * run.schedule(count)
      at_rate = dataclasses.replace(run, schedule=schedule, config=config)
      return at_rate.make_step()(state, batch)

    def start(seed):
      params, zero = state_lib.init_params(self.model, seed), jnp.int32(0)
      return state_lib.TrainState(
        zero, params, self.tx.init(params), zero, zero
      )

    self.start = jax.jit(start)
    began = time.perf_counter()
    state = jax.eval_shape(start, np.uint32(0))
    jitted = jax.jit(step, donate_argnums=0)
    example = {k: _abstract(v) for k, v in self.batch(0, 0).items()}
    self.step = jitted.lower(state, example, np.float32(0)).compile()
    self.compile_seconds = time.perf_counter() - began

  def train(self, seed: int, rate: float) -> float:
    """Trains a run to its end; returns its validation loss, inf if not finite.

    Args:
      rate: the peak learning rate.
    """
    c, state = self.config, self.start(np.uint32(seed))
    batches = self.batches(seed)
    for _ in range(c.train.num_steps):
      state, _ = self.step(state, next(batches), np.float32(rate))
    (tokens,) = self.prepared.valid.values()
    loss = scoring.score(
      self.model,
      state.params,
      tokens,
      seq_len=c.data.seq_len,
      batch_size=c.train.global_batch_size,
      packing=c.data.packing,
      num_loss_chunks=c.train.num_loss_chunks,
      mesh=self.mesh,
      max_batches=c.eval.num_batches,
      task=build_task(c, lambda: self.prepared.tokenizer),
    )["loss"]
    return loss if np.isfinite(loss) else float("inf")

  def batch(self, seed: int, index: int) -> dict:
    """Returns the training batch of step `index` in the seed's data order."""
    return next(self.batches(seed, index))

  def batches(self, seed: int, first: int = 0):
    """Returns an iterator over training batches from step `first` on."""
    size = self.config.train.global_batch_size
    rows = np.arange(size)
    return make_train_iterator(
      self.prepared, self.config, seed, size, rows, first
    )


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
