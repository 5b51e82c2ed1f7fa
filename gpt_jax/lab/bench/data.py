"""The data subject: times preparation, the loader, and steps' data waits."""

import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.data import sources, tokenizers
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.shards import check_length
from gpt_jax.lab.bench import machine, worker
from gpt_jax.lab.bench.samples import REPEATS, Measurement, Row

# Sequence lengths of the loader's batches; every batch has LOADER_TOKENS.
LOADER_LENS = (1024, 8192)
LOADER_TOKENS = 1 << 16
LOADER_SECONDS = 1.0
# GPT-2's pre-tokenization pattern (Radford et al. 2019), for tiktoken. The
# tokenizers library has it built in.
WORDS = (
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def measure(
  config: Config,
  repeats: int = REPEATS,
  num_steps: int | None = None,
  devices: int | None = None,
  say=print,
) -> Measurement:
  """Times preparation, the loader, and steps that read their data.

  Args:
    config: frozen, with a byte-pair tokenizer.
    num_steps: steps in a measurement; None: about a second's.
    devices: number of simulated devices, or None.
    say: called with lines about what is being done.

  Raises:
    InputError: the tokenizer is of another kind, or the text is too short.
    worker.Failed: the process that trains ended.
  """
  kind, _ = config_lib.tokenizer_spec(config.data.tokenizer)
  if kind not in ("bpe", "gpt2", "hf"):
    raise InputError(
      f"data.tokenizer is {config.data.tokenizer!r}; preparation is timed with "
      "a byte-pair one: bpe:SIZE, gpt2:PATH or hf:PATH"
    )
  with tempfile.TemporaryDirectory() as folder:
    say("preparing once, which learns the vocabulary ...")
    prepared = prepare(config, os.path.join(folder, "first"))
    spec = fixed_spec(config, prepared, folder)
    rows = time_preparation(config, spec, prepared, folder, repeats)
    speeds = {}
    for length in LOADER_LENS:
      speeds[length] = time_loader(config, prepared, length, repeats)
      name = f"loader T={length}, tokens/s"
      if speeds[length] is None:
        say(f"{name}: not measured, the text is too short")
      else:
        rows.append(Row(name, "", speeds[length]))
    fed = time_fed_steps(config, prepared, folder, repeats, num_steps, devices)
  tokens = config.train.global_batch_size * config.data.seq_len
  step = statistics.median(fed["seconds"])
  milliseconds = [1e3 * s for s in fed["seconds"]]
  rows.append(Row("a step that reads its data", "ms", milliseconds))
  waits = [100 * wait / step for wait in fed["waits"]]
  rows.append(Row("of it spent waiting for data", "%", waits))
  for length, speed in speeds.items():
    if speed is not None:
      times = [one / (tokens / step) for one in speed]
      rows.append(
        Row(f"loader, T={length}, of what steps take", "times", times)
      )
  return Measurement(
    "data",
    fed["config"],
    rows,
    about={"num_tokens": prepared.train[0][1].num_tokens},
    packages=("grain", "tokenizers", "tiktoken"),
  )


def prepare(config: Config, folder: str, spec: str | None = None):
  """Prepares the config's text in `folder`; returns the PreparedData.

  Args:
    spec: tokenizer spec to use in place of data.tokenizer, or None.
  """
  data = dataclasses.replace(
    config.data, dir=folder, tokenizer=spec or config.data.tokenizer
  )
  return prepare_data(data, lambda line: None)


def fixed_spec(config: Config, prepared, folder: str) -> str:
  """Returns the spec of a trained tokenizer with the prepared vocabulary.

  A tokenizer that preparation trained is written to `folder`; others keep
  their spec.
  """
  if not tokenizers.is_trained(config.data.tokenizer):
    return config.data.tokenizer
  with open(prepared.tokenizer_path, encoding="utf-8") as file:
    library = json.load(file)["library"]
  path = os.path.join(folder, "tokenizer.json")
  with open(path, "w", encoding="utf-8") as file:
    json.dump(library, file)
  return f"hf:{path}"


def time_preparation(config, spec: str, prepared, folder, repeats: int):
  """Times preparation, and other tokenizers on the same text; returns Rows."""
  encoder = prepared.tokenizer
  texts = read_texts(config, encoder)
  count = sum(len(ids) for ids in encoder.encode_batch(texts))
  alone = {
    "tokenizers": alone_tokenizers(prepared),
    "tiktoken": alone_tiktoken(encoder),
  }
  seconds = {name: [] for name in ("ours", *alone)}
  # Alternate, because a machine's speed drifts.
  for index in range(repeats):
    where = os.path.join(folder, f"again{index}")
    start = time.perf_counter()
    made = prepare(config, where, spec)
    seconds["ours"].append(time.perf_counter() - start)
    for name, encode in alone.items():
      start = time.perf_counter()
      found = encode(texts)
      seconds[name].append(time.perf_counter() - start)
      if name == "tokenizers" and found != count:
        raise InputError(
          f"{spec} gives {count} tokens here and {found} in the library alone"
        )
  sets = [s for _, s in made.train] + list(made.valid.values())
  tokens = sum(s.num_tokens for s in sets)
  rate = lambda name, n: [n / s for s in seconds[name]]
  rows = []
  library = statistics.median(rate("tokenizers", count))
  rows.append(
    Row(
      "preparation, tokens/s",
      "",
      rate("ours", tokens),
      library,
      "predicted: tokenizers alone",
    )
  )
  for name in alone:
    rows.append(Row(f"{name} alone, tokens/s", "", rate(name, count)))
  size = sum(len(text.encode()) for text in texts) / 1e6
  rows.append(Row("preparation, MB/s", "", rate("ours", size)))
  return rows


def read_texts(config: Config, encoder) -> list[str]:
  """Returns all the text, in the pieces that preparation encodes."""
  texts = []
  for _, spec in sources.parse_mixture(config.data.source):
    for document in sources.open_source(spec).documents():
      texts.extend(encoder.split(document.pieces))
  return texts


def alone_tokenizers(prepared):
  """Returns a function texts -> number of ids, by the `tokenizers` library."""
  from tokenizers import Tokenizer

  with open(prepared.tokenizer_path, encoding="utf-8") as file:
    library = json.load(file)["library"]
  one = Tokenizer.from_str(json.dumps(library))
  # Encode a separator's name within a text as plain text, as preparation does.
  one.encode_special_tokens = True

  def encode(texts) -> int:
    found = one.encode_batch_fast(texts, add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in found)

  return encode


def alone_tiktoken(encoder):
  """Returns a function texts -> number of ids, by tiktoken with our merges."""
  import tiktoken

  ranks = {}
  for index in range(encoder.vocab_size):
    if index != encoder.separator_id:
      ranks[encoder.decode_bytes([index])] = index
  one = tiktoken.Encoding(
    "bench", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={}
  )
  cores = machine.count_cores()
  return lambda texts: sum(
    map(len, one.encode_ordinary_batch(texts, num_threads=cores))
  )


def time_loader(config: Config, prepared, length: int, repeats: int):
  """Returns the loader's tokens/s of each repeat, None if the text is short.

  Args:
    length: sequence length, for which the text may be too short.
  """
  from gpt_jax.data.batches import make_train_iterator

  data = dataclasses.replace(config.data, seq_len=length)
  try:
    for _, token_set in prepared.train:
      check_length(token_set, length)
  except InputError:
    return None
  size = LOADER_TOKENS // length
  config = dataclasses.replace(config, data=data)
  batches = make_train_iterator(
    prepared, config, config.seed, size, np.arange(size), 0
  )
  for _ in range(32):  # more batches than the loader reads ahead
    next(batches)
  speeds = []
  for _ in range(repeats):
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < LOADER_SECONDS:
      for _ in itertools.repeat(None, 8):
        next(batches)
      count += 8
    speeds.append(count * size * length / (time.perf_counter() - start))
  return speeds


def time_fed_steps(
  config: Config, prepared, folder: str, repeats: int, num_steps, devices
) -> dict:
  """Times training steps that read prepared data, in a worker.

  Returns:
    config: with the vocabulary filled in.
    seconds: median seconds per step of each repeat.
    waits: mean seconds per step spent waiting for data, of each repeat.
  """
  config = prepared.resolve_vocab(config)
  first = os.path.join(folder, "first")
  with worker.Worker(
    "gpt_jax", "train", config, devices, prepared_dir=first
  ) as one:
    once = one.ask(do="run", count=3)["seconds"]
    count = num_steps or min(max(round(1 / min(once)), 3), 100)
    found = [one.ask(do="run", count=count) for _ in range(repeats)]
  return {
    "config": config,
    "seconds": [statistics.median(one["seconds"]) for one in found],
    "waits": [statistics.mean(one["waits"]) for one in found],
  }
