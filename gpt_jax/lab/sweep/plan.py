"""Estimates the cost of a sweep, cell by cell, before anything is run.

A cell's time is the start of a process plus its steps times the seconds of a
step. A step is timed on this machine for a few shapes and scaled by FLOPs to
the others; evaluations and checkpoints are left out. With a topology, times
are the planner's, which are a lower bound.
"""

import dataclasses
import os
import statistics

from gpt_jax import config as config_lib
from gpt_jax import flops
from gpt_jax.config import Config, InputError
from gpt_jax.data import tokenizers
from gpt_jax.lab.sweep import branches, folder
from gpt_jax.lab.sweep.cells import Cell, Sweep, diff_text
from gpt_jax.machine import chips, console, runtime

# Memory of a training process on a CPU before it builds a model.
PROCESS_BYTES = 400 << 20
# Moments that an optimizer stores per parameter; optimizers not named: 2.
MOMENTS = {"lion": 1, "sgd": 1, "adafactor": 0}
# Seconds for which the steps of a shape are timed.
MEASURED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Bill:
  """The resources that one cell will need.

  Attributes:
    params: number of parameters.
    tokens, flops: tokens and FLOPs of the steps that are left to do.
    bytes: memory of the process, or of one device with a topology.
    hours: None where the cell does not fit.
    fault: why the cell does not fit, "" if it does.
    steps: steps left to do, in whole batches: steps of a smaller batch count
      in part.
    saved: FLOPs of the steps that its trunk does for it.
  """

  params: int
  tokens: int
  flops: float
  bytes: int
  hours: float | None
  fault: str
  steps: float
  saved: float


@dataclasses.dataclass(frozen=True)
class Limits:
  """Where cells are to run, and how their plan is made.

  Attributes:
    memory: GiB that one cell may use; None: all that this machine has.
    topology: the slice to plan for, as in lab.plan; None: this machine.
    devices: the value of --devices of each cell, or None.
    num_measured: how many shapes a step is timed for.
  """

  memory: float | None = None
  topology: str | None = None
  devices: int | None = None
  num_measured: int = 3


def make(
  sweep: Sweep, root: str | None = None, limits: Limits | None = None
) -> dict[str, Bill]:
  """Returns {cell id: Bill} of the cells that are not done.

  Times steps on this machine, or compiles them for limits.topology; writes
  nothing.

  Args:
    root: the folder of the sweep, to leave out what is done there; may be None.

  Raises:
    InputError: a branch's learning rates differ from its trunk's, or a
      vocabulary is not known before its text is prepared.
  """
  branches.check_rates(sweep.cells)
  done = {c.id for c in sweep.cells if root and folder.is_done(root, c.id)}
  todo = [c for c in sweep.cells if c.id not in done]
  return _make_bills(todo, root, limits or Limits())


def find_faults(sweep: Sweep, bills: dict[str, Bill]) -> list[tuple[str, str]]:
  """Returns (title, reason) of cells that are refused or do not fit."""
  refused = [(one.title, one.reason) for one in sweep.refused]
  planned = [(c.title, bills[c.id].fault) for c in sweep.cells if c.id in bills]
  return refused + [pair for pair in planned if pair[1]]


def lines(sweep: Sweep, bills: dict[str, Bill], workers: int = 1) -> list[str]:
  """Returns the plan as text: a row for each cell, and the sum.

  Args:
    workers: number of cells that share this machine; 1 with a topology.
  """
  width = max([len(_what(c, sweep)) for c in sweep.cells] or [4])
  form = f"{{:12}}  {{:{width}}}  {{:>9}}  {{:>9}}  {{:>9}}  {{:>10}}  {{:>9}}"
  text = [
    form.format(
      "cell", "what", "params", "tokens", "FLOPs", "memory", "time"
    ).rstrip()
  ]
  for cell in sweep.cells:
    what = _what(cell, sweep)
    if cell.id not in bills:
      text.append(f"{cell.id:12}  {what:{width}}  done")
      continue
    bill = bills[cell.id]
    line = form.format(
      cell.id,
      what,
      console.format_count(bill.params),
      console.format_count(bill.tokens),
      f"{bill.flops:.2e}",
      console.format_bytes(bill.bytes),
      "-" if bill.hours is None else _time(bill.hours),
    )
    if cell.trunk is not None:
      line += f"  from step {cell.trunk[1]:,} of {cell.trunk[0]}"
    text.append(line)
  text += _total(sweep, bills, workers)
  faults = find_faults(sweep, bills)
  return text + [f"refused: {title}: {why}" for title, why in faults]


