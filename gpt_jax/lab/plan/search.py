"""Finds the settings that are predicted to be fastest on a slice.

It chooses mesh, microbatches, remat policy and loss chunks, none of which
changes what a run learns. All settings are ranked by arithmetic; the best are
compiled until the time is up.
"""

import dataclasses
import time

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import Config, InputError
from gpt_jax.lab.plan import analytic, aot, planner

REMAT = ("none", "dots", "save:qkv+attn", "save:attn", "full")
# A setting is compiled if its estimated memory is at most this many times the
# device's.
SLACK = 1.1
ROWS = 8
# Sequence length from which on the seq axis is tried.
LONG = 32_768


@dataclasses.dataclass(frozen=True)
class Setting:
  """One setting, with its estimate."""

  config: Config
  flags: str
  peak: float
  rank: float


def run(config: Config, topology, seconds: float, typed, say) -> dict:
  """Returns the plan of the best setting, with the others under "search".

  Args:
    seconds: how long to compile; a compile that has begun is finished.
    typed: arguments of the command line that name the config.
    say: called with lines about what is being done.

  Raises:
    InputError: no setting fits.
  """
  started = time.monotonic()
  settings = list_settings(config, topology)
  limit = analytic.available_bytes(topology)
  likely = [s for s in settings if limit is None or s.peak <= limit * SLACK]
  say(
    f"gpt_jax: {len(settings):,} settings, {len(likely):,} that may fit on "
    f"{topology.name}"
  )
  if limit is not None and not likely:
    least = min(settings, key=lambda s: s.peak)
    raise InputError(
      f"no setting fits on {topology.name}: {least.flags} comes nearest and "
      f"needs about {least.peak / 2**30:.1f} GiB of {limit / 2**30:.1f} on "
      "each device; take a larger slice"
    )
  likely.sort(key=lambda s: (s.rank, s.peak))
  if not aot.can_compile(topology):
    plans = [(s, planner.make(s.config, topology)) for s in likely[:ROWS]]
  else:
    plans = _compile_best(likely, topology, started + seconds, say)
  fitting = [(s, p) for s, p in plans if p["memory"]["fits"]]
  if not fitting:
    raise InputError(
      f"none of the {len(plans)} settings that were compiled in time fits on "
      f"{topology.name}; give --minutes more, or take a larger slice"
    )
  fitting.sort(key=lambda pair: pair[1]["roofline"]["step"])
  chosen, plan = fitting[0]
  command = " ".join(typed)
  return plan | {
    "search": {
      "considered": len(settings),
      "compiled": len(plans) if aot.can_compile(topology) else 0,
      "flags": f"{command} {chosen.flags}".strip(),
      "rows": [
        {
          "flags": s.flags,
          "basis": p["basis"],
          "peak": p["memory"]["peak"],
          "step": p["roofline"]["step"],
          "mfu": p["roofline"]["mfu"],
          "tokens_per_second_per_chip": p["roofline"][
            "tokens_per_second_per_chip"
          ],
        }
        for s, p in fitting[:ROWS]
      ],
    }
  }


def list_settings(config: Config, topology) -> list[Setting]:
  """Returns all settings whose sizes divide evenly, each with its estimate."""
  found = []
  for sizes in _mesh_shapes(config, topology):
    mesh = dataclasses.replace(config.mesh, **sizes)
    changed = dataclasses.replace(config, mesh=mesh)
    try:
      built = analytic.assemble(changed, topology.num_devices)
    except InputError:
      continue
    for parts, remat, chunks in _rest(config, sizes):
      model = dataclasses.replace(changed.model, remat=remat)
      train = dataclasses.replace(
        changed.train, num_microbatches=parts, num_loss_chunks=chunks
      )
      one = dataclasses.replace(changed, model=model, train=train)
      place = dataclasses.replace(built, config=one)
      guess = analytic.estimate(one, topology, place)
      flags = _flags(config, one)
      found.append(Setting(one, flags, guess.memory.peak, guess.terms.rank))
  return found


def _compile_best(likely, topology, deadline: float, say) -> list:
  """Returns [(setting, plan)], compiled in the order of their estimates."""
  plans, refused = [], []
  best = float("inf")
  for index, setting in enumerate(likely):
    # A setting that needs as much as one that did not fit will not fit either.
    if any(setting.peak >= peak for peak in refused):
      continue
    if plans and (time.monotonic() > deadline or len(plans) >= ROWS):
      break
    if setting.rank > best * 1.15:
      break
    say(f"  {index + 1}: compiling {setting.flags or 'as it is'} ...")
    try:
      plan = planner.make(setting.config, topology)
    except InputError as error:
      say(f"     not possible: {error}")
      continue
    plans.append((setting, plan))
    if not plan["memory"]["fits"]:
      refused.append(setting.peak)
      say(f"     needs {plan['memory']['peak'] / 2**30:.1f} GiB")
      continue
    step = plan["roofline"]["step"]
    # Compare estimates with estimates: the compiled step time is another scale.
    best = min(best, setting.rank)
    say(f"     {1000 * step:,.0f} ms, {plan['memory']['peak'] / 2**30:.1f} GiB")
  return plans


def _mesh_shapes(config: Config, topology) -> list[dict[str, int]]:
  """Returns sizes of mesh axes whose product is the number of devices."""
  devices, found = topology.num_devices, []
  heads = config_lib.num_kv_heads(config.model)
  slices = topology.num_slices if topology.platform == "tpu" else 1
  tensors = [n for n in (1, 2, 4, 8, 16) if heads % n == 0]
  is_whole = config.model.expert_capacity_factor is not None
  is_long = config.data.seq_len >= LONG and not is_whole
  seqs = [1, 2, 4, 8, 16] if is_long else [1]
  experts = config.mesh.expert if config.mesh.expert > 0 else 1
  for tensor in tensors:
    for seq in seqs:
      left, rest = divmod(devices, tensor * seq * slices * experts)
      if rest:
        continue
      for copies in (1, 2, 4, 8, 16, left):
        if left % copies == 0:
          found.append(
            {
              "data": slices * copies,
              "fsdp": left // copies,
              "expert": experts,
              "seq": seq,
              "tensor": tensor,
            }
          )
  unique = {tuple(sizes.items()): sizes for sizes in found}
  return list(unique.values())


def _rest(config: Config, sizes: dict[str, int]):
  """Yields (microbatches, remat, loss chunks) whose sizes divide evenly."""
  t = config.train
  shards = sizes["data"] * sizes["fsdp"] * sizes["expert"]
  if t.global_batch_size % shards:
    return
  rows = t.global_batch_size // shards
  policies = (
    REMAT
    if config.model.remat in REMAT
    else (
      *REMAT,
      config.model.remat,
    )
  )
  chunks = {1, 8, t.num_loss_chunks}
  vocab = config_lib.padded_vocab_size(config.model)
  chunks = [n for n in sorted(chunks) if vocab % (n * sizes["tensor"]) == 0]
  for parts in range(1, rows + 1):
    if rows % parts == 0:
      for remat in policies:
        for count in chunks:
          yield parts, remat, count


def _flags(old: Config, new: Config) -> str:
  """Returns the flags that turn `old` into `new`."""
  a, b = config_lib.flatten(old), config_lib.flatten(new)
  names = [f"mesh.{axis}" for axis in sharding.AXES]
  changed = [k for k in b if a[k] != b[k] or (k in names and a[k] == -1)]
  return " ".join(f"--config.{k}={b[k]}" for k in changed)
