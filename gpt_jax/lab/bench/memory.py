"""The memory subject: attention and cross-entropy, in parts and naively.

The naive forms store an array that grows faster than all others in the model:
all scores (T x T for each head), or all logits (T x V). Each form is compiled
with its gradient for this machine and, where the compilers are installed, for
one TPU chip and one GPU. Both forms are also timed here, in alternation, in
this process.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench.samples import REPEATS, Measurement, Row
from gpt_jax.lab.bench.train import check_vocab
from gpt_jax.lab.plan import aot
from gpt_jax.machine import chips, runtime
from gpt_jax.models import attend
from gpt_jax.models.context import Context
from gpt_jax.models.layers import cap_logits
from gpt_jax.ops import cross_entropy, visibility
from gpt_jax.ops.matmul import matmul
from gpt_jax.ops.visibility import TokenPositions

# Topologies; the pieces are compiled for one chip of each.
TOPOLOGIES = "v5e:2x4", "h100:1"
NOTE = "predicted: the naive form"


def measure(config: Config, repeats: int = REPEATS, say=print) -> Measurement:
  """Compares memory and time of both forms of attention and of the loss.

  Args:
    config: frozen, with a known vocabulary and a loss in chunks.
    say: called with a line if there is no TPU or GPU compiler.

  Raises:
    InputError: the config does not compute the loss in parts.
  """
  check_vocab(config)
  if config.train.num_loss_chunks == 1:
    raise InputError(
      "train.num_loss_chunks is 1, with which nothing is in parts; "
      "--config=configs/bench.py:long has 8"
    )
  local = sharding.make_mesh(
    dataclasses.replace(config.mesh, data=1, fsdp=1, expert=1, seq=1, tensor=1),
    jax.devices()[:1],
  )
  rows = []
  pieces = {"attention": make_attention, "cross-entropy": make_loss}
  f, arguments = make_loss(config, "cpu", False)
  jax.eval_shape(f, *arguments)  # an error of shapes comes before any compile
  for name, make in pieces.items():
    naive, parts = (
      compile_piece(
        *make(config, local.devices.flat[0].platform, is_naive), local
      )
      for is_naive in (True, False)
    )
    rows.append(make_row(f"{name}, temporaries", naive, parts))
    seconds = time_in_turns(naive, parts, repeats)
    milliseconds = [1e3 * s for s in seconds[1]]
    rows.append(
      Row(
        f"{name}, with its gradient",
        "ms",
        milliseconds,
        1e3 * float(np.median(seconds[0])),
        NOTE,
      )
    )
  for name in TOPOLOGIES:
    rows += compile_for(name, config, pieces, say)
  about = {"compiled_for": list(TOPOLOGIES)}
  return Measurement("memory", config, rows, about=about)


def make_attention(config: Config, platform: str, is_naive: bool):
  """Returns (f, its arguments): gradients of one layer's attention."""
  m = config.model
  B, T = config.train.global_batch_size, config.data.seq_len
  K, H = config_lib.num_kv_heads(m), config_lib.head_dim(m)
  queries, keys = (B, K, m.num_heads // K, T, H), (B, K, T, H)
  is_packed = config.data.packing == "documents"
  kernel = attend.choose(m, platform, T, is_packed=is_packed)
  kernel = "dense" if is_naive else kernel

  def f(q, k, v, dy, segments_BT=None):
    kind = config_lib.layer_kinds(m)[0]
    rule = visibility.rule_of(m, kind)
    at = TokenPositions(jnp.arange(T)[None], segments_BT)
    context = Context(
      kind=kind,
      rule=rule,
      kernel=kernel,
      platform=platform,
      slots_BT=at.slots_BT,
      is_ordered=True,
      segments_BT=segments_BT,
      mask_BTS=visibility.visible(rule, at, at) if is_naive else None,
    )
    rules = config.mesh.rules
    function = lambda q, k, v: attend.attend(q, k, v, context, m, rules)
    y, back = jax.vjp(function, q, k, v)
    return y, back(dy)

  leaf = lambda shape: jax.ShapeDtypeStruct(shape, m.compute_dtype)
  arguments = [leaf(queries), leaf(keys), leaf(keys), leaf(queries)]
  if is_packed:
    arguments.append(jax.ShapeDtypeStruct((B, T), jnp.int32))
  return f, arguments


def make_loss(config: Config, platform: str, is_naive: bool):
  """Returns (f, its arguments): the loss with its gradients, head included."""
  m = config.model
  shape = config.train.global_batch_size, config.data.seq_len
  V = config_lib.padded_vocab_size(m)
  cap = functools.partial(cap_logits, config=m)

  def loss(x_BTD, w_VD, targets_BT, mask_BT):
    if not is_naive:
      return cross_entropy.chunked_cross_entropy(
        x_BTD,
        w_VD,
        targets_BT,
        mask_BT,
        cap,
        config.train.num_loss_chunks,
        config.mesh.rules,
        m.grad_dtype,
      )[0]
    logits = matmul("BTD,VD->BTV", x_BTD, w_VD, m.grad_dtype, jnp.float32)
    logits = cap(logits, jnp.arange(V))
    return cross_entropy.cross_entropy(logits, targets_BT, mask_BT)[0]

  leaf = jax.ShapeDtypeStruct
  arguments = [
    leaf((*shape, m.model_dim), m.compute_dtype),
    leaf((V, m.model_dim), m.param_dtype),
    leaf(shape, np.int32),
    leaf(shape, np.float32),
  ]
  return jax.value_and_grad(loss, (0, 1)), arguments


def compile_piece(f, arguments, mesh):
  """Returns f compiled for a mesh, its arguments replicated."""
  place = NamedSharding(mesh, P())
  put = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
  with jax.set_mesh(mesh):
    return jax.jit(f).lower(*map(put, arguments)).compile()


def make_row(name: str, naive, parts) -> Row:
  size = lambda one: one.memory_analysis().temp_size_in_bytes / 2**20
  return Row(name, "MiB", [size(parts)], size(naive), NOTE)


def time_in_turns(naive, parts, repeats: int):
  """Returns ([seconds of naive], [seconds of parts]), one value per repeat."""
  random = np.random.default_rng(0)

  def fill(shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
      return np.zeros(shape, dtype)
    return jnp.asarray(random.standard_normal(shape, np.float32), dtype)

  (shapes, _) = naive.in_avals
  arrays = [
    jax.device_put(fill(a.shape, a.dtype), place)
    for a, place in zip(shapes, naive.input_shardings[0], strict=True)
  ]
  seconds = [], []
  for index in range(repeats + 1):
    for one, found in zip((naive, parts), seconds, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(one(*arrays))
      if index:  # the first run warms up
        found.append(time.perf_counter() - start)
  return seconds


def compile_for(name: str, config: Config, pieces, say) -> list[Row]:
  """Returns rows for one chip of a topology; [] without its compiler."""
  topology = chips.parse_topology(name, 1)
  platform, chip = topology.platform, topology.the_chip().word
  try:
    runtime.start_compiler(platform)
    devices = aot.find_devices(topology)
  except InputError as error:
    say(f"not compiled for {chip}: {error}")
    return []
  section = dataclasses.replace(
    config.mesh, data=1, fsdp=1, expert=1, seq=1, tensor=1
  )
  mesh = sharding.make_mesh(section, devices[:1])
  # Kernels of TPUs and GPUs take bfloat16.
  model = dataclasses.replace(config.model, compute_dtype="bfloat16")
  config = dataclasses.replace(config, model=model)
  rows = []
  for piece, make in pieces.items():
    both = [
      compile_piece(*make(config, platform, is_naive), mesh)
      for is_naive in (True, False)
    ]
    rows.append(make_row(f"{piece}, temporaries on {chip}", *both))
  return rows
