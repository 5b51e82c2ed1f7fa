"""What a sweep will cost: a row a cell, before anything is spent.

Hours are steps times the seconds of a step, measured here for a few shapes and
scaled by FLOPs to the others, and what a process takes to its first step;
evaluations and checkpoints are left out. With a topology they are those of the
planner, which no run beats.
"""

import dataclasses
import os
import statistics

from gpt_jax import config as config_lib
from gpt_jax import exits, flops
from gpt_jax.config import Config, InputError
from gpt_jax.data import tokenizers
from gpt_jax.lab.sweep import branches, folder
from gpt_jax.lab.sweep.cells import Cell, Sweep, diff_text
from gpt_jax.machine import chips, console, runtime

ITEM = {"float32": 4, "bfloat16": 2}
# What a process of training takes before there is a model, on a CPU.
PROCESS_BYTES = 400 << 20
# Numbers that an optimizer keeps of each parameter.
MOMENTS = {"lion": 1, "sgd": 1, "adafactor": 0}
# Seconds of steps that a shape is measured for.
MEASURED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Bill:
  """What one cell will take.

  Attributes:
    params, tokens, flops: tokens and FLOPs of what is left to do.
    bytes: of memory, of one device with a topology.
    hours: None where it does not fit.
    fault: why it does not fit, "" if it does.
    steps: left to do, of whole batches; a ramp counts as fewer.
    saved: FLOPs that its trunk does for it.
  """

  params: int
  tokens: int
  flops: float
  bytes: int
  hours: float | None
  fault: str
  steps: float
  saved: float


def run(sweep: Sweep, root: str | None, args) -> int:
  """Prints the plan; returns the exit code. Writes nothing."""
  branches.check_rates(sweep.cells)
  done = {c.id for c in sweep.cells if root and folder.is_done(root, c.id)}
  todo = [c for c in sweep.cells if c.id not in done]
  bills = make_bills(todo, root, args)
  width = max([len(_what(c, sweep)) for c in sweep.cells] or [4])
  form = f"{{:12}}  {{:{width}}}  {{:>9}}  {{:>9}}  {{:>9}}  {{:>10}}  {{:>9}}"
  say = lambda line: print(console.plain(line))
  say(
    form.format(
      "cell", "what", "params", "tokens", "FLOPs", "memory", "time"
    ).rstrip()
  )
  for cell in sweep.cells:
    what = _what(cell, sweep)
    if cell.id in done:
      say(f"{cell.id:12}  {what:{width}}  done")
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
    say(line)
  print("\n".join(_total(sweep, todo, bills, args)))
  for one in sweep.refused:
    say(f"refused: {one.title}: {one.reason}")
  unfit = [c for c in todo if bills[c.id].fault]
  for cell in unfit:
    say(f"refused: {cell.title}: {bills[cell.id].fault}")
  return exits.DOES_NOT_FIT if unfit or sweep.refused else 0


def _what(cell: Cell, sweep: Sweep) -> str:
  """Returns the cell's name, with what changed where that does not say it."""
  changed = diff_text(cell, sweep.cells[0])
  if "=" in cell.name or not changed:
    return cell.title
  return f"{cell.title}: {changed}"


def _total(sweep: Sweep, todo, bills, args) -> list[str]:
  todo = [c for c in todo if not bills[c.id].fault]
  hours = sum(bills[c.id].hours or 0 for c in todo)
  spent = sum(bills[c.id].flops for c in todo)
  lines = [
    f"in all {len(todo)} of {len(sweep.cells)} cells to run, {spent:.2e} FLOPs,"
    f" {_time(hours)} of one worker"
  ]
  if args.workers > 1 and args.topology is None:
    # They share the machine: two at once are no faster than one after another.
    lines[0] += f"; {args.workers} workers share this machine"
  trunks = {c.trunk[0] for c in todo if c.trunk is not None}
  leaves = [bills[c.id] for c in todo if c.id not in trunks]
  straight = sum(b.flops + b.saved for b in leaves)
  if trunks and straight > spent:
    share = 100 * (straight - spent) / straight
    lines.append(
      f"without their trunk, the {len(leaves)} others would take {straight:.2e}"
      f" FLOPs: branches save {share:.0f} %"
    )
  return lines


