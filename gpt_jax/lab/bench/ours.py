"""Times gpt_jax's train step and decoding, built as a run builds them.

Imports only jax, flax, optax and ml_collections, so that a step can be timed on
a machine without the other dependencies.
"""

import dataclasses
import math
import time

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import flops, metric_names, sharding, tree
from gpt_jax.config import Config, InputError
from gpt_jax.data.objectives import fields
from gpt_jax.inference import generation
from gpt_jax.lab.bench import machine
from gpt_jax.lab.plan import analytic
from gpt_jax.machine import chips, runtime
from gpt_jax.machine.chips import Topology
from gpt_jax.models import build_model
from gpt_jax.training import build as build_lib
from gpt_jax.training import state as state_lib

# Number of random batches, which are fed cyclically.
NUM_BATCHES = 4


def build(who: str, subject: str, config: Config, **options):
  """Returns the subject, ready to run; `who` is always gpt_jax."""
  if subject == "serve":
    from gpt_jax.lab.bench.served import Serve

    return Serve(config, describe, **options)
  return {"train": Train, "decode": Decode}[subject](config, **options)


class Train:
  """The train step, with batches and waits as in the training loop."""

  def __init__(self, config: Config, prepared_dir: str | None = None):
    started = time.perf_counter()
    self.config = config
    run = build_lib.assemble(config)
    self.mesh, self.place, self.rows = (
      run.mesh,
      run.batch_place,
      run.local_rows(),
    )
    self.size = config.train.global_batch_size
    self.build_seconds = time.perf_counter() - started
    self.step, self.compile_seconds, self.peak = run.compile_step()
    memory = self.step.memory_analysis()
    self.temporary_bytes = memory.temp_size_in_bytes if memory else 0
    started = time.perf_counter()
    self.state = run.init_state()
    jax.block_until_ready(self.state)
    self.init_seconds = time.perf_counter() - started
    runtime.give_back_memory()
    if prepared_dir is None:
      self.batches = random_batches(config, len(self.rows))
    else:
      self.batches = _read_batches(self, prepared_dir)

  def describe(self) -> dict:
    return {
      **describe(self.config, self.mesh),
      "build_seconds": self.build_seconds,
      "compile_seconds": self.compile_seconds,
      "init_seconds": self.init_seconds,
      "peak_bytes": self.peak,
      "temporary_bytes": self.temporary_bytes,
    }

  def run(self, count: int) -> dict:
    """Returns the seconds of each of `count` steps, and of each data wait."""
    seconds, waits, pending, loss = [], [], None, math.nan
    with jax.set_mesh(self.mesh):
      start = time.perf_counter()

      def finish(result) -> None:
        nonlocal start, loss
        loss = float(result[metric_names.LOSS])
        now = time.perf_counter()
        seconds.append(now - start)
        start = now

      for _ in range(count):
        waited = time.perf_counter()
        batch = next(self.batches)
        waits.append(time.perf_counter() - waited)
        batch = sharding.place_batch(batch, self.place, self.rows, self.size)
        self.state, result = self.step(self.state, batch)
        if pending is not None:
          finish(pending)
        pending = result
      finish(pending)
    return {"seconds": seconds, "waits": waits, "loss": loss}

  def predict(self) -> dict:
    """Returns the machine's rates, and a step's seconds predicted by them."""
    rates = _rates(self.config, self.mesh)
    if rates["flops"] is None:
      return {"rates": rates, "compute": None, "memory": None}
    return {"rates": rates} | _bound(self.config, self.mesh, rates)


class Decode:
  """Generation as `python -m gpt_jax.generate` does it, greedily."""

  def __init__(
    self, config: Config, prompt_len: int, num_tokens: int, weights: str
  ):
    if config_lib.has_source(config.model):
      raise InputError(
        f"model.family is {config.model.family}, and decoding is timed of "
        "models that continue a prompt; take a decoder"
      )
    self.config, self.num_tokens = config, num_tokens
    self.mesh = sharding.make_mesh(config.mesh)
    platform = self.mesh.devices.flat[0].platform
    self.model = build_model(config.model, config.mesh.rules, platform, weights)
    shapes, specs = self.model.abstract_params()
    placed = sharding.shardings_of(shapes, specs, config.mesh.rules, self.mesh)
    init = jax.jit(
      lambda seed: state_lib.init_params(self.model, seed),
      out_shardings=placed,
    )
    with jax.set_mesh(self.mesh):
      self.params = jax.block_until_ready(init(np.uint32(config.seed)))
      self.unstacked = jax.eval_shape(
        self.model.prepare_for_decoding, self.params
      )
    self.prompt_len = prompt_len
    self.random = np.random.default_rng(0)

  def describe(self) -> dict:
    return {
      **describe(self.config, self.mesh),
      "weight_bytes": read_bytes(self.unstacked, self.config.model),
    }

  def run(self, batch_size: int) -> dict:
    """Returns seconds of prefill, loop and both, and the loop's token count.

    The loop is timed after its first chunk, which includes a prefill.
    """
    shape = (batch_size, self.prompt_len)
    V = config_lib.vocab_size(self.config.model)
    prompts = self.random.integers(V, size=shape, dtype=np.int32)
    sampling = generation.Sampling(temperature=0.0)
    with jax.set_mesh(self.mesh):
      prefill = self._prefill(prompts)
      marks, made = [time.perf_counter()], 0
      chunks = generation.generate(
        self.model, self.params, list(prompts), self.num_tokens, sampling
      )
      for ids in chunks:
        marks.append(time.perf_counter())
        made += ids.shape[1]
    assert made == self.num_tokens, made
    return {
      "prefill": prefill,
      "loop": marks[-1] - marks[1],
      "loop_tokens": self.num_tokens - generation.CHUNK,
      "total": marks[-1] - marks[0],
    }

  def _prefill(self, prompts) -> float:
    limit = self.model.config.max_len
    slots = min(_up(self.prompt_len + self.num_tokens), limit)
    width = min(_up(self.prompt_len), limit)
    tokens = np.zeros((len(prompts), width), np.int32)
    tokens[:, : self.prompt_len] = prompts
    lengths = np.full(len(prompts), self.prompt_len, np.int32)
    with jax.set_mesh(self.mesh):
      unstacked = jax.block_until_ready(
        generation.prepare(self.params, self.model)
      )
      start = time.perf_counter()
      out = generation.prefill(
        unstacked, tokens, lengths, model=self.model, num_slots=slots
      )
      jax.block_until_ready(out)
      return time.perf_counter() - start

  def predict(self) -> dict:
    return {"rates": _rates(self.config, self.mesh)}