def _what(cell: Cell, sweep: Sweep) -> str:
  """Returns the cell's title, with its changed keys if its name has none."""
  changed = diff_text(cell, sweep.cells[0])
  if "=" in cell.name or not changed:
    return cell.title
  return f"{cell.title}: {changed}"


def _total(sweep: Sweep, bills: dict[str, Bill], workers: int) -> list[str]:
  todo = [c for c in sweep.cells if c.id in bills and not bills[c.id].fault]
  hours = sum(bills[c.id].hours or 0 for c in todo)
  spent = sum(bills[c.id].flops for c in todo)
  text = [
    f"in all {len(todo)} of {len(sweep.cells)} cells to run, {spent:.2e} FLOPs,"
    f" {_time(hours)} of one worker"
  ]
  if workers > 1:
    # Workers share the machine: two cells at once take as long as in turn.
    text[0] += f"; {workers} workers share this machine"
  trunks = {c.trunk[0] for c in todo if c.trunk is not None}
  leaves = [bills[c.id] for c in todo if c.id not in trunks]
  straight = sum(b.flops + b.saved for b in leaves)
  if trunks and straight > spent:
    share = 100 * (straight - spent) / straight
    text.append(
      f"without their trunk, the {len(leaves)} others would take {straight:.2e}"
      f" FLOPs: branches save {share:.0f} %"
    )
  return text


def _time(hours: float) -> str:
  if hours >= 10:
    return f"{hours:,.0f} h"
  return console.format_seconds(hours * 3600)


def _make_bills(
  cells: list[Cell], root: str | None, limits: Limits
) -> dict[str, Bill]:
  configs = {c.id: with_vocab(c.config, root) for c in cells}
  shapes = {c.id: shape_of(configs[c.id]) for c in cells}
  bills = {c.id: _bill(c, configs[c.id], limits) for c in cells}
  if limits.topology is not None:
    return _planned(cells, configs, bills, limits, limits.topology)
  fitting = {
    shapes[c.id]: configs[c.id] for c in cells if not bills[c.id].fault
  }
  seconds, start = measure(fitting, limits.num_measured, limits.devices)
  for cell in cells:
    bill = bills[cell.id]
    if not bill.fault:
      spent = start + bill.steps * seconds[shapes[cell.id]]
      bills[cell.id] = dataclasses.replace(bill, hours=spent / 3600)
  return bills


def with_vocab(config: Config, root: str | None) -> Config:
  """Returns the config with model.vocab_size filled in.

  The size comes from the tokenizer's spec, or from a cell in ROOT that has
  started on the same text.

  Raises:
    InputError: neither gives it, or the config of a classifier does not give
      its number of classes.
  """
  m, data = config.model, config.data
  if config_lib.has_classes(m) and m.num_classes is None:
    raise InputError(
      f"the classes of {data.source} are known only once data is prepared; "
      "give --config.model.num_classes=N"
    )
  if m.vocab_size is not None:
    return config
  known = tokenizers.find_vocab_size(data.tokenizer)
  if known is None and root is not None:
    for cell_id in folder.list_ids(root):
      other = folder.read(root, cell_id).config
      if other is None or other.model.vocab_size is None:
        continue
      if (other.data.tokenizer, other.data.source) == (
        data.tokenizer,
        data.source,
      ):
        known = other.model.vocab_size
  if known is None:
    raise InputError(
      f"the vocabulary of data.tokenizer={data.tokenizer} is known only once "
      "data is prepared; give --config.model.vocab_size=N"
    )
  return dataclasses.replace(
    config, model=dataclasses.replace(m, vocab_size=known)
  )


def shape_of(config: Config) -> tuple:
  """Returns the config's (key, value) pairs that determine a step's time."""
  flat = config_lib.flatten(config)
  words = ("data.seq_len", "data.packing", "train.global_batch_size")
  words += ("train.num_microbatches", "train.num_loss_chunks")
  words += ("optim.optimizer", "optim.moment_dtype")
  return tuple(
    (k, v)
    for k, v in flat.items()
    if k in words or k.startswith(("model.", "mesh."))
  )


def step_flops(config: Config) -> float:
  """Returns the FLOPs of one step."""
  per_token = flops.train_flops_of(config)
  return float(per_token) * config.train.global_batch_size * config.data.seq_len


def count_bytes(config: Config) -> int:
  """Returns an estimate of a training process's memory on a CPU, in bytes."""
  m, t = config.model, config.train
  params = sum(flops.count_parameters(m).values())
  moments = MOMENTS.get(config.optim.optimizer, 2)
  state = params * (
    flops.DTYPE_BYTES[m.param_dtype]
    + moments * flops.DTYPE_BYTES[config.optim.moment_dtype]
  )
  micro = t.global_batch_size // t.num_microbatches * config.data.seq_len
  return PROCESS_BYTES + state + flops.estimate_temporary_bytes(m, micro)


