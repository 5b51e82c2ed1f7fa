"""Makes one plan: compiles or estimates a step and measures it.

A plan is a plain dict, the content of plan.json; table.py formats it as text.
"""

import dataclasses
import json
import math
import os
import statistics

from gpt_jax import config as config_lib
from gpt_jax import files, flops, sharding, tree
from gpt_jax.config import Config, InputError
from gpt_jax.lab.plan import (
  analytic,
  aot,
  cost,
  gpus,
  hlo,
  memory,
  roofline,
)
from gpt_jax.machine import chips
from gpt_jax.training import build

# Bytes/s that a host writes to shared storage. An assumption: no figure is
# published.
HOST_BYTES_PER_SECOND = 1e9


def make(config: Config, topology: chips.Topology) -> dict:
  """Returns the plan of a config whose vocabulary is known.

  Raises:
    InputError: mesh, batch and topology do not fit together.
  """
  if not aot.can_compile(topology):
    return _estimated(config, topology)
  remark = ""
  if topology.platform == "gpu":
    config, remark = gpus.choose_attention(config)
  devices = aot.find_devices(topology)
  if len(devices) != topology.num_devices:
    raise InputError(
      f"{topology.name} has {len(devices)} devices for the compiler and "
      f"{topology.num_devices} in the table of chips"
    )
  built = build.assemble(config, devices, topology.platform)
  plan: dict = _frame(config, topology, built, "compiled")
  plan["remark"] = remark
  try:
    compiled = aot.compile_step(built)
  except aot.OutOfMemory as error:
    return plan | _refused(config, topology, error)
  module = hlo.parse(compiled.text)
  source_len, seq_len = config_lib.row_lengths(config)
  scores = flops.visible_part(config.model, seq_len, source_len)
  costs = cost.measure(module, topology.num_devices, scores)
  traffic = roofline.measure_traffic(costs.collectives, built.mesh, topology)
  kept = memory.split(
    built, compiled, module, analytic.available_bytes(topology)
  )
  terms = roofline.bound(costs, traffic, topology)
  return plan | {
    "compile_seconds": round(compiled.seconds, 1),
    # The TPU compiler refuses a step that does not fit. If it accepts a step
    # whose total exceeds the memory, the total counts reused memory twice.
    "memory": _memory(kept) | {"fits": topology.platform == "tpu" or kept.fits},
    "collectives": [dataclasses.asdict(t) for t in traffic],
    "hardware_flops": costs.flops * topology.num_devices,
    "unknown_loops": costs.unknown_loops,
    "roofline": _roofline(
      terms, config, topology, costs.flops * topology.num_devices
    ),
  }


def _estimated(config: Config, topology: chips.Topology) -> dict:
  built = analytic.assemble(config, topology.num_devices)
  remark = ""
  if topology.platform == "gpu":
    remark = (
      "these are estimates: the GPU compiler is not installed here; in the "
      f"folder of this project, {files.pip('plan-gpu')}"
    )
  plan: dict = _frame(config, topology, built, "estimated")
  plan["remark"] = remark
  found = analytic.estimate(config, topology, built)
  done = analytic.hardware_flops(config, topology) * plan["tokens_per_step"]
  return plan | {
    "compile_seconds": None,
    "memory": _memory(found.memory),
    "collectives": [],
    "hardware_flops": done,
    "unknown_loops": [],
    "roofline": _roofline(found.terms, config, topology, done),
  }


def _frame(config: Config, topology, built, basis: str) -> dict:
  t = config.train
  tokens = t.global_batch_size * config.data.seq_len
  per_token = flops.train_flops_of(config)
  masked = flops.masked_flops_of(config)
  item = flops.DTYPE_BYTES[config.model.compute_dtype]
  cached = None
  if built.model.can_generate:
    cached = flops.cache_bytes(config.model, 1, item)
  chip, mesh = topology.chip, built.mesh
  state = tree.count_bytes(built.abstract)
  hosts = math.ceil(topology.num_chips / chip.host_chips) if chip else 1
  return {
    "config": config_lib.flatten(config),
    "topology": {
      "name": topology.name,
      "slices": topology.num_slices,
      "chips": topology.num_chips,
      "devices": topology.num_devices,
      "chip": dataclasses.asdict(chip) if chip else None,
    },
    "mesh": dict(mesh.shape),
    "mesh_text": sharding.describe_mesh(mesh),
    "basis": basis,
    "parameters": sum(flops.count_parameters(config.model).values()),
    "flops_per_token": per_token,
    "masked_flops_per_token": masked,
    "cache_bytes_per_token": cached,
    "checkpoint": {
      "bytes": state,
      "kept": config.checkpoint.keep_last,
      "every_steps": config.checkpoint.every_steps,
      "hosts": hosts,
      "seconds": state / hosts / HOST_BYTES_PER_SECOND,
    },
    "tokens_per_step": tokens,
    "num_steps": t.num_steps,
    "tokens": config_lib.count_sequences(t, t.num_steps) * config.data.seq_len,
    "remedy": None,
  }


def _memory(found: memory.Memory) -> dict:
  return {
    "peak": int(found.peak),
    "available": found.available,
    "fits": found.fits,
    "host": int(found.host),
    "kinds": {k: int(v) for k, v in found.kinds.items()},
    "origin": found.origin,
    "refusal": None,
  }


def _refused(config: Config, topology, error: aot.OutOfMemory) -> dict:
  """Returns the part of a plan that is known if the step does not fit."""
  found = analytic.estimate(config, topology)
  kinds = _memory(found.memory)
  return {
    "compile_seconds": None,
    "memory": kinds
    | {
      "peak": error.needed or kinds["peak"],
      "available": error.available or kinds["available"],
      "fits": False,
      "refusal": error.sentence,
    },
    "collectives": [],
    "hardware_flops": None,
    "unknown_loops": [],
    "roofline": None,
  }


def _roofline(
  terms: roofline.Terms, config: Config, topology, hardware_flops: float
) -> dict:
  """Returns the bound and the expected speed, as plan.json has them.

  mfu counts the model's FLOPs, of attention only visible scores; hfu counts all
  FLOPs of the hardware, recomputation included. Neither can exceed 1.
  `expected` is the bound corrected by the median of the platform's
  roofline.RATIOS (its step time is that many times longer); None for a CPU.
  """
  tokens = config.train.global_batch_size * config.data.seq_len
  masked = flops.masked_flops_of(config)
  speed = tokens / terms.step / topology.num_chips
  t = config.train
  sequences = config_lib.count_sequences(t, t.num_steps)
  hours = terms.step * sequences / t.global_batch_size / 3600
  peak = topology.chip.tflops * 1e12 if topology.chip else None
  ratio = statistics.median(roofline.RATIOS.get(topology.platform, (1.0,)))
  return dataclasses.asdict(terms) | {
    "step": terms.step,
    "binding": terms.binding,
    "tokens_per_second_per_chip": speed,
    "mfu": speed * masked / peak if peak else None,
    "hfu": speed * hardware_flops / tokens / peak if peak else None,
    "hours": hours,
    "chip_hours": hours * topology.num_chips,
    "expected": {
      "ratio": ratio,
      "step": terms.step * ratio,
      "mfu": speed * masked / peak / ratio,
      "hours": hours * ratio,
      "chip_hours": hours * topology.num_chips * ratio,
    }
    if peak
    else None,
  }


def write(plan: dict, folder: str) -> None:
  """Writes plan.json into a folder, completely or not at all."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, "plan.json")
  with open(path + ".new", "w") as file:
    json.dump(plan, file, indent=1)
  os.replace(path + ".new", path)
