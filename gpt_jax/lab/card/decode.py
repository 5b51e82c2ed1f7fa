"""Times decoding, token by token, with random weights."""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config
from gpt_jax.inference import generation
from gpt_jax.lab.bench import machine, ours
from gpt_jax.lab.card.steps import GIB, Setting, profiled, write_program
from gpt_jax.models import build_model

# Positions in the KV cache; decoding starts with a quarter of them filled.
SLOTS, TOY_SLOTS = 512, 64


def time_decode(
  config: Config, weights: str, num_rows: int, setting: Setting
) -> dict:
  """Returns a row: ms per token, tokens/s and the share of HBM's bandwidth.

  Args:
    weights: weight format, one of config.WEIGHTS.
    num_rows: number of sequences that are decoded together.
  """
  device = setting.devices[0]
  mesh = sharding.make_mesh(config.mesh, setting.devices)
  model = build_model(config.model, config.mesh.rules, device.platform, weights)
  slots = TOY_SLOTS if setting.is_toy else SLOTS
  shapes, specs = model.abstract_params()
  placed = sharding.shardings_of(shapes, specs, config.mesh.rules, mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    placed,
  )
  with jax.set_mesh(mesh):
    prepare = jax.jit(model.prepare_for_decoding)
    start = time.perf_counter()
    # No prefill: an empty cache takes as long to read as a prompt's keys.
    begin = functools.partial(_begin, model, num_rows, slots)
    one = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
      jax.eval_shape(lambda p: (prepare(p), *begin()), abstract),
    )
    chunk = generation.decode_chunk.lower(
      *arguments,
      model=model,
      sampling=generation.Sampling(temperature=0.0),
      num_tokens=generation.CHUNK,
      vocab_size=config_lib.vocab_size(config.model),
    ).compile()
    memory = chunk.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else 0
    row: dict[str, Any] = {
      "compile_s": round(time.perf_counter() - start, 1),
      "temporary_gib": round(temporary / GIB, 3),
    }
    if setting.out and num_rows == 1:
      write_program(f"{setting.out}-{weights}", chunk)
    if setting.is_compiled_only:
      prepare.lower(abstract).compile()
      return row
    params = jax.block_until_ready(prepare(_random_params(abstract)))
    seconds, state = [], begin()
    for _ in range((slots - slots // 4) // generation.CHUNK):
      begun = time.perf_counter()
      state = _advance(chunk, params, state)
      seconds.append((time.perf_counter() - begun) / generation.CHUNK)
    if num_rows == 1:
      with profiled(row, generation.CHUNK):
        _advance(chunk, params, begin())
  read = ours.read_bytes(params, config.model)
  median = statistics.median(seconds[1:] or seconds)
  rate = machine.find_rates(device, config.model.compute_dtype, 1)["bytes"]
  return row | {
    "ms_per_token": round(1e3 * median, 4),
    "tokens_per_s": round(num_rows / median),
    "gb_read": round(read / 1e9, 3),
    "bandwidth": rate and round(read / median / rate, 4),
  }


def _begin(model, num_rows: int, slots: int) -> tuple:
  """Returns decode_chunk's inputs (cache, logits_BV, lengths_B, key, made)."""
  vocab_size = config_lib.vocab_size(model.config)
  return (
    model.init_cache(num_rows, slots),
    jnp.zeros((num_rows, vocab_size), jnp.float32),
    jnp.full(num_rows, slots // 4, jnp.int32),
    jax.random.key(0),
    jnp.int32(0),
  )


def _advance(chunk, params, state: tuple) -> tuple:
  cache, logits_BV, lengths_B, key, made = state
  cache, logits_BV, ids_BC = chunk(
    params, cache, logits_BV, lengths_B, key, made
  )
  new = np.asarray(ids_BC).shape[1]
  return cache, logits_BV, lengths_B + new, key, made + new


def _random_params(abstract: Any) -> Any:
  """Returns normal weights, 0.02 in standard deviation, on their devices."""

  def make(key):
    leaves, kind = jax.tree.flatten(abstract)
    keys = jax.random.split(key, len(leaves))
    draw = lambda k, x: 0.02 * jax.random.normal(k, x.shape, x.dtype)
    return kind.unflatten(map(draw, keys, leaves))

  places = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(make, out_shardings=places)(jax.random.key(0))
