"""The decode subject: prefill apart, then tokens a second of the loop."""

from gpt_jax import config as config_lib
from gpt_jax import flops
from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import duel, report
from gpt_jax.lab.bench.samples import Pairs, Row
from gpt_jax.lab.bench.train import check_vocab

PROMPT_LEN = 64
# The loop is timed from its first chunk on.
LEAST_TOKENS = 32
ITEM = {"float32": 4, "bfloat16": 2}


def run(config: Config, args) -> int:
  check_vocab(config)
  prompt_len = min(PROMPT_LEN, config.model.max_len // 2)
  room = config.model.max_len - prompt_len
  if not LEAST_TOKENS <= args.tokens <= room:
    raise InputError(
      f"--tokens is {args.tokens}; it must be {LEAST_TOKENS} to {room}, what "
      f"model.max_len {config.model.max_len} leaves after a prompt of "
      f"{prompt_len}"
    )
  options = {"prompt_len": prompt_len, "num_tokens": args.tokens}
  rows, pairs = [], []
  trial = {"do": "run", "batch_size": args.batch[0]}
  ours = {"weights": args.weights}
  with duel.Duel(config, "decode", args, trial, ours, **options) as both:
    found = {}
    for size in args.batch:
      plan = dict.fromkeys(
        ["gpt_jax", *both.rivals], {"do": "run", "batch_size": size}
      )
      both.round(plan)  # compiles, and warms up
      found[size] = [both.round(plan) for _ in range(args.repeats)]
    prediction = both.ours.ask(do="predict")
    built = both.ours.built
  rates = prediction["rates"]
  for size, rounds in found.items():
    ours = [answers["gpt_jax"] for answers in rounds]
    rows += make_rows(
      config, size, prompt_len, args.tokens, args.weights, ours, built, rates
    )
    if args.peer is not None:
      pairs += make_pairs(size, rounds, both)
  about = built | {
    "rates": rates,
    "prompt_len": prompt_len,
    "num_tokens": args.tokens,
    "weights": args.weights,
    "idle_share": both.idle_share,
    "waiting": both.waiting,
  }
  packages = ("torch", "transformers") if args.peer else ()
  report.publish("decode", config, args, rows, pairs, about, packages)
  return 0


def make_rows(config, size, prompt_len, num_tokens, word, ours, built, rates):
  """Returns rows of one batch size, beside what the machine allows.

  A step reads every weight once, and what is cached; its arithmetic is two
  FLOPs a weight and row.
  """
  m = config.model
  count = sum(flops.count_active_parameters(m).values())
  cached = flops.cache_bytes_per_token(m, ITEM[m.compute_dtype])
  slots = prompt_len + num_tokens / 2
  weights = built["weight_bytes"]
  moved = weights + size * slots * cached
  prompt = size * prompt_len
  step = prefill = None
  if rates["flops"] is not None:
    step = max(moved / rates["bytes"], 2 * count * size / rates["flops"])
    # Only the last token of a row is scored; a third of training's FLOPs.
    scored = m.model_dim * config_lib.padded_vocab_size(m)
    work = flops.train_flops_per_token(m, prompt_len) / 3 - 2 * scored
    prefill = work * prompt + 2 * scored * size
    prefill = max(prefill / rates["flops"], weights / rates["bytes"])
  steps = [one["loop"] / one["loop_tokens"] for one in ours]
  first = [one["prefill"] for one in ours]
  name = f"B={size}: "
  rows = [
    Row(
      name + "prefill",
      "ms",
      [1e3 * s for s in first],
      prefill and 1e3 * prefill,
      f"{prompt_len} tokens a row",
    ),
    Row(
      name + "prefill tokens/s",
      "",
      [prompt / s for s in first],
      prefill and prompt / prefill,
    ),
    Row(
      name + "a token",
      "ms",
      [1e3 * s for s in steps],
      step and 1e3 * step,
      "weights and cache read once",
    ),
    Row(
      name + "tokens/s",
      "",
      [size / s for s in steps],
      step and size / step,
    ),
    Row(
      name + "weights read",
      "GB/s",
      [weights / s / 1e9 for s in steps],
      rates["bytes"] and rates["bytes"] / 1e9,
      f"{weights / 1e6:,.1f} MB a token, weights {word}; "
      "ratio = share of bandwidth",
    ),
  ]
  return rows


def make_pairs(size: int, rounds, both) -> list[Pairs]:
  """Returns Pairs of the loop, of prefill and of the whole."""
  of = {
    "a token": lambda one: 1e3 * one["loop"] / one["loop_tokens"],
    "prefill": lambda one: 1e3 * one["prefill"],
    "prefill and all tokens": lambda one: 1e3 * one["total"],
  }
  pairs = []
  for what, number in of.items():
    each = lambda name, number=number: [number(r[name]) for r in rounds]
    peers = {name: each(name) for name in both.rivals}
    name = f"B={size}: {what}"
    pairs.append(Pairs(name, "ms", each("gpt_jax"), peers, both.failed))
  return pairs
