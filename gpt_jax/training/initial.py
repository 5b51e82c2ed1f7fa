"""Initial parameters by one small program, for a single CPU device.

`state.init_params` draws each array by itself, and XLA compiles the generator
and the inverse error function again for each: ten seconds for ten arrays, on a
CPU. Here one loop draws every array of a model, CHUNK numbers at a time.

Design choice: the arithmetic of `jax.random.normal` is repeated here, because
jax cannot draw from the middle of an array. The result is equal bit for bit,
which tests hold for every form of a model.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from gpt_jax import parametrization, tree
from gpt_jax.models import Model

CHUNK = 1 << 16
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def is_served(model: Model, mesh: jax.sharding.Mesh) -> bool:
  """Returns whether `in_chunks` applies: one CPU device, jax's default PRNG."""
  made: Any = jax.config  # its attributes are defined when jax is imported
  is_usual = made.jax_default_prng_impl == "threefry2x32"
  is_usual &= made.jax_threefry_partitionable
  return is_usual and model.platform == "cpu" and mesh.size == 1


def in_chunks(model: Model, seed: int) -> tuple[Callable, tuple]:
  """Returns (function, its argument): params = function(argument), jittable.

  The values are those of state.init_params, bit for bit. The function depends
  on neither the seed nor the names of parameters, so neither does its program.
  """
  shapes, specs = model.abstract_learned()
  c, root = model.config, np.array([0, seed], np.uint32)
  keys, counters, factors = [], [], []
  rows: dict[str, tuple[int, int]] = {}

  def plan(name: str, leaf: Any, spec: parametrization.ParamSpec) -> None:
    if spec.role in parametrization.CONSTANT:
      return
    key, layer_keys = fold_in(root, tree.hash_name(name)), None
    size, num_layers = math.prod(leaf.shape), 1
    if spec.axes[0] == "layers":
      num_layers = leaf.shape[0]
      layer_keys = [fold_in(key, layer) for layer in range(num_layers)]
    starts = np.arange(0, size // num_layers, CHUNK, dtype=np.uint64)
    std = np.float32(parametrization.init_std(spec, c))
    rows[name] = len(keys), num_layers
    for one in layer_keys or [key]:
      keys.extend([one] * len(starts))
      counters.extend(starts)
      factors.extend([std] * len(starts))

  def params(argument):
    drawn = jax.lax.map(lambda each: _draw(*each), argument)

    def take(name, leaf, spec):
      if name not in rows:
        start = parametrization.CONSTANT[spec.role]
        return jnp.full(leaf.shape, start, leaf.dtype)
      first, num_layers = rows[name]
      size = math.prod(leaf.shape) // num_layers
      count = num_layers * -(-size // CHUNK)
      flat = drawn[first : first + count].reshape(num_layers, -1)
      return flat[:, :size].reshape(leaf.shape).astype(leaf.dtype)

    return tree.map_with_names(take, shapes, specs)

  tree.map_with_names(plan, shapes, specs)
  start = np.array(counters, np.uint64)
  words = np.stack([start >> np.uint64(32), start & np.uint64(2**32 - 1)], 1)
  factor = np.array(factors, np.float32)
  return params, (np.array(keys), words.astype(np.uint32), factor)


def _draw(key, start, factor):
  """Returns float32[CHUNK] of an array's values, from element `start`.

  Args:
    key: uint32[2].
    start: uint32[2], the high and low word of an index; CHUNK divides it.
    factor: float32, the standard deviation.
  """
  low = start[1] + jnp.arange(CHUNK, dtype=jnp.uint32)
  high = jnp.broadcast_to(start[0], (CHUNK,))
  words = jax.extend.random.threefry_2x32(key, jnp.concatenate([high, low]))
  bits = words[:CHUNK] ^ words[CHUNK:]
  # jax.random.uniform: 23 bits as the mantissa of a number in [1, 2).
  one = np.float32(1).view(np.uint32)
  floats = jax.lax.bitcast_convert_type((bits >> 9) | one, jnp.float32) - 1
  least = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jnp.maximum(least, floats * (np.float32(1) - least) + least)
  # Written as jax writes it: some versions of XLA join the two factors.
  return factor * (np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform))


def fold_in(key: np.ndarray, data: int) -> np.ndarray:
  """Returns the uint32[2] of jax.random.fold_in, without compiling it.

  Threefry-2x32 of the counter (0, data), with 20 rounds: Salmon et al. 2011,
  "Parallel random numbers: as easy as 1, 2, 3".
  """
  mask = 2**32 - 1
  first, second = int(key[0]), int(key[1])
  ks = first, second, first ^ second ^ 0x1BD11BDA
  x, y = ks[0], (data + ks[1]) & mask
  for group in range(5):
    for r in _ROTATIONS[group % 2]:
      x = (x + y) & mask
      y = (((y << r) | (y >> (32 - r))) & mask) ^ x
    x = (x + ks[(group + 1) % 3]) & mask
    y = (y + ks[(group + 2) % 3] + group + 1) & mask
  return np.array([x, y], np.uint32)