def random_batches(config: Config, num_rows: int):
  """Yields batches of random tokens forever, cycling through NUM_BATCHES."""
  random, batches = np.random.default_rng(0), []
  draw = lambda length: random.integers(
    config_lib.vocab_size(config.model),
    size=(num_rows, length),
    dtype=np.int32,
  )
  wanted, T = fields(config), config_lib.row_lengths(config).target
  # Packed rows have four documents, preferences two answers, others one.
  num_parts = 4 if config.data.packing == "documents" else 1
  num_parts = 2 if "labels" in wanted else num_parts
  for _ in range(NUM_BATCHES):
    ids = draw(T + 1)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
    batch["mask"] = np.ones((num_rows, T), np.float32)
    for name in [name for name in wanted if name not in batch]:
      S = wanted[name].length
      part, place = np.divmod(np.arange(S, dtype=np.int32), -(-S // num_parts))
      form = {"sources": None, "slots": np.arange(S, dtype=np.int32)}
      form["types"] = np.zeros(S, np.int32)
      row = form.get(name, part if name.endswith("segments") else place)
      batch[name] = draw(S) if row is None else np.tile(row, (num_rows, 1))
    for name, field in wanted.items():
      is_wide = batch[name].shape[1] == field.length
      if not is_wide or batch[name].dtype != field.dtype:
        # Targets and masks of classifiers, and fields of preference pairs.
        batch[name] = np.ones((num_rows, field.length), field.dtype)
    batches.append(batch)
  while True:
    yield from batches


def _read_batches(train: Train, prepared_dir: str):
  from gpt_jax.data.batches import make_train_iterator
  from gpt_jax.data.prepare import prepare_data

  c = train.config
  data = dataclasses.replace(c.data, dir=prepared_dir)
  prepared = prepare_data(data, lambda line: None)
  return make_train_iterator(prepared, c, c.seed, train.size, train.rows, 0)


def describe(config: Config, mesh) -> dict:
  device = mesh.devices.flat[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": mesh.devices.size,
    "mesh": sharding.describe_mesh(mesh),
    "threads": machine.count_cores(),
  }


def _rates(config: Config, mesh) -> dict:
  device = mesh.devices.flat[0]
  # Simulated devices share one processor.
  count = 1 if device.platform == "cpu" else mesh.devices.size
  return machine.find_rates(device, config.model.compute_dtype, count)


def _bound(config: Config, mesh, rates: dict) -> dict:
  """Returns seconds of arithmetic and of memory traffic of a step."""
  device, count = mesh.devices.flat[0], mesh.devices.size
  built = analytic.assemble(config, count)
  chip = chips.find_chip(device.device_kind)
  topology = Topology(device.device_kind, chip, (count,), 1)
  terms = analytic.estimate_terms(built, topology)
  if chip is not None:
    return {"compute": terms.compute, "memory": terms.hbm}
  # Replaces the estimate's assumed CPU rates by the measured ones.
  item = flops.DTYPE_BYTES[config.model.compute_dtype]
  rate = analytic.CPU_FLOPS * 8 / item / 2
  return {
    "compute": terms.compute * rate * count / rates["flops"],
    "memory": terms.hbm * analytic.CPU_BYTES * count / rates["bytes"],
  }


def read_bytes(unstacked, model) -> int:
  """Returns the bytes of weights that are read to make one token.

  Embedding tables, of which a token reads one row, are left out.
  """
  total = 0
  has_head = "unembed" in unstacked
  for name, leaf in tree.flatten_with_names(unstacked).items():
    is_row = name == "embed/positions" or (
      name.startswith("embed/tokens") and has_head
    )
    total += 0 if is_row else leaf.size * leaf.dtype.itemsize
  return total


def _up(length: int) -> int:
  return -(-length // generation.ROUND) * generation.ROUND