def machine_bytes() -> int | None:
  """Returns the memory in bytes of this machine, or its container's limit.

  None if neither is known.
  """
  found = []
  with open("/proc/meminfo") as file:
    for line in file:
      if line.startswith("MemTotal:"):
        found.append(int(line.split()[1]) << 10)
  path = "/sys/fs/cgroup/memory.max"
  if os.path.exists(path):
    with open(path) as file:
      text = file.read().strip()
    if text.isdigit():
      found.append(int(text))
  return min(found, default=None)


def available_bytes(memory: float | None) -> int | None:
  """Returns the bytes that one worker may use, None if unknown.

  Args:
    memory: the limit in GiB, or None.
  """
  if memory is not None:
    return int(memory * 2**30)
  if runtime.find_accelerator() or not os.path.exists("/proc/meminfo"):
    return None
  return machine_bytes()


def fault_of(config: Config, memory: float | None) -> str:
  """Returns why a config does not fit here, "" if it seems to fit.

  Args:
    memory: the limit in GiB, or None.
  """
  needed, there = count_bytes(config), available_bytes(memory)
  if there is None or needed <= there:
    return ""
  size = console.format_bytes
  return (
    f"does not fit: it needs about {size(needed)} and there are {size(there)}"
  )


def _bill(cell: Cell, config: Config, limits: Limits) -> Bill:
  t = config.train
  skipped = cell.trunk[1] if cell.trunk else 0
  left = config_lib.count_sequences(t, t.num_steps)
  left -= config_lib.count_sequences(t, skipped)
  steps = left / t.global_batch_size
  return Bill(
    params=sum(flops.count_parameters(config.model).values()),
    tokens=left * config.data.seq_len,
    flops=steps * step_flops(config),
    bytes=count_bytes(config),
    hours=None,
    fault="" if limits.topology else fault_of(config, limits.memory),
    steps=steps,
    saved=skipped * step_flops(config),
  )


def _planned(
  cells, configs, bills, limits: Limits, slice_name: str
) -> dict[str, Bill]:
  """Returns the bills with the memory and hours that lab.plan predicts."""
  topology = chips.parse_topology(slice_name, 1)
  runtime.start(limits.devices)
  runtime.start_compiler(topology.platform)
  from gpt_jax.lab.plan import planner

  plans = {}
  for cell in cells:
    config, bill = configs[cell.id], bills[cell.id]
    shape = shape_of(config)
    if shape not in plans:
      plans[shape] = planner.make(config, topology)
    memory, bound = plans[shape]["memory"], plans[shape]["roofline"]
    fault, hours = "", None
    if memory["fits"]:
      hours = bound["step"] * bill.steps / 3600
    else:
      size = console.format_bytes
      fault = (
        f"does not fit {topology.name}: it needs {size(memory['peak'])} on each"
        f" device and there are {size(memory['available'])}"
      )
    bills[cell.id] = dataclasses.replace(
      bill, bytes=memory["peak"], hours=hours, fault=fault
    )
  return bills


def measure(
  shapes: dict[tuple, Config], num_measured: int, devices: int | None
) -> tuple[dict[tuple, float], float]:
  """Returns ({shape: seconds of a step}, seconds to the first step).

  Times `num_measured` shapes, including the largest and, if there are several,
  the smallest, each in its own process. The time of another shape is its FLOPs
  over the FLOP/s of the timed shape whose FLOPs are nearest.
  """
  from gpt_jax.lab.bench.worker import Failed, Worker

  order = sorted(shapes, key=lambda s: step_flops(shapes[s]))
  count = min(num_measured, len(order))
  picked = {
    order[round(i * (len(order) - 1) / max(count - 1, 1))]
    for i in reversed(range(count))
  }
  rates, starts = {}, []
  for shape in sorted(picked, key=order.index):
    config = shapes[shape]
    try:
      with Worker("gpt_jax", "train", config, devices) as worker:
        starts.append(worker.built["ready_seconds"])
        trial = worker.ask(do="run", count=3)["seconds"][-1]
        steps = max(3, min(200, round(MEASURED_SECONDS / trial)))
        seconds = statistics.median(
          worker.ask(do="run", count=steps)["seconds"]
        )
    except Failed as error:
      raise InputError(f"a step cannot be measured: {error}") from None
    rates[step_flops(config)] = step_flops(config) / seconds
  out = {}
  for shape in order:
    size = step_flops(shapes[shape])
    nearest = min(rates, key=lambda f: abs(f / size - 1))
    out[shape] = size / rates[nearest]
  return out, statistics.mean(starts) if starts else 0.0