def _time(hours: float) -> str:
  if hours >= 10:
    return f"{hours:,.0f} h"
  return console.format_seconds(hours * 3600)


def make_bills(cells: list[Cell], root: str | None, args) -> dict[str, Bill]:
  """Returns {cell id: Bill}, measuring or planning what is needed.

  Raises:
    InputError: a vocabulary is not known before its text is prepared.
  """
  configs = {c.id: with_vocab(c.config, root) for c in cells}
  shapes = {c.id: shape_of(configs[c.id]) for c in cells}
  bills = {c.id: _bill(c, configs[c.id], args) for c in cells}
  if args.topology is not None:
    return _planned(cells, configs, bills, args)
  fitting = {
    shapes[c.id]: configs[c.id] for c in cells if not bills[c.id].fault
  }
  seconds, start = measure(fitting, args)
  for cell in cells:
    bill = bills[cell.id]
    if not bill.fault:
      spent = start + bill.steps * seconds[shapes[cell.id]]
      bills[cell.id] = dataclasses.replace(bill, hours=spent / 3600)
  return bills


def with_vocab(config: Config, root: str | None) -> Config:
  """Returns the config with model.vocab_size known.

  From the tokenizer's word, or from another cell on the same text.

  Raises:
    InputError: neither tells.
  """
  m, data = config.model, config.data
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
  """Returns what decides the seconds of a step."""
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
  per_token = flops.train_flops_per_token(config.model, config.data.seq_len)
  return float(per_token) * config.train.global_batch_size * config.data.seq_len


def count_bytes(config: Config) -> int:
  """Returns about how many bytes training needs, as one process on a CPU."""
  m, t = config.model, config.train
  params = sum(flops.count_parameters(m).values())
  moments = MOMENTS.get(config.optim.optimizer, 2)
  state = params * (
    ITEM[m.param_dtype] + moments * ITEM[config.optim.moment_dtype]
  )
  micro = t.global_batch_size // t.num_microbatches * config.data.seq_len
  return PROCESS_BYTES + state + flops.estimate_passing_bytes(m, micro)


def machine_bytes() -> int | None:
  """Returns the memory that this machine, or this container, has."""
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


def available_bytes(args) -> int | None:
  """Returns what one worker may take, None where nothing is known."""
  if args.memory is not None:
    return int(args.memory * 2**30)
  if runtime.find_accelerator() or not os.path.exists("/proc/meminfo"):
    return None
  return machine_bytes()


def fault_of(config: Config, args) -> str:
  """Returns why a config cannot run here, "" if it seems that it can."""
  needed, there = count_bytes(config), available_bytes(args)
  if there is None or needed <= there:
    return ""
  size = console.format_bytes
  return (
    f"does not fit: it needs about {size(needed)} and there are {size(there)}"
  )


def _bill(cell: Cell, config: Config, args) -> Bill:
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
    fault="" if args.topology is not None else fault_of(config, args),
    steps=steps,
    saved=skipped * step_flops(config),
  )


def _planned(cells, configs, bills, args) -> dict[str, Bill]:
  topology = chips.parse_topology(args.topology, 1)
  runtime.start(args.devices)
  if topology.platform == "tpu":
    runtime.start_tpu_compiler()
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


def measure(shapes: dict, args) -> tuple[dict, float]:
  """Returns ({shape: seconds of a step}, seconds to a first step).

  args.measure shapes are timed, the least and the greatest among them, each
  in a process of its own; the others by their FLOPs over the rate of the
  nearest.
  """
  from gpt_jax.lab.bench.worker import Failed, Worker

  order = sorted(shapes, key=lambda s: step_flops(shapes[s]))
  count = min(args.measure, len(order))
  picked = {
    order[round(i * (len(order) - 1) / max(count - 1, 1))]
    for i in reversed(range(count))
  }
  rates, starts = {}, []
  for shape in sorted(picked, key=order.index):
    config = shapes[shape]
    try:
      with Worker("gpt_jax", "train", config, args.devices) as worker:
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
