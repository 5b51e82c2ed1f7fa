"""The train subject: milliseconds per step, tokens per second, MFU."""

import statistics

from gpt_jax import flops
from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import duel
from gpt_jax.lab.bench.samples import REPEATS, Measurement, Pairs, Row

# Length of a measurement if no number of steps is given. Many short ones, so
# that a slow spell of the machine affects only a few.
SECONDS = 0.33
MOST_STEPS = 100
SHORT_REPEATS = 25
# Warm-up steps before the first measurement, if steps are short.
WARM_STEPS = 3


def measure(
  config: Config,
  repeats: int | None = None,
  num_steps: int | None = None,
  peer: str | None = None,
  devices: int | None = None,
) -> Measurement:
  """Times the training step.

  Args:
    config: frozen, with a known vocabulary.
    repeats: measurements; None takes 5, or 25 of several steps each.
    num_steps: steps in a measurement; None: as many as fit in SECONDS.
    peer: a name of peers.NAMES to time in alternation, or None.
    devices: number of simulated devices, or None.

  Raises:
    InputError: the vocabulary is not known, or the peer cannot be built.
    worker.Failed: the process of gpt_jax ended.
  """
  check_vocab(config)
  trial = {"do": "run", "count": 1}
  with duel.Duel(config, "train", peer, devices, trial) as both:
    plan = both.each(lambda name: warm_up(both, name, num_steps))
    is_short = plan["gpt_jax"]["count"] > 1
    repeats = repeats or (SHORT_REPEATS if is_short else REPEATS)
    rounds = [both.round(plan) for _ in range(repeats)]
    prediction = both.ours.ask(do="predict")
    built = both.ours.built
  step_ms = lambda name: [
    1e3 * statistics.median(answers[name]["seconds"]) for answers in rounds
  ]
  ours = step_ms("gpt_jax")
  pairs = []
  if peer is not None:
    peers = {name: step_ms(name) for name in both.rivals}
    pairs.append(Pairs("a step", ours, peers, both.failed))
  about = built | {
    "rates": prediction["rates"],
    "steps": {name: command["count"] for name, command in plan.items()},
    "idle_share": both.idle_share,
    "waiting": both.waiting,
  }
  packages = {None: (), "torch": ("torch",)}
  remarks = []
  if both.idle_share > duel.MAX_IDLE_SHARE:
    share = f"{both.idle_share:.0%}"
    remarks.append(
      f"careful: a process that was to wait took {share} of a core"
    )
  return Measurement(
    "train",
    config,
    make_rows(config, ours, prediction, built),
    pairs,
    about,
    packages.get(peer, ("torch", "transformers")),
    remarks,
  )


def check_vocab(config: Config) -> None:
  """Raises InputError if only preparing the text would give the vocabulary."""
  if config.model.vocab_size is None:
    raise InputError(
      "model.vocab_size is None and no text is read here; set "
      "--config.model.vocab_size, or take a variant of configs/bench.py"
    )


def warm_up(both, name: str, steps: int | None) -> dict:
  """Warms a worker up; returns the command of one measurement."""
  first = both.ask(name, do="run", count=1)["seconds"][0]
  if first < 10 * SECONDS:
    first = min(both.ask(name, do="run", count=WARM_STEPS)["seconds"])
  count = steps or min(max(round(SECONDS / first), 1), MOST_STEPS)
  return {"do": "run", "count": count}


def make_rows(config: Config, ours_ms, prediction, built) -> list[Row]:
  """Returns the rows of a step, predicted by the roofline and the ledger."""
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
