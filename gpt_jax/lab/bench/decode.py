"""The decode subject: times prefill, and the loop that generates tokens."""

from gpt_jax import config as config_lib
from gpt_jax import flops
from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import duel
from gpt_jax.lab.bench.samples import REPEATS, Measurement, Pairs, Row
from gpt_jax.lab.bench.train import check_vocab

PROMPT_LEN = 64
# The loop is timed after its first chunk of tokens, so more must follow.
LEAST_TOKENS = 32


def find_prompt_len(config: Config, num_tokens: int, least: int) -> int:
  """Returns the length of prompts that leaves room for num_tokens.

  Args:
    least: the smallest num_tokens that is allowed.

  Raises:
    InputError: num_tokens is below `least` or does not fit, or the vocabulary
      is not known.
  """
  check_vocab(config)
  prompt_len = min(PROMPT_LEN, config.model.max_len // 2)
  room = config.model.max_len - prompt_len
  if not least <= num_tokens <= room:
    raise InputError(
      f"--tokens is {num_tokens}; it must be {least} to {room}, what "
      f"model.max_len {config.model.max_len} leaves after a prompt of "
      f"{prompt_len}"
    )
  return prompt_len


def measure(
  config: Config,
  batch_sizes: list[int] | tuple[int, ...] = (1, 8),
  num_tokens: int = 128,
  weights: str = "full",
  peer: str | None = None,
  repeats: int = REPEATS,
  devices: int | None = None,
) -> Measurement:
  """Times greedy generation.

  Args:
    config: frozen, with a known vocabulary.
    num_tokens: tokens that are generated for each sequence.
    weights: format of the matrices, as in generate's --weights.
    peer: a name of peers.NAMES to time in alternation, or None.
    devices: number of simulated devices, or None.

  Raises:
    InputError: num_tokens does not fit, the vocabulary is not known, or the
      peer cannot be built.
    worker.Failed: the process of gpt_jax ended.
  """
  prompt_len = find_prompt_len(config, num_tokens, LEAST_TOKENS)
  options = {"prompt_len": prompt_len, "num_tokens": num_tokens}
  rows, pairs = [], []
  trial = {"do": "run", "batch_size": batch_sizes[0]}
  ours = {"weights": weights}
  with duel.Duel(
    config, "decode", peer, devices, trial, ours, **options
  ) as both:
    found = {}
    for size in batch_sizes:
      plan = dict.fromkeys(
        ["gpt_jax", *both.rivals], {"do": "run", "batch_size": size}
      )
      both.round(plan)  # compiles, and warms up
      found[size] = [both.round(plan) for _ in range(repeats)]
    prediction = both.ours.ask(do="predict")
    built = both.ours.built
  rates = prediction["rates"]
  for size, rounds in found.items():
    ours = [answers["gpt_jax"] for answers in rounds]
    rows += make_rows(
      config, size, prompt_len, num_tokens, weights, ours, built, rates
    )
    if peer is not None:
      pairs += make_pairs(size, rounds, both)
  about = built | {
    "rates": rates,
    "prompt_len": prompt_len,
    "num_tokens": num_tokens,
    "weights": weights,
    "idle_share": both.idle_share,
    "waiting": both.waiting,
  }
  packages = ("torch", "transformers") if peer else ()
  return Measurement("decode", config, rows, pairs, about, packages)


def make_rows(config, size, prompt_len, num_tokens, word, ours, built, rates):
  """Returns rows of one batch size with predictions by the machine's rates.

  A step reads every weight and the cache once, and does two FLOPs for each
  weight and sequence.
  """
  m = config.model
  count = sum(flops.count_active_parameters(m).values())
  slots = prompt_len + num_tokens / 2
  cached = flops.cache_bytes(m, slots, flops.DTYPE_BYTES[m.compute_dtype])
  weights = built["weight_bytes"]
  moved = weights + size * cached
  prompt = size * prompt_len
  step = prefill = None
  if rates["flops"] is not None:
    step = max(moved / rates["bytes"], 2 * count * size / rates["flops"])
    # Forward FLOPs are a third of training's; the head scores the last token
    # of each sequence only.
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
      f"{prompt_len} tokens per sequence",
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
      f"{weights / 1e6:,.1f} MB per token, weights {word}; "
      "ratio = share of bandwidth",
    ),
  ]
  return rows


def make_pairs(size: int, rounds, both) -> list[Pairs]:
  """Returns Pairs for the loop, for prefill and for both together."""
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
    pairs.append(Pairs(name, each("gpt_jax"), peers, both.failed))
  return pairs
