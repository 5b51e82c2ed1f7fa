"""The train subject: milliseconds a step, tokens a second, MFU."""

import statistics

from gpt_jax import flops
from gpt_jax.config import Config, InputError
from gpt_jax.lab import bench
from gpt_jax.lab.bench import duel, report
from gpt_jax.lab.bench.samples import Pairs, Row

# Where --steps is not given: a measurement takes about so many seconds. Short
# and many: a machine's slow spells then spoil few of them.
SECONDS = 0.33
MOST_STEPS = 100
SHORT_REPEATS = 25
# Steps before any is measured, where they are short.
WARM_STEPS = 3


def run(config: Config, args) -> int:
  check_vocab(config)
  with duel.Duel(config, "train", args, {"do": "run", "count": 1}) as both:
    plan = both.each(lambda name: warm_up(both, name, args.steps))
    is_short = plan["gpt_jax"]["count"] > 1
    repeats = args.repeats or (SHORT_REPEATS if is_short else bench.REPEATS)
    rounds = [both.round(plan) for _ in range(repeats)]
    prediction = both.ours.ask(do="predict")
    built = both.ours.built
  step_ms = lambda name: [
    1e3 * statistics.median(answers[name]["seconds"]) for answers in rounds
  ]
  ours = step_ms("gpt_jax")
  pairs = []
  if args.peer is not None:
    peers = {name: step_ms(name) for name in both.rivals}
    pairs.append(Pairs("a step", "ms", ours, peers, both.failed))
  about = built | {
    "rates": prediction["rates"],
    "steps": {name: command["count"] for name, command in plan.items()},
    "idle_share": both.idle_share,
    "waiting": both.waiting,
  }
  packages = {None: (), "torch": ("torch",)}
  report.publish(
    "train",
    config,
    args,
    make_rows(config, ours, prediction, built),
    pairs,
    about,
    packages.get(args.peer, ("torch", "transformers")),
  )
  if both.idle_share > duel.MAX_IDLE_SHARE:
    share = f"{both.idle_share:.0%}"
    print(f"careful: a process that was to wait took {share} of a core")
  return 0


def check_vocab(config: Config) -> None:
  """Raises InputError where only text would say how large the vocabulary is."""
  if config.model.vocab_size is None:
    raise InputError(
      "model.vocab_size is None and no text is read here; set "
      "--config.model.vocab_size, or take a variant of configs/bench.py"
    )


def warm_up(both, name: str, steps: int | None) -> dict:
  """Runs a worker warm; returns the command of one measurement."""
  first = both.ask(name, do="run", count=1)["seconds"][0]
  if first < 10 * SECONDS:
    first = min(both.ask(name, do="run", count=WARM_STEPS)["seconds"])
  count = steps or min(max(round(SECONDS / first), 1), MOST_STEPS)
  return {"do": "run", "count": count}


def make_rows(config: Config, ours_ms, prediction, built) -> list[Row]:
  """Returns rows of one step, beside the roofline and the ledger."""
  tokens = config.train.global_batch_size * config.data.seq_len
  work = flops.train_flops_per_token(config.model, config.data.seq_len)
  rates = prediction["rates"]
  bound, mfu, note = None, None, ""
  if rates["flops"] is not None:
    ledger = work * tokens / rates["flops"]
    bound = max(prediction["compute"], prediction["memory"])
    is_compute = prediction["compute"] >= prediction["memory"]
    mfu = 100 * ledger / bound
    note = f"roofline, bound by {'compute' if is_compute else 'memory'}"
  rows = [Row("a step", "ms", ours_ms, bound and 1e3 * bound, note)]
  if rates["flops"] is not None:
    rows.append(
      Row("a step", "ms", ours_ms, 1e3 * ledger, "ledger, at the peak")
    )
  speeds = [1e3 * tokens / ms for ms in ours_ms]
  rows.append(Row("tokens/s", "", speeds, bound and tokens / bound))
  if rates["flops"] is not None:
    percent = [100 * speed * work / rates["flops"] for speed in speeds]
    rows.append(Row("MFU", "%", percent, mfu, "6 N + 12 L D T, of the peak"))
  rows.append(Row("compile", "s", [built["compile_seconds"]]))
  if built["peak_bytes"]:
    size = built["peak_bytes"] / 2**20
    rows.append(Row("memory of the step", "MiB", [size]))
  return rows
