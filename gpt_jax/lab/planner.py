"""One plan: compile or estimate, measure, and find what would fit.

The plan is a plain dict, which plan.json is; report.py makes text of it.
"""

import dataclasses
import json
import os

from gpt_jax import chips, exits, flops, sharding
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.lab import (
  analytic,
  aot,
  cost,
  hlo,
  memory,
  remedy,
  report,
  roofline,
)


def run(config: Config, topology: chips.Topology, args, typed) -> int:
  """Makes the plan or the search, prints it, writes it; returns exit code.

  Args:
    args: flags of lab.plan.
    typed: the words of the command line that name the config.
  """
  config = aot.resolve_vocab(config)
  say = (lambda line: None) if args.json else report.say
  if args.search:
    from gpt_jax.lab import search

    plan = search.run(config, topology, args.minutes * 60, typed, say)
  else:
    say(report.heading(config, topology))
    plan = make(config, topology)
    if not plan["memory"]["fits"]:
      plan["remedy"] = remedy.find(plan, config, topology, make, say)
  if args.out:
    write(plan, args.out)
  if args.json:
    print(json.dumps(plan, indent=1))
  else:
    for line in report.lines(plan):
      say(line)
    if args.out:
      say(f"written to {os.path.join(args.out, 'plan.json')}")
  return 0 if plan["memory"]["fits"] else exits.DOES_NOT_FIT


def make(config: Config, topology: chips.Topology) -> dict:
  """Returns the plan of a config whose vocabulary is known.

  Raises:
    InputError: mesh, batch and topology do not go together.
  """
  if topology.platform != "tpu":
    return _estimated(config, topology)
  devices = aot.find_devices(topology)
  if len(devices) != topology.num_devices:
    raise InputError(
      f"{topology.name} has {len(devices)} devices for the compiler and "
      f"{topology.num_devices} in the table of chips"
    )
  built = aot.build(config, devices, "tpu")
  plan = _frame(config, topology, built.mesh, "compiled")
  try:
    compiled = aot.compile_built(built)
  except aot.OutOfMemory as error:
    return plan | _refused(config, topology, error)
  module = hlo.parse(compiled.text)
  scores = causal_part(config.data.seq_len, config.model.sliding_window)
  costs = cost.measure(module, topology.num_devices, scores)
  traffic = roofline.measure_traffic(costs.collectives, built.mesh, topology)
  kept = memory.split(
    built, compiled, module, analytic.available_bytes(topology)
  )
  terms = roofline.bound(costs, traffic, topology)
  return plan | {
    "compile_seconds": round(compiled.seconds, 1),
    # The compiler refuses what does not fit; where it accepts more than there
    # is by its own sum, the sum counts twice what is reused.
    "memory": _memory(kept) | {"fits": True},
    "collectives": [dataclasses.asdict(t) for t in traffic],
    "hardware_flops": costs.flops * topology.num_devices,
    "unknown_loops": costs.unknown_loops,
    "roofline": _roofline(terms, config, topology),
  }


def causal_part(seq_len: int, window: int | None) -> float:
  """Returns the part of all scores that a causal kernel cannot skip."""
  if window is None or window >= seq_len:
    return 0.5
  return window * (seq_len - window / 2) / seq_len**2


def _estimated(config: Config, topology: chips.Topology) -> dict:
  built = analytic.build(config, topology.num_devices)
  plan = _frame(config, topology, built.mesh, "estimated")
  found = analytic.estimate(config, topology, built)
  return plan | {
    "compile_seconds": None,
    "memory": _memory(found.memory),
    "collectives": [],
    "hardware_flops": None,
    "unknown_loops": [],
    "roofline": _roofline(found.terms, config, topology),
  }


def _frame(config: Config, topology, mesh, basis: str) -> dict:
  t = config.train
  tokens = t.global_batch_size * config.data.seq_len
  per_token = flops.train_flops_per_token(config.model, config.data.seq_len)
  chip = topology.chip
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
  """The part of a plan that is known of a step that does not fit."""
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


def _roofline(terms: roofline.Terms, config: Config, topology) -> dict:
  tokens = config.train.global_batch_size * config.data.seq_len
  per_token = flops.train_flops_per_token(config.model, config.data.seq_len)
  speed = tokens / terms.step / topology.num_chips
  t = config.train
  sequences = config_lib.count_sequences(t, t.num_steps)
  hours = terms.step * sequences / t.global_batch_size / 3600
  peak = topology.chip.tflops * 1e12 if topology.chip else None
  return dataclasses.asdict(terms) | {
    "step": terms.step,
    "binding": terms.binding,
    "tokens_per_second_per_chip": speed,
    "mfu": speed * per_token / peak if peak else None,
    "hours": hours,
    "chip_hours": hours * topology.num_chips,
  }


def write(plan: dict, folder: str) -> None:
  """Writes plan.json into a folder, whole or not at all."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, "plan.json")
  with open(path + ".new", "w") as file:
    json.dump(plan, file, indent=1)
  os.replace(path + ".new", path)
