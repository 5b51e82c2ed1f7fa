"""The serve subject: tokens per second of a server, and the gaps between them.

Clients send requests over HTTP and read the stream of tokens; a client that has
its text asks for the next one of a shared list. The server has one row for each
client. A peer generates the same texts without a server, in the order of the
list, in batches of one text for each client. A batch runs until its longest
text ends; tokens of its other texts after their ends are not counted.
"""

import asyncio
import json
import random
import time
from typing import NamedTuple

from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.lab.bench import duel
from gpt_jax.lab.bench.decode import find_prompt_len
from gpt_jax.lab.bench.samples import Measurement, Pairs, Row

# Texts per client in one measurement: TEXTS if all have the same length. Texts
# of mixed lengths free rows at different times; more of them fill these rows.
TEXTS, MIXED_TEXTS = 2, 8


class Load(NamedTuple):
  """A server's performance, as its clients measured it.

  Attributes:
    rate: tokens per second that all clients together received.
    first: seconds to the first token of each text.
    gaps: seconds between consecutive tokens of a text.
  """

  rate: float
  first: list[float]
  gaps: list[float]


def measure(
  config: Config,
  batch_sizes: list[int] | tuple[int, ...] = (1, 8, 32),
  num_tokens: int | tuple[int, int] = 128,
  weights: str = "full",
  peer: str | None = None,
  repeats: int = 3,
  devices: int | None = None,
) -> Measurement:
  """Times a server under load.

  Args:
    config: frozen, with a known vocabulary.
    batch_sizes: numbers of clients.
    num_tokens: tokens of each text; or (least, most), between which each text's
      number is drawn uniformly.
    weights: format of the matrices, as in generate's --weights.
    peer: a name of peers.NAMES to time in alternation, or None.
    devices: number of simulated devices, or None.

  Raises:
    InputError: num_tokens does not fit, the vocabulary is not known, or the
      peer cannot be built.
    worker.Failed: the process of gpt_jax ended.
  """
  low, high = (num_tokens,) * 2 if isinstance(num_tokens, int) else num_tokens
  prompt_len = find_prompt_len(config, high, 2)
  options = {"prompt_len": prompt_len, "num_tokens": high}
  trial = {"do": "run", "batch_size": batch_sizes[0]}
  rows, pairs = [], []
  V = config_lib.vocab_size(config.model)
  with duel.Duel(
    config, "serve", peer, devices, trial, {"weights": weights}, **options
  ) as both:
    for count in batch_sizes:
      port = both.ours.ask(do="open", num_rows=count)["port"]
      load = lambda lengths, count=count, port=port: asyncio.run(
        _load(port, count, V, prompt_len, lengths)
      )
      lengths = draw_lengths(count, low, high)
      theirs = {"do": "write", "batch_size": count}
      load(lengths[:count])  # warms up
      for name in both.rivals:
        both.rivals[name].ask(**theirs, lengths=lengths[:count])
      found, seconds = [], {name: [] for name in both.rivals}
      for _ in range(repeats):
        found.append(load(lengths))
        for name in both.rivals:
          answer = both.ask(name, **theirs, lengths=lengths)
          seconds[name].append(answer["total"])
      both.ours.ask(do="close")
      rows += _make_rows(count, found)
      if peer is not None:
        peers = {
          name: [1e3 * s / sum(lengths) for s in values]
          for name, values in seconds.items()
        }
        ours = [1e3 / one.rate for one in found]
        name = f"{count} clients: a token of all"
        pairs.append(Pairs(name, ours, peers, both.failed))
    built = both.ours.built
  about = built | {
    "prompt_len": prompt_len,
    "num_tokens": num_tokens,
    "weights": weights,
    "idle_share": both.idle_share,
    "waiting": both.waiting,
  }
  packages = ("torch", "transformers") if peer else ()
  return Measurement("serve", config, rows, pairs, about, packages)


def draw_lengths(count: int, low: int, high: int) -> list[int]:
  """Returns the number of tokens of each text, the same at every call."""
  if low == high:
    return [low] * count * TEXTS
  rng = random.Random(count)
  return [rng.randint(low, high) for _ in range(count * MIXED_TEXTS)]


def _make_rows(count: int, found: list[Load]) -> list[Row]:
  name = f"{count} client{'s' * (count > 1)}: "
  part = lambda values, share: 1e3 * sorted(values)[int(share * len(values))]
  one = lambda what, unit, each: Row(name + what, unit, list(map(each, found)))
  return [
    one("tokens/s", "", lambda x: x.rate),
    one("first token, median", "ms", lambda x: part(x.first, 0.5)),
    one("between tokens, median", "ms", lambda x: part(x.gaps, 0.5)),
    one("between tokens, p99", "ms", lambda x: part(x.gaps, 0.99)),
  ]


async def _load(
  port: int, count: int, V: int, prompt_len: int, lengths: list[int]
) -> Load:
  """Returns what `count` clients see, who ask for texts of these lengths."""
  rng, first, gaps = random.Random(0), [], []
  waiting = iter(lengths)

  async def ask(num_tokens: int) -> None:
    body = {
      "prompt": [rng.randrange(V) for _ in range(prompt_len)],
      "max_tokens": num_tokens,
      "temperature": 0,
      "stream": True,
    }
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    last = None
    async for line in reader:
      if not line.startswith(b"data: {"):
        continue
      now = time.perf_counter()
      if json.loads(line[6:])["choices"][0]["finish_reason"] is not None:
        break
      if last is None:
        first.append(now - begun)
      else:
        gaps.append(now - last)
      last = now
    writer.close()

  async def client() -> None:
    for num_tokens in waiting:
      await ask(num_tokens)

  begun = time.perf_counter()
  await asyncio.gather(*(client() for _ in range(count)))
  seconds = time.perf_counter() - begun
  return Load(sum(lengths) / seconds, first, gaps)
