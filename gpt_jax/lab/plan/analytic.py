"""Estimates a step's memory and time by arithmetic, without compiling.

Parameters and moments are exact: they follow from the parameters' declarations
and the sharding rules. Gradients are taken as one array per trained parameter.
The rest are formulas for what a decoder of this form stores, reads and
exchanges. Searches use the estimate to choose what to compile; plans for CPUs,
and for GPUs without their compiler, have nothing else.
"""

import dataclasses
import math

from jax.sharding import AbstractMesh, AxisType

from gpt_jax import config as config_lib
from gpt_jax import flops, sharding
from gpt_jax.config import Config
from gpt_jax.lab.plan import memory as memory_lib
from gpt_jax.lab.plan.roofline import Terms, links_along
from gpt_jax.machine.chips import Topology
from gpt_jax.ops import visibility
from gpt_jax.training import build
from gpt_jax.training.build import Assembly

# No peak rate is published for CPUs in general, so this assumes one core with
# two 512-bit vector units.
CPU_FLOPS, CPU_BYTES = 1e11, 2e10


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Memory and time of a step by arithmetic."""

  memory: memory_lib.Memory
  terms: Terms


def assemble(config: Config, num_devices: int) -> Assembly:
  """Returns a run's Assembly, on a mesh without devices.

  Raises:
    InputError: the mesh does not match, or a parameter cannot be placed.
  """
  sizes = sharding.mesh_sizes(config.mesh, num_devices)
  mesh = AbstractMesh(
    tuple(sizes),
    sharding.AXES,
    axis_types=(AxisType.Auto,) * len(sharding.AXES),
  )
  return build.assemble(config, mesh=mesh)


def estimate(config: Config, topology: Topology, built=None) -> Estimate:
  """Returns the Estimate of one step."""
  built = built or assemble(config, topology.num_devices)
  return Estimate(
    estimate_memory(built, topology), estimate_terms(built, topology)
  )


def available_bytes(topology: Topology) -> int | None:
  """Returns the memory that a program may use on a device, None for a CPU."""
  if topology.chip is None:
    return None
  return topology.chip.hbm_bytes // topology.chip.devices


def _tokens(built) -> tuple[int, int]:
  """Returns (tokens per microbatch, tokens per step) of one device."""
  c, shape = built.config, built.mesh.shape
  table = sharding.RULES[c.mesh.rules]
  parts = math.prod(shape[a] for a in (*table["batch"], *table["length"]))
  step = c.train.global_batch_size * c.data.seq_len // parts
  return max(step // c.train.num_microbatches, 1), max(step, 1)


def estimate_memory(built, topology: Topology) -> memory_lib.Memory:
  """Returns the Memory of a step; only parameters and moments are exact."""
  c, m, shape = built.config, built.config.model, built.mesh.shape
  tensor, item = shape["tensor"], flops.DTYPE_BYTES[m.compute_dtype]
  micro, _ = _tokens(built)
  D, F, L = m.model_dim, flops.active_mlp_dim(m) // tensor, _depth(c)
  H, V = config_lib.head_dim(m), config_lib.value_dim(m)
  q, y = m.num_heads * H // tensor, m.num_heads * V // tensor
  kv = max(config_lib.num_kv_heads(m) // tensor, 1) * (H + V)
  # Width of what remat calls "qkv"; latent attention saves the latents from
  # which it projects keys and values.
  small = sum(width for _, width in config_lib.cached_dims(m))
  qkv = q + (kv if m.kv_lora_rank is None else small)
  gates = 2 if config_lib.is_gated(m) else 1
  whole = 4 * D + q + y + kv + (gates + 1) * F
  each = {"block": D, "qkv": qkv, "attn": y, "mlp": gates * F}
  word, names = m.remat.policy, m.remat.names
  kept = {
    "none": whole + 2 * D,
    "dots": D + q + kv + D + gates * F + D,
    "full": D,
    "save": D * ("block" not in names) + sum(each[n] for n in names),
    "offload": D * ("block" not in names),
  }[word]
  if not _has_kernel(m, topology):
    # Scores of one layer, or of all layers where backward recomputes nothing.
    scores = m.num_heads // tensor * c.data.seq_len * (4 + item)
    layers = L if word in ("none", "dots") else 1
    kept_scores = scores * micro * layers
  else:
    kept_scores = 0
  vocab = config_lib.padded_vocab_size(m) // tensor
  logits = 3 * 4 * vocab * micro // c.train.num_loss_chunks
  # Weights gathered over fsdp: those of one layer and, prefetched, the next.
  gathered = 2 * _layer_parameters(m) // tensor // shape["expert"] * item
  kinds = {
    "parameters": memory_lib.shard_bytes(
      [getattr(built.abstract, part) for part in memory_lib.PARAMETERS]
    ),
    "moments": memory_lib.shard_bytes(built.abstract.opt_state),
    "gradients": memory_lib.gradient_bytes(built),
    "activations": int(kept * item * micro * L),
    "temporaries": 3 * whole * item * micro
    + int(kept_scores)
    + logits
    + gathered,
  }
  origin = dict.fromkeys(kinds, "estimated")
  origin |= {"parameters": "exact", "moments": "exact"}
  peak = sum(kinds.values())
  return memory_lib.Memory(kinds, origin, peak, available_bytes(topology))


def estimate_terms(built, topology: Topology) -> Terms:
  """Returns the Terms of a step by formula."""
  c, m, shape = built.config, built.config.model, built.mesh.shape
  micro, step = _tokens(built)
  tensor, item = shape["tensor"], flops.DTYPE_BYTES[m.compute_dtype]
  compute = hardware_flops(c, topology) * step / tensor
  params = sum(flops.count_parameters(m).values())
  parts = c.train.num_microbatches
  # Weights are read in forward, in backward and when it recomputes.
  reads = 2 if m.remat == "none" else 3
  state = memory_lib.shard_bytes(built.abstract)
  D, L = m.model_dim, _depth(c)
  moved = reads * parts * params * item / tensor
  moved += 2 * state + 2 * memory_lib.gradient_bytes(built)
  moved += 30 * L * D * step * item
  chip = topology.chip
  if chip is None:
    rate, bandwidth = CPU_FLOPS * 8 / item / 2, CPU_BYTES
    links = network = float("inf")
    inside = 1
  else:
    rate = chip.tflops * 1e12 / chip.devices
    bandwidth = chip.hbm_gbps * 1e9 / chip.devices
    count = sum(links_along(n, topology) for n in topology.shape)
    count = 1 if chip.torus_dims == 0 else max(count, 1)
    links = count * chip.link_gbps * 1e9 / chip.devices
    network = chip.dcn_gbps * 1e9 / chip.devices
    inside = topology.num_devices // topology.num_slices
  part = lambda n: (n - 1) / n
  fsdp, copies = shape["fsdp"], shape["data"]
  item_grad = flops.DTYPE_BYTES[m.grad_dtype]
  gather = reads * parts * params * item / tensor * part(fsdp)
  scatter = parts * params * item_grad / tensor * part(fsdp)
  copied = 2 * params * item_grad / tensor / fsdp * part(copies) * parts
  # Axis tensor: two all-reduces per layer in each of these passes.
  across = 2 * reads * 2 * L * D * step * item * part(tensor)
  keys = config_lib.head_dim(m) + config_lib.value_dim(m)
  keys *= config_lib.num_kv_heads(m) * item
  spread = reads * L * keys * step * shape["seq"] * part(shape["seq"])
  near = gather + scatter + across + spread + _exchanged(m, shape, step, reads)
  far = 0.0
  if inside >= topology.num_devices:
    near += copied
  elif chip is not None and chip.platform == "gpu" and copies == 1:
    far = (gather + scatter) / chip.host_chips
  else:
    far = copied
  compute_seconds, hbm_seconds = compute / rate, moved / bandwidth
  return Terms(
    compute=compute_seconds,
    hbm=hbm_seconds,
    ops=max(compute_seconds, hbm_seconds),
    ici=near / links,
    dcn=far / network,
  )


def _exchanged(m, shape, tokens: int, passes: int) -> float:
  """Returns the bytes that a device sends along axis expert in a step.

  Each pass of each MoE layer sends twice: tokens to the experts, and results
  back. Without a capacity, all of a device's tokens go to every other device;
  with one, only the buffers of the other devices' experts (models/experts.py).
  """
  n, layers = shape["expert"], config_lib.mlp_kinds(m).count("moe")
  rows = float(n - 1)
  if m.expert_capacity_factor is not None:
    rows = m.expert_capacity_factor * m.experts_per_token * (n - 1) / n
  item = flops.DTYPE_BYTES[m.compute_dtype]
  return 2 * passes * layers * rows * tokens * m.model_dim * item


def _depth(config: Config) -> float:
  """Returns the mean number of layers per token of data.seq_len.

  A decoder layer with cross-attention counts as one and a half.
  """
  m = config.model
  if not config_lib.has_source(m):
    return m.num_layers
  S, T = config_lib.row_lengths(config)
  encoder = config_lib.stack_config(m, "encoder")
  passed = encoder.num_layers * (S or T) + 1.5 * m.num_layers * T
  return passed / config.data.seq_len


def _has_kernel(model, topology: Topology) -> bool:
  """Returns whether attention has a kernel that never stores all scores."""
  if model.attention == "auto":
    # No kernel supports biases of scores.
    has_bias = config_lib.has_score_bias(model)
    return topology.platform != "cpu" and not has_bias
  return model.attention != "dense"


def _layer_parameters(model) -> int:
  count = flops.count_parameters(model)
  return (count["hidden"] + count["residual"]) // model.num_layers


def hardware_flops(config: Config, topology: Topology) -> float:
  """Returns the FLOPs per token that devices do, recomputation included.

  Attention without a kernel computes all scores. A kernel skips masked ones: a
  causal one computes half of all scores, any other one the visible part.
  """
  m, (S, T) = config.model, config_lib.row_lengths(config)
  all_scores = flops.score_flops_per_token(m, T, S)
  scores = all_scores // 3
  if _has_kernel(m, topology):
    is_half = visibility.rule_of(m).is_causal and not config_lib.has_source(m)
    scores *= 0.5 if is_half else flops.visible_part(m, T, S)
  matrices = (flops.train_flops_per_token(m, T, S) - all_scores) / 3
  count = flops.count_active_parameters(m)
  blocks = 2 * (count["hidden"] + count["residual"])
  word, names = m.remat.policy, m.remat.names
  again, again_scores = {
    "none": (0.0, 0.0),
    "dots": (0.0, 1.0),
    "full": (1.0, 1.0),
    "save": (1.0, 0.0 if "attn" in names else 1.0),
    "offload": (1.0, 0.0 if "attn" in names else 1.0),
  }[word]
  if word in ("save", "offload"):
    D, F = m.model_dim, flops.active_mlp_dim(m)
    reads = flops.count_attention(m)[0] - flops.count_up_projections(m)
    gates = 2 if config_lib.is_gated(m) else 1
    saved = 2 * reads * ("qkv" in names)
    saved += 2 * D * gates * F * ("mlp" in names)
    again -= saved * m.num_layers / blocks
  if word != "none":
    # The last matmul of a block is not recomputed: no gradient within the block
    # needs its output.
    F = flops.active_mlp_dim(m)
    again -= 2 * m.model_dim * F * m.num_layers / blocks
  loss = 0.0
  if config.train.num_loss_chunks > 1:
    loss = 2 * config_lib.padded_vocab_size(m) * m.model_dim
  done = 3 * matrices + max(again, 0) * blocks
  done += (3 + again_scores) * scores + loss
  return done * (T / config.data.seq_len)
