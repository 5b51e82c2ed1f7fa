"""Finds the smallest change that makes a step fit into memory.

Changes are tried one by one, the cheapest first, then together, then with
larger slices. Only storing moments in bfloat16 changes training results.
"""

import dataclasses

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config, InputError
from gpt_jax.lab.plan import analytic, aot
from gpt_jax.machine import chips

# Number of suggestions that are compiled; after that, estimates are enough.
TRIES = 3
# The largest number of GPUs that is suggested.
MOST_GPUS = 1024


def change(config: Config, values: dict) -> Config:
  """Returns the config with {"section.key": value} set, checked.

  Raises:
    InputError: the values do not fit together.
  """
  nested = dataclasses.asdict(config)
  for key, value in values.items():
    section, name = key.split(".")
    nested[section][name] = value
  return config_lib.freeze(nested)


def list_changes(config: Config, topology) -> list[dict]:
  """Returns changes {"section.key": value} that save memory, cheapest first."""
  m, t = config.model, config.train
  names = sharding.AXES
  sizes = sharding.mesh_sizes(config.mesh, topology.num_devices)
  sizes = dict(zip(names, sizes, strict=True))
  slices = topology.num_slices if topology.platform == "tpu" else 1
  vocab = config_lib.padded_vocab_size(m)
  found = []
  if t.num_loss_chunks == 1 and vocab % (8 * sizes["tensor"]) == 0:
    found.append({"train.num_loss_chunks": 8})
  if m.remat != "full":
    found.append({"model.remat": "full", "model.scan_layers": True})
  if sizes["data"] > slices:
    fsdp = sizes["data"] // slices * sizes["fsdp"]
    found.append({"mesh.data": slices, "mesh.fsdp": fsdp})
  shards = sizes["data"] * sizes["fsdp"] * sizes["expert"]
  rows = t.global_batch_size // shards
  for parts in range(t.num_microbatches + 1, rows + 1):
    if rows % parts == 0:
      found.append({"train.num_microbatches": parts})
  if config.optim.moment_dtype == "float32":
    beta2 = min(config.optim.beta2, config_lib.MAX_BETA2_BFLOAT16)
    values = {"optim.moment_dtype": "bfloat16"}
    if beta2 != config.optim.beta2:
      values["optim.beta2"] = beta2
    found.append(values)
  heads = config_lib.num_kv_heads(m)
  for way in (2, 4, 8):
    tensor = sizes["tensor"] * way
    if sizes["fsdp"] % way == 0 and heads % tensor == 0:
      fsdp = sizes["fsdp"] // way
      found.append({"mesh.fsdp": fsdp, "mesh.tensor": tensor})
  return found


def list_larger(config: Config, topology) -> list:
  """Returns larger topologies of the same chip, smallest first."""
  chip = topology.chip
  if chip is None:
    return []
  slices = topology.num_slices
  if chip.shapes:
    size = topology.name.partition(":")[2]
    larger = chip.shapes[chip.shapes.index(size) + 1 :]
  else:
    host, slices = chip.host_chips, 1
    sizes = [2**i for i in range(MOST_GPUS.bit_length())]
    larger = [
      str(n) if n <= host else f"{host}x{n // host}"
      for n in sizes
      if n > topology.num_chips
    ]
  return [chips.parse_topology(f"{chip.word}:{n}", slices) for n in larger]


def find(plan: dict, config: Config, topology, make, say) -> dict | None:
  """Returns {"flags", "bytes", "basis"}, None if no known change fits.

  Args:
    plan: of the config that does not fit.
    make: (config, topology) -> plan, to verify a suggestion for TPUs.
    say: called with lines about what is being done.
  """
  needed, available = plan["memory"]["peak"], plan["memory"]["available"]
  # Compiled over estimated memory of this config, to correct other estimates.
  ratio = needed / analytic.estimate(config, topology).memory.peak
  tries = 0
  for values, where in _in_order(config, topology):
    try:
      changed = change(config, values)
      guess = analytic.estimate(changed, where).memory.peak * ratio
    except InputError:
      continue
    if guess > available:
      continue
    flags = _flags(values, topology, where)
    if not aot.can_compile(topology) or tries == TRIES:
      return {"flags": flags, "bytes": int(guess), "basis": "estimated"}
    tries += 1
    say(f"does not fit; compiling with {flags} ...")
    try:
      tried = make(changed, where)["memory"]
    except InputError:
      continue
    if tried["fits"]:
      return {"flags": flags, "bytes": tried["peak"], "basis": "compiled"}
    ratio *= max(tried["peak"] / guess, 1.0)
  return None


def _in_order(config: Config, topology):
  """Yields (values, topology): one change, several together, more chips."""
  singles = list_changes(config, topology)
  for values in singles:
    yield values, topology
  together = {}
  for values in singles:
    # Of several changes to one key (microbatches), take only the first.
    if not set(values) & set(together):
      together |= values
      yield dict(together), topology
  for values in singles:
    yield together | values, topology
  sizes = sharding.mesh_sizes(config.mesh, topology.num_devices)
  for where in list_larger(config, topology):
    grown = {"mesh.data": sizes[0], "mesh.fsdp": -1}
    yield grown, where
    yield together | grown, where


def _flags(values: dict, topology, where) -> str:
  words = [f"--config.{key}={value}" for key, value in values.items()]
  if where is not topology:
    words.insert(0, f"--topology={where.name}")
  return " ".join(words)
